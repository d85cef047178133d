"""Trains the gallery's runs, draws them and writes the page: `python docs/gallery/make.py RUNS`.

Names of pictures may follow; all are made otherwise. Pictures and numbers come from the run folders
in RUNS alone, and runs that are there are not trained again. The page shows what has been made.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import tomli
import torch
from PIL import Image, ImageDraw
from torch.func import functional_call

from advdiff_core.engine.api import Trained, open_trained
from advdiff_core.engine.generate import weights_of
from advdiff_core.hooks.pictures import grid_png, points_png

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PLAIN = ("-s", "terms.equivariance.weight=0")

#: Runs by name: the recipe and what is set beside it.
RUNS = {
    "digits-plain": ("examples/quickstart.toml", *PLAIN),
    "digits-robust": ("examples/quickstart.toml",),
    "moons-plain": ("docs/gallery/moons.toml", *PLAIN),
    "moons-robust": ("docs/gallery/moons.toml",),
}

#: Pictures by file: title, what is seen, the runs.
PICTURES = {
    "digits": (
        "Digits, nine in ten of them damaged",
        "Samples of two runs that differ in one number, the weight of the equivariance term, from "
        "the same seeds. The rows above are data: undamaged, and as both runs saw them.",
        ("digits-plain", "digits-robust"),
    ),
    "moons": (
        "Two moons seen through noise",
        "Points, points as two runs saw them, and samples of the two runs from the same seeds.",
        ("moons-plain", "moons-robust"),
    ),
    "scores": (
        "Score fields",
        "The score that the two moons' denoisers predict at three levels of noise, `sigma / alpha` "
        "= 0.1, 0.3 and 1, as arrows whose length is that of `sigma * score`; the upper row is the "
        "plain run, the lower the robust one.",
        ("moons-plain", "moons-robust"),
    ),
}
HEAD = ("| command | commit | seed | images | metrics |", "| --- | --- | --- | --- | --- |")
NOISE = (0.1, 0.3, 1.0)
SIDE, CELLS, REACH = 300, 21, 2.6


def command(name: str) -> list[str]:
    """The command line of a run."""
    return ["advdiff", "train", *RUNS[name], "-s", f"run.name={name}"]


def trained(name: str, folder: Path) -> Trained:
    """A run, trained if it is not there."""
    found = sorted(folder.glob(f"*-{name}"))
    if not found:
        advdiff = Path(sys.executable).with_name("advdiff")
        words = [str(advdiff), *command(name)[1:], "--out", str(folder)]
        subprocess.run(words, cwd=ROOT, check=True)
        found = sorted(folder.glob(f"*-{name}"))
    return open_trained(found[-1])


def samples(runs: list[Trained], count: int) -> list[tuple[str, torch.Tensor]]:
    """Captions and rows: clean data, data as seen, samples of each run from the same seeds."""
    source = runs[0].experiment.source
    indices = torch.arange(count)
    rows = [("real", source.clean(indices).x), ("training data", source.batch(indices).x)]
    captions = ("plain", "robust")
    drawn = [run.sample(range(count)).x0 for run in runs]
    return [*rows, *zip(captions, drawn, strict=True)]


def field(run: Trained, ratio: float) -> Image.Image:
    """The predicted score on a square, as arrows."""
    scene = run.experiment.scene
    role, schedule = scene.roles["student"], scene.schedule
    weights = weights_of(run.experiment, "student", 0) or {}
    t = schedule.time_of_log_snr(torch.tensor(-2.0, dtype=torch.float64) * np.log(ratio)).float()
    line = torch.linspace(-REACH, REACH, CELLS)
    x = torch.cartesian_prod(line, line)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    with torch.no_grad():
        forward = lambda *a, **k: functional_call(role.module, weights, a, k)  # noqa: E731
        arrows = role.wear(forward, x * (alpha.square() + sigma.square()).sqrt(), t.expand(len(x)))
    return quiver(x.numpy(), (sigma * arrows.score).numpy())


def quiver(x: np.ndarray, arrows: np.ndarray) -> Image.Image:
    """Arrows at points of a square; twice as large and reduced, for smooth lines."""
    panel = Image.new("RGB", (2 * SIDE, 2 * SIDE), "white")
    draw = ImageDraw.Draw(panel)
    scale, longest = SIDE / (REACH * 1.1), 0.9 * 2 * REACH / CELLS
    length = np.linalg.norm(arrows, axis=1, keepdims=True)
    arrows = arrows * longest / np.maximum(length.max(), 1e-9)
    for (a, b), (u, v) in zip(x, arrows, strict=True):
        start = (SIDE + a * scale, SIDE - b * scale)
        end = (SIDE + (a + u) * scale, SIDE - (b + v) * scale)
        draw.line((*start, *end), fill=(38, 84, 164), width=3)
        draw.ellipse((end[0] - 4, end[1] - 4, end[0] + 4, end[1] + 4), fill=(38, 84, 164))
    draw.rectangle((0, 0, 2 * SIDE - 1, 2 * SIDE - 1), outline=(222, 222, 228), width=2)
    return panel.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def fields(runs: list[Trained]) -> Image.Image:
    """A row of panels for each run."""
    page = Image.new("RGB", (len(NOISE) * (SIDE + 8), len(runs) * (SIDE + 8)), "white")
    for row, run in enumerate(runs):
        for column, ratio in enumerate(NOISE):
            page.paste(field(run, ratio), (column * (SIDE + 8), row * (SIDE + 8)))
    return page


def draw(name: str, runs: list[Trained]) -> None:
    """Write one picture."""
    path = HERE / f"{name}.png"
    if name == "scores":
        fields(runs).quantize(64).save(path, optimize=True)
    elif name == "moons":
        path.write_bytes(points_png(samples(runs, 1000)))
    else:
        domain = runs[0].info.domain
        path.write_bytes(grid_png(samples(runs, 32), low=domain.low, high=domain.high))


def facts(name: str, run: Trained) -> str:
    """A row of the table below a picture."""
    folder = run.rundir.path
    recipe = tomli.loads((folder / "recipe.lock.toml").read_text())
    git = recipe["lock"].get("git", {})
    commit = git.get("commit", "unknown")[:12] + (", with changes" if git.get("changed") else "")
    found = json.loads((folder / "evaluation.json").read_text())["metrics"]
    metrics = "; ".join(f"{key} {number(value)}" for key, value in found.items())
    seed, words = recipe["run"]["seed"], " ".join(command(name))
    return f"| `{words}` | {commit} | {seed} | {run.nimg:,} | {metrics} |"


def number(value: object) -> str:
    """A metric's value, which may come as an object with its spread."""
    shown = value.get("mean", value.get("value")) if isinstance(value, dict) else value
    return f"{float(shown):.4g}"  # type: ignore[arg-type]


def make(name: str, folder: Path) -> None:
    """Draw a picture, and keep the facts of its runs beside it."""
    used = PICTURES[name][2]
    runs = [trained(one, folder) for one in used]
    draw(name, runs)
    rows = [facts(one, run) for one, run in zip(used, runs, strict=True)]
    (HERE / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n")


def page() -> str:
    """The page of all pictures that have been made."""
    lines = [
        "# Gallery", "",
        "Pictures of real runs, small enough for a laptop's processor: a look at what happens, no "
        "benchmark. Made by `docs/gallery/make.py`, numbers included; samples have the seeds 0, 1, "
        "2 and so on. *Plain* runs have the weight of the equivariance term at zero.", "",
    ]  # fmt: skip
    for name, (title, text, _) in PICTURES.items():
        if (HERE / f"{name}.json").exists():
            rows = json.loads((HERE / f"{name}.json").read_text())
            lines += [f"## {title}", "", text, "", f"![{title}]({name}.png)", "", *HEAD, *rows, ""]
    return "\n".join(lines)


if __name__ == "__main__":
    for wanted in sys.argv[2:] or PICTURES:
        make(wanted, Path(sys.argv[1]).absolute())
    (HERE / "index.md").write_text(page())
