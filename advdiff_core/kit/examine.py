"""Examines a plugin as its users will get it: what is there, what is wrong, and how to mend it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from advdiff_core.errors import UsageError
from advdiff_core.kit import golden_file, sources, wheel
from advdiff_core.kit.build import Built, build
from advdiff_core.kit.findings import Finding, bad
from advdiff_core.kit.laws import laws
from advdiff_core.kit.process import last_line, python
from advdiff_core.kit.project import Project
from advdiff_core.kit.typing import types

__all__ = ["built_plugin", "components", "examine"]


@contextmanager
def built_plugin(project: Project, *, record: bool = False) -> Iterator[tuple[Built, Path]]:
    """A plugin built in a temporary folder, and a second folder to work in.

    Args:
        project: The plugin.
        record: True if its golden numbers are to be written.

    Raises:
        UsageError: If they are, and there are no sources to write them to.
        DataError: If it cannot be built.
    """
    if record and project.folder is None:
        message = f"{project.name} is installed without its sources, which golden numbers belong to"
        raise UsageError(message, where="--record", fix="name the folder of its sources")
    with tempfile.TemporaryDirectory(prefix="advdiff-check-") as scratch:
        work = Path(scratch) / "work"
        work.mkdir()
        yield build(project, Path(scratch)), work


def examine(built: Built, work: Path, *, record: bool = False) -> Iterator[Finding]:
    """Look at everything, the quick things first.

    Args:
        built: The plugin.
        work: An existing folder to work in.
        record: Write the golden numbers instead of comparing them.
    """
    yield from wheel.metadata(built)
    yield from wheel.entry_points(built)
    yield from wheel.contents(built)
    yield from sources.dependencies(built)
    yield from sources.docstrings(built)
    steps: dict[str, Any] = {}
    yield from components(built, work, steps)
    yield from (golden_file.record if record else golden_file.compared)(built, steps)
    yield from types(built, work)
    yield from laws(built, work)


def components(built: Built, work: Path, steps: dict[str, Any]) -> Iterator[Finding]:
    """Components imported and recipes tried, in a process of their own.

    Args:
        built: The plugin.
        work: An existing folder to work in.
        steps: Takes what the first steps of each recipe compute.
    """
    answers = work / "answers.jsonl"
    done = python(built, "-m", "advdiff_core.kit.worker", answers, built.project.name, folder=work)
    lines = answers.read_text(encoding="utf-8").splitlines() if answers.exists() else []
    told = [json.loads(line) for line in lines]
    for answer in told:
        if "finding" in answer:
            yield Finding(**answer["finding"])
        elif "golden" in answer:
            steps[answer["golden"]] = answer["steps"]
    if not any("done" in answer for answer in told):
        found = f"importing or trying it ends the interpreter: {last_line(done)}"
        yield bad("components", found, "import nothing that ends the process, and never exit")
