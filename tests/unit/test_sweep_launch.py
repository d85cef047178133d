"""Launchers: so many processes at a time, each with its log, all of them stopped as one."""

import os
import sys
import time
from pathlib import Path

import pytest

from advdiff_core.errors import UsageError
from advdiff_core.sweep import clusters, launch
from advdiff_core.sweep.clusters import Ray, Submitit
from advdiff_core.sweep.launch import Job, Local, last_line


class Board:
    """Keeps what a launcher tells."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.codes: dict[str, int] = {}
        self.live = self.most = 0

    def began(self, job: Job) -> None:
        """See `Launcher.run`."""
        self.begun.append(job.name)
        self.live += 1
        self.most = max(self.most, self.live)

    def ended(self, job: Job, outcome: launch.Outcome) -> None:
        """See `Launcher.run`."""
        self.codes[job.name] = outcome.code
        assert outcome.seconds >= 0
        self.live -= 1


def script(folder: Path, name: str, code: str) -> Job:
    """A job that runs a line of Python."""
    command = (sys.executable, "-sS", "-c", code)
    return Job(name=name, command=command, log=folder / "logs" / f"{name}.log")


def run(launcher, jobs, stop=lambda: False) -> Board:
    """All jobs to their end."""
    board = Board()
    launcher.run(jobs, stop=stop, began=board.began, ended=board.ended)
    return board


def test_jobs_report_their_exit_codes_and_keep_what_they_print(tmp_path: Path) -> None:
    """Both streams, behind what an earlier process left in the log."""
    jobs = [
        script(tmp_path, "good", "print('done')"),
        script(tmp_path, "bad", "import sys; print('x'); sys.exit('it broke')"),
    ]
    jobs[1].log.parent.mkdir()
    jobs[1].log.write_text("earlier\n")
    board = run(Local(slots=2, devices=()), jobs)
    assert board.codes == {"good": 0, "bad": 1}
    assert jobs[1].log.read_text().splitlines()[0] == "earlier"
    assert last_line(jobs[1].log) == "it broke"
    assert last_line(tmp_path / "none") == ""


def test_no_more_jobs_run_than_there_are_slots(tmp_path: Path) -> None:
    """In the order given."""
    jobs = [script(tmp_path, f"j{n}", "pass") for n in range(5)]
    board = run(Local(slots=1, devices=()), jobs)
    assert board.begun == [job.name for job in jobs]
    assert board.most <= 2  # One that has ended is told of a moment after the next has begun.
    assert set(board.codes.values()) == {0}


WAIT = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
open(sys.argv[1], "w").close()
time.sleep(60)
"""


def test_stop_asks_the_live_ones_to_end_and_starts_no_more(tmp_path: Path) -> None:
    """Once each: a second signal would kill a run that is saving."""
    mark = tmp_path / "ready"
    first = Job(
        name="first", command=(sys.executable, "-sS", "-c", WAIT, str(mark)),
        log=tmp_path / "first.log",
    )  # fmt: skip
    board = run(
        Local(slots=1, devices=()), [first, script(tmp_path, "second", "pass")], mark.exists
    )
    assert board.codes == {"first": 75}
    assert board.begun == ["first"]


def test_slots_have_a_gpu_each_or_their_share_of_the_cores(monkeypatch) -> None:
    """Processes that all take every core are slower than one after the other."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(launch, "_cores", lambda: 8)
    assert Local(slots=3, devices=()).environment(0) == {"OMP_NUM_THREADS": "2"}
    assert Local(slots=1, devices=()).environment(0) == {}
    gpus = Local(slots=3, devices=("4", "5"))
    assert [gpus.environment(n)["CUDA_VISIBLE_DEVICES"] for n in range(3)] == ["4", "5", "4"]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert Local(slots=3, devices=()).environment(0) == {}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 7")
    assert launch.visible_devices() == ("2", "7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert launch.visible_devices() == ()


def test_submitit_runs_jobs_and_gives_their_codes(tmp_path: Path) -> None:
    """Its executor for this machine does with a job what that of Slurm does."""
    jobs = [
        script(tmp_path, "good", "print('done')"),
        script(tmp_path, "bad", "raise SystemExit(6)"),
    ]
    options = {"cluster": "local", "timeout_min": 1}
    board = run(Submitit(folder=tmp_path / "submitit", options=options), jobs)
    assert board.codes == {"good": 0, "bad": 6}
    assert last_line(jobs[0].log) == "done"


def test_preempted_task_lets_its_run_save_and_is_queued_again(tmp_path: Path) -> None:
    """What submitit calls when time is up: SIGTERM, then the same command once more."""
    submitit = pytest.importorskip("submitit")
    mark = tmp_path / "ready"
    job = Job(
        name="one", command=(sys.executable, "-sS", "-c", WAIT, str(mark)),
        log=tmp_path / "one.log",
    )  # fmt: skip
    task = clusters.Task(job)
    task._process = launch.run_command(job, {})
    while not mark.exists():
        os.sched_yield()
    again = task.checkpoint()
    assert task._process.returncode == 75
    assert isinstance(again, submitit.helpers.DelayedSubmission)
    assert again.function.job == job


@pytest.mark.slow
def test_ray_runs_jobs_and_gives_their_codes(tmp_path: Path) -> None:
    """On a Ray of this machine, if Ray is installed."""
    pytest.importorskip("ray")
    jobs = [
        script(tmp_path, "good", "print('done')"),
        script(tmp_path, "bad", "raise SystemExit(6)"),
    ]
    board = run(Ray(options={"num_cpus": 1}), jobs)
    assert board.codes == {"good": 0, "bad": 6}


class Clock:
    """A scheduler that ends one job a glance, the one handed over first."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.cancelled: list[str] = []

    def queue(self) -> clusters._Queue:
        """As the loop sees it."""
        return clusters._Queue(
            submit=self.submit, done=lambda name: self.order and self.order[0] == name,
            code=self.take, cancel=self.cancelled.append,
        )  # fmt: skip

    def submit(self, job: Job) -> str:
        """Its handle is its name."""
        self.order.append(job.name)
        return job.name

    def take(self, name: str) -> int:
        """The exit code; the next job ends from now on."""
        self.order.remove(name)
        return 75 if name in self.cancelled else 0


def watch(stop, slots: int) -> tuple[Board, Clock]:
    """Four jobs on such a scheduler."""
    board, clock = Board(), Clock()
    jobs = [Job(name=f"j{n}", command=(), log=Path("log")) for n in range(4)]
    clusters._watch(clock.queue(), jobs, slots, stop=stop, began=board.began, ended=board.ended)
    return board, clock


def test_clusters_hold_no_more_jobs_than_there_are_slots(monkeypatch) -> None:
    """And without a number of slots all of them at once."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    board, _ = watch(lambda: False, 2)
    assert (board.most, board.codes) == (2, {f"j{n}": 0 for n in range(4)})
    assert watch(lambda: False, 0)[0].most == 4


def test_stop_cancels_what_the_cluster_holds(monkeypatch) -> None:
    """Each job once, and none is handed over afterwards."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    board, clock = watch(lambda: True, 2)
    assert (board.begun, clock.cancelled) == (["j0", "j1"], ["j1"])
    assert board.codes == {"j0": 0, "j1": 75}


@pytest.mark.parametrize(("name", "launcher"), [
    ("submitit", Submitit(folder=Path("never"))), ("ray", Ray())
])  # fmt: skip
def test_missing_library_is_one_line(name: str, launcher, monkeypatch) -> None:
    """With the command that installs it."""
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError) as error:
        run(launcher, [])
    assert str(error.value) == (
        f"advdiff sweep: --on {name} needs {name}, which is not installed - "
        f'pip install "advdiff-core[{name}]"'
    )


def test_wrong_options_of_a_cluster_are_one_line(tmp_path: Path) -> None:
    """What the library says, and which option of ours to look at."""
    launcher = Submitit(folder=tmp_path, options={"cluster": "local", "timeout_mni": 1})
    with pytest.raises(UsageError, match=r"submitit refuses: \w+: .*timeout_mni.* - look at the"):
        run(launcher, [])
