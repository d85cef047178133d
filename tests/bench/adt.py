"""ADT: what a rollout costs and keeps, against as many bare forwards and backwards of its network.

A U-Net for 32x32 colour images and DDIM from t = T, on one thread; rollout and bare passes take
turns in one process, and a ratio is the median over the rounds. The bare passes of n steps with K
of them trained are n - K forwards without a graph, K with one, and one backward from their sum; of
a rollout for the discriminator alone, n forwards without a graph. Memory is the growth of the peak
resident set over forward and backward, each side in a process of its own: with K = 3 against three
forwards and a backward of plain training, and the whole gradient, recomputed, against its own at
10 steps. The whole gradient runs each forward twice, so its bare passes do, too.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from advdiff_adt.rollout import Rollout
from advdiff_adt.terms import Reward
from torch import Tensor

from advdiff_core import DataInfo, Domain, Spec
from advdiff_core.backbones.unet import UNet
from advdiff_core.engine.memory import keep_freed_memory
from advdiff_core.samplers import DDIM
from advdiff_core.testing.parts import BenchCritic
from advdiff_core.testing.steps import Model, Stage, Turn, build_stage
from tests.bench.duel import rounds_of
from tests.bench.sides import memory_of, resident

BATCH, ROUNDS, WARM_UP, STEPS, TRAINED = 8, 8, 1, (10, 25, 50), 3
#: Most that a rollout may take against its bare passes, and hold against three plain forwards.
TIME, MEMORY = 1.05, 1.15
DATA = DataInfo(shape=(3, 32, 32), count=64, domain=Domain(-1.0, 1.0))
UNET = UNet.Settings(channels=32, channel_mult=(1, 2, 2), blocks=1, attention=(8,))


def stage() -> Stage:
    """A generator and a scorer."""
    critic = Model(BenchCritic, kind="discriminator", frozen=True)
    return build_stage(data=DATA, models={"student": Model(UNet, UNET), "scorer": critic})


def samples() -> Tensor:
    """Pictures [B, 3, 32, 32]."""
    return torch.randn(BATCH, *DATA.shape, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)


def rollout(made: Stage, steps: int, rule: str, *, trained: bool = True) -> Callable[[], None]:
    """One rollout of a batch, and its backward if it is trained."""
    ddim: Any = Spec(
        kind="sampler", use="ddim", settings=DDIM.Settings(steps=steps), component=DDIM
    )
    keys = Reward.Settings(sampler=ddim, start="fixed", gradient=rule, gradient_steps=TRAINED)
    turn = Turn("student", {"reward": made.make(Reward, keys)})
    plan, x = made.plan([turn]), samples()
    query = next(query for query in plan.order if isinstance(query, Rollout))

    def run() -> None:
        step = made.step(plan, x)
        if trained:
            step.enter(turn.phase(), [])
            step.get(query).square().mean().backward()
        else:
            step.get(query)

    return run


def bare(made: Stage, forwards: int, trained: int, *, again: bool = False) -> Callable[[], None]:
    """Forwards of the network, some with a graph and one backward; or each run twice."""
    net, x, t = made.scene.roles["student"].module, samples(), torch.full((BATCH,), 500.0)

    def one(_: int) -> Tensor:
        found: Tensor = net(x, t).output.square().mean()
        return found

    def run() -> None:
        with torch.no_grad():
            for n in range(forwards - trained):
                one(n)
        if again:
            for n in range(trained):
                with torch.no_grad():
                    one(n)
                one(n).backward()
        elif trained:
            torch.stack([one(n) for n in range(trained)]).sum().backward()

    return run


def compare(name: str, sides: tuple[Callable[[], None], Callable[[], None]]) -> dict[str, object]:
    """Seconds of a rollout and of its bare passes, which take turns."""
    named = dict(zip(("rollout", "bare"), sides, strict=True))
    times = list(rounds_of(named, rounds=ROUNDS, warm_up=WARM_UP).values())
    found = sorted(a / b for a, b in zip(*times, strict=True))
    return {
        "name": name,
        "ours": statistics.median(times[0]),
        "peer": statistics.median(times[1]),
        "ratio": statistics.median(found),
        "spread": [found[len(found) // 4], found[3 * len(found) // 4]],
        "target": TIME,
        "ok": statistics.median(found) <= TIME,
    }


def times() -> list[dict[str, object]]:
    """The entries of time."""
    made, entries = stage(), []
    for steps in STEPS:
        for rule in ("adt", "drtune"):
            pair = rollout(made, steps, rule), bare(made, steps, TRAINED)
            entries.append(compare(f"time of {rule}, {steps} steps, K = {TRAINED}", pair))
        off = rollout(made, steps, "adt", trained=False), bare(made, steps, 0)
        entries.append(compare(f"time for the discriminator alone, {steps} steps", off))
    whole = rollout(made, STEPS[0], "full"), bare(made, STEPS[0], STEPS[0], again=True)
    return [*entries, compare(f"time of full, recomputed, {STEPS[0]} steps", whole)]


def memories() -> list[dict[str, object]]:
    """The entries of memory."""
    plain = memory_of("adt", "plain", "0")
    held = {(r, n): memory_of("adt", r, str(n)) for r in ("adt", "drtune", "full") for n in STEPS}
    return [
        _memory(rule, steps, held[rule, steps], held["full", STEPS[0]] if rule == "full" else plain)
        for rule, steps in held
    ]


def _memory(rule: str, steps: int, found: int, base: int) -> dict[str, object]:
    whole = rule == "full"
    target = math.sqrt(steps / STEPS[0]) if whole else MEMORY
    trained = "recomputed" if whole else f"K = {TRAINED}"
    return {
        "name": f"memory of {rule}, {steps} steps, {trained}",
        "unit": "bytes",
        "ours": found,
        "peer": base,
        "what the peer is": f"{STEPS[0]} steps" if whole else "three plain forwards",
        "ratio": found / base,
        "target": target,
        "ok": found <= target * base,
    }


def peak(side: str, steps: int) -> int:
    """Peak resident bytes of one side above those before it."""
    made = stage()
    run = bare(made, TRAINED, TRAINED) if side == "plain" else rollout(made, steps, side)
    # Gradients, and the modules that recomputing imports, are no part of what a rollout keeps.
    rollout(made, 1, "full")()
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def run() -> list[dict[str, object]]:
    """The suite's entries."""
    torch.set_num_threads(1)
    keep_freed_memory()
    return [*memories(), *times()]


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(peak(sys.argv[1], int(sys.argv[2]))))
