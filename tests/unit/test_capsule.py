"""Crash capsules."""

import math
import os

import pytest
import torch

from advdiff_core.engine import capsule
from advdiff_core.engine.rundir import RunDir, save_capsule
from advdiff_core.errors import DataError, StorageError, UsageError


def test_capsule_keeps_what_is_not_finite(tmp_path):
    """N01: the tensors and facts of the step come back, NaN and all."""
    state = {
        "x0": torch.tensor([1.0, float("nan"), float("inf")]),
        "models": {"m": [torch.ones(1)]},
    }
    info = {"loss": float("nan"), "step": 7, "terms": ["denoise"]}
    path = save_capsule(RunDir(tmp_path), "step-7", state, info)
    assert path == tmp_path / "capsule" / "step-7"
    found, told = capsule.read(path)
    assert torch.equal(found["x0"].isnan(), state["x0"].isnan())
    assert torch.equal(found["models"]["m"][0], torch.ones(1))
    assert math.isnan(told["loss"])
    assert (told["step"], told["terms"]) == (7, ["denoise"])


def test_capsule_never_replaces_another(tmp_path):
    """A second stop at the same step gets a number."""
    run = RunDir(tmp_path)
    paths = [save_capsule(run, "step-7-rank-0", {"i": i}, {}) for i in range(3)]
    assert [path.name for path in paths] == ["step-7-rank-0", "step-7-rank-0-2", "step-7-rank-0-3"]
    assert [capsule.read(path)[0]["i"] for path in paths] == [0, 1, 2]


def test_capsule_refuses_names_and_values_it_cannot_keep(tmp_path):
    """Q04, S12: nothing outside of the run, nothing pickled, nothing left."""
    with pytest.raises(UsageError):
        save_capsule(RunDir(tmp_path), "../../x", {}, {})
    with pytest.raises(DataError, match="object is none of"):
        save_capsule(RunDir(tmp_path), "x", {"a": object()}, {})
    assert os.listdir(tmp_path) == []


def test_capsule_reports_a_disk_that_fails(tmp_path, monkeypatch):
    """S04: the temporary folder goes."""

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(capsule.DISK, "rename", fail)
    with pytest.raises(StorageError, match="Input/output error"):
        save_capsule(RunDir(tmp_path), "x", {"a": torch.ones(1)}, {})
    assert os.listdir(tmp_path / "capsule") == []


@pytest.mark.parametrize("text", ["[]", "{}", '{"info": {}}', "{"])
def test_capsule_refuses_json_that_is_none(tmp_path, text):
    """S15: a damaged capsule is named."""
    path = save_capsule(RunDir(tmp_path), "x", {"a": torch.ones(1)}, {})
    (path / "info.json").write_text(text)
    with pytest.raises(DataError) as caught:
        capsule.read(path)
    assert caught.value.code == "S15"
