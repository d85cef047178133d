"""Python in a process of its own, with the examined plugin in front of everything installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from advdiff_core.kit.build import Built

__all__ = ["last_line", "python"]


def python(
    built: Built, *arguments: str | Path, folder: Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run Python with the plugin on its path.

    Args:
        built: The plugin.
        arguments: What follows "python".
        folder: Where it runs.
        variables: Further environment variables.
    """
    path = [str(built.path)] if built.path is not None else []
    path += [one for one in (os.environ.get("PYTHONPATH"),) if one]
    environ = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONDONTWRITEBYTECODE": "1",
        **variables,
    }
    # The plugin is examined, whatever this shell allows.
    environ.pop("ADVDIFF_PLUGINS", None)
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=folder, env=environ, capture_output=True,
        text=True, errors="backslashreplace", check=False,
    )  # fmt: skip


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """The last line a process printed, or how it ended."""
    lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    return lines[-1] if lines else f"exit status {done.returncode}"
