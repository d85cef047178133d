"""One recipe for each row of the paper's tables: its numbers, and a run of it in small."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from helpers_rows import PLAIN, RECIPES, ROWS, Row, smaller, sources, write_stand_in

from advdiff_core.cli.entry import main
from advdiff_core.recipe import load_recipe

for needed in ("advdiff_attacks", "advdiff_backbones", "advdiff_datasets", "advdiff_metrics"):
    pytest.importorskip(needed)

EVERY = {**ROWS, **PLAIN}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in for CIFAR and for what a diffusion model made of it."""
    return write_stand_in(tmp_path_factory.mktemp("pictures"))


@pytest.mark.parametrize("name", ROWS)
def test_a_row_has_its_length_and_its_schedule(name: str) -> None:
    """Epochs of ceil(50000 / B) steps; the rate moves by epochs, averaging begins at 2.5 %."""
    row, recipe = ROWS[name], load_recipe(RECIPES / f"{name}.toml")
    assert (recipe.run.images, recipe.run.batch) == (row.images, row.batch)
    player = recipe.players["student"]
    assert player.lr_schedule.stairs == row.epochs
    assert player.ema[0].after == 0.025 * row.images
    assert recipe.run.checkpoint_every % (row.images // row.epochs) == 0


@pytest.mark.parametrize("name", EVERY)
def test_a_row_has_its_data_network_and_targets(name: str) -> None:
    """Share of generated images, classes, depth and width, and one or two noise levels."""
    row, recipe = EVERY[name], load_recipe(RECIPES / f"{name}.toml")
    data: Any = recipe.data.spec
    if row.synthetic is not None:
        assert data.settings.fraction == row.synthetic
        assert data.settings.synthetic.settings.classes == (100 if "100-" in name else 10)
        data = data.settings.real
    assert data.use == row.data
    net: Any = recipe.models["student"].spec.settings
    assert row.net in (None, (getattr(net, "depth", 0), getattr(net, "width", 0)))
    targets = [m for m in recipe.models.values() if m.kind == "alignment_target"]
    assert len(targets) == row.levels
    assert recipe.players["student"].terms == (("robust", "align") if row.levels else ("robust",))
    assert {a.use for a in recipe.data.augment} >= {"crop", "flip"}


def trained(name: str, row: Row, pictures: Path, out: Path) -> list[dict[str, Any]]:
    """Rows of the log of a recipe that was run in small: two steps of eight images."""
    short = ["run.images=16", "run.batch=8", "run.precision=fp32", "evaluate.metrics=[]"]
    short += ["run.log_every=8", "views.adv.perturb.attack.steps=2"]
    changes = [*short, *smaller(name, row), *sources(row, pictures)]
    options = [word for change in changes for word in ("-s", change)]
    assert main(["train", str(RECIPES / f"{name}.toml"), "--out", str(out), *options]) == 0
    (run,) = out.iterdir()
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", EVERY)
def test_a_row_runs_in_a_reduced_size(name: str, pictures: Path, tmp_path: Path) -> None:
    """Small networks, random pictures: two steps, finite losses, the alignment among them."""
    row = EVERY[name]
    log = trained(name, row, pictures, tmp_path)
    losses = {key: value for line in log for key, value in line.items() if "loss/" in key}
    assert ("loss/align" in losses) == bool(row.levels)
    assert "loss/robust" in losses
    assert all(math.isfinite(value) for value in losses.values())
