"""Networks as a step runs them: counted, autocast, and with the gradient rules of players."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from attrs import evolve, frozen
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from advdiff_core.errors import ContractError
from advdiff_core.interfaces.backbone import BackboneOutput
from advdiff_core.interfaces.query import Mode
from advdiff_core.step.denoiser import full_features, precise
from advdiff_core.step.scene import (
    Role,
    eval_mode,
    parameters_frozen,
    statistics_kept,
    statistics_taken,
)
from advdiff_core.types import Cost, Prediction

if TYPE_CHECKING:
    from advdiff_core.step.step import TrainStep

__all__ = ["RoleNetwork", "guidance_told"]


@frozen
class _Mode:
    """How one call of a network builds its graph.

    Attributes:
        graph: Whether it builds one at all.
        frozen: Whether its parameters are left out of it.
        statistics: Whether running statistics stay as they are, too.
        recompute: Whether a backward runs the forward again, also where the role does not say so.
    """

    graph: bool
    frozen: bool = False
    statistics: bool = False
    recompute: bool = False


class RoleNetwork:
    """See `advdiff_core.interfaces.query.Network`.

    Args:
        role: The role.
        step: The step it runs in.
        mode: How it runs; see `Step.network`.
    """

    def __init__(self, role: Role, step: TrainStep, mode: Mode = "train") -> None:
        self.role = role
        self.step = step
        self.evaluates = mode == "eval"

    def denoise(  # noqa: PLR0913 - the protocol's signature.
        self,
        x_t: Tensor,
        t: Tensor,
        labels: Tensor | None = None,
        *,
        taps: tuple[str, ...] = (),
        stop_at: str | None = None,
        through: bool = False,
        guidance: Tensor | None = None,
        recompute: bool = False,
    ) -> Prediction:
        """Prediction of a denoiser; see `Network.denoise`.

        Raises:
            ContractError: If a network that cannot be told is to have guidance inside.
        """
        mode = evolve(self._mode((x_t,), through=through), recompute=recompute)

        def forward(*args: Any, **kwargs: Any) -> BackboneOutput:
            told = self._told(x_t, guidance)
            output: BackboneOutput = self._counted(mode, *args, **told, **kwargs)
            return output

        with _grad(mode):
            x_t = self._entering(x_t, mode)
            found: Prediction = self.role.wear(forward, x_t, t, labels, taps=taps, stop_at=stop_at)
        return found

    def _told(self, x_t: Tensor, guidance: Tensor | None) -> dict[str, Tensor]:
        """What the network is told of augmentations and guidance, where it listens."""
        told = {} if guidance is None else guidance_told(self.role, guidance, x_t)
        found = self.step.c_augment
        if found is not None and self.role.augment_dim:
            told["c_augment"] = found.to(x_t.dtype)
        return told

    def classify(
        self,
        x: Tensor,
        *,
        c_noise: Tensor | None = None,
        taps: tuple[str, ...] = (),
        stop_at: str | None = None,
        through: bool = False,
    ) -> Prediction:
        """Output of a network without parametrization; see `Network.classify`."""
        mode = self._mode((x,), through=through)
        with _grad(mode):
            x = self._entering(x, mode)
            out = self._counted(mode, x, c_noise, None, taps=taps, stop_at=stop_at)
        value = precise(out.output) if out.output is not None else x.new_empty(0)
        return Prediction("raw", value, x, features=full_features(out.features))

    def score(
        self,
        x: Tensor,
        *,
        reference: Tensor | None = None,
        labels: Tensor | None = None,
        through: bool = True,
    ) -> Tensor:
        """Logits of a discriminator; see `Network.score`."""
        mode = self._mode((x,) if reference is None else (x, reference), through=through)
        with _grad(mode):
            x = self._entering(x, mode)
            reference = None if reference is None else self._entering(reference, mode)
            return precise(self._counted(mode, x, reference=reference, labels=labels))

    def _mode(self, inputs: tuple[Tensor, ...], *, through: bool) -> _Mode:
        """Grad mode of one call: see the docstring of `Network`."""
        step, role = self.step, self.role
        wanted = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
        if step.probing or self.evaluates:
            # Only gradients towards the input are built, and nothing in the network changes.
            return _Mode(graph=wanted, frozen=True, statistics=True)
        if role.name in step.own:
            return _Mode(graph=True)
        if wanted and (role.owner is not None or through):
            return _Mode(graph=True, frozen=True)
        return _Mode(graph=role.owner is not None and role.name in step.upcoming)

    def _entering(self, x: Tensor, mode: _Mode) -> Tensor:
        """`x` as the network gets it: without a graph, or counting the backwards that reach it."""
        if not mode.graph:
            return x.detach()
        if not x.requires_grad:
            return x
        watched = x.view_as(x)
        watched.register_hook(_backward_counter(self.role, self.step))  # type: ignore[no-untyped-call]
        return watched

    def _counted(self, mode: _Mode, *args: Any, **kwargs: Any) -> Any:
        self.role.count(Cost(forwards=1))
        call: Callable[..., Any] = self.role.call
        if mode.frozen:
            call = self._frozen_call(statistics=mode.statistics)
        restore = self.step.seed_global(self.role)
        try:
            with self.step.scene.compute.forward(), self._first_statistics():
                if (self.role.recompute or mode.recompute) and mode.graph:
                    return checkpoint(
                        call, *args, use_reentrant=False, context_fn=self._contexts, **kwargs
                    )
                return call(*args, **kwargs)
        finally:
            restore()

    def _first_statistics(self) -> AbstractContextManager[None]:
        """In the first step of a run, if the role asks for it, running statistics are the batch's.

        Not around the forward that a backward runs again, whose turn may come after another's.
        """
        if self.role.norm_start != "first-step" or self.step.place.index > 0:
            return nullcontext()
        return statistics_taken(self.role.module)

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Around the forward, and around the one that a backward runs again."""
        return nullcontext(), _StatisticsKept(self.role.module)

    def _frozen_call(self, *, statistics: bool) -> Callable[..., Any]:
        """The forward with its parameters frozen, also when a backward recomputes it."""
        role = self.role
        mode = eval_mode if self.evaluates else nullcontext

        def call(*args: Any, **kwargs: Any) -> Any:
            with parameters_frozen([role.module], statistics=statistics), mode(role.module):
                return role.call(*args, **kwargs)

        return call


def guidance_told(role: Role, guidance: Tensor, x_t: Tensor) -> dict[str, Tensor]:
    """Arguments that tell a network the strength of guidance [B] for inputs `x_t` [B, ...].

    Raises:
        ContractError: If the network is not made to be told.
    """
    if not role.info.guided:
        message = f"model {role.name!r} cannot be told the strength of guidance"
        fix = "give it a network that can, by `guided = true`"
        raise ContractError(message, where=f"models.{role.name}", fix=fix)
    return {"guidance": guidance.to(x_t.dtype)}


def _backward_counter(role: Role, step: TrainStep) -> Callable[[Tensor], None]:
    """A hook that counts the input-only backwards of one forward."""
    # The graph must not own the step, whose memo owns the graph: only the garbage collector would
    # free their memory. A probe may be gone when its backward runs; it owns no role anyway.
    of_step = weakref.ref(step)

    def count(_: Tensor) -> None:
        found = of_step()
        # A player's own backward passes the inputs of its networks on the way to their parameters.
        if found is None or found.computing or role.name not in found.own:
            role.count(Cost(input_backwards=1))

    return count


class _StatisticsKept(AbstractContextManager[None]):
    """`statistics_kept` that can be entered again: a double backward runs a forward twice.

    Args:
        module: The network.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.entered: list[AbstractContextManager[None]] = []

    def __enter__(self) -> None:
        self.entered.append(statistics_kept(self.module))
        self.entered[-1].__enter__()

    def __exit__(self, *error: Any) -> None:
        self.entered.pop().__exit__(*error)


def _grad(mode: _Mode) -> Any:
    return nullcontext() if mode.graph else torch.no_grad()
