"""The page of costs: written from its record, whose planned numbers are those that were counted."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from helpers_pages import ROOT

RESULTS = ROOT / "docs" / "results"


@pytest.fixture(scope="module")
def costs() -> ModuleType:
    """The script."""
    sys.path.insert(0, str(RESULTS))
    try:
        return importlib.import_module("costs")
    finally:
        sys.path.remove(str(RESULTS))


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    """What it counted."""
    found = json.loads((RESULTS / "costs.json").read_text())
    return {part: {n: one["found"] for n, one in entry.items()} for part, entry in found.items()}


def test_page_is_what_the_record_gives(costs: ModuleType) -> None:
    """Nobody wrote into it by hand."""
    assert (RESULTS / "costs.md").read_text() == costs.page(costs.Record(costs.RECORD))


def test_record_is_of_what_the_script_lists(costs: ModuleType, parts: dict[str, Any]) -> None:
    """Names of methods and recipes that are there no more would stay unnoticed."""
    names = {one[0] for one in costs.METHODS}
    assert set(parts["methods"]) <= names
    assert set(parts["papers"]) == set(costs.PAPERS)
    assert set(parts.get("sent", {})) <= {one[0] for one in costs.METHODS if one[4]}


def test_planned_numbers_are_those_counted(parts: dict[str, Any]) -> None:
    """Operations to a twentieth, state to a thousandth, communication to the byte.

    Rollouts of a drawn length come near their mean only.
    """
    for name, one in parts["methods"].items():
        drawn = name in ("ADT", "AlignProp", "DRaFT")
        share = one["planned_flops"] / one["counted_flops"]
        assert share == pytest.approx(1.0, abs=0.25 if drawn else 0.05), name
        assert one["planned_state"] == pytest.approx(one["counted_state"], rel=1e-3), name
        assert parts.get("sent", {}).get(name, one["planned_sent"]) == one["planned_sent"], name


def test_second_run_counts_what_is_missing(costs: ModuleType, tmp_path: Path) -> None:
    """What is there stays as it was counted."""
    record = costs.Record(tmp_path / "record.json")
    record.count("sent", "a", lambda: 1.0)
    again = costs.Record(tmp_path / "record.json")
    again.count("sent", "a", lambda: 2.0)
    again.count("sent", "b", lambda: 3.0)
    assert again.of("sent", ["b", "c", "a"]) == {"b": 3.0, "a": 1.0}
    assert again.commits() == record.commits() == costs.commit()


def test_hours_follow_from_the_assumptions(costs: ModuleType) -> None:
    """A ring moves 2 (n - 1) / n of the bytes; across machines it is as slow as the network."""
    one = {"images": 1000, "batch": 10, "flops": 989e12, "share": 0.5, "sent": 50e9}
    assert costs.hours(one, 1) == pytest.approx((2000 / 3600, 0.0))
    products, sums = costs.hours(one, 8)
    assert (products, sums) == pytest.approx((250 / 3600, 100 * 1.75 * 50 / 450 / 3600))
    assert costs.hours(one, 64)[1] == pytest.approx(100 * 2 * 63 / 64 / 3600)


def test_network_of_any_size_fits_this_machine(costs: ModuleType) -> None:
    """Nothing of it is made but its shape; the stand-in data has the recipe's own."""
    found = costs.paper("Robustadv, LSUN-256")
    student, macs = found["roles"]["student"]
    assert student > 10**8
    # Three forwards, a backward to the input, and two forwards' worth of products to each weight.
    assert found["flops"] == pytest.approx(8 * 2 * macs)
    assert found["sent"] == 4 * student
    # Weights, an average, and Adam's two moments.
    assert found["state"] >= 4 * 4 * student


def test_small_recipe_is_planned_as_it_is_counted(costs: ModuleType) -> None:
    """One method anew, as the script does all."""
    found = costs.method("plain", "advdiff-robustadv:digits-plain", (), 1)
    assert found["planned_flops"] == pytest.approx(found["counted_flops"], rel=0.01)
    assert found["planned_state"] == pytest.approx(found["counted_state"], rel=1e-3)
    assert found["forwards"] == pytest.approx(3.0)
