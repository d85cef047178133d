"""Run folders: numbers, places, locks and files."""

import fcntl
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from advdiff_core.engine import rundir
from advdiff_core.engine.rundir import RunDir, new_run, new_run_at, open_run
from advdiff_core.errors import DataError, StorageError

START = """
import sys
from advdiff_core.engine.rundir import new_run
print(*[new_run(sys.argv[1], sys.argv[2]).path.name for _ in range(10)])
"""


def test_runs_are_numbered(tmp_path):
    """The next number is one above the highest, gaps and foreign names aside."""
    root = tmp_path / "runs"
    assert new_run(root, "a").path == root / "00000-a"
    assert new_run(root, "b").path == root / "00001-b"
    for name in ("00041-old", "notes", "7-x", "00099"):
        (root / name).mkdir()
    assert new_run(root, "a").path == root / "00042-a"


@pytest.mark.parametrize("name", ["digits", "mod\u00e8le_2", "a b", "x" * 80, "lr=0.1+ema", "0.5"])
def test_run_names_may_be_plain_words_of_any_script(tmp_path, name):
    """Spaces and letters beyond ASCII are fine."""
    assert new_run(tmp_path, name).path.is_dir()


def test_starters_at_once_never_share_a_folder_or_a_number(tmp_path):
    """Two processes and two threads start forty runs: forty folders, forty numbers."""
    commands = [
        [sys.executable, "-c", START, str(tmp_path), name] for name in ("same", "same", "b")
    ]
    children = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands
    ]
    with ThreadPoolExecutor(2) as pool:
        made = [run.path.name for run in pool.map(lambda _: new_run(tmp_path, "same"), range(10))]
    for child in children:
        made += child.communicate()[0].split()
        assert child.returncode == 0
    assert len(made) == len(set(made)) == 40
    assert sorted(int(name[:5]) for name in made) == list(range(40))
    assert sorted(os.listdir(tmp_path)) == sorted(made)


def test_numbers_are_given_under_a_lock(tmp_path, monkeypatch):
    """The next number is looked up and taken while no other starter can look."""
    seen = []

    def number(root):
        descriptor = os.open(root, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(descriptor)
        seen.append(root)
        return 5

    monkeypatch.setattr(rundir, "_next_number", number)
    assert new_run(tmp_path, "a").path.name == "00005-a"
    assert seen == [tmp_path]


def test_starter_without_locks_takes_the_next_number_when_it_lost(tmp_path, monkeypatch):
    """On a disk without locks mkdir alone decides; the loser looks again, and gives up at last."""
    (tmp_path / "00003-a").mkdir()
    numbers = iter([3, 3, 4])
    monkeypatch.setattr(rundir, "_next_number", lambda root: next(numbers))
    assert new_run(tmp_path, "a").path.name == "00004-a"
    monkeypatch.setattr(rundir, "_next_number", lambda root: 3)
    with pytest.raises(StorageError, match="File exists"):
        new_run(tmp_path, "a")


def test_run_is_never_made_over_another(tmp_path):
    """S10: a folder with something in it is refused by name."""
    run = new_run_at(tmp_path / "out")
    run.write("recipe.lock.toml", "x")
    with pytest.raises(StorageError, match=r"not empty: it holds 'recipe.lock.toml'") as caught:
        new_run_at(tmp_path / "out")
    assert (caught.value.code, caught.value.where) == ("S10", str(tmp_path / "out"))
    assert "--resume" in caught.value.fix
    (tmp_path / "empty").mkdir()
    new_run_at(tmp_path / "empty")


def test_run_knows_its_places(tmp_path):
    """Every file has one name, inside the folder."""
    run = RunDir(tmp_path)
    places = [run.recipe_lock, run.metrics, run.checkpoints, run.images, run.report, run.crash_log]
    assert [path.relative_to(tmp_path).as_posix() for path in places] == [
        "recipe.lock.toml", "metrics.jsonl", "checkpoints", "images", "report.html", "crash.log",
    ]  # fmt: skip


def test_run_writes_text_and_bytes_in_folders_of_its_own(tmp_path):
    """Folders are made as needed; text is UTF-8."""
    run = RunDir(tmp_path)
    assert run.write("images/000010.png", b"\x89").read_bytes() == b"\x89"
    assert run.write("report.html", "\u00e9").read_bytes() == b"\xc3\xa9"


def test_open_run_refuses_what_is_no_run(tmp_path):
    """S02: a missing folder, and one without a recipe."""
    with pytest.raises(DataError, match="there is no run folder here") as caught:
        open_run(tmp_path / "missing")
    assert (caught.value.code, caught.value.exit_code) == ("S02", 4)
    with pytest.raises(DataError, match=r"has no recipe.lock.toml"):
        open_run(tmp_path)
    RunDir(tmp_path).write("recipe.lock.toml", "advdiff = 1")
    assert open_run(str(tmp_path)).path == tmp_path


def test_run_is_locked_and_swept_by_its_process(tmp_path):
    """S08, S10: one process at a time; half-written files of dead ones go."""
    run = RunDir(tmp_path)
    dead = f".tmp-{'0' * 8}-{'0' * 8}-1-1-{'0' * 8}"
    code = (
        "import os, sys; from advdiff_core.engine.owner import unique_tag;"
        "open(sys.argv[1] + '/.tmp-' + unique_tag(), 'w').close()"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    (tmp_path / dead).write_text("another machine's")
    with run.lock():
        assert sorted(os.listdir(tmp_path)) == sorted([".lock", dead])
        with pytest.raises(StorageError, match="in use by process"):
            RunDir(tmp_path).lock()
    run.lock().release()
