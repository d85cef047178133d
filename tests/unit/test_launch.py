"""`--nproc`: what the launcher says and returns for every way in which processes end."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from advdiff_core.cli import entry, main
from advdiff_core.cli import launch as launching
from advdiff_core.engine import launched
from advdiff_core.engine.trainer import Trainer
from advdiff_core.errors import Interrupted, LostPeerError, NumericsError

RECIPE = Path(__file__).parents[1] / "recipes" / "players.toml"
#: What a process of these tests knows: `say` leaves a report, as an error does.
PRELUDE = """
import json, os, signal, sys, time
from pathlib import Path
from advdiff_core.engine.launched import deliver, note_folder
from advdiff_core.errors import DataError, Interrupted, LostPeerError
rank = int(os.environ["RANK"])
def end(error):
    deliver(error.lines(), error.exit_code, error)
    sys.exit(error.exit_code)
"""


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Launches processes that run a text of Python, without torch, in place of advdiff."""
    real = subprocess.Popen

    def run(body: str, count: int = 2) -> int:
        def popen(command: list[str], **options: object) -> subprocess.Popen[bytes]:
            assert command[:3] == [sys.executable, "-m", "advdiff_core"]
            return real([sys.executable, "-c", PRELUDE + body], **options)  # type: ignore[call-overload]

        monkeypatch.setattr(launching.subprocess, "Popen", popen)
        return launching.launch(["train", "a.toml", "--nproc", str(count)], count)

    (tmp_path / "reports").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "reports"))
    monkeypatch.setattr(launching, "ASK", 0.4)
    monkeypatch.setattr(launching, "MAKE", 0.8)
    return run


def test_launch_is_done_when_all_are(start, capfd):
    """Two processes that end well say nothing but what the first prints."""
    assert start("print('result', rank)") == 0
    out, err = capfd.readouterr()
    assert (out, err) == ("result 0\n", "")


def test_launch_tells_each_process_its_place(start, capfd, monkeypatch):
    """The variables that torchrun sets, the threads shared out, and one open socket."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    body = """
names = "WORLD_SIZE LOCAL_WORLD_SIZE LOCAL_RANK MASTER_ADDR OMP_NUM_THREADS".split()
# In one write: lines of several processes must not end up in each other.
os.write(2, (" ".join(os.environ[name] for name in names) + "\\n").encode())
assert os.environ["MASTER_PORT"].isdigit()
if rank == 0:
    import socket
    held = socket.socket(fileno=int(os.environ["ADVDIFF_LISTENER"]))
    assert held.getsockname()[1] == int(os.environ["MASTER_PORT"])
"""
    assert start(body, 3) == 0
    threads = max(len(os.sched_getaffinity(0)) // 3, 1)
    wanted = [f"3 3 {rank} 127.0.0.1 {threads}" for rank in range(3)]
    assert sorted(capfd.readouterr().err.splitlines()) == wanted


def test_killed_process_is_named_with_its_signal(start, capfd):
    """X01: who was killed and how; the others are stopped; nothing was saved yet."""
    body = "os.kill(os.getpid(), signal.SIGKILL) if rank == 1 else time.sleep(60)"
    began = time.monotonic()
    assert start(body) == 70
    assert time.monotonic() - began < 15
    said = capfd.readouterr().err
    shape = (
        r"advdiff: error\[X01\] process 1 \(pid \d+\): ended by SIGKILL \(exit code -9\); the other"
        r" processes were stopped; was memory short\? - nothing was saved yet: start it again\n"
    )
    assert re.fullmatch(shape, said), said


def test_run_with_a_checkpoint_can_go_on_after_a_kill(start, capfd, tmp_path):
    """Exit code 75 and the command, once there is a checkpoint."""
    (tmp_path / "run" / "checkpoints" / "64").mkdir(parents=True)
    body = f"""
note_folder(Path({str(tmp_path / "run")!r})) if rank == 0 else time.sleep(0.3)
os.kill(os.getpid(), signal.SIGSEGV) if rank else time.sleep(60)
"""
    assert start(body) == Interrupted.exit_code
    said = capfd.readouterr().err
    assert "ended by SIGSEGV (exit code -11)" in said
    assert f"go on with: advdiff train --resume {tmp_path / 'run'}" in said


def test_first_error_is_told_and_not_what_it_did_to_the_others(start, capfd):
    """X02: a process that lost another one has nothing to say, even where it ended first."""
    body = """
if rank == 1:
    time.sleep(0.2)
    end(DataError("a broken sample", code="D03", where="data"))
end(LostPeerError("process 1 is gone", code="X01"))
"""
    assert start(body, 3) == 4
    said = capfd.readouterr().err.splitlines()
    assert said == [
        "advdiff: error[D03] data: a broken sample",
        "advdiff: process 1 ended with 4; the others were stopped",
    ]


def test_error_of_all_is_told_once(start, capfd):
    """A fault that every process finds, as in a recipe, is no fault of one."""
    assert start('end(DataError("no data", where="data"))', 3) == 4
    assert capfd.readouterr().err == "advdiff: error data: no data\n"


def test_silent_process_is_told_of_by_those_who_waited(start, capfd, tmp_path):
    """X03: they say who does not answer; it is ended; the run can go on."""
    (tmp_path / "checkpoints" / "8").mkdir(parents=True)
    body = f"""
if rank == 0:
    note_folder(Path({str(tmp_path)!r}))
    end(LostPeerError("process 1 is stopped after 5 s (step 3, 48 images)", code="X03"))
os.kill(os.getpid(), signal.SIGSTOP)
"""
    assert start(body) == Interrupted.exit_code
    said = capfd.readouterr().err.splitlines()
    assert said == [
        "advdiff: error[X03] process 1 is stopped after 5 s (step 3, 48 images)",
        f"advdiff: go on with: advdiff train --resume {tmp_path}",
    ]


def test_process_that_ends_without_a_word_gives_its_code(start, capfd):
    """What an interpreter that cannot even begin returns is returned."""
    assert start("sys.exit(143 if rank else 0)") == 143
    assert capfd.readouterr().err == ""


def test_processes_that_will_not_stop_are_ended(start):
    """Asked first, then made to; within seconds."""
    body = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
end(DataError("bad")) if rank == 0 else time.sleep(60)
"""
    began = time.monotonic()
    assert start(body) == 4
    assert time.monotonic() - began < 10


def test_signal_to_the_launcher_reaches_each_process_once(start, capfd, tmp_path):
    """X09: all are asked to stop; what they say of it is said once, with exit code 75."""
    body = """
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
Path(os.environ["ADVDIFF_REPORTS"], f"up{rank}").touch()
while not asked:
    time.sleep(0.01)
time.sleep(0.2)
assert asked == [1]
end(Interrupted("stopped at 64 of 160 images", where="run"))
"""
    waiter = threading.Thread(target=_interrupt_when_up, args=(tmp_path, 2))
    waiter.start()
    assert start(body) == 75
    waiter.join()
    assert capfd.readouterr().err == "advdiff: error run: stopped at 64 of 160 images\n"


def _interrupt_when_up(place: Path, count: int) -> None:
    """SIGTERM to this process, which launches, once all processes have installed a handler."""
    until = time.monotonic() + 20
    while len(list(place.glob("reports/*/up*"))) < count and time.monotonic() < until:
        threading.Event().wait(0.02)
    os.kill(os.getpid(), signal.SIGTERM)


def test_orphan_stops_when_its_launcher_is_gone(tmp_path, monkeypatch):
    """A process whose parent is another one than its launcher asks itself to stop."""
    asked: list[int] = []
    monkeypatch.setenv(launched.REPORTS, str(tmp_path))
    monkeypatch.setenv(launched.PARENT, str(os.getppid() + 1))
    before = signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    try:
        launched.follow_parent()
    finally:
        signal.signal(signal.SIGTERM, before)
        # What the system was asked for is taken back: the tests go on without a launcher.
        ctypes.CDLL(None).prctl(1, 0)
    assert asked == [signal.SIGTERM]


def test_report_that_cannot_be_delivered_is_said_here(tmp_path, monkeypatch):
    """Without a launcher, or if its folder is gone, the process speaks for itself."""
    error = NumericsError("nan")
    monkeypatch.delenv(launched.REPORTS, raising=False)
    assert not launched.deliver(error.lines(), 6, error)
    monkeypatch.setenv(launched.REPORTS, str(tmp_path / "gone"))
    assert not launched.deliver(error.lines(), 6, error)
    monkeypatch.setenv(launched.REPORTS, str(tmp_path))
    assert launched.deliver(error.lines(), 6, error)
    note = launched.read_report(tmp_path, 0)
    assert note is not None
    assert (note["code"], note["lost"], note["lines"]) == (6, False, ["advdiff: error nan"])
    assert launched.read_report(tmp_path, 1) is None
    assert launched.read_folder(tmp_path) is None
    lost = LostPeerError("gone")
    launched.deliver(lost.lines(), 70, lost)
    assert (launched.read_report(tmp_path, 0) or {})["lost"]


@pytest.mark.parametrize(
    ("every", "launcher", "code", "goes_on"),
    [(16, False, 75, True), (64, False, 70, False), (16, True, 70, False)],
)
def test_lost_process_without_a_launcher_of_ours_is_told_how_to_go_on(
    every, launcher, code, goes_on, monkeypatch, capsys, tmp_path
):
    """X08: as on two machines; a launcher of ours says it once, for all, and knows who failed."""
    if launcher:
        monkeypatch.setenv(launched.REPORTS, str(tmp_path))
        monkeypatch.setattr(entry, "follow_parent", lambda: None)
    else:
        monkeypatch.delenv(launched.REPORTS, raising=False)
    step = Trainer.train_step

    def lose(trainer: Trainer) -> None:
        if trainer.index == 2:
            raise LostPeerError("process 1 does not answer after 5 s", code="X03")
        step(trainer)

    monkeypatch.setattr(Trainer, "train_step", lose)
    keys = ("-s", "run.images=64", "-s", f"run.checkpoint_every={every}")
    assert main(["train", str(RECIPE), "--out", str(tmp_path), *keys]) == code
    lines = [*capsys.readouterr().err.splitlines(), *_reported(tmp_path)]
    run = tmp_path / "00000-players"
    place = next(n for n, line in enumerate(lines) if line.startswith("advdiff: error[X03]"))
    assert f"{run}: process 1 does not answer after 5 s (step 2, 32 images)" in lines[place]
    wanted = [f"advdiff: go on with: advdiff train --resume {run}"] if goes_on else []
    assert lines[place + 1 :] == wanted


def _reported(reports: Path) -> list[str]:
    note = launched.read_report(reports, 0)
    return [] if note is None else list(note["lines"])


def test_nproc_is_refused_under_another_launcher(monkeypatch, capsys, tmp_path):
    """Torchrun has started processes already: more of them would be another run each."""
    monkeypatch.setenv("RANK", "1")
    assert main(["train", str(tmp_path / "a.toml"), "--nproc", "2"]) == 2
    said = capsys.readouterr().err
    assert "--nproc: another launcher has started this process, as number 1" in said
    assert "leave --nproc out" in said


@pytest.mark.parametrize("verb", ["train", "sample", "evaluate"])
def test_nproc_starts_the_command_as_it_was_written(verb, monkeypatch):
    """The processes get the very arguments, and the launcher's code is the command's."""
    seen: list[tuple[tuple[str, ...], int]] = []

    def launch(args: tuple[str, ...], count: int) -> int:
        seen.append((tuple(args), count))
        return 75

    monkeypatch.setattr(launching, "launch", launch)
    monkeypatch.delenv("RANK", raising=False)
    args = [verb, "thing", "--nproc", "3", "-s", "run.seed=1"]
    assert main(args) == 75
    assert seen == [(tuple(args), 3)]


def test_one_process_needs_no_launcher(monkeypatch, capsys, tmp_path):
    """`--nproc 1` runs here."""
    monkeypatch.setattr(launching, "launch", lambda *_: pytest.fail("launched"))
    assert main(["train", str(tmp_path / "missing.toml"), "--nproc", "1"]) == 2
    assert "missing.toml" in capsys.readouterr().err
