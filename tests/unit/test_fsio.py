"""Durable writes: modes, messages, free space, and files that are no files."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from advdiff_core.engine import fsio
from advdiff_core.engine.fsio import (
    FileSystem,
    check_free,
    make_dirs,
    reported,
    sweep_temps,
    write_atomic,
)
from advdiff_core.engine.safe_read import read_bytes
from advdiff_core.errors import DataError, StorageError

TORCH_FREE = [
    "failpoints", "fsio", "lock", "manifest", "metrics_log", "owner", "ranks", "rundir",
    "safe_read", "store", "strict_json",
]  # fmt: skip


class FullDisk(FileSystem):
    """A disk with this many bytes left."""

    def __init__(self, free):
        super().__init__("test")
        self.free = free

    def free_bytes(self, path):
        """What a full disk says."""
        return self.free


@pytest.fixture
def umask():
    """Sets the umask, and the old one afterwards."""
    old = os.umask(0o022)
    yield os.umask
    os.umask(old)


def test_storage_modules_load_without_torch():
    """Showing runs, and the kill tests, need neither torch nor a plugin."""
    imports = "; ".join(f"import advdiff_core.engine.{name}" for name in TORCH_FREE)
    code = f"import sys; {imports}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(("mask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)])
def test_write_follows_the_umask(tmp_path, umask, mask, mode):
    """S13: the mode is what the user asked of all programs, not 0600."""
    umask(mask)
    write_atomic(tmp_path / "file", b"text")
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


def test_write_replaces_the_whole_file_and_leaves_nothing_else(tmp_path):
    """A shorter text leaves no tail of the longer one, and no temporary file stays."""
    path = tmp_path / "file"
    write_atomic(path, b"a long text")
    written = write_atomic(path, b"short")
    assert path.read_bytes() == b"short"
    assert written.size == 5
    assert written.sha256 == "f9b0078b5df596d2ea19010c001bbd009e651de2c57e8fb7e355f31eb9d3f739"
    assert list(tmp_path.iterdir()) == [path]


def test_write_does_not_follow_a_link_out_of_the_folder(tmp_path):
    """Q04: a planted link is replaced; what it points to keeps its content."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "report.html").symlink_to(victim)
    write_atomic(tmp_path / "report.html", b"report")
    assert victim.read_text() == "precious"
    assert not (tmp_path / "report.html").is_symlink()


def test_write_file_does_not_write_through_a_planted_link(tmp_path):
    """The new file must not exist, not even as a dangling link."""
    (tmp_path / "new").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        FileSystem().write_file(tmp_path / "new", [b"x"])
    assert not (tmp_path / "elsewhere").exists()


def test_write_goes_on_after_short_writes(tmp_path, monkeypatch):
    """A system call that takes one byte at a time still writes them all."""
    write = os.write
    monkeypatch.setattr(fsio.os, "write", lambda fd, data: write(fd, bytes(data[:1])))
    FileSystem().write_file(tmp_path / "file", [b"ab", memoryview(b"cde")])
    assert (tmp_path / "file").read_bytes() == b"abcde"


@pytest.mark.parametrize(
    ("number", "code", "words", "fix"),
    [
        (
            errno.ENOSPC,
            "S03",
            "the disk is full: 700 bytes are needed and 300 are free",
            "free some",
        ),
        (errno.EDQUOT, "S03", "the quota is used up: 700 bytes are needed", "free some space"),
        (errno.EIO, "S04", "Input/output error (EIO)", "check the disk"),
        (errno.EACCES, "S04", "Permission denied (EACCES)", "may write to"),
        (errno.EPERM, "S04", "Operation not permitted (EPERM)", "may write to"),
        (errno.EROFS, "S04", "Read-only file system (EROFS)", "writable disk"),
        (errno.EMFILE, "S04", "Too many open files (EMFILE)", "ulimit -n"),
        (errno.ENAMETOOLONG, "S04", "File name too long (ENAMETOOLONG)", "shorter name"),
        (errno.EINTR, "S04", "Interrupted system call (EINTR)", "try again"),
    ],
)
def test_reported_says_what_failed_where_and_what_to_do(tmp_path, number, code, words, fix):
    """S03, S04: every failure of the system becomes one line with exit 5."""
    where = tmp_path / "file"
    with (
        pytest.raises(StorageError) as caught,
        reported(where, need=700, fs=FullDisk(300)),
    ):
        raise OSError(number, os.strerror(number))
    error = caught.value
    assert (error.code, error.exit_code, error.where) == (code, 5, str(where))
    assert words in error.message
    assert fix in error.fix


def test_check_free_refuses_before_anything_is_written(tmp_path):
    """S03: a tenth and 64 KiB are kept in hand."""
    check_free(tmp_path, 1000, fs=FullDisk(1100 + 65536))
    with pytest.raises(StorageError, match="66,636 bytes are needed and 66,635 are free") as caught:
        check_free(tmp_path, 1000, fs=FullDisk(1100 + 65535))
    assert caught.value.code == "S03"


def test_check_free_asks_the_real_disk(tmp_path):
    """The free space is that of the disk that holds the folder."""
    check_free(tmp_path, 1)
    with pytest.raises(StorageError, match="the disk is full"):
        check_free(tmp_path, 10**18)


def test_make_dirs_makes_each_missing_folder_once(tmp_path):
    """A second call, or a folder another process made meanwhile, is fine."""
    make_dirs(tmp_path / "a" / "b")
    make_dirs(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_make_dirs_refuses_a_file_in_the_way(tmp_path):
    """S04: a file is not a folder."""
    (tmp_path / "a").write_text("")
    with pytest.raises(StorageError, match="Not a directory"):
        make_dirs(tmp_path / "a")


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_sync_dir_bears_a_disk_that_cannot_sync_folders(tmp_path, monkeypatch, number):
    """Some network mounts refuse; a run on them goes on."""

    def refuse(descriptor):
        raise OSError(number, "")

    monkeypatch.setattr(fsio.os, "fsync", refuse)
    FileSystem().sync_dir(tmp_path)


def test_sync_dir_reports_a_failing_disk(tmp_path, monkeypatch):
    """EIO is never borne."""

    def fail(descriptor):
        raise OSError(errno.EIO, "")

    monkeypatch.setattr(fsio.os, "fsync", fail)
    with pytest.raises(OSError):
        FileSystem().sync_dir(tmp_path)


def test_sweep_removes_temps_of_dead_processes_alone(tmp_path, monkeypatch):
    """S10: leftovers of the living and foreign names stay."""
    dead, alive = (
        "0" * 8 + "-" + "0" * 8 + "-1-1-" + "0" * 8,
        "0" * 8 + "-" + "1" * 8 + "-1-1-" + "0" * 8,
    )
    names = [f".tmp-{dead}", f".tmp-{alive}", ".tmp-mine", "recipe.lock.toml"]
    for name in names:
        (tmp_path / name).write_text("")
    monkeypatch.setattr(fsio, "is_dead", lambda tag: tag == dead)
    sweep_temps(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: None, "the file is missing"),
        (lambda path: path.mkdir(), "cannot be read: Is a directory"),
        (os.mkfifo, "is not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "is not a regular file"),
        (lambda path: path.write_bytes(b"x" * 11), "has 11 bytes, more than the 10 expected"),
    ],
)
def test_read_refuses_what_is_no_file_of_the_expected_size(tmp_path, make, why):
    """A pipe or device is refused unread and unblocked; nothing is read past the limit."""
    path = tmp_path / "file"
    make(path)
    with pytest.raises(DataError) as caught:
        read_bytes(path, limit=10)
    assert (caught.value.code, caught.value.where) == ("S02", str(path))
    assert why in caught.value.message


def test_read_notices_a_file_that_grows(tmp_path, monkeypatch):
    """S14: what was appended between the look and the read is not cut off silently."""
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    real = os.fstat

    def before_growth(descriptor):
        found = list(real(descriptor))
        found[6] = 3  # st_size
        return os.stat_result(found)

    monkeypatch.setattr(os, "fstat", before_growth)
    with pytest.raises(DataError, match="grew while it was read"):
        read_bytes(path, limit=10)


def test_read_reports_a_disk_that_fails(tmp_path, monkeypatch):
    """An unreadable file is damaged data, so that an older checkpoint can take its place."""

    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    (tmp_path / "file").write_bytes(b"1")
    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(DataError, match="cannot be read: Input/output error"):
        read_bytes(Path(tmp_path / "file"), limit=10)
