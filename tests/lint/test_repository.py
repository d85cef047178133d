"""Rules about the tree as a whole: what lies where."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOP_LEVEL = {"LICENSE", "README.md", "advdiff_core", "docs", "examples"}
TOP_LEVEL |= {"plugins", "pyproject.toml", "tests"}


def tracked_files() -> list[str]:
    """Paths of the repository's files, those git ignores left out."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [name for name in done.stdout.split("\0") if name]


def test_top_level_holds_only_what_is_agreed() -> None:
    """Nothing but the agreed names and hidden files lies at the top."""
    top = {name.split("/")[0] for name in tracked_files()}
    assert {name for name in top if not name.startswith(".")} <= TOP_LEVEL


def test_tracked_files_stay_small() -> None:
    """No file in git is larger than 200 kB."""
    sizes = {
        name: (ROOT / name).stat().st_size for name in tracked_files() if (ROOT / name).is_file()
    }
    assert {name: size for name, size in sizes.items() if size > 200_000} == {}


def test_scripts_are_valid_bash() -> None:
    """Every script in the repository parses."""
    scripts = [*ROOT.glob("tests/*.sh"), *ROOT.glob("examples/*.sh"), ROOT / ".ci" / "run"]
    for script in scripts:
        subprocess.run(["bash", "-n", str(script)], check=True)


def test_ci_entry_is_executable() -> None:
    """`.ci/run` can be called by its path."""
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
