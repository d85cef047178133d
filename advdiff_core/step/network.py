"""Networks as a step runs them: counted, autocast, and with the gradient rules of players."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from advdiff_core.interfaces.backbone import BackboneOutput
from advdiff_core.step.scene import Role, parameters_frozen
from advdiff_core.types import Cost, Prediction

if TYPE_CHECKING:
    from advdiff_core.step.step import TrainStep

__all__ = ["RoleNetwork"]


class RoleNetwork:
    """See `advdiff_core.interfaces.query.Network`."""

    def __init__(self, role: Role, step: TrainStep) -> None:
        self.role = role
        self.step = step

    def denoise(  # noqa: PLR0913 - the protocol's signature.
        self,
        x_t: Tensor,
        t: Tensor,
        labels: Tensor | None = None,
        *,
        taps: tuple[str, ...] = (),
        stop_at: str | None = None,
        through: bool = False,
    ) -> Prediction:
        """Prediction of a denoiser; see `Network.denoise`."""
        with self._rules((x_t,), through=through):
            return self.role.wear(self._forward, x_t, t, labels, taps=taps, stop_at=stop_at)

    def classify(
        self,
        x: Tensor,
        *,
        taps: tuple[str, ...] = (),
        stop_at: str | None = None,
        through: bool = False,
    ) -> Prediction:
        """Output of a classifier; see `Network.classify`."""
        with self._rules((x,), through=through):
            out = self._forward(x, None, None, taps=taps, stop_at=stop_at)
        value = out.output.float() if out.output is not None else x.new_empty(0)
        return Prediction("raw", value, x, features=out.features)

    def score(
        self,
        x: Tensor,
        *,
        reference: Tensor | None = None,
        labels: Tensor | None = None,
        through: bool = True,
    ) -> Tensor:
        """Logits of a discriminator; see `Network.score`."""
        inputs = (x,) if reference is None else (x, reference)
        with self._rules(inputs, through=through):
            return self._counted(x, reference=reference, labels=labels).float()

    def _forward(self, *args: Any, **kwargs: Any) -> BackboneOutput:
        return self._counted(*args, **kwargs)

    def _counted(self, *args: Any, **kwargs: Any) -> Any:
        self.role.count(Cost(forwards=1))
        restore: Callable[[], None] = self.step.seed_global(self.role)
        try:
            with self.step.scene.compute.forward():
                return self.role.call(*args, **kwargs)
        finally:
            restore()

    @contextmanager
    def _rules(self, inputs: tuple[Tensor, ...], *, through: bool) -> Iterator[None]:
        """Grad mode of one call: see the docstring of `Network`."""
        step, role = self.step, self.role
        wanted = any(x.requires_grad for x in inputs)
        if step.probing:
            # The search has frozen the parameters; only gradients towards the input are built.
            with nullcontext() if wanted else torch.no_grad():
                yield
        elif role.name in step.own:
            yield
        elif wanted and (role.owner is not None or through):
            with parameters_frozen([role.module]):
                yield
        elif role.owner is not None and role.name in step.upcoming:
            yield
        else:
            with torch.no_grad():
                yield
