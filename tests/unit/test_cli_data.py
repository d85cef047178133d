"""`advdiff data`: what it says is what the recipe reads, and it overwrites nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from advdiff_core.cli.app import Site, app
from advdiff_core.cli.entry import main
from advdiff_core.engine.look import look
from advdiff_core.recipe import loads_recipe

BASE = """
[data]
use = "tensor-file"
path = "{path}"
images = "x"
labels = "y"
{more}
[models.student]
use = "unet"
"""


@pytest.fixture
def pixels(tmp_path: Path) -> np.ndarray:
    """Sixty random pictures of three classes, 20 of the last, in a file."""
    draws = np.random.default_rng(3)
    x = draws.integers(0, 256, (60, 3, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", x=x, y=np.repeat([0, 1, 2], [10, 30, 20]))
    return x


def recipe(tmp_path: Path, more: str = "") -> Path:
    """A recipe of these pictures."""
    path = tmp_path / "seen.toml"
    path.write_text(BASE.format(path=tmp_path / "data.npz", more=more))
    return path


def test_statistics_are_those_of_the_samples(tmp_path: Path, pixels: np.ndarray):
    """Mean, spread, range, counts per class and fingerprint, against numpy."""
    report = look(loads_recipe(recipe(tmp_path).read_text()), 4)
    x = pixels / 127.5 - 1.0
    assert report.mean == pytest.approx(x.mean((0, 2, 3)), abs=1e-6)
    assert report.std == pytest.approx(x.std((0, 2, 3)), abs=1e-6)
    assert (report.low, report.high) == pytest.approx((x.min(), x.max()), abs=1e-6)
    assert report.labels == (10, 30, 20)
    assert (report.scanned, report.corrupted, report.skipped) == (60, 0.0, 0)
    assert report.images_per_s > 0
    assert len(report.fingerprint) == 64


def test_rows_show_what_training_reads(tmp_path: Path, pixels: np.ndarray):
    """Clean, damaged, augmented and noised rows of the samples that the run sees first."""
    more = 'corrupt = [{use = "gaussian", fraction = 0.5, std = 0.4}]\n'
    more += 'augment = [{use = "flip", chance = 1.0}]'
    report = look(loads_recipe(recipe(tmp_path, more).read_text()), 4)
    captions = list(report.rows)
    assert captions[:3] == ["data", "corrupted", "augmented"]
    assert [caption.split(":")[0] for caption in captions[3:]] == ["noised"] * 3
    assert torch.equal(report.rows["augmented"], report.rows["corrupted"].flip(3))
    assert all(len(row) == 4 for row in report.rows.values())
    assert 0.2 < report.corrupted < 0.8
    errors = [
        (row - report.rows["augmented"]).square().mean() for row in list(report.rows.values())[3:]
    ]
    assert errors[0] < errors[1] < errors[2]


def test_a_classifier_sees_no_noise(tmp_path: Path, pixels: np.ndarray):
    """Rows of noise belong to recipes with a denoiser."""
    text = recipe(tmp_path).read_text() + 'parametrization = "none"\n'
    text += '[terms.cross-entropy]\nuse = "cross-entropy"\n'
    text = text.replace('use = "unet"', 'use = "mlp"\noutputs = 3')
    assert list(look(loads_recipe(text), 4).rows) == ["data"]


def test_the_verb_writes_a_picture_and_numbers(tmp_path: Path, pixels, monkeypatch):
    """Text, JSON and the PNG; a second call replaces the first one's picture."""
    monkeypatch.chdir(tmp_path)
    path = recipe(tmp_path)
    for _ in range(2):
        result = CliRunner().invoke(app, ["data", str(path)], obj=Site())
        assert result.exit_code == 0, result.output
    assert "60 of shape [3, 8, 8]" in result.output
    assert "3, of 10 to 30 samples each" in result.output
    with Image.open("seen-data.png") as picture:
        assert picture.format == "PNG"
    arguments = ["data", str(path), "--json", "--num", "3", "--out", "other.png"]
    result = CliRunner().invoke(app, arguments, obj=Site())
    found = json.loads(result.output)
    assert (found["count"], found["labels"], found["picture"]) == (60, [10, 30, 20], "other.png")
    assert found["subspace"] is None


def test_the_verb_tells_a_known_subspace(tmp_path: Path, monkeypatch):
    """Dimensions and share of the variance, where the data know where their samples lie."""
    monkeypatch.chdir(tmp_path)
    text = '[data]\nuse = "oblique-plane"\ncount = 50\n[models.student]\nuse = "mlp"\n'
    Path("plane.toml").write_text(text)
    result = CliRunner().invoke(app, ["data", "plane.toml"], obj=Site())
    assert "2 of 3 dimensions, 100.00% of the variance" in result.output
    report = look(loads_recipe(text), 4).as_json()
    assert report["subspace"] == {"dimensions": 2, "explained": 1.0}


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("look.jpg", "the picture is a PNG file, found 'look.jpg'"),
        ("mine.png", "is there already and is no PNG file"),
        ("folder.png", "is there already and is no PNG file"),
    ],
)
def test_another_file_is_never_overwritten(tmp_path: Path, pixels, capsys, out: str, words: str):
    """A usage error in one line; the file is as it was."""
    (tmp_path / "mine.png").write_text("notes")
    (tmp_path / "folder.png").mkdir()
    assert main(["data", str(recipe(tmp_path)), "--out", str(tmp_path / out)]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert (tmp_path / "mine.png").read_text() == "notes"


def test_bad_data_are_told_as_in_training(tmp_path: Path, pixels, capsys):
    """A missing file is an error in one line, and no picture is made."""
    path = recipe(tmp_path)
    (tmp_path / "data.npz").unlink()
    assert main(["data", str(path), "--out", str(tmp_path / "x.png")]) == 4
    assert "there is no such file" in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()
