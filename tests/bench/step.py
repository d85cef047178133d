"""Engine overhead: a recipe's training step against the same mathematics in a hand-written loop.

Both sides use the quickstart's U-Net, batch, optimizer, clipping and EMA; the hand-written side is
what a careful user would write without advdiff. They alternate step by step in one process on one
thread, and the ratio is the median over the pairs: drift and neighbours hit both. Memory is the
growth of the resident set over a few steps, each side in a process of its own.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from advdiff_core.engine.assemble import Experiment, assemble
from advdiff_core.engine.distributed import World
from advdiff_core.engine.signals import StopFlag
from advdiff_core.engine.trainer import Trainer
from advdiff_core.recipe import load_recipe
from tests.bench.duel import rounds_of

RECIPE = Path(__file__).parents[2] / "examples" / "quickstart.toml"
PLAIN = ('players.student.terms=["denoise"]', "terms.denoise.weight=1.0")
WARM_UP, ROUNDS, MEMORY_STEPS = 5, 120, 8


def experiment(*, adversarial: bool) -> Experiment:
    """The quickstart's objects, with or without its adversarial view."""
    recipe = load_recipe(RECIPE)
    if not adversarial:
        tables = recipe.to_dict()
        tables["terms"] = {"denoise": tables["terms"]["denoise"]}
        tables["players"]["student"]["terms"] = ["denoise"]
        tables.pop("views", None)
        from advdiff_core.recipe import recipe_from_dict

        recipe = recipe_from_dict(tables)
    return assemble(recipe)


def engine_step(made: Experiment) -> Callable[[], None]:
    """One step of the engine."""
    trainer = Trainer(made, world=World(), ticks=None, stop=StopFlag())  # type: ignore[arg-type]
    trainer.index = 2  # past the contract checks of the first steps
    return trainer.train_step


class HandWritten:
    """The same step without advdiff: DDPM loss, optionally equivariance with one FGSM step."""

    def __init__(self, made: Experiment, *, adversarial: bool) -> None:
        player = made.players[0]
        self.adversarial = adversarial
        self.net = made.scene.roles["student"].module
        self.compute = made.scene.compute
        self.optimizer = player.optimizer
        self.clip = player.clip
        self.batch = made.recipe.run.batch
        self.data = made.source.batch(torch.arange(made.source.info.count)).x
        self.parameters = [p for _, p in player.parameters]
        self.shadow = [p.detach().clone() for p in self.parameters]
        steps = torch.arange(1, 1001) / 1000.0
        self.alpha, self.sigma = made.scene.schedule.alpha(steps), made.scene.schedule.sigma(steps)
        self.term = next((t.module for t in player.terms if t.name == "equivariance"), None)
        self.weights = {t.name: t.weight for t in player.terms}
        self.losses: list[torch.Tensor] = []

    def predict(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Predicted noise."""
        with self.compute.forward():
            return self.net(x, (index + 1).float()).output.float()

    def __call__(self) -> None:
        """One step."""
        x0 = self.compute.place(self.data[torch.randint(len(self.data), (self.batch,))])
        index = torch.randint(1000, (self.batch,))
        alpha, sigma = self.alpha[index].view(-1, 1, 1, 1), self.sigma[index].view(-1, 1, 1, 1)
        eps = torch.randn_like(x0)
        x_t = alpha * x0 + sigma * eps
        predicted = self.predict(x_t, index)
        loss = (predicted - eps).square().mean()
        if self.adversarial:
            loss = loss + self.weights["equivariance"] * self.equivariance(
                x_t, predicted, index, sigma
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.clip or 1e9)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        torch._foreach_lerp_(self.shadow, [p.detach() for p in self.parameters], 0.001)
        self.losses.append(loss.detach())

    def equivariance(self, x_t, predicted, index, sigma):  # type: ignore[no-untyped-def]
        """The regulariser at a perturbation found by one FGSM step."""
        radius = (sigma.square() + 8 / 255).clamp(min=1e-8)
        delta = (torch.rand_like(x_t) * 2 - 1) * radius
        for p in self.parameters:
            p.requires_grad_(False)
        delta.requires_grad_()
        gap = (self.predict(x_t + delta, index) - predicted.detach()).square().sum()
        (gradient,) = torch.autograd.grad(gap, delta)
        for p in self.parameters:
            p.requires_grad_(True)
        delta = (delta.detach() + radius * gradient.sign()).clamp(-radius, radius)
        moved = self.predict(x_t + delta, index)
        residual = (moved - predicted - delta / sigma).square().flatten(1).mean(1)
        rule = torch.minimum(3**0.5 / radius, (10 / 3) * (sigma / radius).square()).flatten()
        return (rule * residual).mean()


def compare(*, adversarial: bool, threads: int = 1) -> dict[str, object]:
    """Median step times in alternation, and memory, of both sides."""
    torch.set_num_threads(threads)
    engine = engine_step(experiment(adversarial=adversarial))
    hand = HandWritten(experiment(adversarial=adversarial), adversarial=adversarial)
    times = rounds_of({"engine": engine, "hand": hand}, rounds=ROUNDS, warm_up=WARM_UP)
    ours, peer = times["engine"], times["hand"]
    ratios = sorted(a / b for a, b in zip(ours, peer, strict=True))
    memory = {side: _memory(side, adversarial=adversarial) for side in ("engine", "hand")}
    name = "equivariance" if adversarial else "denoise"
    return {
        "name": f"engine step, {name}",
        "ours": statistics.median(ours),
        "peer": statistics.median(peer),
        "ratio": statistics.median(ratios),
        "spread": [ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]],
        "target": 1.03,
        "ok": statistics.median(ratios) <= 1.03,
        "memory_ours": memory["engine"],
        "memory_peer": memory["hand"],
        "memory_ratio": memory["engine"] / memory["hand"],
        "memory_target": 1.05,
    }


def _memory(side: str, *, adversarial: bool) -> int:
    command = [sys.executable, "-m", "tests.bench.step", side, str(int(adversarial))]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout.splitlines()[-1]))


def _memory_of_side(side: str, *, adversarial: bool) -> int:
    """Peak resident bytes of a process that runs one side, above those before its first step."""
    torch.set_num_threads(1)
    made = experiment(adversarial=adversarial)
    step = engine_step(made) if side == "engine" else HandWritten(made, adversarial=adversarial)
    before = _resident()
    for _ in range(MEMORY_STEPS):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def run() -> list[dict[str, object]]:
    """The suite's entries."""
    return [compare(adversarial=False), compare(adversarial=True)]


if __name__ == "__main__":
    print(json.dumps(_memory_of_side(sys.argv[1], adversarial=bool(int(sys.argv[2])))))
