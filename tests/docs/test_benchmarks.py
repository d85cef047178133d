"""Recorded benchmarks: every entry says the same things, and pages are what their records make."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.__main__ import FIELDS, SUITES, table

FOLDER = Path(__file__).parents[2] / "docs" / "benchmarks"
RECORDS = sorted(FOLDER.glob("*.json"))


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_record_has_all_fields_and_its_page(path: Path) -> None:
    """By a suite that there is, with hardware and commit."""
    entries = json.loads(path.read_text())
    assert path.stem in SUITES
    for entry in entries:
        assert set(FIELDS) <= set(entry), entry["name"]
        assert all(entry[key] for key in ("name", "hardware", "commit")), entry["name"]
    assert path.with_suffix(".md").read_text() == table(path.stem, entries)
