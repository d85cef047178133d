"""Examines an installation and the machine: what is there, what is broken, and what to do about it.

Made to be pasted into a bug report: the home folder is written as ~, and neither values of the
environment nor names and tokens in addresses are shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from advdiff_core.doctor import installation, machine, plugins
from advdiff_core.doctor.findings import Finding, bad
from advdiff_core.errors import DataError, escape

__all__ = ["Finding", "examine"]

Check = Callable[[], Iterator[Finding]]


def examine(folder: Path = Path("runs")) -> list[Finding]:
    """Look at everything; a check that fails itself is a finding and stops no other.

    Args:
        folder: Where runs will be written.
    """
    checks: dict[str, Check] = {
        "python": installation.python,
        "packages": installation.packages,
        "duplicates": installation.duplicates,
        "shadowed": installation.shadowed,
        "torch": machine.torch_build,
        "torchvision": installation.torchvision,
        "cpu": machine.processor,
        "devices": machine.devices,
        "threads": machine.threads,
        "disk": lambda: machine.disk(folder),
        "plugins": plugins.plugins,
        "environment": machine.environment,
    }
    found = (finding for topic, check in checks.items() for finding in _survive(topic, check))
    return [finding.scrubbed() for finding in found]


def _survive(topic: str, check: Check) -> Iterator[Finding]:
    try:
        yield from check()
    except (Exception, SystemExit) as error:
        cause = f"{type(error).__name__}: {escape(error)}"
        yield bad(topic, f"could not be examined: {cause}", "reinstall it", DataError)
