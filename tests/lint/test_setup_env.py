"""Setting up the environment: what is missing is named, nothing is done twice, no half is kept."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ("bash", "cat", "dirname", "flock", "mktemp", "mv", "rm")

# Stands in for the interpreter of .venv: notes what pip is asked for, and is Python otherwise.
FAKE_PYTHON = """#!/bin/sh
case "$*" in
    "-m pip install"*) echo "$@" >>"{log}"; exit "$(cat "{status}")" ;;
    *torchvision*) ;;
    *) exec "{python}" "$@" ;;
esac
"""


def copy_scripts(root: Path) -> None:
    """A clone that holds nothing but the scripts and two distributions."""
    for name in ("tests/run.sh", "tests/setup_env.sh", "examples/quickstart.sh"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    for folder in (root, root / "plugins" / "one"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "pyproject.toml").write_text("[project]\n", encoding="utf-8")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A clone with a stand-in for .venv, in a folder with a space in its name."""
    root = tmp_path / "a clone"
    copy_scripts(root)
    python = root / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    status = tmp_path / "status"
    status.write_text("0", encoding="utf-8")
    text = FAKE_PYTHON.format(log=tmp_path / "log", status=status, python=sys.executable)
    python.write_text(text, encoding="utf-8")
    python.chmod(0o755)
    return root


def set_up(root: Path, level: str) -> tuple[int, list[str]]:
    """Run `setup_env LEVEL`; exit status and the pip calls so far."""
    script = f"set -euo pipefail; source tests/setup_env.sh; setup_env {level}"
    done = subprocess.run(["bash", "-c", script], cwd=root, capture_output=True, check=False)
    log = root.parent / "log"
    return done.returncode, log.read_text(encoding="utf-8").splitlines() if log.exists() else []


def test_environment_is_installed_once(root: Path) -> None:
    """A second set-up installs nothing, and the test extras hold what running needs."""
    status, calls = set_up(root, "test")
    assert status == 0
    assert calls[0].endswith(f"-e {root}[test] -e {root}/plugins/one[test]")
    assert set_up(root, "test") == (0, calls)
    assert set_up(root, "core") == (0, calls)


def test_environment_is_renewed_when_a_plugin_changes(root: Path) -> None:
    """An edit of any pyproject.toml installs again, and so does asking for more."""
    set_up(root, "core")
    assert len(set_up(root, "test")[1]) == 2
    with (root / "plugins" / "one" / "pyproject.toml").open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    assert len(set_up(root, "test")[1]) == 3
    assert len(set_up(root, "test")[1]) == 3


def test_environment_is_not_trusted_after_a_failed_installation(root: Path) -> None:
    """An installation that fails leaves no stamp, not even that of an earlier one."""
    assert set_up(root, "core")[0] == 0
    (root.parent / "status").write_text("1", encoding="utf-8")
    assert set_up(root, "test")[0] == 1
    assert not list(root.glob(".venv/.advdiff-*"))
    (root.parent / "status").write_text("0", encoding="utf-8")
    assert len(set_up(root, "core")[1]) == 3


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
    copy_scripts(root)
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
