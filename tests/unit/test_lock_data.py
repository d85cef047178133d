"""The frozen recipe knows its data by their fingerprint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tomli

from advdiff_core.engine.api import train
from advdiff_core.errors import DataError
from advdiff_core.recipe import load_recipe, recipe_from_dict


def pixels(path: Path, seed: int) -> Path:
    """Sixteen random pictures in a file."""
    x = np.random.default_rng(seed).integers(0, 256, (16, 1, 8, 8), dtype=np.uint8)
    np.savez(path, x=x)
    return path


def tables(path: Path) -> dict[str, object]:
    """A recipe of two steps over a file."""
    return {
        "run": {"images": 16, "batch": 8, "device": "cpu"},
        "data": {"use": "tensor-file", "path": str(path)},
        "models": {"student": {"use": "mlp", "width": 8}},
        "sample": {"steps": 2, "images": 2},
    }


def test_training_from_the_lock_refuses_other_data(tmp_path: Path) -> None:
    """D04: the same keys and another content; the mend lets it through, and so do other keys."""
    path = pixels(tmp_path / "data.npz", 0)
    result = train(recipe_from_dict(tables(path)), out=tmp_path / "runs")
    lock = result.run / "recipe.lock.toml"
    named = tomli.loads(lock.read_text())["lock"]["data"]
    assert set(named) == {"fingerprint", "settings"}
    assert train(load_recipe(lock), out=tmp_path / "runs").metrics == result.metrics
    pixels(path, 1)
    with pytest.raises(DataError, match=r"fingerprint is .*, it was .* in the lock") as caught:
        train(load_recipe(lock), out=tmp_path / "runs")
    assert (caught.value.code, caught.value.where) == ("D04", "data")
    assert "remove [lock.data]" in caught.value.fix
    other = pixels(tmp_path / "other.npz", 1)
    train(load_recipe(lock, [f"data.path={other}"]), out=tmp_path / "runs")
    text = lock.read_text()
    (tmp_path / "free.toml").write_text(text[: text.index("[lock.data]")])
    train(load_recipe(tmp_path / "free.toml"), out=tmp_path / "runs")


def test_a_lock_without_data_is_taken(tmp_path: Path) -> None:
    """Frozen recipes of before name no data."""
    path = pixels(tmp_path / "data.npz", 0)
    recipe = recipe_from_dict({**tables(path), "lock": {"data": 3}})
    assert recipe.locked_data == {}


def test_the_data_are_read_for_their_fingerprint_once(tmp_path: Path, monkeypatch) -> None:
    """A run from a lock compares it, freezes it and keeps it with its checkpoints."""
    from advdiff_core.datasets.files import TensorFile

    path = pixels(tmp_path / "data.npz", 0)
    lock = train(recipe_from_dict(tables(path)), out=tmp_path / "runs").run / "recipe.lock.toml"
    calls = []
    plain = TensorFile.fingerprint
    monkeypatch.setattr(TensorFile, "fingerprint", lambda data: calls.append(1) or plain(data))
    train(load_recipe(lock), out=tmp_path / "runs")
    assert len(calls) == 1
