"""Gradients between backward and the optimizer: clipping and the decision whether to move."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from advdiff_core.engine.distributed import World
from advdiff_core.engine.sharding import is_sharded, local
from advdiff_core.errors import NumericsError

if TYPE_CHECKING:
    from advdiff_core.engine.players import Player

__all__ = ["clip_gradients", "refuse_non_finite"]


@torch.no_grad()
def clip_gradients(
    parameters: Sequence[nn.Parameter], limit: float | None, world: World | None = None
) -> Tensor:
    """Scale gradients down to a total norm of `limit`; returns the norm before, on the device.

    A norm that is not finite leaves the gradients as they are: the caller refuses the step.

    Args:
        parameters: Whose gradients; of those that are shared out, the rows of all processes count.
        limit: Largest norm; None for no limit.
        world: The processes; alone if None.
    """
    world = world or World()
    gradients = [p.grad for p in parameters if p.grad is not None and not is_sharded(p.grad)]
    rows = [local(p.grad) for p in parameters if p.grad is not None and is_sharded(p.grad)]
    if not (gradients or rows):
        return torch.zeros(())
    norm = _norm(gradients)
    if rows:
        norm = (norm.square() + world.sum(_norm(rows).square())).sqrt()
    if limit is not None:
        factor = torch.where(norm.isfinite(), (limit / (norm + 1e-12)).clamp(max=1.0), 1.0)
        torch._foreach_mul_([*gradients, *rows], factor)
    return norm


def _norm(tensors: list[Tensor]) -> Tensor:
    if not tensors:
        return torch.zeros(())
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))
    return norm


def refuse_non_finite(total: Tensor, norm: Tensor, player: Player, world: World) -> None:
    """Stop before the optimizer moves if the loss or a gradient norm (scalars) is not finite.

    The one host synchronisation of a turn: whether to step must be known on the host, by all
    processes.

    Raises:
        NumericsError: N01 for a loss, N02 for a gradient (names the parameter).
    """
    fine = bool(torch.isfinite(total) & torch.isfinite(norm))
    if world.all(fine):
        return
    where = f"players.{player.name}"
    fix = "lower the learning rate, set players.*.clip, or look at the saved capsule"
    if not bool(torch.isfinite(total)):
        message = f"the loss is {float(total)}; no weight has moved"
        raise NumericsError(message, code="N01", where=where, fix=fix)
    names = [
        name
        for name, p in player.parameters
        if p.grad is not None and not local(p.grad).isfinite().all()
    ]
    found = names[0] if names else "another process"
    message = f"the gradient of {found} is not finite; no weight has moved"
    raise NumericsError(message, code="N02", where=where, fix=fix)
