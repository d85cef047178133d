"""Do several processes learn what one learns, and networks that are shared out what whole ones do?

Runs of 50 steps with the same batch of all processes together. Beside the whole recipe there are
parts of it, which show what makes rounding grow, and all of them in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pages import find
from process_runs import BATCH, KEYS, final, rows, tables, work
from torch import Tensor

STEPS = 50
SAME = {**KEYS, "run.images": STEPS * BATCH, "run.checkpoint_every": STEPS * BATCH}
Tables = dict[str, Any]


def plain(keys: Mapping[str, Any]) -> Tables:
    """Denoising alone, by SGD, at uniform times."""
    made = tables(keys)
    del made["views"], made["models"]["judge"], made["players"]["judge"], made["schedule"]
    made["terms"] = {"denoise": made["terms"]["denoise"]}
    made["players"]["student"] |= {
        "terms": ["denoise"], "optimizer": {"use": "torch:SGD", "lr": 1e-2}
    }  # fmt: skip
    return made


def by_adamw(keys: Mapping[str, Any]) -> Tables:
    """Denoising alone, by AdamW."""
    made, whole = plain(keys), tables(keys)
    made["players"]["student"]["optimizer"] = whole["players"]["student"]["optimizer"]
    return made


def attacked(keys: Mapping[str, Any]) -> Tables:
    """Also equivariance at signed gradient steps."""
    made, whole = by_adamw(keys), tables(keys)
    made["views"] = whole["views"]
    made["terms"]["equivariance"] = whole["terms"]["equivariance"]
    made["players"]["student"]["terms"] = ["denoise", "equivariance"]
    return made


def judged(keys: Mapping[str, Any]) -> Tables:
    """Also a discriminator, and a term that fools it."""
    made = tables(keys)
    del made["schedule"]
    return made


#: From the plainest recipe to the whole one, which also learns where to draw times.
RECIPES: dict[str, tuple[str, Callable[[Mapping[str, Any]], Tables]]] = {
    "sgd": ("denoising by SGD", plain),
    "adamw": ("denoising by AdamW", by_adamw),
    "attacked": ("an adversarial view, too", attacked),
    "judged": ("a discriminator, too", judged),
    "whole": ("weighted, learnt times, too: all of it", tables),
}
#: What is compared: kind, processes, shared, and whether in float64.
KINDS: dict[str, tuple[int, bool, bool]] = {
    "one": (1, False, False), "two": (2, False, False), "three": (3, False, False),
    "shared": (2, True, False), "one64": (1, False, True), "two64": (2, False, True),
}  # fmt: skip
PAIRS = (("one", "two"), ("one", "three"), ("two", "shared"), ("one64", "two64"))


def job(out: Path, recipe: str, kind: str) -> dict[str, Any]:
    """One training."""
    _, shared, double = KINDS[kind]
    made = RECIPES[recipe][1]({**SAME, "run.name": f"{recipe}-{kind}"})
    if shared:
        for model in made["models"].values():
            model["shard"] = True
    return {"tables": made, "out": str(out), "double": double}


def train(out: Path) -> None:
    """All trainings that are not there yet."""
    for count in (1, 2, 3):
        kinds = [kind for kind, (processes, *_) in KINDS.items() if processes == count]
        wanted = [(recipe, kind) for recipe in RECIPES for kind in kinds]
        work(out, count, [job(out, *one) for one in wanted if not _there(out, "-".join(one))])


def _there(out: Path, name: str) -> bool:
    return bool(list(out.glob(f"[0-9]*-{name}/checkpoints/{STEPS * BATCH}")))


def compare(out: Path, recipe: str, pair: tuple[str, str]) -> dict[str, Any]:
    """Largest differences of two runs over all steps and losses, and of their last weights."""
    a, b = (find(out, f"{recipe}-{kind}") for kind in pair)
    apart = [
        max(abs(x[name] - y[name]) / abs(x[name]) for name in x if name.startswith("loss/"))
        for x, y in zip(rows(a), rows(b), strict=True)
    ]
    x, y = (_weights(final(run)) for run in (a, b))
    assert x.keys() == y.keys(), (recipe, pair)
    return {
        "steps": len(apart), "first": apart[0], "largest": max(apart),
        "at": 1 + apart.index(max(apart)),
        "over": next((n for n, one in enumerate(apart, 1) if one > 1e-6), None),
        "weights": max(float((x[name].double() - y[name].double()).abs().max()) for name in x),
    }  # fmt: skip


def _weights(leaves: Mapping[str, Any]) -> dict[str, Tensor]:
    return {
        name: value for name, value in leaves.items()
        if name.startswith("/models/") and isinstance(value, Tensor)
    }  # fmt: skip
