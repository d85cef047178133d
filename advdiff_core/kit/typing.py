"""Types of a plugin, checked by mypy."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

from advdiff_core.kit.build import Built
from advdiff_core.kit.findings import Finding, bad, capped, note, ok
from advdiff_core.kit.process import last_line, python

__all__ = ["types"]

_ERROR = re.compile(r"(?P<place>.+?:\d+): error: (?P<text>.*)")
OPTIONS = (
    # Not its author's affair.
    "--strict", "--disable-error-code=import-untyped", "--show-error-codes", "--no-error-summary",
    "--no-color-output", "--hide-error-context", "--no-pretty", "--no-warn-unused-configs",
)  # fmt: skip


def types(built: Built, scratch: Path) -> Iterator[Finding]:
    """What `mypy --strict` says of its packages, under the plugin's own settings.

    Args:
        built: The plugin.
        scratch: An existing folder to work in.
    """
    if importlib.util.find_spec("mypy") is None:
        yield note("types", "not checked: mypy is not installed", "pip install mypy")
        return
    # In its own folder mypy finds its settings, and what it remembers of torch.
    folder = built.project.folder or scratch
    done = python(built, "-m", "mypy", *OPTIONS, *built.packages.values(), folder=folder)
    faults = [match for line in done.stdout.splitlines() if (match := _ERROR.fullmatch(line))]
    if faults:
        fix = "see: mypy --strict"
        yield from capped([bad("types", f"{one['place']}: {one['text']}", fix) for one in faults])
    elif done.returncode:
        yield bad("types", f"mypy failed: {last_line(done)}", "see: mypy --strict")
    else:
        yield ok("types", f"{len(built.sources())} modules, by mypy --strict")
