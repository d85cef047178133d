"""A diffuse-and-denoise defence: inputs are noised up to a time and denoised, then judged.

Purification as in Nie et al. (2022, "Diffusion models for adversarial purification"). What the
gradient passes is a choice that decides how robust it looks, so it is part of the record.
"""

from __future__ import annotations

from typing import Literal

import torch
from attrs import field, frozen
from torch import Tensor, nn

from advdiff_core.draws import keyed_generator
from advdiff_core.interfaces.noise_schedule import NoiseSchedule
from advdiff_core.interfaces.sampler import Denoise, Sampler, all_steps
from advdiff_core.types import Domain, Prediction

__all__ = ["GRADIENTS", "Gradient", "Purified", "Purifier", "gradient_text"]

Gradient = Literal["full", "truncated", "surrogate", "identity"]

#: What each gradient is, for the record.
GRADIENTS: dict[Gradient, str] = {
    "full": "through all {steps} steps, recomputed one by one",
    "truncated": "through the last {last} of {steps} steps; the ones before count as the identity",
    "surrogate": "of one denoising at the noisiest time, in place of all {steps} steps",
    "identity": "of the identity, in place of all {steps} steps",
}


def gradient_text(gradient: Gradient, *, steps: int, last: int) -> str:
    """What a gradient is, with its numbers."""
    return GRADIENTS[gradient].format(steps=steps, last=min(last, steps))


class Purifier(nn.Module):
    """Noises inputs up to a time and solves the reverse process from there.

    Each forward draws one number from torch's global generator, from which all of its noise is
    made: whoever seeds that generator, as evaluations and the attack `eot` do, repeats the noise.

    Args:
        network: The denoiser's network, which is a part of this module.
        denoise: The denoiser: prediction at `x_t` [B, ...] and `t` [B].
        schedule: Its noise schedule.
        sampler: Solves the reverse process.
        grid: Times [n + 1] from the time that inputs are noised to; see `advdiff_core.math.grids`.
        gradient: What the gradient towards the input is; see `GRADIENTS`.
        last: Steps that "truncated" passes through.
        domains: Domain of the inputs and that of the denoiser; None if they are the same.
    """

    def __init__(  # noqa: PLR0913 - a denoiser, a sampler and how both are used.
        self,
        network: nn.Module,
        denoise: Denoise,
        schedule: NoiseSchedule,
        sampler: Sampler,
        *,
        grid: Tensor,
        gradient: Gradient = "full",
        last: int = 1,
        domains: tuple[Domain, Domain] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.denoise, self.schedule, self.sampler = denoise, schedule, sampler
        self.grid, self.gradient, self.last, self.domains = grid, gradient, last, domains

    @property
    def steps(self) -> int:
        """Steps of the reverse process."""
        return len(self.grid) - 1

    def forward(self, x: Tensor) -> Tensor:
        """Purified inputs [B, ...] of `x` [B, ...], in the same domain; not clipped to it."""
        inner = x if self.domains is None else _mapped(x, *self.domains)
        draws = _fresh()
        alpha, sigma = self._scales(0, inner)
        start = alpha * inner + sigma * draws.normal(tuple(inner.shape)).to(inner)
        wanted = torch.is_grad_enabled() and x.requires_grad
        found = self._tracked(start, inner, draws) if wanted else self._solve(start, draws)
        return found if self.domains is None else _mapped(found, *reversed(self.domains))

    def _tracked(self, start: Tensor, x: Tensor, draws: _Fresh) -> Tensor:
        """The reverse process with the gradient that was chosen."""
        if self.gradient == "full" or (self.gradient == "truncated" and self.last >= self.steps):
            return self._solve(start, draws, all_steps(self.steps))
        if self.gradient == "truncated":
            return self._truncated(start, x, draws)
        value = self._solve(start.detach(), draws)
        stand_in = x if self.gradient == "identity" else self._once(start)
        return value + (stand_in - stand_in.detach())

    def _solve(self, start: Tensor, draws: _Fresh, steps: tuple[int, ...] | None = None) -> Tensor:
        # One step is kept at a time: memory is that of one step, whatever their number.
        return self.sampler.sample(
            self.denoise, start, draws, grid=self.grid, grad_steps=steps, checkpoint=True
        ).x0

    def _truncated(self, start: Tensor, x: Tensor, draws: _Fresh) -> Tensor:
        first = self.steps - self.last

        def enter(index: int, state: Tensor, prediction: Prediction) -> Tensor | None:
            del prediction
            if index != first - 1:
                return None
            # The state is alpha x0 and noise: its slope towards the input counts as alpha.
            return state + self._scales(first, x)[0] * (x - x.detach())

        return self.sampler.sample(
            self.denoise, start.detach(), draws, grid=self.grid, checkpoint=True, callback=enter,
            grad_steps=tuple(range(first, self.steps)),
        ).x0  # fmt: skip

    def _once(self, start: Tensor) -> Tensor:
        t = self.grid[0].to(start).expand(len(start))
        return self.denoise(start, t).x0

    def _scales(self, index: int, like: Tensor) -> tuple[Tensor, Tensor]:
        t = self.grid[index].double()
        return self.schedule.alpha(t).to(like), self.schedule.sigma(t).to(like)


class Purified(nn.Module):
    """A classifier behind a purifier: inputs [B, ...] to logits [B, K]."""

    def __init__(self, purifier: Purifier, classifier: nn.Module) -> None:
        super().__init__()
        self.purifier, self.classifier = purifier, classifier

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, K] of the purified `x` [B, ...], with fresh noise."""
        logits: Tensor = self.classifier(self.purifier(x))
        return logits


def _mapped(x: Tensor, source: Domain, target: Domain) -> Tensor:
    return (x - source.low) * (target.span / source.span) + target.low


@frozen(eq=False)
class _Fresh:
    """Random numbers of one forward, made on the CPU; see `ImageDraws`."""

    key: tuple[object, ...]
    generator: torch.Generator = field(init=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "generator", keyed_generator(*self.key))

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normal numbers `shape` = [B, ...]."""
        return torch.randn(shape, generator=self.generator)

    def child(self, *words: object) -> _Fresh:
        """Another stream of the same forward."""
        return _Fresh((*self.key, *words))


def _fresh() -> _Fresh:
    number = torch.randint(0, 2**62, (), generator=torch.default_generator)
    return _Fresh(("purify", int(number)))
