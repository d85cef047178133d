"""What lies in a plugin's wheel, and what its metadata say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from advdiff_core.discovery import CONTRACT, scan
from advdiff_core.discovery.entries import Entry
from advdiff_core.discovery.kinds import canonical_distribution
from advdiff_core.kit.build import Built
from advdiff_core.kit.findings import Finding, bad, note, ok

__all__ = ["contents", "entries_of", "entry_points", "metadata"]

#: Parts of paths that no wheel should hold.
STRAY = ("tests", "test", "__pycache__", ".git", ".hypothesis", ".mypy_cache", ".pytest_cache")
KEYWORD = "advdiff-plugin"


def metadata(built: Built) -> Iterator[Finding]:
    """Name, description, licence, Python and keyword, as an index shows them."""
    facts = built.info.metadata.json
    licence = facts.get("license_expression") or facts.get("license")
    if not str(facts.get("description", "")).strip():
        yield bad("metadata", "there is no README in it", 'write readme = "README.md" and the file')
    if not licence:
        fix = 'write license = "Apache-2.0", or another SPDX identifier'
        yield bad("metadata", "no licence is named", fix)
    if not facts.get("license_file"):
        fix = 'add the file LICENSE, and write license-files = ["LICENSE"]'
        yield bad("metadata", "the text of the licence is not in it", fix)
    if not facts.get("requires_python"):
        yield bad("metadata", "no version of Python is named", 'write requires-python = ">=3.11"')
    if not facts.get("summary"):
        yield bad("metadata", "there is no description", 'write description = "..."')
    if KEYWORD not in str(facts.get("keywords", "")):
        fix = f'write keywords = ["{KEYWORD}"]'
        yield note("metadata", f"without the keyword {KEYWORD} nobody finds it on an index", fix)
    yield ok("metadata", f"{facts['name']} {built.version}, {licence or 'no licence'}")


def entries_of(built: Built) -> list[Entry]:
    """The entry points of a plugin that begin with "advdiff."."""
    found = scan(None if built.path is None else [built.path], environ={})
    name = built.project.name
    return [entry for entry in found.entries if canonical_distribution(entry.distribution) == name]


def entry_points(built: Built) -> Iterator[Finding]:
    """Every entry point is of this version of the contract, of a known kind, and well formed."""
    found = entries_of(built)
    if not found:
        group = f"advdiff.v{CONTRACT}.perturbation"
        fix = f'add [project.entry-points."{group}"] to pyproject.toml, "name = module:Class" in it'
        yield bad("entries", "it declares no component", fix)
    for entry in found:
        what = f"{entry.kind} {entry.name!r}".strip()
        if entry.error:
            yield bad("entries", f"{what}: {entry.error}", "mend it in pyproject.toml")
    usable = [entry for entry in found if not entry.error]
    if usable:
        kinds = len({entry.kind for entry in usable})
        yield ok("entries", f"{len(usable)} of {kinds} kinds, contract version {CONTRACT}")


def contents(built: Built) -> Iterator[Finding]:
    """The wheel holds its package, py.typed and recipes, and nothing that is no part of it."""
    if not built.packages:
        fix = 'tell the backend: [tool.hatch.build.targets.wheel] packages = ["src/..."]'
        yield bad("wheel", "it holds no Python file", fix)
    for name, place in built.packages.items():
        if place.is_dir() and f"{name}/py.typed" not in built.files:
            fix = f"add an empty file {built.shown(place)}/py.typed"
            yield bad("wheel", f"type checkers ignore {name}: there is no py.typed in it", fix)
    stray = [file for file in built.files if _is_stray(file)]
    if stray:
        more = f" and {len(stray) - 1} more" if len(stray) > 1 else ""
        fix = "leave them out: name the packages that belong to it"
        yield bad("wheel", f"it holds {stray[0]}{more}, which users do not need", fix)
    yield from _recipes(built)
    yield ok("wheel", f"{len(built.files)} files, of {', '.join(built.packages) or 'no package'}")


def _is_stray(file: str) -> bool:
    parts = PurePosixPath(file).parts
    return bool(set(parts[:-1]) & set(STRAY)) or file.endswith(".pyc") or parts[0] == "src"


def _recipes(built: Built) -> Iterator[Finding]:
    """Recipes of the sources that users will not get."""
    folder = built.project.folder
    for path in sorted(folder.glob("recipes/*.toml")) if folder is not None else []:
        first = next(iter(built.packages), "PACKAGE")
        fix = f"move it to the folder recipes of the package {first}"
        yield bad("wheel", f"recipes/{path.name} is not in it", fix)
    for name, place in built.packages.items():
        for path in sorted(place.rglob("recipes/*.toml")):
            inside = f"{name}/{path.relative_to(place).as_posix()}"
            if inside not in built.files:
                fix = "let the backend take every file of the package"
                yield bad("wheel", f"{built.shown(path)} is not in it", fix)
