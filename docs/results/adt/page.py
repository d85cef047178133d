"""Write `docs/results/adt.md` and its pictures from the records.

    python docs/results/adt/page.py --out RUNS

RUNS is the folder that the other scripts trained in. Figures of the page come from the records and
run folders; none is written by hand. Parts whose script has not been run are named as such.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from backbones import NETWORKS
from here import RECORDS, arguments
from measures import TRANSFER, curve
from pages import provenance, record, table
from plots import curves, grid, samples_of
from variants import VARIANTS

HERE = Path(__file__).parents[1]
RULES = ("full", "drtune", "adt", "last-k", "none")
SAMPLERS = {"ddim": "DDIM", "dpmpp2m": "DPM++ 2M", "euler": "Euler", "ancestral": "ancestral"}
JUDGED = {
    "discriminator_accuracy": "accuracy", "discriminator_auc": "AUC",
    "hacking_score_rise": "rise of the score", "hacking_distance_rise": "rise of the distance",
    "hacking_alarm": "alarm",
}  # fmt: skip
Runs = Mapping[str, Mapping[str, float]]


def missing(script: str) -> list[str]:
    """What the page says of a part that there is no record of."""
    return [f"Written and not run for want of time; `{script}.py` makes the numbers.", ""]


def made(out: Path, run: str, name: str) -> list[str]:
    """How a record came about, if the run is at hand."""
    found = sorted(out.glob(f"[0-9]*-{run}"))
    command = f"docs/results/adt/{name}.py"
    return provenance(RECORDS, found[-1], command, name) if found else []


def told(values: Sequence[float], against: Sequence[float] | None = None) -> str:
    """Mean and range over seeds; where there is something to compare, the change of the mean."""
    text = f"{fmean(values):.4g}"
    if len(values) > 1:
        text += f" ({min(values):.3g}-{max(values):.3g})"
    if against is None:
        return text
    lower = sum(a < b for a, b in zip(values, against, strict=True))
    change = 100 * (fmean(values) / fmean(against) - 1)
    share = f", lower in {lower} of {len(values)}" if len(values) > 1 else ""
    return f"{text}; {change:+.0f} %{share}"


def multipliers() -> list[str]:
    """Experiment 1."""
    found = record(RECORDS, "multipliers")
    lines = ["## 1. Gradients along the path, by rule", ""]
    if found is None:
        return [*lines, *missing("multipliers")]
    ends = found["ends"]
    lines += [
        f"Schedule of Stable Diffusion, {found['steps']} steps of DDIM on the leading grid,",
        "float64; `docs/results/adt/multipliers.py`, commit",
        f"{record(RECORDS, 'commits')['multipliers']}. Multiplier: gradient of the sample towards",
        "the state at T. Weights: that towards the one weight of a step; early: share of the sum",
        f"of their sizes on the first fifth of the steps. `last-k`: K = {found['last']}.", "",
    ]  # fmt: skip
    for steps, one in ends.items():
        lines.append(
            f"- {steps} steps: alpha_T = {one['alpha_T']:.4f}, alpha_0 / alpha_T = "
            f"{one['alpha_0'] / one['alpha_T']:.4f}, product of the steps' slopes "
            f"{one['product']:.4f}."
        )
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for net, rules in found["nets"].items():
        rows = []
        for rule in RULES:
            weights = [abs(value) for value in rules[rule]["weights"]]
            early = sum(weights[: len(weights) // 5]) / sum(weights)
            middle = weights[len(weights) // 2]
            rows.append([
                f"`{rule}`", rules[rule]["states"][0], weights[0], middle, weights[-1],
                f"{100 * early:.0f} %",
            ])  # fmt: skip
            shown = zip(found["times"], weights, strict=False)
            panels.setdefault(f"weights by step, {net} network", {})[rule] = [
                (t, w) for t, w in shown if w > 0
            ]
        lines += ["", f"A network that is {net if net == 'constant' else 'a tenth of a tanh'}:", ""]
        head = ("rule", "multiplier", "first weight", "middle", "last", "early")
        lines += table(head, rows)
        lines += [
            f"Finite differences of the whole path: {found['differences'][net]['start']:.6f} in "
            f"the start, {found['differences'][net]['weight']:.6f} in the weight of all steps "
            f"(`full`: {rules['full']['states'][0]:.6f}, {sum(rules['full']['weights']):.6f}).", "",
        ]  # fmt: skip
    curves(panels, HERE / "adt-multipliers.png")
    return [*lines, "![Weights' gradients by step](adt-multipliers.png)", ""]


def distances(runs: Mapping[str, Runs], number: str, title: str) -> list[str]:
    """Distance by steps and sampler; each change is against plain tuning with the same seeds."""
    rows = []
    for variant, one in runs.items():
        if variant not in (*VARIANTS, "base"):
            continue
        cells = []
        for sampler in TRANSFER:
            first = next(iter(one.values()))
            for steps in sorted(curve(first, number, sampler)):
                values = [curve(seed, number, sampler)[steps] for seed in one.values()]
                plain = runs.get("plain", {})
                paired = [
                    curve(plain[seed], number, sampler)[steps] for seed in one if seed in plain
                ]
                against = paired if variant != "plain" and len(paired) == len(values) else None
                cells.append(told(values, against))
        label = "the run that all go on from" if variant == "base" else VARIANTS[variant].name
        rows.append([label, len(one) if variant != "base" else "", *cells])
    first = next(iter(runs["plain"].values()))
    names = [
        f"{SAMPLERS[sampler]} {steps}"
        for sampler in TRANSFER
        for steps in sorted(curve(first, number, sampler))
    ]
    return [title, "", *table(("variant", "seeds", *names), rows)]


def judged(runs: Mapping[str, Runs], names: Mapping[str, str]) -> list[str]:
    """What the discriminator can tell at the end, and the alarm; means over seeds."""
    rows = [
        [names[key], *(fmean(seed[number] for seed in one.values()) for number in JUDGED)]
        for key, one in runs.items()
        if key in names and all("hacking_alarm" in seed for seed in one.values())
    ]
    text = "What the discriminator can tell at the end, and the alarm (means over seeds):"
    return [text, "", *table(("variant", *JUDGED.values()), rows)] if rows else []


def digits(out: Path) -> list[str]:
    """Experiment 2 on digits."""
    found = record(RECORDS, "digits")
    lines = ["## 2a. Digits", ""]
    if found is None:
        return [*lines, *missing("digits")]
    lines += made(out, "digits-adt-7", "digits")
    lines += [
        f"8x8 digits; every variant goes on from one plain run of {found['base']:,} images by",
        f"{found['updates']} updates of the generator on batches of {found['batch']}, tuned",
        "through 10 steps of DDIM. Squared Frechet distance of",
        f"{found['samples']} samples to all digits; mean and range over seeds; change against",
        "plain tuning with the same seeds. Only DDIM is what runs were tuned with: the other",
        "columns are transfer.", "",
    ]  # fmt: skip
    runs = found["runs"]
    if "plain" in runs:
        lines += distances(
            runs,
            found["number"],
            "In features of a classifier that the discriminator does not use:",
        )
        lines += distances(runs, "frechet", "In pixels:")
    return [*lines, *judged(runs, {key: one.name for key, one in VARIANTS.items()})]


def cifar(out: Path) -> list[str]:
    """Experiment 2 on CIFAR-10."""
    found = record(RECORDS, "cifar")
    lines = ["## 2b. CIFAR-10 at 16 pixels", ""]
    if found is None:
        return [*lines, *missing("cifar")]
    lines += made(out, "cifar16-adt", "cifar")
    lines += [
        f"Every variant goes on from one plain run by {found['updates']} updates of the generator",
        f"on batches of {found['batch']}; mean and range over seeds. Squared Frechet distance of",
        f"{found['samples']:,} samples to the first 10,000 training images in the 64 pooled",
        "features of a ResNet-56, images resized to its 32 pixels, x0 clipped; this is no FID. The",
        "discriminator reads a ResNet-20.", "",
    ]  # fmt: skip
    runs = found["runs"]
    if "plain" in runs:
        lines += distances(runs, found["number"], "Distance:")
    lines += judged(runs, {key: one.name for key, one in VARIANTS.items()})
    shown = {one.name: sorted(out.glob(f"[0-9]*-cifar16-{key}")) for key, one in VARIANTS.items()}
    samples = {name: samples_of(each[-1]) for name, each in shown.items() if each}
    if samples:
        grid(samples, HERE / "adt-cifar16-samples.png")
        lines += ["![Samples of each variant](adt-cifar16-samples.png)", ""]
    return lines


def bias(out: Path) -> list[str]:
    """Experiment 3a."""
    found = record(RECORDS, "bias")
    lines = ["## 3a. Bias of the stop of the gradient, along training", ""]
    if found is None:
        return [*lines, *missing("bias")]
    lines += made(out, "digits-bias", "bias")
    lines += [
        "Angle in degrees between the gradient of a rule and the whole one, towards all weights,",
        "by the discriminator's score of 64 whole paths (t = T), all steps trained; 90 is",
        "unrelated. Beside it the multiplier at T.", "",
    ]  # fmt: skip
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for steps, runs in found["runs"].items():
        rows = [
            [
                f"{100 * float(share):.0f} %",
                *(float(one[f"rollout_angle_{rule}"]) for rule in ("adt", "drtune")),
                *(float(one[f"rollout_multiplier_{rule}"]) for rule in ("adt", "drtune", "full")),
            ]
            for share, one in runs.items()
        ]
        head = ("trained", "angle, `adt`", "angle, `drtune`",
                *(f"multiplier, `{rule}`" for rule in ("adt", "drtune", "full")))  # fmt: skip
        lines += [f"{steps} steps:", "", *table(head, rows)]
        panels[f"angle to the whole gradient, {steps} steps"] = {
            rule: [(float(share), one[f"rollout_angle_{rule}"]) for share, one in runs.items()]
            for rule in ("adt", "drtune")
        }
    curves(panels, HERE / "adt-bias.png")
    return [*lines, "![Angle along training](adt-bias.png)", ""]


def backbones(out: Path) -> list[str]:
    """Experiment 3b."""
    found = record(RECORDS, "backbones")
    lines = ["## 3b. What the discriminator reads", ""]
    if found is None:
        return [*lines, *missing("backbones")]
    lines += made(out, "digits-vit", "backbones")
    numbers = found["runs"]
    rows = []
    for name, one in numbers.items():
        line = curve(one, found["number"], "ddim")
        cells = [*(float(line[steps]) for steps in sorted(line)), float(one["discriminator_auc"])]
        rows.append([NETWORKS[name].name, *cells, float(one["hacking_alarm"])])
    first = curve(next(iter(numbers.values())), found["number"], "ddim")
    head = ("network", *(f"DDIM {steps}" for steps in sorted(first)), "AUC", "alarm")
    text = "Digits as above, ADT, one seed: distance in features of a classifier of its own."
    return [*lines, text, "", *table(head, rows)]


HEAD = """# ADT: what was measured

Written by `docs/results/adt/page.py`. Small-scale: minutes of one CPU core per experiment, where
the paper tunes Stable Diffusion on 170,000 pictures; its tables are not known here. What the paper
states and what is ours is in the README of advdiff-adt.
"""


def main() -> None:
    """Write the page."""
    given = arguments(__doc__)
    remarks = Path(__file__).with_name("remarks.txt")
    lines = [HEAD, remarks.read_text() if remarks.exists() else ""]
    lines += multipliers()
    for part in (digits, cifar, bias, backbones):
        lines += part(given.out)
    (HERE / "adt.md").write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
