"""One recipe for each row of the paper's tables: its numbers, and a run of it in small."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from helpers_rows import (
    EVERY,
    IMAGENET,
    RECIPES,
    ROWS,
    VAVAE,
    Row,
    autoencoder,
    smaller,
    sources,
    write_stand_in,
)

from advdiff_core.cli.entry import main
from advdiff_core.recipe import load_recipe

for needed in ("advdiff_attacks", "advdiff_backbones", "advdiff_datasets", "advdiff_metrics"):
    pytest.importorskip(needed)


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
        # The first 1024 images choose the weights.
        assert data.settings.real.settings.skip == 1024
        data = data.settings.real.settings.of
    assert data.use == row.data
    net: Any = recipe.models["student"].spec.settings
    assert row.net in (None, (getattr(net, "depth", 0), getattr(net, "width", 0)))
    targets = [m for m in recipe.models.values() if m.kind == "alignment_target"]
    assert len(targets) == row.levels
    assert recipe.players["student"].terms == (("robust", "align") if row.levels else ("robust",))
    assert {a.use for a in recipe.data.augment} >= {"crop", "flip"}


@pytest.mark.parametrize("name", [n for n in EVERY if "100-" in n])
def test_nothing_of_cifar_10_is_left_in_a_row_of_cifar_100(name: str) -> None:
    """Not in the data of training, of validation, and of the end."""
    recipe = load_recipe(RECIPES / f"{name}.toml")
    assert "cifar10'" not in repr(recipe.to_dict())


@pytest.mark.parametrize("name", [n for n in ROWS if "-vit-" in n])
def test_transformers_are_trained_by_lion(name: str) -> None:
    """256 tokens of two pixels; the paper's batch and decay; a beta that stays."""
    recipe = load_recipe(RECIPES / f"{name}.toml")
    net, player = recipe.models["student"].spec, recipe.players["student"]
    assert (net.use, net.settings.patch_size) == ("timm:vit_base_patch16_224", 2)
    assert (player.optimizer.use, player.optimizer.settings.weight_decay) == ("lion", 0.5)
    assert player.lr_schedule.momentum == (0.9, 0.9)
    assert recipe.run.batch == 1024


@pytest.mark.parametrize("name", IMAGENET)
def test_rows_of_imagenet_have_what_the_paper_says_of_them(name: str) -> None:
    """100 epochs, three steps of TRADES, DINOv3, Lion, LightningDiT's middle and its channels."""
    recipe = load_recipe(RECIPES / f"{name}.toml")
    assert recipe.run.images == 100 * 1_281_167
    assert recipe.views["adv"].perturb.settings.attack.settings.steps == 3
    net = recipe.models["student"].spec
    assert "dinov3" in net.use
    assert net.settings.pretrained
    assert recipe.players["student"].optimizer.use == "lion"
    if "target" in recipe.models:
        target: Any = recipe.models["target"].spec.settings
        assert (target.tap, target.zero_channels, target.modulate) == (
            "blocks.13",
            (1053, 259),
            True,
        )
        assert target.denoiser.settings.depth == 28


def trained(name: str, row: Row, pictures: Path, out: Path, *more: str) -> list[dict[str, Any]]:
    """Rows of the log of a recipe that was run in small: two steps of eight images."""
    short = ["run.images=16", "run.batch=8", "run.precision=fp32", "evaluate.metrics=[]"]
    short += ["run.log_every=8", "views.adv.perturb.attack.steps=2"]
    changes = [*short, *smaller(name, row), *sources(row, pictures, resolution=32)]
    options = [word for change in (*changes, *more) for word in ("-s", change)]
    assert main(["train", str(RECIPES / f"{name}.toml"), "--out", str(out), *options]) == 0
    (run,) = out.iterdir()
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", EVERY)
def test_a_row_runs_in_a_reduced_size(name: str, pictures: Path, tmp_path: Path) -> None:
    """Small networks, random pictures: two steps, finite losses, and a validation."""
    row = EVERY[name]
    log = trained(name, row, pictures, tmp_path)
    found = {key: value for line in log for key, value in line.items()}
    losses = {key: value for key, value in found.items() if "loss/" in key}
    assert ("loss/align" in losses) == bool(row.levels)
    assert "loss/robust" in losses
    assert all(math.isfinite(value) for value in losses.values())
    assert ("validate/robust_accuracy" in found) == (row.synthetic is not None)


@pytest.mark.parametrize("fraction", ["0.0", "1.0"])
def test_no_and_only_generated_images_train(fraction: str, pictures: Path, tmp_path: Path) -> None:
    """The ends of the key: the same recipe without the one, and without the other part."""
    row = EVERY["cifar10-dm-at-dra"]
    log = trained("cifar10-dm-at-dra", row, pictures, tmp_path, f"data.fraction={fraction}")
    losses = [value for line in log for key, value in line.items() if "loss/" in key]
    assert losses
    assert all(math.isfinite(value) for value in losses)


@pytest.mark.parametrize(
    ("change", "message", "fix"),
    [
        ("data.synthetic.classes=100", "the number of classes is 100, that of the real samples 10",
         "mix data of one kind"),
        ("data.fraction=1.5", "data.fraction: 1.5 must be at most 1", ""),
        ("data.synthetic.path=nosuch", "there is no such folder", ""),
        ("models.teacher.classes=100", "model 'teacher' knows 100 classes, the data have 10",
         "take a teacher trained on the same classes"),
        ("models.target.tap=dec.8x8_in2", "has no tap 'dec.8x8_in2'; there are enc.32x32_conv",
         "did you mean 'dec.8x8_in"),
    ],
)  # fmt: skip
def test_what_does_not_fit_ends_a_command_with_one_line(
    change: str, message: str, fix: str, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Labels, share, shards, teacher and tap: found before anything is trained."""
    row, name = EVERY["cifar10-dm-at-dra"], "cifar10-dm-at-dra"
    changes = [*smaller(name, row), *sources(row, pictures), "evaluate.metrics=[]", change]
    options = [word for one in changes for word in ("-s", one)]
    assert main(["plan", str(RECIPES / f"{name}.toml"), *options]) != 0
    (line,) = [one for one in capsys.readouterr().err.splitlines() if "error[" in one]
    assert message in line
    assert fix in line


#: Parameters of the students, by the beginning of their recipes' names.
SIZES = {
    "cifar10-at": 46_160_474,
    "cifar10-dm-at": 36_479_194,
    "cifar10-dm-at-50m": 266_796_506,
    "cifar100-at": 46_160_474 + 90 * 641,
    "cifar100-dm-at": 36_479_194 + 90 * 641,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_a_row_is_planned_in_its_own_size(
    name: str, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`advdiff check` and `advdiff plan` pass; passes of the attack, size of the student."""
    row = EVERY[name]
    changes = ["evaluate.metrics=[]", *sources(row, pictures, resolution=224)]
    if name in IMAGENET:
        changes.append("models.student.pretrained=false")
        changes += autoencoder(VAVAE) if row.levels else []
    if name == "imagenet-convnext-dm-at-dra":
        # The teacher whole is planned in the other recipe that has it.
        changes.append("models.target.denoiser.depth=15")
    options = [word for change in changes for word in ("-s", change)]
    path = str(RECIPES / f"{name}.toml")
    assert main(["check", path, *options]) == 0
    capsys.readouterr()
    assert main(["plan", "--json", path, *options]) == 0
    roles: Any = json.loads(capsys.readouterr().out)["roles"]
    assert roles["student"]["input_backwards"] == (3 if name in IMAGENET else 10)
    if name in SIZES:
        assert roles["student"]["parameters"] == SIZES[name]
    targets = [role for role in roles if role.startswith("target")]
    assert len(targets) == row.levels
    assert all(roles[role]["forwards"] == 1 for role in targets)
