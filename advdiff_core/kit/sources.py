"""What the sources of a plugin import, and what they leave undocumented; nothing is run."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from attrs import frozen

import advdiff_core
from advdiff_core.discovery.kinds import CORE, canonical_distribution
from advdiff_core.discovery.metadata import installed
from advdiff_core.errors import escape
from advdiff_core.kit.build import Built
from advdiff_core.kit.findings import Finding, bad, capped, ok

__all__ = ["PUBLIC", "dependencies", "docstrings"]

#: What plugins may import of the core, beside names of its root. The import contracts of the
#: first-party plugins say the same.
PUBLIC = (
    "draws", "errors", "hooks.specs", "images", "interfaces", "layers", "math", "pickles",
    "settings", "step.queries", "types",
)  # fmt: skip
#: Come with the core: its interfaces are made of them.
GIVEN = frozenset({CORE, "torch", "attrs"})
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@frozen
class Import:
    """A module that a source file imports.

    Attributes:
        module: Its dotted name.
        place: `file:line`.
        always: True if it is imported whenever the file is; False inside functions, under
            TYPE_CHECKING, and in a `try` that survives its absence.
    """

    module: str
    place: str
    always: bool


def dependencies(built: Built) -> Iterator[Finding]:
    """Imports are of declared dependencies, of public modules of the core, and of no plugin."""
    found: list[Finding] = []
    needed, extra = _declared(built)
    if CORE not in needed and built.project.name != CORE:
        fix = f'write dependencies = ["{CORE}"]'
        found.append(bad("imports", f"{CORE} is no dependency of it", fix))
    owners, plugins = metadata.packages_distributions(), _plugins(built)
    imports = [one for path in built.sources() for one in _imports(path, built.shown(path))]
    for one in imports:
        top = one.module.partition(".")[0]
        if top == "advdiff_core":
            found += _private(one)
        elif top not in built.packages and top not in sys.stdlib_module_names:
            names = {canonical_distribution(name) for name in owners.get(top, (top,))}
            found += _foreign(one, names, needed, extra, plugins)
    yield from capped(found)
    if not found:
        yield ok("imports", f"{len(imports)}, all declared and public")


def _declared(built: Built) -> tuple[set[str], set[str]]:
    """Distributions it always needs, and those of its extras."""
    needed: set[str] = set()
    extra: set[str] = set()
    for line in built.info.requires or ():
        match = _NAME.match(line)
        if match:
            some = extra if re.search(r"\bextra\s*==", line) else needed
            some.add(canonical_distribution(match[0]))
    return needed, extra


def _plugins(built: Built) -> frozenset[str]:
    names = {canonical_distribution(one.name) for one in installed()}
    return frozenset(names - {CORE, built.project.name})


def _private(one: Import) -> Iterator[Finding]:
    inside = one.module.partition(".")[2]
    if not inside or any(inside == name or inside.startswith(f"{name}.") for name in PUBLIC):
        return
    fix = f"plugins may import advdiff_core and its modules {', '.join(PUBLIC)}"
    yield bad("imports", f"{one.place}: imports {one.module}, a private part of the core", fix)


def _foreign(
    one: Import, names: set[str], needed: set[str], extra: set[str], plugins: frozenset[str]
) -> Iterator[Finding]:
    """What is wrong with an import of a module of these distributions."""
    shown = escape(one.module, limit=60)
    if names & plugins:
        fix = "two plugins meet only in a recipe; copy nothing, declare a component of your own"
        yield bad("imports", f"{one.place}: imports {shown}, of the plugin {min(names)}", fix)
    elif names & (needed | GIVEN) or (names & extra and not one.always):
        return
    elif names & extra:
        fix = "import it where it is used, or move it to dependencies"
        what = f"imports {shown}, which only an extra installs, whenever the module is imported"
        yield bad("imports", f"{one.place}: {what}", fix)
    else:
        fix = f'add "{min(names)}" to dependencies in pyproject.toml'
        yield bad("imports", f"{one.place}: imports {shown}, which it does not depend on", fix)


def _imports(path: Path, shown: str) -> Iterator[Import]:
    tree = _parsed(path)
    for node, always in _walk(tree, True) if tree is not None else ():
        for module in _modules(node):
            yield Import(module, f"{shown}:{getattr(node, 'lineno', 0)}", always)


def _parsed(path: Path) -> ast.Module | None:
    try:
        return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except (OSError, SyntaxError, ValueError):
        # Importing it says why.
        return None


def _walk(node: ast.AST, always: bool) -> Iterator[tuple[ast.AST, bool]]:
    """Every node, and whether it is run whenever the module is imported."""
    yield node, always
    lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.Try)
    lazy = lazy or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, always and not lazy)


def _modules(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom) or node.level or node.module is None:
        return []
    if node.module != "advdiff_core":
        return [node.module]
    public = set(advdiff_core.__all__)
    return [
        f"advdiff_core.{a.name}" if a.name not in public else "advdiff_core" for a in node.names
    ]


def docstrings(built: Built) -> Iterator[Finding]:
    """Every public module, class and function says in a docstring what it is."""
    silent = [
        bad("docs", f"{built.shown(path)}{line}: {what} has no docstring", "say what it is")
        for path in built.sources()
        for line, what in _silent(path)
    ]
    yield from capped(silent)
    if not silent:
        yield ok("docs", f"{len(built.sources())} modules, all documented")


def _silent(path: Path) -> Iterator[tuple[str, str]]:
    tree = _parsed(path)
    if tree is None:
        return
    if tree.body and ast.get_docstring(tree) is None:
        yield "", "the module"
    yield from _silent_parts(tree, "")


def _silent_parts(parent: ast.Module | ast.ClassDef, owner: str) -> Iterator[tuple[str, str]]:
    for node in parent.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if node.name.startswith("_"):
            continue
        name = f"{owner}{node.name}"
        if ast.get_docstring(node) is None:
            yield f":{node.lineno}", name
        if isinstance(node, ast.ClassDef):
            yield from _silent_parts(node, f"{name}.")
