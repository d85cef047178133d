"""Runs advdiff, Python files and pytest in forks of one process that has imported torch.

Reads a line of JSON per job: `argv`, `cwd`, `env`, `packages` (folders whose distributions count),
`out` (the file for stdout and stderr). Answers with the exit code.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import site
import sys
import traceback
from typing import Any

#: What commands would import one by one.
WARM = (
    "torch", "advdiff_core.engine.api", "advdiff_core.cli", "advdiff_core.testing.collecting",
    "pytest", "sklearn.datasets",
)  # fmt: skip
#: Seconds after which a command is taken to hang.
LIMIT = 240


def serve() -> None:
    """Answer jobs until the input ends."""
    for name in WARM:
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            os._exit(run(job))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def run(job: dict[str, Any]) -> int:
    """Do one job in this process; returns the exit code."""
    signal.alarm(LIMIT)
    output = os.open(job["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, file in ((0, nothing), (1, output), (2, output)):
        os.dup2(file, number)
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["env"])
    for folder in job["packages"]:
        site.addsitedir(folder)
    sys.argv = job["argv"]
    code = _python(job["argv"][1:]) if job["argv"][0] == "python" else _advdiff(job["argv"][1:])
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _advdiff(arguments: list[str]) -> int:
    from advdiff_core.cli import main

    return main(arguments)


def _python(arguments: list[str]) -> int:
    sys.path.insert(0, os.getcwd())
    try:
        if arguments[:2] == ["-m", "pytest"]:
            import pytest

            return int(pytest.main(arguments[2:]))
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    serve()
