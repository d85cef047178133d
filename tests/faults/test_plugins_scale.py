"""Two hundred plugins: what is read grows with their number, and nothing of them is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers_dists import Site

from advdiff_core.discovery import scan

MANY = 200

#: Runs a command line, and tells on stderr what it opened below a folder and which modules it has.
WATCH = """
import json, sys
folder, *arguments = sys.argv[1:]
opened = []
def note(event, values):
    if event == "open" and isinstance(values[0], str) and values[0].startswith(folder):
        opened.append(values[0])
sys.addaudithook(note)
from advdiff_core.cli import main
code = main(arguments)
modules = [name for name in ("torch", "numpy", "crowd_parts") if name in sys.modules]
print(json.dumps({"code": code, "opened": opened, "modules": modules}), file=sys.stderr)
"""


def crowd(site: Site, number: int) -> Site:
    """Distributions with two components each; their one module must never be imported."""
    for index in range(number):
        names = {f"crowd{index}-{letter}": "crowd_parts:Part" for letter in "ab"}
        site.dist(f"advdiff-crowd{index}", {"advdiff.v1.attack": names})
    (site.code / "crowd_parts.py").write_text("raise RuntimeError('imported')")
    return site


def watched(site: Site, *arguments: str) -> tuple[dict[str, object], str]:
    """What a command line did in a process of its own, and its output."""
    environment = {key: value for key, value in os.environ.items() if key != "ADVDIFF_PLUGINS"}
    done = subprocess.run(
        [sys.executable, "-c", WATCH, str(site.folder), *arguments],
        capture_output=True, text=True, check=True,
        env={**environment, "PYTHONPATH": str(site.folder)},
    )  # fmt: skip
    return json.loads(done.stderr.splitlines()[-1]), done.stdout


def test_listing_many_plugins_reads_two_files_each_and_imports_none(site: Site) -> None:
    """`advdiff plugins` opens the entry points and the name of each distribution, once."""
    facts, out = watched(crowd(site, MANY), "plugins")
    assert facts["code"] == 0
    assert facts["modules"] == []
    names = [Path(path).name for path in facts["opened"]]
    assert sorted(set(names)) == ["METADATA", "entry_points.txt"]
    assert len(names) == 2 * MANY
    assert out.count("advdiff-crowd") == 2 * MANY


def test_help_reads_nothing_of_many_plugins(site: Site) -> None:
    """`advdiff --help` does not look at what is installed."""
    facts, _ = watched(crowd(site, MANY), "--help")
    assert facts == {"code": 0, "opened": [], "modules": []}


@pytest.mark.parametrize("number", [10, 40, 160])
def test_work_of_a_scan_grows_with_the_number_of_plugins(
    site: Site, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Every distribution costs the same two reads, however many there are."""
    crowd(site, number)
    reads: list[str] = []
    plain = Path.read_text

    def counted(path: Path, *arguments: object, **keys: object) -> str:
        reads.append(path.name)
        return plain(path, *arguments, **keys)

    monkeypatch.setattr(Path, "read_text", counted)
    assert len(scan([site.folder], environ={}).entries) == 2 * number
    assert len(reads) == 2 * number
