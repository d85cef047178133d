"""Measure the recorded runs of the plugins' parts and write `parts.md` and its pictures.

    python docs/results/parts.py --denoiser RUN --classifier RUN --cifar10 FOLDER [--weights FOLDER]

RUN are runs of the recipes `cifar10-ddpmpp` and `cifar10-wide-resnet` of advdiff-backbones, FOLDER
holds CIFAR-10 in its binary version. `--weights` holds published classifiers as safetensors, which
are imported and measured too. Figures of the page are written by this script and never by hand.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import tomli
from PIL import Image

HERE = Path(__file__).parent
SAMPLES, STEPS, SIZE = 1_000, 10, 112
#: Checkpoints that are measured, evenly spread; the last is one of them.
POINTS = 5
CLASSIFIERS = {
    "cifar10_resnet20_standard": ("cifar-resnet", {"depth": 20}, 91.73),
    "cifar10_resnet56_standard": ("cifar-resnet", {"depth": 56}, 93.39),
    "cifar10_resnet2b_at_linf2": ("normless-resnet", {"channels": 8, "stages": 1}, 69.25),
    "cifar10_resnet4b_at_linf2": ("normless-resnet", {"channels": 16, "stages": 2}, 77.20),
}


def advdiff(*words: object) -> Any:
    """The JSON that a verb prints."""
    command = [sys.executable, "-m", "advdiff_core", *map(str, words), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def distances(run: Path) -> list[dict[str, Any]]:
    """fd-lite of samples of some checkpoints."""
    found = []
    folders = sorted(run.glob("checkpoints/*/"), key=lambda path: int(path.name))
    for folder in folders[:: -max(1, len(folders) // POINTS)][:POINTS][::-1]:
        result = advdiff(
            "evaluate", run, "--checkpoint", folder.name, "-s", f"evaluate.num={SAMPLES}",
            "-s", f"sample.steps={STEPS}", "-s",
            f'evaluate.metrics=[{{use="fd-lite",size={SIZE},images={SAMPLES}}}]',
        )  # fmt: skip
        print(folder.name, result["metrics"], file=sys.stderr, flush=True)
        found.append({"nimg": int(folder.name), **result})
    return found


def published(run: Path, weights: Path, cifar10: Path) -> list[dict[str, Any]]:
    """Clean test accuracy of published classifiers, imported."""
    found = []
    with tempfile.TemporaryDirectory() as place:
        for name, (use, keys, stated) in CLASSIFIERS.items():
            out = Path(place, name)
            options = [word for key, value in keys.items() for word in ("-s", f"{key}={value}")]
            advdiff(
                "import", weights / f"{name}.safetensors", "--use", use, "--classes", 10,
                *options, "--out", out,
            )  # fmt: skip
            table = [f'use="{use}"', 'parametrization="none"', "frozen=true", f'init="{out}"']
            table += [f"{key}={json.dumps(value)}" for key, value in keys.items()]
            test = f'data={{use="cifar10",path="{cifar10}",split="test"}}'
            result = advdiff(
                "evaluate", run, "-s", f"models.judge={{{','.join(table)}}}", "-s",
                f'evaluate.metrics=[{{use="accuracy",role="judge",{test}}}]',
            )  # fmt: skip
            print(name, result["metrics"], file=sys.stderr, flush=True)
            found.append({"name": name, "use": use, "stated": stated, **result["metrics"]})
    return found


def curve(points: list[dict[str, Any]]) -> str:
    """Distance against images seen, as SVG."""
    xs = [point["nimg"] for point in points]
    ys = [point["metrics"]["fd_lite"] for point in points]
    width, height, pad = 640, 300, 56
    top = max(ys) * 1.05

    def place(x: float, y: float) -> tuple[float, float]:
        across = pad + (width - 2 * pad) * x / max(xs)
        return across, height - pad - (height - 2 * pad) * y / top

    line = " ".join(f"{a:.1f},{b:.1f}" for a, b in map(place, xs, ys))
    dots = "".join(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3"/>' for a, b in map(place, xs, ys))
    texts = "".join(
        f'<text x="{place(x, y)[0]:.1f}" y="{place(x, y)[1] - 8:.1f}">{y:.4g}</text>'
        for x, y in zip(xs, ys, strict=True)
    )
    ticks = "".join(
        f'<text x="{place(x, 0)[0]:.1f}" y="{height - pad + 18}">{x // 1000}k</text>' for x in xs
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" fill="#2654a4" '
        f'font-family="sans-serif" font-size="11" text-anchor="middle"><rect width="{width}" '
        f'height="{height}" fill="white"/><polyline points="{line}" fill="none" stroke="#2654a4" '
        f'stroke-width="2"/>{dots}<g fill="#404048">{texts}{ticks}<text x="{width / 2}" '
        f'y="{height - 12}">training images seen</text><text x="{width / 2}" y="20">fd-lite of '
        f"{SAMPLES:,} samples, lower is better</text></g></svg>\n"
    )


def facts(run: Path) -> list[str]:
    """Rows of a table about a run, from its folder alone."""
    recipe = tomli.loads((run / "recipe.lock.toml").read_text())
    newest = max(run.glob("checkpoints/*/"), key=lambda path: int(path.name))
    meta = json.loads((newest / "state.json").read_text())["meta"]["provenance"]
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    plan = json.loads((run / "plan.json").read_text())
    size = json.dumps(plan.get("roles", plan), sort_keys=True)
    parameters = json.loads(size).get("student", {}).get("parameters", "see advdiff plan")
    return [
        "| what | value |",
        "| --- | --- |",
        f"| commit | {recipe['lock'].get('git', {}).get('commit', 'unknown')[:12]} |",
        f"| hardware | {meta['machine']}, {meta['cpu_capability']}, {meta['threads']} thread, "
        f"{meta['device']}, other jobs beside it |",
        f"| torch, precision | {meta['torch']}, {meta['autocast']} |",
        f"| seed | {recipe['run']['seed']} |",
        f"| parameters | {parameters:,} |" if isinstance(parameters, int) else "",
        f"| images seen | {last['nimg']:,} |",
        f"| seconds | {last['seconds']:.0f} |",
    ]


def sentences(protocols: dict[str, Any]) -> list[str]:
    """One line per metric's protocol."""
    return [
        f"- {name}: " + "; ".join(f"{key} {value}" for key, value in protocol.items())
        for name, protocol in protocols.items()
    ]


HEAD = [
    "# Parts, on real images",
    "",
    "Written by `docs/results/parts.py` from runs of the shipped recipes. Small-scale: minutes",
    "of one CPU core, to show that the parts work together. One seed each.",
    "",
]


def denoiser(run: Path) -> list[str]:
    """The section of the diffusion model, and its pictures beside the page."""
    points = distances(run)
    (HERE / "parts-distance.svg").write_text(curve(points))
    with Image.open(sorted((run / "images").glob("*.png"))[-1]) as picture:
        # 96 colours: a picture in git stays below 200 kB.
        picture.quantize(96).save(HERE / "parts-samples.png", optimize=True)
    return [
        "## A class-conditional diffusion model of CIFAR-10",
        "",
        "`advdiff train advdiff-backbones:cifar10-ddpmpp -s data.path=FOLDER`: EDM's network and",
        "preconditioning, 1.3 M parameters in place of 55.7 M, 200 thousand images of 200 M.",
        "",
        *filter(None, facts(run)),
        "",
        "![Real images above, samples below](parts-samples.png)",
        "",
        "| images seen | fd-lite |",
        "| --- | --- |",
        *(f"| {one['nimg']:,} | {one['metrics']['fd_lite']:.4g} |" for one in points),
        "",
        "![Distance against images seen](parts-distance.svg)",
        "",
        *sentences(points[-1]["protocols"]),
        "",
    ]


def classifier(run: Path) -> list[str]:
    """The section of the classifier."""
    # Measured anew: evaluating published weights on this run wrote over what it had found.
    found = advdiff("evaluate", run)
    return [
        "## A classifier of CIFAR-10",
        "",
        "`advdiff train advdiff-backbones:cifar10-wide-resnet -s data.path=FOLDER`: WRN-16-2 with",
        "SiLU, crop and flip.",
        "",
        *filter(None, facts(run)),
        "",
        "| metric | value |",
        "| --- | --- |",
        *(f"| {name} | {value:.4g} |" for name, value in found["metrics"].items()),
        "",
        *sentences(found["protocols"]),
        "",
    ]


def imported(run: Path, weights: Path, cifar10: Path) -> list[str]:
    """The section of published classifiers."""
    lines = [
        "## Published classifiers, imported",
        "",
        "`advdiff import FILE --use NAME --classes 10`, then `accuracy` on the 10,000 test",
        "images, of which 20 were at hand as JPEG only. Stated: by who published the",
        "weights, in percent.",
        "",
        "| weights | backbone | accuracy | stated |",
        "| --- | --- | --- | --- |",
    ]
    for one in published(run, weights, cifar10):
        both = f"{100 * one['accuracy']:.2f} | {one['stated']:.2f}"
        lines.append(f"| {one['name']} | `{one['use']}` | {both} |")
    return [*lines, ""]


def page(given: argparse.Namespace) -> str:
    """The page."""
    lines = [*HEAD, *denoiser(given.denoiser), *classifier(given.classifier)]
    if given.weights:
        lines += imported(given.classifier, given.weights, given.cifar10)
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name, needed in (("denoiser", True), ("classifier", True), ("cifar10", True)):
        parser.add_argument(f"--{name}", type=Path, required=needed)
    parser.add_argument("--weights", type=Path)
    arguments = parser.parse_args()
    (HERE / "parts.md").write_text(page(arguments))
