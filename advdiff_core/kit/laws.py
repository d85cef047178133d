"""The laws of a plugin's components, tried by pytest in a process of its own."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as Tree

from attrs import define, field

from advdiff_core.discovery import HOOKS
from advdiff_core.kit.build import Built
from advdiff_core.kit.findings import Finding, bad, capped, ok
from advdiff_core.kit.process import last_line, python
from advdiff_core.kit.wheel import entries_of

__all__ = ["is_tried", "laws", "read_report"]

_CASE = re.compile(r".*\[(?P<component>[a-z_]+:.+?)(#\d+)?/[a-z0-9-]+\]")
_OWN_TEST = "from advdiff_core.testing import laws\n\ntest_laws = laws({name!r})\n"


@define
class Outcome:
    """What pytest reported.

    Attributes:
        tried: Components that a law was tried on, `kind:use`.
        broken: What is wrong, one sentence each.
        kept: Number of laws that hold.
    """

    tried: set[str] = field(factory=set)
    broken: list[str] = field(factory=list)
    kept: int = 0


def laws(built: Built, scratch: Path) -> Iterator[Finding]:
    """Every component keeps the laws of its kind, by the plugin's own tests if it has such.

    Args:
        built: The plugin.
        scratch: An existing folder to work in.
    """
    wanted = {
        f"{entry.kind}:{entry.name}"
        for entry in entries_of(built)
        if not entry.error and entry.kind != HOOKS
    }
    if not wanted:
        return
    missing = [name for name in ("pytest", "hypothesis") if importlib.util.find_spec(name) is None]
    if missing:
        found = f"not tried: {' and '.join(missing)} not installed"
        yield bad("laws", found, "pip install 'advdiff-core[testing]'")
        return
    yield from capped(list(_tried(built, scratch, wanted)))


def _tried(built: Built, scratch: Path, wanted: set[str]) -> Iterator[Finding]:
    tests, report = _tests(built, scratch), scratch / "laws.xml"
    done = python(
        built, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *tests,
        folder=scratch,
    )  # fmt: skip
    outcome = read_report(report) if report.exists() else Outcome()
    command = "see: python -m pytest"
    yield from (bad("laws", text, command) for text in outcome.broken)
    idle = sorted(component for component in wanted if not is_tried(component, outcome.tried))
    if not outcome.tried and not outcome.broken:
        yield bad("laws", f"none was tried: {last_line(done)}", command)
    elif idle and outcome.tried:
        fix = f"call laws({built.project.name!r}) in tests/test_laws.py"
        yield bad("laws", f"none was tried of {', '.join(idle)}", fix)
    elif not outcome.broken:
        yield ok("laws", f"{outcome.kept} kept, of {len(wanted)} components")


def _tests(built: Built, scratch: Path) -> list[Path]:
    """Files of the plugin that try its laws, or one made for the purpose."""
    folder = built.project.folder
    own = [
        path
        for path in (sorted(folder.glob("tests/**/test_*.py")) if folder is not None else [])
        if re.search(r"\blaws\(", text := path.read_text(encoding="utf-8", errors="replace"))
        and "advdiff_core.testing" in text
    ]
    if own:
        return own
    made = scratch / "test_laws_of_plugin.py"
    made.write_text(_OWN_TEST.format(name=built.project.name), encoding="utf-8")
    return [made]


def is_tried(component: str, tried: set[str]) -> bool:
    """True for a component, or a family of which a variant was tried."""
    return any(one == component or one.startswith(f"{component}:") for one in tried)


def read_report(report: Path) -> Outcome:
    """What a JUnit file of pytest says of laws."""
    outcome = Outcome()
    for case in Tree.parse(report).iter("testcase"):
        match = _CASE.fullmatch(case.get("name", ""))
        if match:
            outcome.tried.add(match["component"])
        faults = [*case.iter("failure"), *case.iter("error")]
        outcome.broken += [_told(case.get("name", ""), fault) for fault in faults]
        outcome.kept += match is not None and not faults and case.find("skipped") is None
    return outcome


def _told(name: str, fault: Tree.Element) -> str:
    """One line: a broken law says itself which it is."""
    said = (fault.get("message") or "failed").strip().splitlines()[0].removeprefix("Failed: ")
    if said == "collection failure":
        # pytest marks what an error says; the last one is its cause.
        marked = [line[1:].strip() for line in (fault.text or "").splitlines() if line[:1] == "E"]
        said = marked[-1] if marked else said
    return said if said.startswith("law ") else f"{name}: {said}"
