"""The lock of a run folder."""

import json
import os
import platform
import signal
import subprocess
import sys

import pytest

from advdiff_core.engine.lock import Lock
from advdiff_core.errors import StorageError

HOLD = """
import sys
from pathlib import Path
from advdiff_core.engine.lock import Lock
lock = Lock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock."""
    path = tmp_path / ".lock"
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "held\n"
    yield child, path
    child.kill()
    child.wait()
    child.stdin.close()
    child.stdout.close()


def test_lock_refuses_a_second_process_and_names_the_first(holder):
    """S08: the message tells whom to wait for."""
    child, path = holder
    with pytest.raises(StorageError) as caught:
        Lock(path)
    error = caught.value
    assert (error.code, error.exit_code, error.where) == ("S08", 5, str(path.parent))
    assert f"process {child.pid} on {platform.node()} since 2" in error.message


def test_lock_is_free_after_its_holder_was_killed(holder):
    """S08: SIGKILL leaves no stale lock, though the file and its text stay."""
    child, path = holder
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert json.loads(path.read_text())["pid"] == child.pid
    with Lock(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_lock_is_refused_within_one_process_too(tmp_path):
    """Two runs in one process are two runs."""
    with Lock(tmp_path / ".lock"), pytest.raises(StorageError, match=f"process {os.getpid()} on"):
        Lock(tmp_path / ".lock")


def test_lock_can_be_taken_again_after_release(tmp_path):
    """Release clears the holder's name; a second release does nothing."""
    first = Lock(tmp_path / ".lock")
    first.release()
    first.release()
    assert (tmp_path / ".lock").read_text() == ""
    Lock(tmp_path / ".lock").release()


def test_lock_is_not_kept_alive_by_a_forked_child(tmp_path):
    """A data worker that outlives its trainer does not hold the trainer's lock."""
    code = f"""
import os, signal, sys
from pathlib import Path
from advdiff_core.engine.lock import Lock
lock = Lock(Path({str(tmp_path / ".lock")!r}))
child = os.fork()
if child == 0:
    os.close(1)  # or the reader would wait for this process to end.
    signal.alarm(30)
    signal.pause()
print(child, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    parent = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False
    )
    orphan = int(parent.stdout)
    try:
        assert parent.returncode == -signal.SIGKILL
        Lock(tmp_path / ".lock").release()
    finally:
        os.kill(orphan, signal.SIGKILL)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}'])
def test_lock_names_no_one_when_the_file_says_nothing(tmp_path, content):
    """A holder that had no time to write its name is "another process"."""
    lock = Lock(tmp_path / ".lock")
    (tmp_path / ".lock").write_text(content)
    with pytest.raises(StorageError, match="in use by another process"):
        Lock(tmp_path / ".lock")
    lock.release()


def test_lock_reports_a_folder_it_cannot_write(tmp_path):
    """S04: a missing folder is a storage fault, not a traceback."""
    with pytest.raises(StorageError, match="No such file") as caught:
        Lock(tmp_path / "missing" / ".lock")
    assert caught.value.code == "S04"
