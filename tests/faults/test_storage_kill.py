"""SIGKILL before each operation of a save, in a real process on a real disk.

The process imports no torch, so that each kill takes a tenth of a second.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from advdiff_core.engine import fsio
from advdiff_core.engine.failpoints import VARIABLE
from advdiff_core.engine.manifest import SHARED, newest_valid, rank_file, verify
from advdiff_core.engine.store import Content, Payload, Store

SAVE = """
import sys
from pathlib import Path
from advdiff_core.engine.manifest import SHARED, rank_file
from advdiff_core.engine.store import Content, Payload, Store

root, nimg, text = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3].encode()
payload = Payload(chunks=[text], size=len(text), tensors={})
files = {SHARED: payload, rank_file(0): payload}
Store(root=root).commit(nimg, lambda: Content(files=files, rank_tree={}, state={"shared": {}}))
"""
#: Operations of one save over two checkpoints, with how often each occurs.
POINTS = {
    "free": 1, "mkdir": 1, "open": 5, "write": 5, "fsync": 5, "sync_dir": 3, "rename": 2,
    "unlink": 5, "rmdir": 1,
}  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Real syncs are slow; only those of the child are under test."""
    monkeypatch.setattr(fsio.os, "fsync", lambda descriptor: None)


def content(text):
    """The content the child saves."""
    data = text.encode()
    files = {n: Payload(chunks=[data], size=len(data), tensors={}) for n in (SHARED, rank_file(0))}
    return Content(files=files, rank_tree={}, state={"shared": {}})


def save_in_child(root, nimg, text, fault=""):
    """Save in another process; gives its exit status."""
    environment = {**os.environ, VARIABLE: fault}
    command = [sys.executable, "-c", SAVE, str(root), str(nimg), text]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode


def prepare(root):
    """Two checkpoints."""
    for nimg in (10, 20):
        Store(root=root).commit(nimg, lambda n=nimg: content(f"old {n}"))


def text_of(path):
    """What a whole checkpoint holds."""
    verify(path)
    return (Path(path) / SHARED).read_text()


@pytest.mark.parametrize("operation", POINTS)
def test_kill_before_each_operation_of_a_save_loses_nothing(tmp_path, operation):
    """K02, K09: after each kill the newest checkpoint is whole, and the next save cleans up."""
    for number in range(1, POINTS[operation] + 1):
        root = tmp_path / str(number)
        prepare(root)
        status = save_in_child(root, 30, "new", f"save.{operation}:{number}:kill")
        assert status == -signal.SIGKILL
        path, skipped = newest_valid(root)
        assert skipped == []
        assert text_of(path) == ("new" if path.name == "30" else "old 20")
        assert (root / "30").exists() == (path.name == "30")
        Store(root=root).commit(40, lambda: content("later"))
        assert text_of(root / "40") == "later"
        assert sorted(os.listdir(root)) == sorted(["40", path.name])


def test_kill_points_are_all_there_are(tmp_path):
    """The table above is complete: one call more of any operation, and the save succeeds."""
    for operation, count in POINTS.items():
        root = tmp_path / operation
        prepare(root)
        assert save_in_child(root, 30, "new", f"save.{operation}:{count + 1}:kill") == 0
        assert sorted(os.listdir(root)) == ["20", "30"]


@pytest.mark.parametrize("number", [1, 2])
def test_kill_while_a_checkpoint_is_replaced_loses_nothing(tmp_path, number):
    """K09: between setting the old one aside and placing the new one, the old one still counts."""
    Store(root=tmp_path).commit(10, lambda: content("old"))
    assert save_in_child(tmp_path, 10, "new", f"save.rename:{number}:kill") == -signal.SIGKILL
    path, skipped = newest_valid(tmp_path)
    assert (text_of(path), skipped) == ("old", [])
    assert path.name.startswith(".old-10-") == (number == 2)
    assert save_in_child(tmp_path, 20, "later") == 0
    assert sorted(os.listdir(tmp_path)) == ["10", "20"]
    assert text_of(tmp_path / "10") == "old"


def test_real_disk_that_is_full_is_reported_in_the_child(tmp_path):
    """S03: a planned ENOSPC ends as StorageError, with nothing left."""
    prepare(tmp_path)
    code = SAVE.replace("Store(root=root)", "import attrs\nStore(root=root)")
    environment = {**os.environ, VARIABLE: "save.write:4:raise:ENOSPC"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), "30", "new"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "StorageError" in done.stderr
    assert "the disk is full" in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["10", "20"]
