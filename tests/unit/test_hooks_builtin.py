"""The listeners of the core: progress, log, pictures."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from advdiff_core.engine.api import RunResult
from advdiff_core.hooks.images import ImageGrids
from advdiff_core.hooks.jsonl import JsonLines
from advdiff_core.hooks.pictures import grid_png, points_png, rows_png
from advdiff_core.hooks.progress import (
    Progress,
    Speed,
    clock,
    plain_line,
    shown_metrics,
    validation_line,
)
from advdiff_core.hooks.specs import RunInfo
from advdiff_core.types import DataInfo, Domain


class Terminal(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


class Gone(io.StringIO):
    """A stderr whose reader has left."""

    def write(self, text: str) -> int:
        """Fail as a closed pipe does."""
        raise BrokenPipeError(32, "Broken pipe")


def run_info(folder: Path, **changes: object) -> RunInfo:
    """A run of 1,000 images."""
    return RunInfo(**{"folder": folder, "name": "a", "images": 1000, "batch": 10, **changes})


def pixels(png: bytes) -> np.ndarray:
    """The picture as [H, W, 3]."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_speed_estimates_rate_and_time_left() -> None:
    """100 images in 2 s, 900 left: 50 images/s, 18 s."""
    speed = Speed(0, 10.0)
    assert speed.rate == 0.0
    assert speed.left(1000) is None
    speed.tick(100, 12.0)
    assert speed.rate == 50.0
    assert speed.left(1000) == 18.0
    assert speed.left(50) == 0.0


def test_speed_forgets_a_slow_start() -> None:
    """Only the last ticks count, so that a slow first step does not spoil the estimate."""
    speed = Speed(0, 0.0)
    speed.tick(10, 100.0)
    for tick in range(1, 13):
        speed.tick(10 + tick * 100, 100.0 + tick)
    assert speed.rate == 100.0


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-:--"), (0.4, "0:00"), (67, "1:07"), (3753, "1:02:33")]
)
def test_clock_reads_like_a_clock(seconds: float | None, text: str) -> None:
    """Minutes and seconds, hours only if there are any."""
    assert clock(seconds) == text


def test_shown_metrics_prefers_losses_and_escapes() -> None:
    """Losses by their term, four at most, nothing that could reach the terminal raw."""
    metrics = {"step": 1.0, "loss/denoise": 0.02134, "loss/a\x1b[2J": 1.0}
    assert shown_metrics(metrics) == "denoise 0.02134  a\\x1b[2J 1"
    assert shown_metrics({"step": 3.0}) == "step 3"


def test_plain_line_says_how_far_it_is() -> None:
    """Images, share, speed, time left and losses on one line."""
    speed = Speed(0, 0.0)
    speed.tick(250, 1.0)
    line = plain_line(run_info(Path("r")), 250, speed, {"loss/denoise": 0.5})
    assert line == "250/1,000 images (25 %)  250 images/s  0:03 left  denoise 0.5"


def test_progress_prints_plain_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A first line, then one now and then, no control characters, nothing on stdout."""
    progress, run = Progress(), run_info(tmp_path / "00001-a")
    progress.run_started(run)
    for nimg in range(10, 1001, 10):
        progress.metrics_logged(run, nimg, {"loss/denoise": 0.5})
    progress.checkpoint_saved(1000, tmp_path / "checkpoints" / "1000")
    progress.run_finished(run, RunResult(run=run.folder, nimg=1000, seconds=1.0, metrics={}))
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.replace("\n", "").isprintable()
    lines = said.err.splitlines()
    assert "training to 1,000 images on cpu, 10 per step; Ctrl-C saves and stops" in lines[0]
    # A hundred ticks within a moment make one line, not a hundred.
    assert [line for line in lines if "left" in line] == lines[1:2]
    assert lines[-1].startswith("1,000 images in 0:0")


def test_progress_draws_a_bar_on_a_terminal_and_gives_it_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The bar shows images, losses and time left; closing shows the cursor again."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    progress, run = Progress(), run_info(tmp_path)
    progress.run_started(run)
    progress.metrics_logged(run, 500, {"loss/denoise": 0.25})
    progress.run_closed()
    progress.run_closed()
    text = terminal.getvalue()
    assert "500/1,000" in text
    assert "denoise 0.25" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


@pytest.mark.parametrize("stream", [None, Gone()])
def test_progress_survives_a_stderr_that_is_gone(
    stream: io.StringIO | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nobody reading is no reason to stop training."""
    monkeypatch.setattr(sys, "stderr", stream)
    progress, run = Progress(), run_info(tmp_path)
    progress.run_started(run)
    progress.metrics_logged(run, 500, {})
    progress.run_finished(run, RunResult(run=run.folder, nimg=1000, seconds=1.0, metrics={}))


def test_json_lines_record_each_tick_through_the_run(tmp_path: Path) -> None:
    """A line holds the images seen and every metric, in the order of the ticks."""
    rows: list[dict[str, object]] = []
    run = run_info(tmp_path, record=lambda row: rows.append(dict(row)))
    JsonLines().metrics_logged(run, 10, {"nimg": 10, "loss": 1.0})
    JsonLines().metrics_logged(run, 20, {"nimg": 20, "loss": 0.5})
    assert rows == [
        {"nimg": 10, "seconds": 0.0, "loss": 1.0},
        {"nimg": 20, "seconds": 0.0, "loss": 0.5},
    ]


def test_grid_enlarges_each_pixel_whole() -> None:
    """A 2x2 image becomes four flat squares with the domain's ends black and white."""
    image = torch.tensor([[[[-1.0, 1.0], [0.0, 9.0]]]])
    page = pixels(grid_png([("one", image)]))
    tile = page[12 + 24 :, 12 : 12 + 56][:56]
    assert tile.shape == (56, 56, 3)
    corners = [tile[:28, :28], tile[:28, 28:], tile[28:, :28], tile[28:, 28:]]
    assert [np.unique(part).tolist() for part in corners] == [[0], [255], [128], [255]]


def test_grid_wraps_and_keeps_colours() -> None:
    """Twenty colour tiles of a row take two lines; what is not a number is black."""
    images = torch.zeros(20, 3, 4, 4)
    images[0, 0] = 1.0
    images[1] = float("nan")
    page = pixels(grid_png([("samples", images)], low=0.0, high=1.0))
    top, left = 12 + 24, 12
    assert page[top, left].tolist() == [255, 0, 0]
    assert page[top, left + 58].tolist() == [0, 0, 0]
    assert page.shape[0] == 12 + 24 + (2 * 58 - 2) + 12
    assert page.shape[1] == 2 * 12 + 16 * 58 - 2


def test_points_that_are_all_broken_make_an_empty_panel() -> None:
    """A diverged run still gets its picture."""
    for size in (2, 3):
        page = pixels(points_png([("samples", torch.full((5, size), float("nan")))]))
        assert page[100, 100].tolist() == [255, 255, 255]


def test_points_of_a_plane_look_thin_from_the_side() -> None:
    """Of three dimensions the principal axes are drawn; the lower view shows the thickness."""
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(300, 3, generator=generator) * torch.tensor([2.0, 1.0, 0.01])
    turned = flat @ torch.linalg.qr(torch.randn(3, 3, generator=generator)).Q
    page = pixels(points_png([("plane", turned)])).astype(int)
    upper, lower = page[38:334, 14:310], page[374:670, 14:310]
    inked = [(view.sum(axis=2) < 700).any(axis=1).sum() for view in (upper, lower)]
    assert inked[0] > 100
    assert inked[1] < 20


def test_points_ignore_outliers_and_broken_points_when_choosing_axes() -> None:
    """One far point and one NaN neither crash nor shrink the rest to a dot."""
    points = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    points[0], points[1] = 1e9, float("nan")
    page = pixels(points_png([("points", points)]))
    inked = (page[38:334, 14:310].sum(axis=2) < 700).any(axis=1).sum()
    assert inked > 150


@pytest.mark.parametrize(
    "shape", [(4, 1, 8, 8), (4, 3, 32, 32), (4, 4, 8, 8), (4, 2), (4, 1), (4, 7)]
)
def test_rows_of_any_shape_become_a_png(shape: tuple[int, ...]) -> None:
    """Grey, colour, other channel counts, points of any dimension."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    assert rows_png([("real", x), ("samples", x)]).startswith(b"\x89PNG")


def test_image_grids_are_named_by_images_seen(tmp_path: Path) -> None:
    """`images/000000128.png`, drawn in the data's own range."""
    info = DataInfo(shape=(1, 8, 8), count=4, domain=Domain(0.0, 1.0))
    run = run_info(tmp_path, data=info)
    ImageGrids().images_ready(run, 128, {"samples": torch.ones(2, 1, 8, 8)})
    page = pixels((tmp_path / "images" / "000000128.png").read_bytes())
    assert page[12 + 24, 12].tolist() == [255, 255, 255]


def test_progress_tells_each_validation_the_deciding_number_first(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Every measurement has its line, however soon after another one."""
    recipe = {"validate": {"best": "robust"}}
    run = run_info(tmp_path, recipe=recipe)
    numbers = {"validate/accuracy": 0.75, "validate/robust": 0.5}
    assert validation_line(run, 2000, numbers) == (
        "validation at 2,000 images: robust 0.5  accuracy 0.75"
    )
    progress = Progress()
    progress.run_started(run)
    for nimg in (0, 10):
        progress.metrics_logged(run, nimg, numbers)
    assert capsys.readouterr().err.count("validation at") == 2


def test_progress_tells_validations_above_the_bar(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On a terminal the line stays, and the bar goes on below it."""
    screen = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", screen)
    run = run_info(tmp_path)
    progress = Progress()
    progress.run_started(run)
    progress.metrics_logged(run, 500, {"validate/accuracy": 0.75})
    progress.run_closed()
    assert "validation at 500 images: accuracy 0.75" in screen.getvalue()


def test_progress_counts_the_images_that_a_run_saw_that_ended_early(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Not those of its recipe."""
    progress, run = Progress(), run_info(tmp_path)
    progress.run_started(run)
    progress.run_finished(run, RunResult(run=tmp_path, nimg=400, seconds=1.0, metrics={}))
    assert "400 images in" in capsys.readouterr().err
