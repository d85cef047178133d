"""Experiment 1: gradients along 50 steps of the schedule of Stable Diffusion, by gradient rule.

    python docs/results/adt/multipliers.py --out RUNS

DDIM on the leading grid with offset 1, which ends at the schedule's first time, in float64; seconds
of one CPU core. A network that predicts a constant has answers in closed form, the other one
(a tenth of a tanh) is held to finite differences. Numbers go to records/multipliers.json.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from advdiff_adt.rules import RULES, Rule, rolled
from here import arguments, open_lab
from torch import Tensor

from advdiff_core import Build, Prediction, SeedDraws, expand
from advdiff_core.interfaces.sampler import all_steps
from advdiff_core.samplers import DDIM
from advdiff_core.schedules import VPLinear

STEPS, SHORT = 50, 20
#: Number of training times; steps of last-k; length of the finite difference.
TIMES, LAST, LITTLE = 1_000, 3, 1e-5
SCHEDULE = VPLinear(VPLinear.Settings(beta_start=0.00085, beta_end=0.012, root=True), Build())

#: A network: what it predicts of the noise, from the state [B, D] and its one weight.
Net = Callable[[Tensor, Tensor], Tensor]
NETS: dict[str, Net] = {
    "constant": lambda x, w: w.expand_as(x),
    "tanh": lambda x, w: w * torch.tanh(x),
}
WEIGHT = 0.1


def grid_of(steps: int) -> Tensor:
    """Times [steps + 1] of the leading grid with offset 1: the last is the schedule's first."""
    index = torch.arange(steps).flip(0) * (TIMES // steps) + 1
    return (torch.cat([index, torch.zeros(1, dtype=index.dtype)]).double() + 1) / TIMES


def run(net: Net, rule: Rule, x: Tensor, weights: Tensor, steps: int = STEPS) -> list[Tensor]:
    """States [n + 1] of a path from `x` [B, D], with one weight of `weights` [n] for each step."""
    settings: Any = DDIM.Settings
    sampler = DDIM(settings(steps=steps), Build(path="sample", schedule=SCHEDULE))
    states, trained = [x], all_steps(steps)

    def denoise(x_t: Tensor, t: Tensor) -> Prediction:
        alpha, sigma = expand(SCHEDULE.alpha(t), x_t), expand(SCHEDULE.sigma(t), x_t)
        return Prediction("eps", net(x_t, weights[len(states) - 1]), x_t, alpha, sigma)

    rolled(
        sampler, denoise, x, SeedDraws([0]), grid=grid_of(steps), rule=rule,
        grad_steps=trained[-LAST:] if rule == "last-k" else trained,
        callback=lambda i, state, p: states.append(state),
    )  # fmt: skip
    return states


def gradients(net: Net, rule: Rule, steps: int = STEPS) -> dict[str, list[float]]:
    """Gradient of the sample towards every state, and towards the weight of every step."""
    x = torch.full((1, 1), 0.5, dtype=torch.float64, requires_grad=True)
    weights = torch.full((steps,), WEIGHT, dtype=torch.float64, requires_grad=True)
    states = run(net, rule, x, weights, steps)
    wanted = [*(state for state in states if state.requires_grad), weights]
    found = torch.autograd.grad(states[-1].sum(), wanted, allow_unused=True)
    known = {id(t): g for t, g in zip(wanted, found, strict=True) if g is not None}
    towards = [float(known.get(id(state), torch.zeros(1)).sum()) for state in states]
    return {"states": towards, "weights": known[id(weights)].tolist()}


def difference(net: Net) -> dict[str, float]:
    """Central differences of the sample, in the start and in the weight of all steps."""

    def end(x: float, weight: float) -> float:
        start = torch.full((1, 1), x, dtype=torch.float64)
        weights = torch.full((STEPS,), weight, dtype=torch.float64)
        return float(run(net, "full", start, weights)[-1])

    return {
        "start": (end(0.5 + LITTLE, WEIGHT) - end(0.5 - LITTLE, WEIGHT)) / (2 * LITTLE),
        "weight": (end(0.5, WEIGHT + LITTLE) - end(0.5, WEIGHT - LITTLE)) / (2 * LITTLE),
    }


def scales(steps: int) -> dict[str, float]:
    """Signal scale at the ends of the path, and the product of the steps' slopes between them."""
    ends = SCHEDULE.alpha(grid_of(steps)[[0, -1]])
    first = gradients(NETS["constant"], "drtune", steps)["states"][0]
    return {"alpha_T": float(ends[0]), "alpha_0": float(ends[1]), "product": first}


def main() -> None:
    """Compute and record."""
    lab = open_lab(arguments(__doc__))
    rules: tuple[Any, ...] = RULES
    found = {name: {rule: gradients(net, rule) for rule in rules} for name, net in NETS.items()}
    differences = {name: difference(net) for name, net in NETS.items()}
    told = {"steps": STEPS, "last": LAST, "times": grid_of(STEPS).tolist(), "weight": WEIGHT}
    ends = {str(steps): scales(steps) for steps in (STEPS, SHORT)}
    lab.record("multipliers", {"nets": found, "differences": differences, "ends": ends, **told})


if __name__ == "__main__":
    main()
