"""`advdiff sweep`: on tiny runs in this process, all but the processes themselves."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest

from advdiff_core.cli import main
from advdiff_core.cli.verbs import sweep as verb
from advdiff_core.engine import memory, strict_json
from advdiff_core.errors import DataError
from advdiff_core.sweep.folder import open_sweep
from advdiff_core.sweep.launch import Outcome
from advdiff_core.sweep.page import render
from advdiff_core.sweep.summary import summary_of

RECIPE = """
advdiff = 1
[run]
seed = 3
images = 64
batch = 32
log_every = 32
device = "cpu"
[data]
use = "two-moons"
count = 200
[models.student]
use = "mlp"
[terms.denoise]
use = "denoise"
[sample]
steps = 2
images = 4
[evaluate]
num = 16
metrics = [{ use = "sliced-wasserstein" }]
"""
GRID = ["-s", "terms.denoise.weight=0.5,2", "-s", "run.batch=16,32", "--seeds", "2"]
BAD = "weight-0.5_batch-32_seed-4"


def call(*args: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(one) for one in args])
    return code, out.getvalue(), err.getvalue()


class Here:
    """Runs jobs in this process; those named by `failing` end before they begin."""

    def __init__(self, failing: dict[str, int]) -> None:
        self.failing = failing
        self.begun: list[str] = []

    def run(self, jobs, *, stop, began, ended) -> None:
        """See `Launcher.run`."""
        for job in jobs:
            began(job)
            self.begun.append(job.name)
            job.log.write_text("Traceback:\nadvdiff: error: it broke\n")
            code = self.failing.get(job.name)
            code = call(*job.command[3:])[0] if code is None else code
            ended(job, Outcome(code=code, seconds=1.0))


@pytest.fixture(scope="module", autouse=True)
def _memory_as_it_is():
    """The command changes for good how its process deals with memory; this one goes on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "keep_freed_memory", lambda: False)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Any]:
    """A sweep of eight runs, one of which fails, and what was printed."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "moons.toml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verb, "_launcher", lambda *_: Here({BAD: 6}))
        patch.chdir(folder)
        first = call("sweep", "moons.toml", *GRID, "--json")
        again = Here({})
        patch.setattr(verb, "_launcher", lambda *_: again)
        second = call("sweep", "--resume", "sweeps/00000-moons")
    path = folder / "sweeps" / "00000-moons"
    return {"first": first, "second": second, "again": again, "folder": path, "at": folder}


def test_other_runs_go_on_when_one_fails(made) -> None:
    """Its exit code is the sweep's, its last line is told, and the mend is a command."""
    code, out, err = made["first"]
    assert code == 6
    assert f"advdiff: {BAD}: failed with exit code 6: advdiff: error: it broke" in err
    assert "weight-2_batch-32_seed-4: finished in 1 s (7 of 8)" in err
    last = err.splitlines()[-1]
    assert "1 of 8 runs failed, the first: " + BAD in last
    assert last.endswith("then go on with: advdiff sweep --resume sweeps/00000-moons")
    states = {run["name"]: run["state"] for run in json.loads(out)["runs"]}
    assert states.pop(BAD) == "not begun"
    assert set(states.values()) == {"finished"}


def test_resume_makes_what_is_missing_and_nothing_else(made) -> None:
    """A sweep is done when every run is."""
    code, out, err = made["second"]
    assert (code, made["again"].begun) == (0, [BAD])
    assert f"{BAD}: finished in 1 s (8 of 8)" in err
    assert "not finished" not in out
    assert out.splitlines()[-1] == "summary: sweeps/00000-moons/summary.html"


def test_table_has_mean_and_range_over_seeds(made) -> None:
    """A row per setting; the numbers are those of the runs' own folders."""
    rows = [line.split("  ") for line in made["second"][1].splitlines()]
    assert rows[0][:2] == ["weight", "batch"]
    found = summary_of(open_sweep(made["folder"]))
    group = found.groups[0]
    assert dict(group.settings) == {"terms.denoise.weight": "0.5", "run.batch": "16"}
    stored = [
        json.loads((Path(row.run) / "evaluation.json").read_text())["metrics"]["sliced_wasserstein"]
        for row in group.rows
    ]
    assert group.values("sliced_wasserstein") == stored
    mean, low, high = statistics.fmean(stored), min(stored), max(stored)
    assert f"{mean:.4g} ({low:.4g} to {high:.4g})" in made["second"][1]
    three = found.as_json()["settings"][0]["numbers"]["sliced_wasserstein"]
    assert three == {"mean": mean, "low": low, "high": high}


def test_csv_holds_every_run_unrounded(made) -> None:
    """For whoever plots for themselves."""
    rows = list(csv.DictReader((made["folder"] / "summary.csv").read_text().splitlines()))
    assert len(rows) == 8
    for row in rows:
        run = made["at"] / row["folder"]
        stored = json.loads((run / "evaluation.json").read_text())
        assert float(row["sliced_wasserstein"]) == stored["metrics"]["sliced_wasserstein"]
        assert float(row["loss/denoise"]) == stored["losses"]["loss/denoise"]
        assert row["run.seed"] in ("3", "4")
        assert run.name.endswith(f"-{row['run']}")
    assert not [name for name in rows[0] if name.startswith("grad_norm")]


def test_page_draws_numbers_over_the_first_numeric_key(made) -> None:
    """A line for each combination of the others, with bars over seeds; nothing is fetched."""
    page = (made["folder"] / "summary.html").read_text()
    assert "<h2>Over terms.denoise.weight</h2>" in page
    charts = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(charts) == 2  # The loss and the metric.
    for chart in charts:
        assert chart.count("<title>batch 16: ") == chart.count("<title>batch 32: ") == 1
        assert len(re.findall(r'<path class="line s\d" d="M\S+ \S+ L\S+ \S+"/>', chart)) == 4
    assert "Means over seeds" in page
    assert "8 of 8 runs are finished" in page
    assert "default-src &#39;none&#39;" in page
    assert not re.search(r"<script|https?://(?!www\.w3\.org)", page)


def test_runs_are_those_of_train(made, tmp_path, monkeypatch) -> None:
    """The same metric, bit for bit, as `advdiff train -s ...` gives by itself."""
    monkeypatch.chdir(tmp_path)
    overrides = ("-s", "terms.denoise.weight=2", "-s", "run.batch=16", "-s", "run.seed=4")
    code, out, _ = call("train", made["at"] / "moons.toml", *overrides, "--json")
    assert code == 0
    (row,) = [r for r in summary_of(open_sweep(made["folder"])).rows
              if r.name == "weight-2_batch-16_seed-4"]  # fmt: skip
    assert json.loads(out)["metrics"]["sliced_wasserstein"] == row.numbers["sliced_wasserstein"]


def test_finished_run_is_left_alone(made) -> None:
    """A scheduler may run the command of a job twice."""
    sweep = open_sweep(made["folder"])
    point = sweep.points[0]
    folder = sweep.run_of(point)
    assert folder is not None
    before = (folder / "metrics.jsonl").read_bytes()
    assert call("sweep", "--resume", made["folder"], "--only", point.name)[0] == 0
    assert sweep.run_of(point) == folder
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_run_without_its_numbers_is_not_finished(made, tmp_path) -> None:
    """One that was killed while it was measured has to be measured still."""
    sweep = open_sweep(made["folder"])
    folder = sweep.run_of(sweep.points[1])
    assert folder is not None
    kept = (folder / "evaluation.json").read_bytes()
    (folder / "evaluation.json").unlink()
    try:
        assert sweep.status(sweep.points[1]).state == "stopped"
        assert call("sweep", "--resume", made["folder"], "--only", sweep.points[1].name)[0] == 0
        assert sweep.status(sweep.points[1]).state == "finished"
        found = json.loads((folder / "evaluation.json").read_text())["metrics"]
        assert found == json.loads(kept)["metrics"]
    finally:
        (folder / "evaluation.json").write_bytes(kept)


def test_run_that_left_no_recipe_is_begun_anew(made) -> None:
    """Killed between making its folder and freezing its recipe: there is nothing to go on with."""
    sweep = open_sweep(made["folder"])
    point = sweep.points[0]
    before = sweep.run_of(point)
    (sweep.runs / f"99999-{point.name}").mkdir()
    (sweep.runs / f"not-a-number-{point.name}").mkdir()
    assert sweep.run_of(point) == before


def test_settings_without_numbers_are_drawn_in_their_order(made) -> None:
    """Names have no scale; one line then."""
    found = summary_of(open_sweep(made["folder"]))
    named = [
        group.__class__(settings={"a": f"use-{n}"}, rows=group.rows)
        for n, group in enumerate(found.groups)
    ]
    page = render("x", found.__class__(
        keys=("a",), rows=found.rows, groups=tuple(named), names=found.names
    ))  # fmt: skip
    assert "<h2>Over the settings, in the order of the table</h2>" in page
    assert page.count('class="dot') == len(found.names)


def test_list_prints_the_runs_and_starts_none(made, tmp_path, monkeypatch) -> None:
    """Nothing is written either."""
    monkeypatch.chdir(tmp_path)
    code, out, _ = call("sweep", made["at"] / "moons.toml", *GRID, "--list")
    assert code == 0
    lines = out.splitlines()
    assert len(lines) == 8
    assert re.fullmatch(
        r"weight-2_batch-32_seed-4 +terms.denoise.weight=2  run.batch=32  run.seed=4", lines[-1]
    )
    out = call("sweep", made["at"] / "moons.toml", *GRID, "--list", "--json")[1]
    assert [one["name"] for one in json.loads(out)["runs"]] == [line.split()[0] for line in lines]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "there is nothing to do - give a RECIPE, or a sweep to go on with: --resume SWEEP"),
        (["moons.toml", "--resume", "x"], "RECIPE and --resume contradict - give a RECIPE, or"),
        (["--resume", "x", "--seeds", "2"], "a sweep that goes on cannot be changed - leave out"),
        (["moons.toml", "--only", "x"], "--only is about a sweep that is there - name the sweep"),
        (
            ["moons.toml", "--option", "timeout_min=1"],
            "--option is for clusters - add --on submitit or --on ray",
        ),
    ],
)
def test_contradictions_are_refused(args, message, made, monkeypatch) -> None:
    """One line, exit code 2."""
    monkeypatch.chdir(made["at"])
    code, out, err = call("sweep", *args)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith(f"advdiff: error advdiff sweep: {message}")


def test_missing_library_leaves_no_folder(made, tmp_path, monkeypatch) -> None:
    """It is looked for before anything is written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, err = call("sweep", made["at"] / "moons.toml", "--on", "ray")
    assert code == 2
    assert err.endswith('which is not installed - pip install "advdiff-core[ray]"\n')
    assert list(tmp_path.iterdir()) == []


def test_unknown_run_is_named_with_the_nearest(made) -> None:
    """Of the sweep it was looked for in."""
    code, _, err = call("sweep", "--resume", made["folder"], "--only", "weight-2_batch-16_seed-5")
    assert code == 2
    assert "there is no run 'weight-2_batch-16_seed-5' in this sweep - did you mean weight-" in err


@pytest.mark.parametrize(
    "content",
    [
        "[]", '{"advdiff_sweep": 2, "axes": [], "points": []}', '{"advdiff_sweep": 1}',
        '{"advdiff_sweep": 1, "axes": [], "points": [{"name": "../x", "overrides": [], '
        '"settings": {}}]}',
        '{"advdiff_sweep": 1, "axes": [{"key": 1, "values": []}], "points": []}',
    ],
)  # fmt: skip
def test_damaged_sweep_is_refused(content: str, tmp_path) -> None:
    """A name in it never leads out of its folder."""
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(DataError, match="does not hold what `advdiff sweep` writes - start a new"):
        open_sweep(tmp_path)


def test_folder_without_a_sweep_is_refused(tmp_path) -> None:
    """With what to give instead."""
    message = "is not a sweep: it has no sweep.json - give the folder that `advdiff sweep` named"
    with pytest.raises(DataError, match=message):
        open_sweep(tmp_path)


def test_sweep_that_another_process_works_on_is_left_to_it(made, monkeypatch) -> None:
    """S08, as for a run."""
    monkeypatch.chdir(made["at"])
    held = open_sweep(made["folder"]).lock()
    try:
        code, _, err = call("sweep", "--resume", made["folder"])
    finally:
        held.release()
    assert code == 5
    assert "error[S08]" in err


def test_notes_say_what_keeps_numbers_from_being_compared(made) -> None:
    """Other protocols in one column, and runs that are missing."""
    found = summary_of(open_sweep(made["folder"]))
    assert found.notes() == []
    first, *rest = found.rows
    assert strict_json.loads(first.protocols.encode(), where="x")
    other = first.__class__(**{**_fields(first), "protocols": "{}"})
    open_one = first.__class__(**{**_fields(first), "state": "stopped"})
    rows = (other, open_one, *rest)
    notes = found.__class__(
        keys=found.keys, rows=rows, groups=found.groups, names=found.names
    ).notes()
    assert notes[0] == "1 run is not finished."
    assert notes[1].startswith("The metrics were measured by different protocols")


def _fields(row: Any) -> dict[str, Any]:
    return {name: getattr(row, name) for name in row.__slots__ if name != "__weakref__"}
