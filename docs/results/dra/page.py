"""Write `docs/results/dra.md` and its pictures from the records.

    python docs/results/dra/page.py --out RUNS

RUNS is the folder that the other scripts trained in. Figures of the page come from the records and
run folders; none is written by hand. Parts whose script has not been run are named as such.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from arms import ARMS, FEW, NOISY, SEEDS, named
from here import RECORDS, SIZE, arguments
from page_analyses import analyses, probes
from pages import provenance, record, table
from paired import accuracy, change, clean, robust, shares
from plots import grid, samples_of

HERE = Path(__file__).parents[1]
TEACHERS = {"plain": "plain", "robustadv": "Robustadv", "atdiff": "AT_Diff, free"}
NUMBER = "frechet_judge_pooled"
#: Pairs that the paper compares, the second with DRA; and what we compare with the latter.
PAIRS = (("at", "at-dra"), ("dm", "dm-dra"), ("few", "few-dra"))
TEACHER_PAIRS = (
    ("dm", "dm-noisy"), ("dm-dra", "dm-noisy"), ("dm-dra", "dm-robustadv"),
    ("dm-dra", "dm-atdiff"),
)  # fmt: skip

HEAD = f"""# DRA: what was measured

Written by `docs/results/dra/page.py`. Small-scale: minutes of one CPU core per run, images of
{SIZE} pixels and a network of 0.08 M parameters (of millions in part 6), where the paper trains
wide resnets and transformers for days on GPUs. What the paper states and what is ours is in the
README of advdiff-dra. The hypothesis is the paper's: alignment raises clean and robust accuracy,
from 84.33 / 55.25 to 88.54 / 57.29 without synthetic images (WRN-34-10), from 91.12 / 63.35 to
92.36 / 64.12 with a million of them (WRN-28-10).
"""


def missing(script: str) -> list[str]:
    """What the page says of a part that there is no record of."""
    return [f"Written and not run for want of time; `{script}.py` makes the numbers.", ""]


def made(out: Path, run: str, name: str) -> list[str]:
    """How a record came about, if the run is at hand."""
    found = sorted(out.glob(f"[0-9]*-{run}"))
    return provenance(RECORDS, found[-1], f"docs/results/dra/{name}.py", name) if found else []


def teachers(out: Path) -> list[str]:
    """Experiment 1."""
    found = record(RECORDS, "teachers")
    lines = ["## 1. Teachers", ""]
    if found is None:
        return [*lines, *missing("teachers")]
    lines += made(out, "teacher-labelled", "teachers")
    lines += [
        "A small U-Net, read as v. The averaged weights of a plain run without labels got an",
        f"embedding of classes that starts at zero, and were trained on {found['labelled']:,}",
        "images with labels (a tenth left out); each teacher goes on from there, with as many",
        "optimizer updates. Squared Frechet distance of 1,000 samples (DDIM, 50 steps) to the",
        "first 10,000 training images, in the 64 pooled features of a ResNet-56 trained on clean",
        "CIFAR-10, images resized to its 32 pixels; this is no FID.", "",
    ]  # fmt: skip
    rows = [
        [label, found["images"][name], float(found["teachers"][name]["metrics"][NUMBER])]
        for name, label in TEACHERS.items()
        if name in found["teachers"]
    ]
    lines += table(("teacher", "images", "distance"), rows)
    runs = {label: sorted(out.glob(f"[0-9]*-teacher-{key}")) for key, label in TEACHERS.items()}
    shown = {label: samples_of(each[-1]) for label, each in runs.items() if each}
    if len(shown) > 1:
        grid(shown, HERE / "dra-samples.png")
        lines += ["![Samples, DDIM, 50 steps](dra-samples.png)", ""]
    return [*lines, *probes()]


def classifiers(out: Path) -> list[str]:
    """Experiment 2."""
    found = record(RECORDS, "classifiers")
    lines = ["## 2. Classifiers at equal budget", ""]
    if found is None:
        return [*lines, *missing("classifiers")]
    lines += made(out, named("at-dra", SEEDS[0]), "classifiers")
    share = f"{100 * found['fraction']:g} %"
    lines += [
        f"TRADES in the form of DM-AT, WRN-10-1, {found['images']:,} images in batches of",
        f"{found['batch']}, three steps of the inner attack, radius {found['eps']}, averaged",
        "weights.",
        f"DM-AT: {share} of each batch are from {found['synthetic']:,} images drawn by the plain",
        f"teacher (DPM-Solver++, {found['steps']} evaluations, no selection). DRA: `mid.1` of the",
        f"teacher, lambda {found['weight']:g}, sigma {found['sigma']:g} (parts 1 and 4). The",
        "noisy-input teacher is the same encoder, trained on",
        f"{NOISY:,} noised images to tell classes. Few images are {FEW:,} real ones, though the",
        "teacher has seen all 50,000. Clean accuracy on all 10,000 test images,",
        "robust accuracy under auto-PGD on the cross-entropy, then targeted auto-PGD (the first",
        "two of AutoAttack: an upper bound of what all four leave, part 3) on the first 1,000.",
        "In per cent, mean and range over seeds; of the first seed with its Wilson interval.", "",
    ]  # fmt: skip
    runs = {arm: each for arm, each in found["runs"].items() if each}
    rows = [
        [
            ARMS[arm].label, len(runs[arm]), shares([clean(one) for one in runs[arm].values()]),
            shares([robust(one) for one in runs[arm].values()]),
            accuracy(runs[arm][min(runs[arm])]["attack"]["curve"][0]["worst"]),
        ]
        for arm in ARMS if arm in runs
    ]  # fmt: skip
    lines += table(("method", "seeds", "clean", "robust", "robust, first seed"), rows)
    absent = [ARMS[arm].label for arm in ARMS if arm not in runs]
    if absent:
        lines += [f"Not finished: {', '.join(absent)}.", ""]
    return [*lines, *differences(runs)]


def differences(runs: Mapping[str, Any]) -> list[str]:
    """Comparisons in pairs."""
    rows = []
    for base, arm in (*PAIRS, *TEACHER_PAIRS):
        if base not in runs or arm not in runs:
            continue
        both = sorted(set(runs[base]) & set(runs[arm]))
        gains = [clean(runs[arm][seed]) - clean(runs[base][seed]) for seed in both]
        up = sum(gain > 0 for gain in gains)
        told = f"{sum(gains) / len(gains):+.1f}, higher in {up} of {len(gains)}"
        paired = change(runs[arm], runs[base])
        rows.append([f"{ARMS[arm].label} against {ARMS[base].label}", told, str(paired)])
    text = [
        "In pairs of the same seed, in points; the interval (95 %) of the robust accuracy is over",
        "the images, the same ones attacked in both, and says nothing of other seeds.", "",
    ]  # fmt: skip
    return [*text, *table(("comparison", "clean", "robust"), rows)]


def standard(out: Path) -> list[str]:
    """Experiment 3."""
    found = record(RECORDS, "standard")
    lines = ["## 3. AutoAttack, all four attacks", ""]
    if found is None:
        return [*lines, *missing("standard")]
    lines += made(out, named("at-dra", found["seed"]), "standard")
    lines += [
        f"Seed {found['seed']}, the first 1,000 test images, radius {found['eps']}; Wilson",
        "intervals.",
        "Broken: by each attack, of those that the attacks before it left.", "",
    ]  # fmt: skip
    rows = []
    for arm in ARMS:
        if arm in found["runs"]:
            one = found["runs"][arm]
            stages = ", ".join(f"{stage['name'].split('/')[-1]} {stage['broken']}"
                               for stage in one["stages"])  # fmt: skip
            flags = ", ".join(flag["code"] for flag in one["flags"]) or "none"
            rows.append([ARMS[arm].label, accuracy(one["clean"][""]),
                         accuracy(one["curve"][0]["worst"]), stages, flags])  # fmt: skip
    return [*lines, *table(("method", "clean", "robust", "broken", "flags"), rows)]


def sweeps(out: Path) -> list[str]:
    """Experiment 4."""
    found = record(RECORDS, "sweeps")
    lines = ["## 4. Weight, noise level and place", ""]
    if found is None:
        return [*lines, *missing("sweeps")]
    lines += made(out, named(found["arm"], found["seed"]), "sweeps")
    first, last = found["images"]
    lines += [
        f"{ARMS[found['arm']].label}, seed {found['seed']}, otherwise as in part 2. Robust",
        f"accuracy under 20 steps of PGD, radius {found['eps']}, on test images {first + 1:,} to",
        f"{last:,}, which no attack of the other parts sees. The weight of part 2 was chosen of",
        "the first two, its noise level by the probes; part 7 has the best of all with more seeds.",
        "One seed, so differences of a point are within what the images alone leave open.", "",
    ]  # fmt: skip
    rows = [
        [
            *(f"{one[key]}" if one[key] else "none" for key in ("weight", "sigma", "tap")),
            f"{clean(one):.1f}", f"{100 * one['robust']:.1f}",
        ]
        for one in found["runs"]
    ]  # fmt: skip
    return [*lines, *table(("lambda", "sigma", "tap", "clean", "robust"), rows)]


def larger(out: Path) -> list[str]:
    """Experiment 6."""
    found = record(RECORDS, "larger")
    lines = ["## 6. A larger classifier", ""]
    if found is None:
        return [*lines, *missing("larger")]
    first = next(iter(found["runs"]))
    lines += made(out, f"{named(first, found['seed'])}{found['suffix']}", "larger")
    lines += [
        f"WRN-{found['depth']}-{found['width']}, {found['images']:,} images, otherwise as in",
        f"part 2, seed {found['seed']}. Robust accuracy under 20 steps of PGD, radius",
        f"{found['eps']}, on the first 1,000 test images.", "",
    ]  # fmt: skip
    rows = [
        [ARMS[arm].label, f"{one['parameters']:,}", f"{clean(one):.1f}", f"{robust(one):.1f}"]
        for arm, one in found["runs"].items()
    ]
    lines += table(("method", "parameters trained", "clean", "robust"), rows)
    return [*lines, *differences({arm: {"": one} for arm, one in found["runs"].items()})]


def chosen(out: Path) -> list[str]:
    """Experiment 7."""
    found, main = record(RECORDS, "chosen"), record(RECORDS, "classifiers")
    lines = ["## 7. What the sweep chose, with all seeds", ""]
    if found is None or main is None:
        return [*lines, *missing("chosen")]
    end = f"{found['sigma']:g}-{found['weight']:g}-{found['tap']}"
    lines += made(out, f"{found['arm']}-{SEEDS[0]}-{end}", "chosen")
    lines += [
        f"`{found['tap']}`, lambda {found['weight']:g}, sigma {found['sigma']:g}: the best of part",
        "4, chosen on other test images than those here. Otherwise as in part 2.", "",
    ]  # fmt: skip
    both = {"AT": main["runs"]["at"], "AT + DRA, chosen": found["runs"]}
    rows = [
        [label, len(runs), shares([clean(one) for one in runs.values()]),
         shares([robust(one) for one in runs.values()])]
        for label, runs in both.items()
    ]  # fmt: skip
    lines += table(("method", "seeds", "clean", "robust"), rows)
    base, arm = both.values()
    seeds = sorted(set(base) & set(arm))
    gains = [clean(arm[seed]) - clean(base[seed]) for seed in seeds]
    up = sum(gain > 0 for gain in gains)
    told = f"{sum(gains) / len(gains):+.1f}, higher in {up} of {len(gains)}"
    return [*lines, f"In pairs, in points: clean {told}; robust {change(arm, base)}.", ""]


PARTS: Sequence[Callable[[Path], list[str]]] = (
    teachers, classifiers, standard, sweeps, analyses, larger, chosen,
)  # fmt: skip


def main() -> None:
    """Write the page."""
    given = arguments(__doc__)
    remarks = Path(__file__).with_name("remarks.txt")
    lines = [HEAD, remarks.read_text() if remarks.exists() else ""]
    for part in PARTS:
        lines += part(given.out)
    (HERE / "dra.md").write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
