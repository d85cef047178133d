"""What importing a module does to the process it is imported into, found out in one of its own.

    python -m advdiff_core.testing.imports MODULE ...

prints a JSON object: what each import changed, by module.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import json
import os
import subprocess
import sys

__all__ = ["import_effects"]

SECONDS = 300


@functools.cache
def import_effects(modules: tuple[str, ...]) -> dict[str, list[str]]:
    """What the import of each module changes, in order; nothing for one that leaves no trace.

    Args:
        modules: Names of modules. Torch is imported before the first.
    """
    done = subprocess.run(
        [sys.executable, "-m", "advdiff_core.testing.imports", *modules],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True, text=True, check=False, timeout=SECONDS,
    )  # fmt: skip
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return {module: [f"ends the interpreter: {lines[-1]}"] for module in modules}
    found: dict[str, list[str]] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _effects(module: str) -> list[str]:
    from advdiff_core.testing.state import changes, world_state

    before, text = world_state(), io.StringIO()
    try:
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            importlib.import_module(module)
    except BaseException as error:
        return [f"raises {type(error).__name__}: {error}"]
    printed = ["what is printed"] if text.getvalue().strip() else []
    return [*changes(before, world_state()), *printed]


def _main() -> None:
    for known in (
        "numpy",
        "torch",
        "advdiff_core.interfaces.backbone",
        "advdiff_core.step.queries",
    ):
        importlib.import_module(known)
    found = {module: _effects(module) for module in sys.argv[1:]}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    _main()
