"""Expectation over transformation: any attack on a victim whose answers are random."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Literal

import torch
from attrs import field, frozen
from torch import Tensor

from advdiff_core import Attack, Budget, Build, Draws, SearchCost, Spec, Victim
from advdiff_core.draws import keyed_generator
from advdiff_core.settings import setting, settings
from advdiff_core.types import Domain

__all__ = ["EOT", "ExpectedVictim", "seeded"]


class EOT(Attack):
    """Any attack on the expectation over a victim's randomness (Athalye et al. 2018, section 4.2).

    Every answer is made of all draws: an attack with one objective climbs the mean of that
    objective over them, and a sample counts as beaten if more than `broken_share` of them are; one
    that reads logits itself (FAB, ensembles) reads their mean. Gradient, loss, choice of the best
    point and verdict thus never rest on a single draw.

    The victim's randomness is torch's global generator, which is put aside for each question,
    seeded from the attack's numbers, and put back. Its numbers depend on the batch, so the samples
    of a random victim are independent in law, not bit for bit.
    """

    @settings
    class Settings:
        """Keys of `use = "eot"`."""

        attack: Spec = setting(kind="attack", help="the attack that is run")
        samples: int = setting(20, ge=1, le=10_000, help="draws per question to the victim")
        noise: Literal["fresh", "frozen"] = setting(
            "fresh", help="new draws for every question, or the same ones throughout a search"
        )
        at_once: int = setting(
            0, ge=0, help="draws in one forward; 0: all; a view of a training step takes one each"
        )
        broken_share: float = setting(
            0.5, ge=0.0, lt=1.0, help="a sample is beaten if more than this share of its draws is"
        )

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        nested = build.nested(settings.attack)
        assert isinstance(nested, Attack), "discovery checks the kind"
        self.nested = nested
        # Of the class for most attacks; a wrapper has those of what it wraps.
        self.norms = nested.norms  # type: ignore[misc]
        self.minimal_norm = nested.minimal_norm  # type: ignore[misc]
        self.keeps_best = nested.keeps_best

    def objective(self, victim: Victim, clean: Tensor) -> Callable[[Tensor], Tensor] | None:
        """That of the attack that is run."""
        return self.nested.objective(victim, clean)

    def cost(self) -> SearchCost:
        """That of the attack times the draws, and the draws at the clean points."""
        each, samples = self.nested.cost(), self.settings.samples
        return SearchCost(samples * (each.probes + 1), samples * each.input_backwards)

    def search(
        self, victim: Victim, x: Tensor, budget: Budget, domain: Domain | None, rng: Draws
    ) -> Tensor:
        """See `Attack.search`."""
        s = self.settings
        asked = _Asked(
            key=rng.key, samples=s.samples, at_once=s.at_once, frozen=s.noise == "frozen"
        )
        with torch.no_grad():
            clean = asked.outputs(victim, x)
        expected = ExpectedVictim(
            victim, asked, self.nested.objective, clean.mean(1), broken_share=s.broken_share
        )
        return self.nested.search(expected, x, budget, domain, rng)


@frozen(kw_only=True)
class _Asked:
    """How a question is asked.

    Attributes:
        key: Words that name the search.
        samples: Draws per question.
        at_once: Draws in one forward; 0 for all.
        frozen: The same draws for every question.
        number: Counts the questions of a search, those to parts of the victim included.
    """

    key: tuple[object, ...]
    samples: int
    at_once: int
    frozen: bool
    number: Iterator[int] = field(factory=count)

    def outputs(self, victim: Victim, x: Tensor) -> Tensor:
        """Outputs [B, samples, ...] at `x` [B, ...]."""
        question = 0 if self.frozen else next(self.number)
        parts: list[Tensor] = []
        while (done := len(parts)) < self.samples:
            many = min(self.at_once or self.samples, self.samples - done)
            with seeded(x.device, *self.key, "eot", question, done):
                parts += _draw(victim, x, many)
        return torch.stack(parts, dim=1)


def _draw(victim: Victim, x: Tensor, many: int) -> list[Tensor]:
    """Some draws of the outputs [B, ...] at `x` [B, ...]: in one forward, or one after another."""
    repeated = None
    if many > 1:
        repeated = victim.rows(torch.arange(len(x), device=x.device).repeat(many))
    if repeated is None:
        return [victim.outputs(x) for _ in range(many)]
    found = repeated.outputs(x.repeat(many, *([1] * (x.dim() - 1))))
    return list(found.reshape(many, len(x), *found.shape[1:]).unbind(0))


class ExpectedVictim:
    """A victim as the mean of its draws; see `EOT`.

    Args:
        victim: Whose answers are random.
        asked: How a question is asked.
        objective: Makes the loss [B] of the outputs [B, ...] of one draw, whose mean is climbed,
            from a victim and its clean outputs; it says None if the attack reads outputs itself.
        clean: Mean outputs [B, ...] at the clean inputs.
        broken_share: A sample is beaten if more than this share of its draws is.
    """

    def __init__(
        self,
        victim: Victim,
        asked: _Asked,
        objective: Callable[[Victim, Tensor], Callable[[Tensor], Tensor] | None],
        clean: Tensor,
        *,
        broken_share: float,
    ) -> None:
        self.victim, self.asked, self.make = victim, asked, objective
        self.clean, self.broken_share = clean, broken_share
        self.objective = objective(victim, clean)

    @property
    def labels(self) -> Tensor | None:
        """True classes [B] for an attack that reads logits; None where `loss` is all there is."""
        return self.victim.labels if self.objective is None else None

    def rows(self, rows: Tensor) -> ExpectedVictim | None:
        """The same for the samples `rows` [N]."""
        part = self.victim.rows(rows)
        if part is None:
            return None
        return ExpectedVictim(
            part, self.asked, self.make, self.clean[rows], broken_share=self.broken_share
        )

    def outputs(self, x: Tensor) -> Tensor:
        """Outputs [B, samples, ...] at `x` [B, ...], or their mean [B, ...]."""
        found = self.asked.outputs(self.victim, x)
        return found if self.objective is not None else found.mean(1)

    def loss(self, outputs: Tensor) -> Tensor:
        """Mean objective over the draws [B]; of the mean outputs that of the victim."""
        if self.objective is None:
            return self.victim.loss(outputs)
        return torch.stack([self.objective(one) for one in outputs.unbind(1)]).mean(0)

    def broken(self, outputs: Tensor) -> Tensor | None:
        """Samples of which more draws are beaten than the share says [B]."""
        if self.objective is None:
            return self.victim.broken(outputs)
        verdicts = [self.victim.broken(one) for one in outputs.unbind(1)]
        known = [one for one in verdicts if one is not None]
        return torch.stack(known).float().mean(0) > self.broken_share if known else None


@contextmanager
def seeded(device: torch.device, *key: object) -> Iterator[None]:
    """Torch's global generators of the CPU and of `device` seeded by the words of `key` inside.

    They are put back at the end, so that whoever else draws from them notices nothing.
    """
    cuda = device.type == "cuda"
    devices = [device] if cuda else []
    with torch.random.fork_rng(devices=devices):
        number = keyed_generator(*key).initial_seed()
        torch.default_generator.manual_seed(number)
        if cuda:
            index = torch.cuda.current_device() if device.index is None else device.index
            torch.cuda.default_generators[index].manual_seed(number)
        yield
