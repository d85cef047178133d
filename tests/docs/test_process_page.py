"""The page of several processes: written from its record, which holds what was promised."""

from __future__ import annotations

import importlib
import json
import re
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers_pages import ROOT

from advdiff_core.recipe import recipe_from_dict

RESULTS = ROOT / "docs" / "results"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """The script."""
    sys.path.insert(0, str(RESULTS))
    try:
        yield importlib.import_module("processes")
    finally:
        sys.path.remove(str(RESULTS))


@pytest.fixture(scope="module")
def record(script: ModuleType) -> Any:
    """What it found."""
    return script.Record(script.RECORD)


def test_page_is_what_the_record_gives(script: ModuleType, record: Any) -> None:
    """Nobody wrote into it by hand."""
    assert (RESULTS / "processes.md").read_text() == script.page(record, script.ROUNDS)


def test_record_is_of_what_the_script_makes(script: ModuleType, record: Any) -> None:
    """Entries of rounds, recipes and pairs that are there no more would stay unnoticed."""
    rounds = {f"kill-{number:02}" for number in range(script.ROUNDS)}
    assert set(record.of("resumed")) <= set(record.of("kills")) <= rounds
    assert set(record.of("worlds")) <= set(script.pairs())
    assert set(record.of("links")) <= {"down at 0", "down at 1", "loss 0", "loss 0.01", "same"}


def test_what_was_found_is_what_is_promised(script: ModuleType, record: Any) -> None:
    """Codes, lines and equal ends of every run; not the seconds, which other jobs stretch."""
    kept = importlib.import_module("process_page").kept
    assert [name for name, one in record.of("kills").items() if not kept(one)] == []
    assert all(record.of("resumed").values())
    links = record.of("links")
    assert links.get("same", True)
    for one in (one for name, one in links.items() if name.startswith("down")):
        assert one["codes"] == [75, 75]
        for rank, (said, advice) in enumerate(one["said"]):
            assert re.match(rf"advdiff: error\[X03\] \d+-down-{one['end']}: process ", said)
            assert f": process {1 - rank} " in said
            assert f"does not answer after {script.links.TIMEOUT} s (step " in said
            assert advice.startswith("advdiff: go on with: advdiff train --resume ")


def made_up(script: ModuleType, tmp_path: Path) -> Any:
    """A record of three kills, one of which went wrong, and of comparisons."""
    made = script.Record(tmp_path / "record.json")
    for number, seconds in enumerate((1.0, 2.0, 16.0)):
        one = {
            "processes": 2, "rank": 1, "step": number - 1, "seconds": seconds, "code": 75,
            "checkpoint": number > 0, "named": 1, "errors": 1, "traceback": False,
        }  # fmt: skip
        made.get("kills", f"kill-{number:02}", lambda one=one: one)
        made.get("resumed", f"kill-{number:02}", lambda: True)
    for number, name in enumerate(script.pairs()):
        found = {"first": 0.0, "largest": 10.0 ** -(number + 3), "over": None, "weights": 1e-7}
        made.get("worlds", name, lambda found=found: found)
    made.get("links", "loss 0.01", lambda: {
        "loss": 0.01, "carried": 1000, "lost": 10, "training": 2.0, "seconds": 9.0, "codes": [0, 0],
    })  # fmt: skip
    made.get("links", "same", lambda: False)
    return made


def test_page_counts_rounds_and_says_what_failed(script: ModuleType, tmp_path: Path) -> None:
    """By hand: the round without a checkpoint should have ended with 70; one took too long."""
    page = script.page(made_up(script, tmp_path), 20)
    for row in (
        "| rounds | 3 of 20 |", "| gone within 15 s | 2 of 3 |", "| seconds: median | 2 |",
        "| seconds: 95th percentile | 16 |", "| exit code and line as promised | 2 of 3 |",
        "| bit for bit as never stopped | 3 of 3 |",
        "| 00 | 2 | 1 | start | 1 | 75 | no | 1 | yes |",
        "| denoising by SGD | 2 against 1 | 0 | 0.001 | never | 1e-07 |",
        "| 1 % | 1,000 | 10 | 2 | 9 | 0, 0 |", "The two did not end the same.",
    ):  # fmt: skip
        assert row in page.splitlines(), row
    assert "Within 1e-06 in float32: " in page


def test_page_says_what_was_not_made(script: ModuleType, tmp_path: Path) -> None:
    """Nothing, or no right to make namespaces."""
    empty = script.Record(tmp_path / "empty.json")
    assert script.page(empty, 20).count("Not made yet.") == 3
    empty.parts["refused"] = {"why": {"found": "not permitted", "commit": "abc"}}
    assert "namespaces are not permitted here (not permitted)." in script.page(empty, 20)


def test_second_run_makes_what_is_missing(script: ModuleType, tmp_path: Path) -> None:
    """What is there stays as it was found."""
    assert script.Record(tmp_path / "record.json").get("kills", "a", lambda: 1) == 1
    again = script.Record(tmp_path / "record.json")
    assert again.get("kills", "a", lambda: 2) == 1
    assert again.of("kills") == {"a": 1}
    assert again.of("links") == {}


def test_every_recipe_can_be_loaded(script: ModuleType) -> None:
    """The whole one and its parts, plain and shared out; names tell runs apart."""
    worlds = script.worlds
    jobs = [worlds.job(Path("out"), name, kind) for name in worlds.RECIPES for kind in worlds.KINDS]
    names = [recipe_from_dict(job["tables"]).run.name for job in jobs]
    assert len(set(names)) == len(jobs)
    terms = {name: set(make(worlds.SAME)["terms"]) for name, (_, make) in worlds.RECIPES.items()}
    assert terms["sgd"] == {"denoise"} < terms["attacked"] < terms["whole"]


def run_of(folder: Path, losses: list[float]) -> Path:
    """The log of a run."""
    folder.mkdir()
    rows = [{"nimg": n, "seconds": n * 0.1, "loss/a": loss} for n, loss in enumerate(losses, 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_differences_are_those_of_the_logs_and_the_weights(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative for losses, absolute for weights, with the steps at which they are found."""
    run_of(tmp_path / "00000-sgd-one", [1.0, 2.0, 4.0])
    run_of(tmp_path / "00001-sgd-two", [1.0, 2.5, 4.4])
    ends = {
        "00000-sgd-one": {"/models/net/w": torch.tensor([1.0, 2.0]), "/ema/net/w": torch.zeros(1)},
        "00001-sgd-two": {"/models/net/w": torch.tensor([1.0, 1.5]), "/ema/net/w": torch.ones(1)},
    }
    monkeypatch.setattr(script.worlds, "final", lambda run: ends[run.name])
    found = script.worlds.compare(tmp_path, "sgd", ("one", "two"))
    wanted = {"steps": 3, "first": 0.0, "largest": 0.25, "at": 2, "over": 2, "weights": 0.5}
    assert found == pytest.approx(wanted)


def test_runs_are_the_same_bit_for_bit_or_not(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """States and logs; seconds and how much went through the networks at once do not count."""
    runs = script.runs
    a, b, c = (
        run_of(tmp_path / name, losses)
        for name, losses in (("a", [1.0]), ("b", [1.0]), ("c", [1.5]))
    )
    states = {one.name: {"w": [torch.ones(2)], "micro": n} for n, one in enumerate((a, b, c))}
    monkeypatch.setattr(runs, "final", lambda run: runs.leaves(states[run.name]))
    assert runs.same(a, b)
    assert not runs.same(a, c)
    states["b"]["w"] = [torch.tensor([1.0, 1.0 + 2**-23])]
    assert not runs.same(a, b)


@pytest.mark.parametrize("loss", [0.0, 0.3])
def test_wire_carries_what_it_does_not_lose(script: ModuleType, loss: float) -> None:
    """Every packet is counted once; those that arrive are whole and in order."""
    (a, near), (b, far) = (socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2))
    wire = script.links.Wire((near.detach(), far.detach()), loss)
    came, deadline = [], time.monotonic() + 60
    with a, b:
        for number in range(100):
            a.send(bytes([number]))
            before = len(came)
            while wire.carried + wire.lost <= number and time.monotonic() < deadline:
                pass
            came += [b.recv(16)[0]] if wire.carried > before else []
    wire.close()
    assert wire.carried + wire.lost == 100
    assert len(came) == wire.carried
    assert came == sorted(set(came))
    assert (wire.lost == 0) == (loss == 0.0)
    assert wire.lost == pytest.approx(100 * loss, abs=15)
