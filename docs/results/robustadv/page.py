"""Write `docs/results/robustadv.md` and its pictures from the records and the runs.

    python docs/results/robustadv/page.py --out RUNS

RUNS is the folder, or one folder with links to the folders, that the other scripts trained in.
Figures of the page come from the records and run folders; none is written by hand.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

from here import RECORDS, arguments
from pages import find, provenance, record, spread, table
from pictures import fields, tradeoff
from plots import curves, evaluation_of, grid, samples_of

HERE = Path(__file__).parents[1]
PARTS = ("16-0.2", "16-0.1", "16-clean", "32-0.2")
NAMES = {"ddpm": "DDPM", "adversarial-capped": "adversarial, capped weight"}
DAMAGE = {
    "inlier": "Noise of 0.1 off the plane",
    "outliers": "10 % uniform outliers in [-2, 2]^3",
}


def vitro(out: Path) -> list[str]:
    """Experiment 1."""
    found = record(RECORDS, "vitro")
    lines = ["## 1. In vitro: an oblique plane", ""]
    lines += provenance(
        RECORDS, find(out, "vitro-inlier-adversarial-7"), "docs/results/robustadv/vitro.py", "vitro"
    )
    lines += [
        "z = (x + y) / 2 on [-1, 1]^2, 20,000 points; lambda = 0.3, image units; DDIM, 100 steps,",
        "10,000 samples; mean over three seeds, and their range. The network is read as v: as eps,",
        "in so few images, DDIM's first steps throw points of the plain model far away, which no",
        "fair comparison may count. Shrinkage: standard deviation inside the plane, over that of",
        "clean points.",
        "",
    ]
    for damage, title in DAMAGE.items():
        rows = []
        base = fmean(one["plane_distance"] for one in found["runs"][damage]["ddpm"])
        for method, runs in found["runs"][damage].items():
            mean = fmean(one["plane_distance"] for one in runs)
            rows.append([
                NAMES.get(method, method), spread([one["plane_distance"] for one in runs]),
                f"{100 * (mean / base - 1):+.0f} %",
                spread([one["plane_off_share"] for one in runs]),
                spread([one["plane_std_ratio"] for one in runs]),
            ])  # fmt: skip
        lines += [f"### {title}", ""]
        head = ("method", "mean distance to the plane", "against DDPM", "share farther than 0.1",
                "shrinkage")  # fmt: skip
        lines += table(head, rows)
        shown = ("ddpm", "random", "adversarial", "invariance")
        runs = {NAMES.get(one, one): find(out, f"vitro-{damage}-{one}-7") for one in shown}
        fields(runs, HERE / f"robustadv-vitro-{damage}.png")
        text = "Samples, and the step towards x0_hat at sigma / alpha = 0.3"
        lines += [f"![{text}](robustadv-vitro-{damage}.png)", ""]
    return lines


def images(out: Path) -> list[str]:
    """Experiment 2 on CIFAR-10."""
    lines = ["## 2. CIFAR-10, 90 % of the images damaged", ""]
    run = find(out, "cifar16-0.2-adversarial")
    lines += provenance(RECORDS, run, "docs/results/robustadv/images.py", "images-16-0.2")
    lines += [
        "The paper's fine-tuning form, at the size two CPU cores allow: a plain U-Net of 0.9 M",
        "parameters learns from damaged images, and every method goes on from it for the same",
        "number of images.",
        "Distance: Frechet distance of 1,000 samples (DDIM, 50 steps, x0 clipped) to the",
        "first 10,000 clean training images, in the 64 pooled features of a ResNet-56 trained on",
        "clean CIFAR-10 (93.39 %). `data` is the distance of the damaged images themselves.",
        "Noise: residual-noise of the samples (0 is clean). One seed; this is no FID.",
        "",
    ]
    rows = [row for part in PARTS for row in image_rows(part)]
    head = ("pixels", "sigma", "method", "images: plain + tuned", "distance", "over DDPM's",
            "data", "noise", "noise of data")  # fmt: skip
    lines += table(head, rows)
    _, seen = evaluation_of(find(out, "cifar16-0.2-ddpm"))
    pictures = {"clean": seen.clean[:16], "as seen": seen.data[:16]}
    for method in record(RECORDS, "images-16-0.2")["methods"]:
        run = find(out, f"cifar16-0.2-{method.replace(' ', '-')}")
        pictures[NAMES.get(method, method)] = samples_of(run)
    grid(pictures, HERE / "robustadv-cifar16.png")
    lines += ["![Samples at 16 pixels, sigma 0.2](robustadv-cifar16.png)", ""]
    missing = [part for part in PARTS if record(RECORDS, f"images-{part}") is None]
    if missing:
        told = "Written and not run for want of time on two cores (pixels-sigma): "
        lines += [f"{told}{', '.join(missing)}; `images.py` makes them.", ""]
    return lines


def image_rows(part: str) -> list[list[Any]]:
    """Rows of the table for one size and level, if it was run."""
    found = record(RECORDS, f"images-{part}")
    if found is None:
        return []
    size, _, sigma = part.partition("-")
    base = found["methods"]["ddpm"]["metrics"]["frechet_judge_pooled"]
    rows = []
    for method, one in found["methods"].items():
        numbers = one["metrics"]
        tuned = found.get("short", {}).get(method, found["tuned"])
        rows.append([
            size, sigma, NAMES.get(method, method), f"{found['base']:,} + {tuned:,}",
            numbers["frechet_judge_pooled"], numbers["frechet_judge_pooled"] / base,
            numbers.get("frechet_data_judge_pooled", ""), numbers["residual_noise"],
            numbers.get("residual_noise_data", ""),
        ])  # fmt: skip
    return rows


def mnist(out: Path) -> list[str]:
    """Experiment 2 on MNIST."""
    found = record(RECORDS, "mnist")
    lines = ["## 4. MNIST at 14 pixels", ""]
    if found is None:
        return [*lines, "Written and not run for want of time; `mnist.py` makes it.", ""]
    run = find(out, "mnist-0.4-adversarial")
    lines += provenance(RECORDS, run, "docs/results/robustadv/mnist.py", "mnist")
    lines += [
        "Trained from scratch for equally many images, 90 % damaged, or clean. Frechet distance in",
        "pixels of 1,000 samples (DDIM, 50 steps, x0 clipped) to clean images; one seed.",
        "",
    ]
    rows = []
    for name in found["0.4"]:
        row: list[Any] = [NAMES.get(name, name)]
        for level in ("0.4", "clean"):
            one = found.get(level, {}).get(name)
            row += [one["frechet"], one["residual_noise"]] if one else ["", ""]
        rows.append(row)
    head = ("method", "sigma 0.4: distance", "noise", "clean: distance", "noise")
    return lines + table(head, rows)


def digits(out: Path) -> list[str]:
    """Experiments 2 and 4 on digits."""
    found = record(RECORDS, "digits")
    lines = ["## 3. Digits: every method, and which lambda to use", ""]
    lines += provenance(
        RECORDS, find(out, "digits-0.4-adversarial"), "docs/results/robustadv/sweeps.py", "digits"
    )
    lines += [
        "8x8 digits in [-1, 1], 90 % damaged. Frechet distance in pixels of 1,797 samples (DDIM,",
        "50 steps, x0 clipped) to clean digits, trained from scratch for equally many images;",
        "one seed.",
        "",
    ]
    names = [name for name in found["clean"] if name in found["0.4"]]
    rows = []
    for name in names:
        row: list[Any] = [NAMES.get(name, name)]
        for level in ("0.4", "0.2", "all", "clean"):
            one = found[level].get(name)
            row += [one["frechet"], one["residual_noise"]] if one else ["", ""]
        rows.append(row)
    head = ("method", "sigma 0.4: distance", "noise", "sigma 0.2: distance", "noise",
            "all of them, 0.4: distance", "noise", "clean: distance", "noise")  # fmt: skip
    lines += table(head, rows)
    data, whole = found["0.4"]["ddpm"], found["all"]["ddpm"]
    lines += [
        f"The damaged digits themselves: distance {data['frechet_data']:.4g}, noise "
        f"{data['residual_noise_data']:.4g} (90 %, sigma 0.4); {whole['frechet_data']:.4g} and "
        f"{whole['residual_noise_data']:.4g} where all are damaged, which the paper excludes.",
        "",
    ]
    points = {
        NAMES.get(name, name): (
            found["0.4"][name]["residual_noise"] / data["residual_noise_data"],
            found["clean"][name]["frechet"],
        )
        for name in names
        if name != "invariance"
    }
    sweep = ["DDPM", "lambda 0.1", "adversarial", "lambda 1.0", "lambda 3.0"]
    tradeoff(points, sweep, HERE / "robustadv-lambda.png")
    lines += [
        "Which lambda: the noise that is left (model of damaged digits) against the price (model",
        "of clean digits). `adversarial` is lambda = 0.3; lower left is better.",
        "",
        "![Noise left against the price in detail](robustadv-lambda.png)",
        "",
    ]
    return lines


def probes(out: Path) -> list[str]:
    """Experiment 3."""
    found = record(RECORDS, "probes")
    lines = ["## 5. Few steps, memorization, attacks on the path", ""]
    if found is None:
        return [*lines, "Written and not run for want of time; `probes.py` makes them.", ""]
    lines += provenance(
        RECORDS,
        find(out, "digits-memory-adversarial"),
        "docs/results/robustadv/probes.py",
        "probes",
    )
    lines += ["Models of clean digits, as above; memorization: models of 500 digits.", ""]
    panels: dict[str, dict[str, Any]] = {
        "distance against steps": {},
        "against radius": {},
        "against attacked steps": {},
    }
    for name in ("ddpm", "adversarial"):
        shown = NAMES.get(name, name)
        few = found["few-steps"][name]
        panels["distance against steps"][shown] = _points(few, "few_steps_frechet_")
        attacked = found["trajectory-attack"][name]
        for kind in ("pgd", "gaussian"):
            label = f"{shown}, {kind}"
            prefix = f"trajectory_frechet_{kind}_"
            panels["against radius"][label] = _points(attacked, f"{prefix}r")
            panels["against attacked steps"][label] = _points(attacked, f"{prefix}k")
    curves(panels, HERE / "robustadv-probes.png")
    lines += ["![Curves](robustadv-probes.png)", ""]
    keys = {
        "few-steps": None, "trajectory-attack": None,
        "smoothness": ("smoothness_lipschitz", "smoothness_travel", "smoothness_turning"),
        "equivariance": ("equivariance_error_random", "equivariance_error_attacked",
                         "equivariance_error_attacked_q100"),
        "memorization": ("memorization_q50", "memorization_q95", "memorization_share",
                         "memorization_share_data", "frechet"),
    }  # fmt: skip
    rows = []
    for probe, wanted in keys.items():
        for key in wanted or sorted(found[probe]["ddpm"]):
            if key in found[probe]["ddpm"]:
                values = [found[probe][name][key] for name in ("ddpm", "adversarial")]
                rows.append([probe, f"`{key}`", *values])
    return [*lines, *table(("probe", "number", "DDPM", "adversarial"), rows)]


def _points(numbers: dict[str, float], prefix: str) -> list[tuple[float, float]]:
    found = []
    for key, value in numbers.items():
        end = key.removeprefix(prefix)
        if end != key and end.replace(".", "", 1).isdigit():
            found.append((float(end), value))
    return sorted(found)


HEAD = """# Robust_adv: what was measured

Written by `docs/results/robustadv/page.py`. Small-scale: minutes to an hour of one CPU core per
experiment, where the paper trains for days on GPUs. What the paper states and what is ours is in
the README of advdiff-robustadv.
"""


def main() -> None:
    """Write the page."""
    given = arguments(__doc__)
    lines = [HEAD, (Path(__file__).with_name("remarks.txt")).read_text()]
    for part in (vitro, images, digits, mnist, probes):
        lines += part(given.out)
    (HERE / "robustadv.md").write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
