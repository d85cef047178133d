"""Rules about the tree as a whole: what lies where, and that the scripts say what is wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOP_LEVEL = {"LICENSE", "README.md", "advdiff_core", "docs", "examples"}
TOP_LEVEL |= {"plugins", "pyproject.toml", "tests"}
TOOLS = ("bash", "cat", "dirname", "flock", "mktemp", "rm")


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


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("echo old 3.9.2", "python3 is Python 3.9.2, and 3.11 or newer is needed"),
        ("echo bare 3.11", "no ensurepip) - apt install python3.11-venv"),
        ("exit 127", "no Python found, and 3.11 or newer is needed"),
    ],
)
@pytest.mark.parametrize("script", ["tests/run.sh", "examples/quickstart.sh"])
def test_scripts_name_what_is_missing(
    script: str, answer: str, message: str, tmp_path: Path
) -> None:
    """On a machine without a fitting Python both scripts stop with one line, wherever they lie."""
    root, tools = tmp_path / "a clone", tmp_path / "tools"
    tools.mkdir()
    for name in TOOLS:
        found = shutil.which(name)
        if found:
            (tools / name).symlink_to(found)
    (tools / "python3").write_text(f"#!/bin/sh\n{answer}\n", encoding="utf-8")
    (tools / "python3").chmod(0o755)
    for name in ("tests/run.sh", "tests/setup_env.sh", "examples/quickstart.sh"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    done = subprocess.run(
        [str(tools / "bash"), str(root / script)],
        env={"PATH": str(tools), "HOME": str(tmp_path)},
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == ""
    assert message in done.stderr
    assert done.stderr.startswith("advdiff: ")
    assert done.stderr.count("\n") == 1


def test_scripts_are_valid_bash() -> None:
    """Every script in the repository parses."""
    scripts = [*ROOT.glob("tests/*.sh"), *ROOT.glob("examples/*.sh"), ROOT / ".ci" / "run"]
    for script in scripts:
        subprocess.run(["bash", "-n", str(script)], check=True)


def test_ci_entry_is_executable() -> None:
    """`.ci/run` can be called by its path."""
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
