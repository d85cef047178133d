"""The shipped recipes of DRA, from the teacher to the classifier, as a user runs them."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli

from advdiff_core.cli.entry import main

for needed in ("advdiff_attacks", "advdiff_backbones", "advdiff_datasets", "advdiff_metrics"):
    pytest.importorskip(needed)

RECIPES = Path(str(files("advdiff_dra"))) / "recipes"
SHORT = ["-s", "run.images=500", "-s", "evaluate.metrics=[]", "-s", "run.precision=fp32"]


def trained(name: str, out: Path, *changes: str) -> Path:
    """The folder of a short run."""
    before = set(out.glob("*"))
    options = [word for change in changes for word in ("-s", change)]
    code = main(["train", str(RECIPES / f"{name}.toml"), "--out", str(out), *SHORT, *options])
    assert code == 0
    (made,) = set(out.glob("*")) - before
    return made


@pytest.mark.parametrize(
    ("teacher", "student"),
    [("digits-teacher", "digits-dra"), ("digits-noisy-classifier", "digits-dra-noisy-teacher")],
)
def test_a_classifier_is_aligned_with_a_teacher_trained_before(
    teacher: str, student: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The teacher's weights are named in the lock; nothing warns of a random one."""
    short = ["sample.images=2"] if teacher == "digits-teacher" else []
    first = trained(teacher, tmp_path, *short)
    capsys.readouterr()
    run = trained(student, tmp_path, f"models.teacher.init={first}")
    assert "random weights" not in capsys.readouterr().err
    lock = tomli.loads((run / "recipe.lock.toml").read_text())["lock"]["init"]["teacher"]
    assert (lock["kind"], lock["path"]) == ("run", str(first))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss/align"] for row in rows if "loss/align" in row]
    assert losses
    assert all(0 < loss < 2 for loss in losses)


def test_a_teacher_of_another_range_is_moved_to_or_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The checkpoint says [-1, 1]; data in [0, 1] are moved, and another word is contradicted."""
    first = trained("digits-teacher", tmp_path, "sample.images=2")
    keys = [f"models.teacher.init={first}", "data.domain=[0.0, 1.0]"]
    trained("digits-dra", tmp_path, *keys)
    capsys.readouterr()
    options = [word for key in (*keys, "models.target.domain=[0.0, 1.0]") for word in ("-s", key)]
    path = str(RECIPES / "digits-dra.toml")
    assert main(["train", path, "--out", str(tmp_path), *SHORT, *options]) != 0
    message = "models.target.domain: [0, 1], it was trained on values in [-1, 1]"
    assert message in capsys.readouterr().err


def pictures(folder: Path) -> Path:
    """Eight random pictures in each file of CIFAR-10's binary form."""
    inside = folder / "cifar-10-batches-bin"
    inside.mkdir()
    draws = np.random.default_rng(0)
    for name in (*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"):
        rows = draws.integers(0, 256, (8, 3073), dtype=np.uint8)
        rows[:, 0] %= 10
        (inside / name).write_bytes(rows.tobytes())
    return folder


def test_the_recipe_of_the_paper_plans_the_truncated_teacher(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """WRN-28-10 and EDM's network: a third of the teacher's products, once a step."""
    data = f"data.path={pictures(tmp_path)}"
    shown = ["plan", "--json", str(RECIPES / "cifar10-dra.toml"), "-s", data]
    assert main([*shown, "-s", "evaluate.metrics=[]"]) == 0
    roles: Any = json.loads(capsys.readouterr().out)["roles"]
    assert roles["student"]["parameters"] == 36_479_194
    assert roles["student"]["input_backwards"] == 10
    assert (roles["target"]["forwards"], roles["teacher"]["forwards"]) == (1, 0)
    assert roles["target"]["macs"] / roles["teacher"]["macs"] == pytest.approx(0.333, abs=0.01)


@pytest.mark.parametrize("name", ["digits-dra", "parts/dra-edm"])
def test_what_the_paper_does_not_say_is_marked_as_ours(name: str) -> None:
    """Noise level and weight: the line that sets one says whose choice it is."""
    lines = (RECIPES / f"{name}.toml").read_text().splitlines()
    chosen = [line for line in lines if line.startswith(("sigma =", "weight ="))]
    assert len(chosen) == 2
    assert all("# our " in line for line in chosen)
