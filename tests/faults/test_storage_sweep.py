"""A save with every one of its operations failing in turn: always honest, always recovered.

The disk is a double that fails at operation number N, for N = 1, 2, 3 and so on until the save
succeeds.
"""

import errno
import itertools
import os
from pathlib import Path

import pytest

from advdiff_core.engine import fsio, store
from advdiff_core.engine.fsio import FileSystem, write_atomic
from advdiff_core.engine.manifest import (
    COMMIT,
    MANIFEST,
    SHARED,
    STATE,
    newest_valid,
    rank_file,
    verify,
)
from advdiff_core.engine.store import Content, Payload, Store
from advdiff_core.errors import StorageError

ERRORS = ("EIO", "ENOSPC", "EACCES", "EROFS", "EDQUOT", "EMFILE", "EINTR")
#: Error, what is saved, and whether the disk stays broken after it. Further errors take the same
#: way (tests/unit/test_fsio.py), so each of them is swept over the write of a single file alone.
SWEEPS = [
    *((name, "new", False) for name in ERRORS[:3]),
    ("EIO", "replace", False),
    ("EIO", "new", True),
    ("EIO", "replace", True),
]
#: What follows the save: a new count with rotation of the oldest, or the replacement of the newest.
TARGETS = {"new": 30, "replace": 20}


class PowerLoss(BaseException):
    """The machine stops here."""


class TestDisk(FileSystem):
    """Logs every operation, and fails at the planned ones.

    Args:
        fail: Operation number to error; None for a healthy disk.
        onwards: Whether all later operations fail too.
    """

    __test__ = False

    def __init__(self, fail=None, error=errno.EIO, *, onwards=False):
        super().__init__("test")
        self.log = []
        self.fail, self.error, self.onwards = fail, error, onwards

    def before(self, operation, path):
        """Log, then fail if it is time."""
        self.log.append((operation, path))
        number = len(self.log)
        if self.fail and (number == self.fail or (self.onwards and number > self.fail)):
            self.strike()

    def strike(self):
        """The planned failure."""
        raise OSError(self.error, os.strerror(self.error))


class LossyDisk(TestDisk):
    """Loses power at an operation; `lose` then drops what was never synced."""

    def __init__(self, fail):
        super().__init__(fail, onwards=True)
        self.synced = set()
        self.renames = []

    def strike(self):
        """No operation after the loss of power does anything."""
        raise PowerLoss

    def write_file(self, path, chunks):
        """Remember the files whose sync returned."""
        written = super().write_file(path, chunks)
        self.synced.add(path.stat().st_ino)
        return written

    def rename(self, source, target):
        """Remember the renames that are not durable yet."""
        super().rename(source, target)
        self.renames.append((source, target))

    def sync_dir(self, path):
        """Renames in a synced folder are durable."""
        super().sync_dir(path)
        self.renames = [pair for pair in self.renames if pair[1].parent != path]

    def lose(self, root, kept, *, keep_renames):
        """Empty every file that was never synced, but for those `kept` from before."""
        if not keep_renames:
            for source, target in reversed(self.renames):
                target.rename(source)
        for path in root.rglob("*"):
            if path.is_file() and path.stat().st_ino not in self.synced | kept:
                path.write_bytes(b"")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Real syncs are slow, and what they promise is not tested here."""
    monkeypatch.setattr(fsio.os, "fsync", lambda descriptor: None)


def content(text):
    """The content of a checkpoint, in three pieces."""

    def payload(name):
        data = f"{name} {text}".encode()
        return Payload(chunks=[data[:3], data[3:]], size=len(data), tensors={})

    files = {name: payload(name) for name in (SHARED, rank_file(0))}
    return Content(files=files, rank_tree={"text": text}, state={"shared": text})


def prepare(root):
    """Two checkpoints, saved on a healthy disk."""
    for nimg in (10, 20):
        Store(root=root, fs=TestDisk()).commit(nimg, lambda n=nimg: content(f"old {n}"))


def text_of(path):
    """What was saved in a checkpoint that is whole."""
    verify(path)
    return (path / SHARED).read_text().removeprefix(f"{SHARED} ")


def hidden(root):
    """Leftovers."""
    return sorted(path.name for path in root.iterdir() if path.name.startswith("."))


def check_after(root, saved, *, may_be_new):
    """The newest checkpoint is whole: the new one if the save said so, else old or new."""
    path, skipped = newest_valid(root)
    assert path is not None
    assert skipped == []
    if saved:
        assert text_of(path) == "new"
    else:
        assert text_of(path) in ({"new", "old 20"} if may_be_new else {"old 20"})
    Store(root=root, fs=TestDisk()).commit(99, lambda: content("later"))
    path, _ = newest_valid(root)
    assert (path.name, text_of(path)) == ("99", "later")


def operations(tmp_path, nimg):
    """The log of one healthy save over two checkpoints."""
    disk = TestDisk()
    prepare(tmp_path / "healthy")
    Store(root=tmp_path / "healthy", fs=disk).commit(nimg, lambda: content("new"))
    return disk.log


def test_save_syncs_in_the_right_order(tmp_path):
    """S07: write and sync each file, then the folder, then rename, then the parent, then rotate."""
    log = operations(tmp_path, 30)
    root = tmp_path / "healthy"
    temp = next(path for operation, path in log if operation == "mkdir")
    assert temp.name.startswith(".tmp-30-")
    files = [SHARED, rank_file(0), STATE, MANIFEST, COMMIT]
    writes = {SHARED: 2, rank_file(0): 2}
    expected = [("free", root), ("mkdir", temp)]
    for name in files:
        path = temp / name
        expected += [("open", path), *[("write", path)] * writes.get(name, 1), ("fsync", path)]
    expected += [("sync_dir", temp), ("rename", root / "30"), ("sync_dir", root)]
    assert log[: len(expected)] == expected
    rotation = log[len(expected) :]
    assert [operation for operation, _ in rotation] == [
        "rename",
        "sync_dir",
        *["unlink"] * 5,
        "rmdir",
    ]
    assert rotation[0][1].name.startswith(".del-10-")


def test_save_sets_the_old_one_aside_before_it_replaces_it(tmp_path):
    """S07: with the same count, the old leaves and the new comes before the parent is synced."""
    log = operations(tmp_path, 20)
    names = [(operation, path.name.split("-")[0]) for operation, path in log]
    first = names.index(("rename", ".old"))
    assert names[first : first + 3] == [
        ("rename", ".old"),
        ("rename", "20"),
        ("sync_dir", "healthy"),
    ]


def attempt(root, nimg, disk):
    """Save; gives what was returned and what was raised."""
    try:
        return Store(root=root, fs=disk).commit(nimg, lambda: content("new")), None
    except StorageError as error:
        return None, error


@pytest.mark.parametrize(("name", "target", "onwards"), SWEEPS)
def test_save_is_honest_whichever_operation_fails(tmp_path, monkeypatch, name, target, onwards):
    """S03, S04, S05: exit 5 or success, never a false success, never a lost good checkpoint."""
    nimg, number = TARGETS[target], getattr(errno, name)
    full = name in {"ENOSPC", "EDQUOT"}
    failures = 0
    for fail in itertools.count(1):
        root = tmp_path / str(fail)
        prepare(root)
        disk = TestDisk(fail, number, onwards=onwards)
        saved, error = attempt(root, nimg, disk)
        if error is not None:
            failures += 1
            assert (error.code, error.exit_code) == ("S03" if full else "S04", 5)
            assert ("bytes are needed and" in error.message) == full
        if saved is not None and len(disk.log) < fail:
            assert saved.notes == ()
            break
        if saved is not None:
            assert saved.notes, "an operation failed and nobody was told"
        if saved is None and not onwards:
            assert not [leftover for leftover in hidden(root) if leftover.startswith(".tmp-")]
        with monkeypatch.context() as later:
            later.setattr(store, "is_dead", lambda tag: True)  # as the next process sees it.
            published = ("rename", root / str(nimg)) in disk.log[: fail - 1]
            check_after(root, saved, may_be_new=published)
        assert hidden(root) == []
    assert failures >= 20, "the sweep ended before the save did"


@pytest.mark.parametrize("keep_renames", [True, False], ids=["renames kept", "renames lost"])
@pytest.mark.parametrize("target", TARGETS)
def test_power_loss_at_any_operation_leaves_a_whole_checkpoint(
    tmp_path, monkeypatch, target, keep_renames
):
    """S06: unsynced data is gone, renames may be; the newest whole checkpoint is there and true."""
    nimg = TARGETS[target]
    monkeypatch.setattr(store, "is_dead", lambda tag: True)
    for fail in itertools.count(1):
        root = tmp_path / str(fail)
        prepare(root)
        kept = {path.stat().st_ino for path in root.rglob("*")}
        disk = LossyDisk(fail)
        saved = None
        try:
            saved = Store(root=root, fs=disk).commit(nimg, lambda: content("new"))
        except PowerLoss:
            disk.lose(root, kept, keep_renames=keep_renames)
        published = ("sync_dir", root) in disk.log[:-1]
        check_after(root, saved or published, may_be_new=True)
        assert hidden(root) == []
        if saved:
            break
    assert fail >= 30


@pytest.mark.parametrize("name", ERRORS)
def test_single_files_are_old_or_new_whichever_operation_fails(tmp_path, name):
    """S04: the same for reports and recipes: whole, honest, no leftovers."""
    path = tmp_path / "report.html"
    for fail in itertools.count(1):
        path.write_bytes(b"old")
        disk = TestDisk(fail, getattr(errno, name))
        try:
            write_atomic(path, b"new", fs=disk)
        except StorageError:
            renamed = "sync_dir" in [operation for operation, _ in disk.log]
            assert path.read_bytes() == (b"new" if renamed else b"old")
            assert hidden(tmp_path) == []
            continue
        assert path.read_bytes() == b"new"
        break
    assert fail == 6


def test_failed_replacement_puts_the_old_one_back(tmp_path):
    """S04: the user finds the old checkpoint under its own name again."""
    prepare(tmp_path)
    disk = TestDisk()
    Store(root=tmp_path, fs=disk).commit(20, lambda: content("old 20"))
    fail = next(
        i for i, (name, path) in enumerate(disk.log, 1) if (name, path.name) == ("rename", "20")
    )
    with pytest.raises(StorageError):
        Store(root=tmp_path, fs=TestDisk(fail)).commit(20, lambda: content("new"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "20"]
    assert text_of(tmp_path / "20") == "old 20"


def test_first_save_of_a_run_fails_cleanly(tmp_path):
    """S04: also while the folder of checkpoints itself is made."""
    for fail in itertools.count(1):
        root = tmp_path / str(fail) / "a" / "checkpoints"
        root.parent.parent.mkdir()
        try:
            Store(root=root, fs=TestDisk(fail)).commit(0, lambda: content("new"))
        except StorageError:
            path, _ = newest_valid(root)
            assert path is None or text_of(path) == "new"
            Store(root=root, fs=TestDisk()).commit(0, lambda: content("again"))
            assert text_of(root / "0") == "again"
            continue
        break
    assert fail > 20


def test_save_fails_before_it_writes_when_there_is_no_room(tmp_path):
    """S03: bytes needed and free are named, and no temporary folder was made."""

    class Small(TestDisk):
        def free_bytes(self, path):
            return 1000

    disk = Small()
    with pytest.raises(StorageError, match=r"65,[0-9]{3} bytes are needed and 1,000 are free"):
        Store(root=tmp_path / "c", fs=disk).commit(0, lambda: content("x"))
    assert "mkdir" not in [operation for operation, path in disk.log if path.name != "c"]
    assert hidden(tmp_path / "c") == []


def test_leftovers_of_living_processes_are_left_alone(tmp_path):
    """S10: another run's temporary folder, and names like ours, are not touched."""
    prepare(tmp_path)
    mine = f".tmp-30-{store.unique_tag()}"
    for name in (mine, ".tmp-30-abc", ".del-x", ".old-"):
        (tmp_path / name).mkdir()
        (tmp_path / name / SHARED).write_text("half")
    Store(root=tmp_path).commit(40, lambda: content("new"))
    assert hidden(tmp_path) == sorted([mine, ".tmp-30-abc", ".del-x", ".old-"])
    assert all((Path(tmp_path) / name / SHARED).exists() for name in hidden(tmp_path))
