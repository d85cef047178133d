"""Costs of the methods per image, and of paper-scale recipes on 1, 8 and 64 GPUs.

Run by `python docs/results/costs.py`, which counts what is missing in docs/results/costs.json and
writes costs.md. Nothing is timed and no GPU is asked: seconds follow from the assumptions.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RECORD = HERE / "costs.json"
sys.path.insert(0, str(HERE))

from costs_model import (  # noqa: E402 - beside this file.
    WIDE,
    activations,
    assemble,
    counted_flops,
    counted_sent,
    counted_state,
    load_recipe,
    planned_flops,
    planned_sent,
    planned_state,
    recipe_path,
    role_macs,
    size_of,
    small,
    trained,
    trainer_of,
    weightless,
)
from lab import commit  # noqa: E402 - beside this file.
from pages import table  # noqa: E402 - beside this file.

from advdiff_core.types import DataInfo, Domain  # noqa: E402 - after the two.

#: Method, recipe, keys that are changed, steps counted, and whether communication is counted too.
METHODS: tuple[tuple[str, str, tuple[str, ...], int, bool], ...] = (
    ("plain diffusion", "advdiff-robustadv:digits-plain", (), 1, True),
    ("Robustadv", "advdiff-robustadv:digits", (), 1, True),
    ("Robustadv, weight learnt", "advdiff-robustadv:digits-learned", (), 1, False),
    ("AT_Diff, free", "advdiff-atdiff:digits-free", (), 1, True),
    ("AT_Diff, PGD", "advdiff-atdiff:digits-pgd", (), 1, False),
    ("consistency distillation", "advdiff-atdiff:digits-cd", (), 1, True),
    ("the same, free", "advdiff-atdiff:digits-cd-free", (), 1, False),
    ("consistency training, free", "advdiff-atdiff:digits-ct-free", (), 1, False),
    ("latent consistency", "advdiff-atdiff:digits-lcd", (), 1, False),
    ("PGD-AT", "advdiff-dra:digits-pgd-at", (), 1, False),
    ("TRADES", "advdiff-dra:digits-trades", (), 1, True),
    ("MART", "advdiff-dra:digits-mart", (), 1, False),
    ("TRADES with AWP", "advdiff-dra:digits-awp", (), 1, True),
    ("DRA", "advdiff-dra:digits-dra", (), 1, False),
    ("ADT", "advdiff-adt:digits-adt", (), 12, True),
    ("AlignProp", "advdiff-adt:digits-alignprop", (), 12, False),
    ("DRaFT", "advdiff-adt:digits-draft", (), 12, False),
)

RGB = Domain(-1.0, 1.0)
#: Recipe, its data, the pictures that latents stand for, and the share of the peak that is assumed.
PAPERS: dict[str, tuple[str, DataInfo, DataInfo | None, float]] = {
    "DM-AT, 50M, WRN-70-16": (
        "advdiff-dra:cifar10-dm-at-50m",
        DataInfo(shape=(3, 32, 32), count=50_000, domain=Domain(0.0, 1.0), classes=10), None, 0.35,
    ),
    "Robustadv, LSUN-256": (
        str(HERE / "costs" / "robustadv-lsun256.toml"),
        DataInfo(shape=(3, 256, 256), count=1_000, domain=RGB), None, 0.35,
    ),
    "ADT, SDXL": (
        str(HERE / "costs" / "adt-sdxl.toml"), DataInfo(shape=(4, 128, 128), count=1_000),
        DataInfo(shape=(3, 1024, 1024), count=1_000, domain=RGB), 0.35,
    ),
}  # fmt: skip
#: Of one H100 or H200 SXM by its maker's data sheet: bf16 products without sparsity, FLOP/s; bytes
#: per second to the other seven of its machine, one way; and of a 400 Gbit/s network per GPU.
PEAK, NVLINK, NETWORK = 989e12, 450e9, 50e9
GPUS = (1, 8, 64)


def method(name: str, path: str, overrides: tuple[str, ...], steps: int) -> dict[str, Any]:
    """Planned and counted costs of one method, per image."""
    recipe = small(path, *overrides)
    trainer = trainer_of(recipe)
    made = trainer.experiment
    flops = planned_flops(made, trainer.nimg)
    # Whole cycles, so that players of every n-th step count as often as on average.
    steps *= math.lcm(*(player.every for player in made.players))
    student = role_macs(made, "student")
    assert student is not None
    kept = activations(made)
    return {
        "name": name, "recipe": path, "steps": steps, "planned_flops": flops,
        "counted_flops": counted_flops(trainer, steps), "forwards": flops / (2 * student),
        "activations": kept, "trained": trained(made), "planned_state": planned_state(made),
        "counted_state": counted_state(trainer), "planned_sent": planned_sent(made),
    }  # fmt: skip


def paper(name: str) -> dict[str, Any]:
    """Costs of one paper-scale recipe."""
    path, info, pictures, share = PAPERS[name]
    keys = ("run.device=cpu", "run.precision=fp32")
    with weightless(info, pictures):
        made = assemble(load_recipe(recipe_path(path), keys))
    run = made.recipe.run
    sizes = {role: size_of(made, role) for role in made.scene.roles}
    return {
        "name": name, "images": run.images, "batch": run.batch, "share": share,
        "flops": planned_flops(made), "state": planned_state(made), "trained": trained(made),
        "sent": planned_sent(made), "roles": sizes,
    }  # fmt: skip


def hours(one: dict[str, Any], gpus: int) -> tuple[float, float]:
    """Hours of products, and of gradient sums if nothing were done beside them."""
    steps = one["images"] / one["batch"]
    products = one["flops"] * one["images"] / (gpus * PEAK * one["share"])
    rate = NVLINK if gpus <= 8 else NETWORK
    sums = 0.0 if gpus == 1 else steps * 2 * (gpus - 1) / gpus * one["sent"] / rate
    return products / 3600, sums / 3600


def page(record: Record) -> str:
    """The page."""
    names = [one[0] for one in METHODS]
    methods, sent = record.of("methods", names), record.of("sent", names)
    lines = [
        "# Costs",
        "",
        f"Written by `python docs/results/costs.py`, which counted at commits {record.commits()}. "
        "Nothing is timed: [](../scale.md) says what is counted.",
        "",
        *methods_part(list(methods.values()), sent),
        *papers_part(list(record.of("papers", PAPERS).values())),
        "Measured on a GPU: nothing yet; none was at hand.",
        "",
    ]
    return "\n".join(lines)


def methods_part(methods: list[dict[str, Any]], sent: dict[str, float]) -> list[str]:
    """Planned beside counted."""
    return [
        "## Methods",
        "",
        "On small recipes of each method, per image. *Forwards* are operations over those of one "
        "forward of the student: plain training is 3. *Planned* comes from the recipe alone, "
        "*counted* from torch's own counter over so many steps.",
        "",
        *table(
            ["method", "forwards", "planned FLOP", "counted FLOP", "planned / counted", "steps",
             "activations, bytes"],
            [
                [one["name"], one["forwards"], one["planned_flops"], one["counted_flops"],
                 one["planned_flops"] / one["counted_flops"], one["steps"], one["activations"]]
                for one in methods
            ],
        ),
        "What a process holds beside activations and gradients, and the gradients that it hands to "
        "its peers per step (every player's, on average over steps); counted in two processes.",
        "",
        *table(
            ["method", "numbers trained", "planned state, bytes", "counted",
             "planned sent, bytes", "counted"],
            [
                [one["name"], f"{one['trained']:,}", f"{one['planned_state']:,}",
                 f"{one['counted_state']:,}", f"{one['planned_sent']:,.0f}",
                 f"{sent[one['name']]:,.0f}" if one["name"] in sent else ""]
                for one in methods
            ],
        ),
    ]  # fmt: skip


def papers_part(papers: list[dict[str, Any]]) -> list[str]:
    """What the papers' scale comes to, under assumptions that are named."""
    return [
        "## Paper scale",
        "",
        "Nothing of this was run. Operations and bytes are counted from the recipes, with networks "
        "of the papers' shapes. Hours follow from assumptions: an H100 or H200 SXM with the "
        f"{PEAK / 1e12:.0f} TFLOP/s of its data sheet (bf16), of which the share below is used, "
        f"and gradients summed in float32 over a ring at {NVLINK / 1e9:.0f} GB/s within a machine "
        f"of 8 and {NETWORK / 1e9:.0f} GB/s between machines. *Sums* are hours of communication if "
        "none of it were hidden behind the backward.",
        "",
        *table(
            ["recipe", "images", "batch", "TFLOP per image", "EFLOP in all", "state, GB",
             "sent per step, GB", "share of peak assumed"],
            [
                [one["name"], f"{one['images']:,}", one["batch"], one["flops"] / 1e12,
                 one["flops"] * one["images"] / 1e18, (one["state"] + WIDE * one["trained"]) / 1e9,
                 one["sent"] / 1e9, one["share"]]
                for one in papers
            ],
        ),
        "State is weights, gradients, averages and optimizer of one process, without activations.",
        "",
        *table(
            ["recipe", *(f"{gpus} GPU{'s' if gpus > 1 else ''}: hours, sums" for gpus in GPUS),
             "GPU hours"],
            [
                [one["name"], *("{:,.1f}, {:,.2f}".format(*hours(one, gpus)) for gpus in GPUS),
                 f"{hours(one, 1)[0]:,.0f}"]
                for one in papers
            ],
        ),
        *(f"- {one['name']}: {networks(one)}." for one in papers),
        "",
    ]  # fmt: skip


def networks(one: dict[str, Any]) -> str:
    """Sizes of the networks of a recipe."""
    return "; ".join(
        f"{role} {size[0]:,} parameters, {size[1] / 1e9:,.1f} GMAC a forward"
        for role, size in one["roles"].items()
    )


class Record:
    """What was counted, kept as it comes: a second run counts what is missing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parts: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def count(self, part: str, name: str, make: Callable[[], Any]) -> None:
        """Count one thing unless it is there, and note at which commit."""
        if name in self.parts.get(part, {}):
            return
        entry = {"commit": commit(), "found": make()}
        self.parts.setdefault(part, {})[name] = entry
        self.path.write_text(json.dumps(self.parts, indent=1) + "\n")
        print(part, name, file=sys.stderr)

    def of(self, part: str, names: Iterable[str]) -> dict[str, Any]:
        """What is there of a part, by name, in this order."""
        there = self.parts.get(part, {})
        return {name: there[name]["found"] for name in names if name in there}

    def commits(self) -> str:
        """At which commits it was counted."""
        found = {one["commit"] for part in self.parts.values() for one in part.values()}
        return ", ".join(sorted(found))


def count(record: Record) -> None:
    """Everything: sizes first, then steps, then what two processes send."""
    for name in PAPERS:
        record.count("papers", name, partial(paper, name))
    for name, path, overrides, steps, _ in METHODS:
        record.count("methods", name, partial(method, name, path, overrides, steps))
    for name, path, overrides, _, sends in METHODS:
        steps = record.parts["methods"][name]["found"]["steps"]
        if sends:
            record.count("sent", name, partial(counted_sent, path, min(steps, 10), *overrides))


def main() -> None:
    """Count what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", action="store_true", help="write the page alone, from the record")
    record = Record(RECORD)
    if not parser.parse_args().page:
        count(record)
    (HERE / "costs.md").write_text(page(record))


if __name__ == "__main__":
    main()
