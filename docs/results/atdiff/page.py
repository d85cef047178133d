"""Write `docs/results/atdiff.md` and its pictures from the records.

    python docs/results/atdiff/page.py --out RUNS

RUNS is the folder, or one folder with links to the folders, that the other scripts trained in.
Figures of the page come from the records and run folders; none is written by hand. Parts whose
script has not been run are named as such.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from here import RECORDS, arguments
from measures import curve
from page_probes import ablation, robustness
from pages import record, table
from plots import curves, grid, samples_of
from values import HERE, VARIANTS, change, made, missing, told

KINDS = {
    "dpm": "Diffusion (DPM)", "ct": "Consistency training (CT)",
    "cd": "Consistency distillation (CD)",
}  # fmt: skip
SAMPLERS = {"dpm": ("ddpm", "ddim"), "ct": ("",), "cd": ("",)}
NAMES = {"ddpm": "ancestral", "ddim": "DDIM", "": "multistep"}
METHODS = {
    "not tuned": "the run that all go on from",
    "plain": "plain, as many updates", "plain-batches": "plain, as many batches",
    "input-perturbation": "input perturbation, 0.15", "pgd": "PGD, 2 steps",
    "free-frozen": "free AT, frozen (released)", "free": "free AT, full",
    "free-0.5": "free AT, full, alpha 0.5",
}  # fmt: skip
NUMBER = "frechet_judge_pooled"
#: By how much the distance at 10 steps was to fall.
WANTED = -15.0


Runs = Mapping[str, Mapping[str, Mapping[str, float]]]


def over_seeds(runs: Runs, variant: str, name: str, sampler: str) -> dict[int, list[float]]:
    """Values by steps, of the seeds that all variants have been trained with."""
    whole = set.intersection(*(set(runs[key]) for key in VARIANTS))
    each = [curve(runs[variant][seed], name, sampler) for seed in sorted(whole)]
    return {steps: [one[steps] for one in each] for steps in sorted(each[0])}


def matched(out: Path, name: str, title: str, text: Sequence[str]) -> list[str]:
    """Experiment 1 on one data set."""
    found = record(RECORDS, name)
    lines = [f"## {title}", ""]
    if found is None:
        return [*lines, *missing(name)]
    lines += made(out, f"{name}-dpm-free-7", name)
    sizes = ", ".join(f"{VARIANTS[key]}: {count:,}" for key, count in found["images"].items())
    lines += [*text, f"Images of a run ({sizes}), batches of {found['batch']}.", ""]
    panels: dict[str, dict[str, Any]] = {}
    for kind, heading in KINDS.items():
        runs = found["runs"].get(kind, {})
        if not all(variant in runs for variant in VARIANTS):
            continue
        rows = []
        for sampler in SAMPLERS[kind]:
            by = {key: over_seeds(runs, key, found["number"], sampler) for key in VARIANTS}
            panel = panels.setdefault(f"{heading}, {NAMES[sampler]}", {})
            for key, label in VARIANTS.items():
                panel[label] = [(steps, fmean(values)) for steps, values in by[key].items()]
            for steps, base in by["updates"].items():
                others = [told(by[key][steps], base) for key in VARIANTS if key != "updates"]
                rows.append([NAMES[sampler], steps, told(base), *others])
        lines += [f"### {heading}", ""]
        lines += table(("sampler", "steps", *VARIANTS.values()), rows)
    if panels:
        curves(panels, HERE / f"atdiff-{name}.png")
        lines += [f"![Distance against steps](atdiff-{name}.png)", ""]
    return lines


def images(out: Path) -> list[str]:
    """Experiment 2."""
    found = record(RECORDS, "images")
    lines = ["## 2. CIFAR-10 at 16 pixels: fine-tuning", ""]
    if found is None:
        return [*lines, *missing("images")]
    lines += made(out, "cifar16-free", "images")
    scales = ", ".join(f"{key}: {value:.4g}" for key, value in found["scales"].items())
    lines += [
        "A small U-Net, read as v, goes on from one plain run by each method, one seed. Squared",
        "Frechet distance of 1,000 samples, from the same seeds everywhere, to the first 10,000",
        "training images, in the 64 pooled features of a ResNet-56 trained on clean CIFAR-10,",
        "images resized to its 32 pixels; this is no FID. x0 clipped. In brackets with epsilon",
        "scaling. Its factor was chosen on the plain run at 10 ancestral steps",
        f"({scales}): {found['scale']:g} for all.", "",
    ]  # fmt: skip
    methods = {key: METHODS[key] for key in METHODS if key in found["methods"]}
    numbers = {key: found["methods"][key]["metrics"] for key in methods}
    counts = {**found["images"], "not tuned": ""}
    panels = {}
    for sampler in ("ddpm", "ddim"):
        plain, scaled = (
            {key: curve(one, NUMBER, label) for key, one in numbers.items()}
            for label in (sampler, f"{sampler}-es")
        )
        panels[NAMES[sampler]] = {methods[key]: sorted(plain[key].items()) for key in methods}
        steps = sorted(next(iter(plain.values())))
        cells = {
            key: [f"{plain[key][n]:.4g} ({scaled[key][n]:.4g})" for n in steps] for key in methods
        }
        rows = [[methods[key], counts[key], *cells[key]] for key in methods]
        lines += [f"### {NAMES[sampler].capitalize() if sampler == 'ddpm' else 'DDIM'}", ""]
        lines += table(("method", "images", *(f"{n} steps" for n in steps)), rows)
    curves(panels, HERE / "atdiff-cifar16.png")
    lines += ["![Distance against steps](atdiff-cifar16.png)", ""]
    lines += verdict(numbers, methods)
    lines += gaps(numbers, methods)
    runs = {label: sorted(out.glob(f"[0-9]*-cifar16-{key}")) for key, label in methods.items()}
    shown = {label: samples_of(each[-1]) for label, each in runs.items() if each}
    if shown:
        grid(shown, HERE / "atdiff-cifar16-samples.png")
        lines += ["![Samples, DDIM, 50 steps](atdiff-cifar16-samples.png)", ""]
    return lines


def verdict(numbers: Mapping[str, Any], methods: Mapping[str, str]) -> list[str]:
    """Whether the aim was met, and the reference that there is."""
    lines = [
        "Reference, second-hand (Table 3 of arXiv 2604.16044, whose text confuses two references):",
        "FID of ADM at 32 pixels 22.62 / 10.52 / 4.55 at 10 / 20 / 50 steps, with AT 15.88 / 6.60",
        "/ 3.34. No other number of the paper is known here.", "",
    ]  # fmt: skip
    if "plain" not in numbers:
        return lines
    rows = []
    for key in ("plain-batches", "input-perturbation", "pgd", "free-frozen", "free", "free-0.5"):
        if key not in numbers:
            continue
        cells = []
        for label in ("ddpm", "ddpm-es", "ddim", "ddim-es"):
            ours, base = (curve(numbers[one], NUMBER, label)[10] for one in (key, "plain"))
            by = change(ours, base)
            cells.append(f"{by:+.0f} %{' (aim met)' if by <= WANTED else ''}")
        rows.append([methods[key], *cells])
    told = "Change of the distance at 10 steps against the plain run of as many updates; aim: "
    lines += [f"{told}{WANTED:+.0f} %.", ""]
    head = ("method", "ancestral", "with epsilon scaling", "DDIM", "with epsilon scaling")
    return [*lines, *table(head, rows)]


def gaps(numbers: Mapping[str, Any], methods: Mapping[str, str]) -> list[str]:
    """The distribution gap of each method."""
    keys = ("gap_sliced", "gap_sliced_floor", "gap_sliced_worst", "gap_eps_norm", "gap_variance")
    rows = [
        [methods[name], *(float(numbers[name][key]) for key in keys)]
        for name in methods
        if keys[0] in numbers[name]
    ]
    text = "The distribution gap itself, ancestral sampling in 10 steps:"
    return [text, "", *table(("method", *(f"`{key}`" for key in keys)), rows)]


HEAD = """# AT_Diff: what was measured

Written by `docs/results/atdiff/page.py`. Small-scale: minutes to an hour of one CPU core per
experiment, where the paper trains for days on GPUs. What the paper states and what is ours is in
the README of advdiff-atdiff. Free AT makes K = 3 updates on each batch, so plain training is
matched twice: with as many optimizer updates (three times the images), and with as many batches.
"""
POINTS = (
    "Points around eight modes on a circle; sliced 2-Wasserstein distance of 10,000 samples to the",
    "data, in their units. Mean and range over three seeds; change against as many updates.",
)
DIGITS = (
    "8x8 digits in [-1, 1]; squared Frechet distance in pixels of 1,000 samples to all digits, x0",
    "clipped. Mean and range over three seeds; change against as many updates.",
)


def main() -> None:
    """Write the page."""
    given = arguments(__doc__)
    remarks = Path(__file__).with_name("remarks.txt")
    lines = [HEAD, remarks.read_text() if remarks.exists() else ""]
    lines += matched(given.out, "points", "1a. Points", POINTS)
    lines += matched(given.out, "digits", "1b. Digits", DIGITS)
    for part in (images, ablation, robustness):
        lines += part(given.out)
    (HERE / "atdiff.md").write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
