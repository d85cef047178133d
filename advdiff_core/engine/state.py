"""What a checkpoint holds, as nested dicts of tensors and plain values."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from advdiff_core.engine.checkpoint import match_state
from advdiff_core.engine.optimizer_state import load_optimizer_state, optimizer_state
from advdiff_core.engine.sharding import PIECES, put, split

if TYPE_CHECKING:
    from advdiff_core.engine.assemble import Experiment
    from advdiff_core.engine.trainer import Trainer

__all__ = ["gather_state", "is_finite", "restore_state", "restore_weights"]


def gather_state(trainer: Trainer) -> tuple[dict[str, Any], dict[str, Any]]:
    """State of a run: shared by all processes, and this process's own.

    No random state is in it: every draw is keyed by seed and step.
    """
    experiment = trainer.experiment
    shared = {
        "nimg": trainer.nimg,
        "index": trainer.index,
        "micro": trainer.micro,
        "models": {name: _tensors(role.module) for name, role in experiment.scene.roles.items()},
        "terms": {
            term.name: _tensors(term.module)
            for player in experiment.players
            for term in player.terms
        },
        "times": {} if experiment.scene.times is None else _tensors(experiment.scene.times),
        "ema": {
            role: [dict(ema.shadow) for ema in emas]
            for player in experiment.players
            for role, emas in player.emas.items()
        },
        "optimizers": {
            player.name: optimizer_state(player.optimizer, player.parameters)
            for player in experiment.players
        },
        "players": {
            player.name: {
                "updates": player.updates,
                "ema_updates": {
                    role: [ema.updates for ema in emas] for role, emas in player.emas.items()
                },
            }
            for player in experiment.players
        },
    }
    if trainer.validator is not None:
        shared["validation"] = trainer.validator.standing.as_json()
    plain, pieces = split(shared)
    own = {"stats": trainer.stats.state(), "micro": trainer.micro}
    return plain, ({**own, PIECES: pieces} if pieces else own)


def restore_state(trainer: Trainer, shared: dict[str, Any], own: dict[str, Any]) -> None:
    """Put saved state back, name by name.

    Raises:
        DataError: S12 if a tensor is missing, unexpected or of another shape or dtype.
    """
    experiment = trainer.experiment
    restore_weights(experiment, shared)
    for player in experiment.players:
        saved = shared["players"][player.name]
        load_optimizer_state(
            player.optimizer, player.parameters, shared["optimizers"][player.name],
            where=f"optimizers.{player.name}",
        )  # fmt: skip
        player.updates = saved["updates"]
        for role_name, emas in player.emas.items():
            for ema, updates in zip(emas, saved["ema_updates"][role_name], strict=True):
                ema.updates = updates
    if experiment.scene.times is not None:
        _restore(_tensors(experiment.scene.times), shared.get("times", {}), "times")
    trainer.nimg, trainer.index = shared["nimg"], shared["index"]
    if trainer.experiment.recipe.run.micro_batch == "auto":
        # Another split of the batch would add gradients in another order.
        trainer.micro = min(own.get("micro", shared["micro"]) or trainer.micro, trainer.local)
    trainer.stats.load(own["stats"])


def restore_weights(
    experiment: Experiment, shared: dict[str, Any], *, beside: Collection[str] = ()
) -> None:
    """Put saved weights, averages and terms' parameters back, name by name.

    Args:
        experiment: Whose networks get them.
        shared: The state of a checkpoint.
        beside: Roles that the run did not have, whose weights stay as they are.

    Raises:
        DataError: S12 if a tensor is missing, unexpected or of another shape or dtype.
    """
    for name, role in experiment.scene.roles.items():
        if name not in beside:
            _restore(_tensors(role.module), shared["models"].get(name, {}), f"models.{name}")
    for player in experiment.players:
        for term in player.terms:
            found = shared["terms"].get(term.name, {})
            _restore(_tensors(term.module), found, f"terms.{term.name}")
        for role_name, emas in player.emas.items():
            shadows = shared["ema"].get(role_name, [])
            for i, ema in enumerate(emas):
                found = shadows[i] if i < len(shadows) else {}
                _restore(ema.shadow, found, f"ema.{role_name}.{i}")


def is_finite(shared: dict[str, Any], own: Mapping[str, Any] | None = None) -> bool:
    """Whether every floating tensor of the models and averages is finite.

    Args:
        shared: State of all processes.
        own: State of this one, with its rows of what is shared out.
    """
    stack: list[Any] = [shared["models"], shared["ema"], (own or {}).get(PIECES, {})]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            stack += value.values()
        elif isinstance(value, list):
            stack += value
        elif isinstance(value, Tensor) and not bool(value.isfinite().all()):
            return False
    return True


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    # Buffers that are not persistent may still shape training: they are saved too.
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


@torch.no_grad()
def _restore(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], where: str) -> None:
    match_state(wanted, found, where=where)
    for name, tensor in wanted.items():
        put(tensor, found[name])
