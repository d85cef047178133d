"""Gradients along the path of sampling: what the paper's analysis lacks, for every rule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from advdiff_adt.instruments import Begun, Paths, PathSettings
from advdiff_adt.rules import LINEAR_RULES, Rule, rolled
from advdiff_core import Build, Denoise, Evaluation, Metric, Prediction, Sampler
from advdiff_core.hooks.curves import slug, write_curves
from advdiff_core.interfaces.requirements import refuse
from advdiff_core.interfaces.sampler import all_steps
from advdiff_core.settings import setting, settings

__all__ = ["RolloutGradients"]


class RolloutGradients(Metric):
    """Gradients of a judge's score along whole paths, by the rule of their way back.

    For each rule, from t = T, with every step trained (`last-k`: the last K; `none`: the last):

    - `rollout_multiplier_<rule>`: norm of the gradient towards the state at T over that towards the
      sample, mean over samples: 1 under `adt`, alpha_0 / alpha_T under `drtune`;
    - `rollout_weights_<rule>`: norm of the gradient towards the weights, of the mean score;
    - `rollout_early_<rule>`: share of the sum of the steps' norms that falls on the path's first
      part, of a fifth of its steps;
    - `rollout_angle_<rule>`: angle in degrees to the gradient of `full`: the bias of a rule. K
      steps drawn at random have this direction on average. 90 where a gradient is 0.

    None is better high or low. `rollout-multiplier.csv` and `.png` hold the first at every step,
    over t; `rollout-weights` the norm of the gradient that passes through each step alone;
    `-<sampler>` is added where one is named. Without a judge the score is minus half the squared
    distance to the clean sample. Memory: the graph of a whole path, and a gradient for each step.
    """

    needs_samples: ClassVar[bool] = False
    decoded: ClassVar[bool] = False
    source: ClassVar[str] = "arXiv 2504.11423, section on gradients (FOUND: rules); numbers: ours"

    @settings
    class Settings(PathSettings):
        """Keys of `use = "rollout-gradients"`."""

        rules: tuple[Rule, ...] = setting(("adt", "drtune", "full"), help="rules, each once")
        gradient_steps: int = setting(3, ge=1, unit="steps", help="K of last-k")
        num: int = setting(16, ge=1, help="clean samples that are noised", unit="samples")
        batch: int = setting(16, ge=1, help="samples per forward", unit="samples")

        def __attrs_post_init__(self) -> None:
            """Refuse no rules, and rules twice.

            Raises:
                ValueError: If there are none, or one twice.
            """
            if not self.rules or len(set(self.rules)) < len(self.rules):
                raise ValueError(f"rules: found {list(self.rules)}, wanted one or more, each once")

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        self.paths = Paths(settings, build, judged=False)

    def protocol(self) -> Mapping[str, object]:
        """Rules, score, paths."""
        made = self.settings
        score = "mean score" if made.judge else "minus half the squared distance to x0"
        return {
            **self.paths.protocol(), "score": score, "rules": list(made.rules),
            "trained": "every step; the last K under last-k, the last under none",
            "K": made.gradient_steps, "start": "t = T",
        }  # fmt: skip

    def compute(self, evaluation: Evaluation) -> Mapping[str, float]:
        """Numbers by name; see the class."""
        sampler = self.paths.sampler(evaluation)
        self._fit(sampler)
        found = {rule: self._along(evaluation, sampler, rule) for rule in self.settings.rules}
        numbers: dict[str, float] = {}
        for rule in self.settings.rules:
            numbers |= {f"rollout_{name}_{rule}": v for name, v in found[rule].numbers().items()}
            if rule != "full" and "full" in found:
                numbers[f"rollout_angle_{rule}"] = found[rule].angle(found["full"])
        times: list[float] = sampler.grid().tolist()
        self._write(evaluation, "multiplier", times, {r: s.multipliers for r, s in found.items()})
        self._write(evaluation, "weights", times[:-1], {r: s.norms for r, s in found.items()})
        return numbers

    def _fit(self, sampler: Sampler) -> None:
        asked = [rule for rule in self.settings.rules if rule in LINEAR_RULES]
        if asked and not sampler.linear:
            message = f"{asked[0]!r} of a sampler whose steps are not linear"
            fix = f"set sampler.clip_x0 = false, or leave out {' and '.join(map(repr, asked))}"
            refuse(self.build, "rules", message, fix)

    def _along(self, evaluation: Evaluation, sampler: Sampler, rule: Rule) -> _Sums:
        """Gradients of the mean score, summed over batches."""
        sums = _Sums(min(self.settings.num, len(evaluation.clean)))
        for begun in self.paths.begin(evaluation, sampler):
            walk = _Walk(self._denoisers(evaluation, begun), begun.x_t)
            steps = self._trained(rule, len(begun.grid) - 1)
            end = rolled(
                sampler, walk.denoise, walk.states[0], begun.draws,
                grid=begun.grid, rule=rule, grad_steps=steps, callback=walk.after,
            ).x0  # fmt: skip
            sums.add(*walk.gradients(self._score(evaluation, end, begun)))
        return sums

    def _trained(self, rule: Rule, count: int) -> tuple[int, ...]:
        last = min(self.settings.gradient_steps, count)
        return all_steps(count)[-last:] if rule == "last-k" else all_steps(count)

    def _denoisers(
        self, evaluation: Evaluation, begun: Begun
    ) -> list[tuple[Denoise, list[Tensor]]]:
        """The denoiser for each step with weights of its own, which are the same numbers."""
        role, count = self.settings.role, len(begun.grid) - 1
        given = [
            {n: w.clone().requires_grad_() for n, w in evaluation.weights(role).items()}
            for _ in range(count)
        ]
        return [
            (evaluation.denoiser(role, begun.y, weights=one), list(one.values())) for one in given
        ]

    def _score(self, evaluation: Evaluation, end: Tensor, begun: Begun) -> Tensor:
        """Score of each sample [B]."""
        if self.settings.judge:
            return self.paths.judge(evaluation)(end, begun)
        return -(end - begun.x0).square().flatten(1).sum(1) / 2

    def _write(
        self,
        evaluation: Evaluation,
        name: str,
        times: Sequence[float],
        lines: Mapping[str, Sequence[float]],
    ) -> None:
        spec = self.settings.sampler
        path = evaluation.folder / f"rollout-{name}{f'-{slug(spec.use)}' if spec else ''}"
        curves = {rule: list(zip(times, line, strict=True)) for rule, line in lines.items()}
        write_curves(path, "t", curves, title=f"{name} along the path, by rule")


class _Walk:
    """The states of one batch of paths in the graph, and weights for each step alone.

    Args:
        denoisers: For each step the denoiser and its weights.
        x: Start [B, ...].
    """

    def __init__(self, denoisers: list[tuple[Denoise, list[Tensor]]], x: Tensor) -> None:
        self._denoisers = denoisers
        self.states = [x.detach().requires_grad_()]

    def denoise(self, x_t: Tensor, t: Tensor) -> Prediction:
        """The prediction at `x_t` [B, ...] and `t` [B] by the weights of the step being run."""
        return self._denoisers[len(self.states) - 1][0](x_t, t)

    def after(self, index: int, state: Tensor, prediction: Prediction) -> None:
        """See `StepCallback`; `state` [B, ...]."""
        del index, prediction
        self.states.append(state)

    def gradients(self, score: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Norms over that at the end [n + 1, B], and for each step its weights' gradient [P].

        Args:
            score: Score of each sample [B].
        """
        each = [weights for _, weights in self._denoisers]
        wanted = [*self.states, *(weight for weights in each for weight in weights)]
        flowing = [tensor for tensor in wanted if tensor.requires_grad]
        found = torch.autograd.grad(score.sum(), flowing, allow_unused=True)
        known = {id(tensor): g for tensor, g in zip(flowing, found, strict=True) if g is not None}

        def of(tensor: Tensor) -> Tensor:
            return known.get(id(tensor), torch.zeros_like(tensor))

        norms = torch.stack([of(state).flatten(1).norm(dim=1) for state in self.states]).cpu()
        shares = norms.double() / norms[-1].double().clamp_min(1e-300)
        return shares, [torch.cat([of(w).flatten() for w in weights]) for weights in each]


class _Sums:
    """Sums over the batches of one rule.

    Args:
        count: Samples in all.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._ratios: Any = 0.0
        self._steps: list[Tensor] = []

    def add(self, ratios: Tensor, steps: list[Tensor]) -> None:
        """Add a batch: `ratios` [n + 1, B], and the gradient [P] of each step."""
        self._ratios = self._ratios + ratios.sum(1)
        before = self._steps or [torch.zeros_like(one) for one in steps]
        self._steps = [a + b for a, b in zip(before, steps, strict=True)]

    @property
    def multipliers(self) -> list[float]:
        """Of each state, from the start to the end."""
        found: list[float] = (self._ratios / self.count).tolist()
        return found

    @property
    def norms(self) -> list[float]:
        """Of the gradient of the mean score through each step's weights alone."""
        return [float(one.double().norm()) / self.count for one in self._steps]

    @property
    def total(self) -> Tensor:
        """Gradient of the mean score towards the weights [P]."""
        return torch.stack(self._steps).double().sum(0) / self.count

    def numbers(self) -> dict[str, float]:
        """Multiplier at the start, norm towards the weights, share of the first fifth of steps."""
        norms = self.norms
        first = max(1, round(len(norms) / 5))
        early = sum(norms[:first]) / max(sum(norms), 1e-300)
        return {
            "multiplier": self.multipliers[0], "weights": float(self.total.norm()), "early": early,
        }  # fmt: skip

    def angle(self, other: _Sums) -> float:
        """Degrees between two gradients towards the weights; 90 where one is 0."""
        a, b = (one.total / one.total.norm().clamp_min(1e-300) for one in (self, other))
        if not bool(a.any()) or not bool(b.any()):
            return 90.0
        # Exact for small angles (Kahan's formula).
        return math.degrees(2 * math.atan2(float((a - b).norm()), float((a + b).norm())))
