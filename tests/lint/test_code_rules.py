"""House rules that ruff and mypy cannot hold, each read off the syntax tree of the sources."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "advdiff_core").rglob("*.py")) + sorted(ROOT.glob("plugins/*/src/**/*.py"))
Function = ast.FunctionDef | ast.AsyncFunctionDef

# torch functions that draw from the global generator unless they are given another one.
DRAWS = {"bernoulli", "multinomial", "normal", "poisson", "rand", "randint", "randn", "randperm"}
DRAWS_WITHOUT_GENERATOR = {"rand_like", "randint_like", "randn_like", "seed"}
# Tensor methods that make the host wait for the device.
HOST_SYNC = {"cpu", "item", "numpy", "tolist"}
CODE_FROM_DATA = {"compile", "eval", "exec", "__import__"}
PICKLES = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}


def place(path: Path, node: ast.AST | None = None) -> str:
    """`file:line` as an editor opens it."""
    line = f":{node.lineno}" if node is not None else ""
    return f"{path.relative_to(ROOT)}{line}"


def nodes(path: Path) -> Iterator[ast.AST]:
    """Every node of a source file."""
    return ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path)))


def calls(path: Path) -> Iterator[tuple[ast.Call, str, str]]:
    """Every call in a file as (node, owner, name): "torch" and "randn" for `torch.randn(3)`."""
    for node in nodes(path):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Attribute):
            yield node, ast.unparse(node.func.value), node.func.attr
        elif isinstance(node.func, ast.Name):
            yield node, "", node.func.id


def none_of(found: list[str]) -> None:
    """Fail with one line per finding."""
    assert not found, "\n".join(["", *found])


def test_files_stay_readable() -> None:
    """No source file is longer than 400 lines."""
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    none_of([f"{place(path)}: {length} lines" for path, length in lengths.items() if length > 400])


def test_functions_stay_readable() -> None:
    """No function is longer than 60 lines."""
    found = [
        f"{place(path, node)}: {node.name}"
        for path in SOURCES
        for node in nodes(path)
        if isinstance(node, Function) and (node.end_lineno or 0) - node.lineno >= 60
    ]
    none_of(found)


def test_sources_are_ascii() -> None:
    """Sources and pages hold ASCII alone, so that nothing hides in look-alike characters."""
    pages = [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("plugins/*/README.md")]
    texts = [*SOURCES, *pages]
    none_of([place(path) for path in texts if not path.read_text(encoding="utf-8").isascii()])


def test_step_never_waits_for_the_device() -> None:
    """Nothing inside a training step reads a tensor on the host."""
    players = ROOT / "advdiff_core" / "engine" / "players.py"
    found = [
        f"{place(path, node)}: .{name}()"
        for path in SOURCES
        if path == players or path.parent == ROOT / "advdiff_core" / "step"
        for node, owner, name in calls(path)
        if owner and name in HOST_SYNC
    ]
    none_of(found)


def test_no_source_draws_from_the_global_generator() -> None:
    """Every draw names its generator; nobody reads or seeds a global one.

    Exceptions: dropout inside a network (the step keys the generator around such a forward), the
    test helpers, which look whether a plugin left the generators alone, and the guard around code
    of other packages, which puts back what they draw from.
    """
    found = []
    for path in SOURCES:
        if {"backbones", "testing", "foreign_guard.py"} & set(path.relative_to(ROOT).parts[1:]):
            continue
        for node, owner, name in calls(path):
            generated = any(keyword.arg == "generator" for keyword in node.keywords)
            of_torch = owner == "torch" and (
                name in DRAWS_WITHOUT_GENERATOR or (name in DRAWS and not generated)
            )
            if of_torch or owner in {"random", "np.random", "numpy.random"}:
                found.append(f"{place(path, node)}: {owner}.{name}")
    none_of(found)


def test_no_source_unpickles_or_runs_code_from_data() -> None:
    """Files are data: no pickle, no eval, no torch.load of anything but tensors."""
    found = []
    for path in SOURCES:
        for node in nodes(path):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            pickles = [name for name in names if name.split(".")[0] in PICKLES]
            found += [f"{place(path, node)}: import {name}" for name in pickles]
        for node, owner, name in calls(path):
            tensors = any(ast.unparse(word) == "weights_only=True" for word in node.keywords)
            torch_pickle = owner == "torch" and (name == "save" or (name == "load" and not tensors))
            if torch_pickle or (not owner and name in CODE_FROM_DATA):
                found.append(f"{place(path, node)}: {owner}.{name}()")
    none_of(found)


def test_public_functions_state_the_shapes_of_their_tensors() -> None:
    """A public function with a Tensor parameter gives a bracketed shape in its docstring.

    "scalar" and "any shape" do too; a method that implements an interface may leave it to that.
    """
    interface = {
        node.name
        for path in (ROOT / "advdiff_core" / "interfaces").glob("*.py")
        for node in nodes(path)
        if isinstance(node, Function)
    }
    found = []
    for path in SOURCES:
        if any(part.startswith("_") and part != "__init__.py" for part in path.parts[-2:]):
            continue
        inherited = interface if path.parent.name != "interfaces" else set()
        for function in public_functions(ast.parse(path.read_text(encoding="utf-8")), inherited):
            arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
            types = {ast.unparse(a.annotation) for a in arguments if a.annotation}
            told = re.search(r"\[[A-Z.]|any shape|scalar|see `", ast.get_docstring(function) or "")
            if types & {"Tensor", "Tensor | None"} and not told:
                found.append(f"{place(path, function)}: {function.name}")
    none_of(found)


def public_functions(tree: ast.Module, inherited: set[str]) -> Iterator[Function]:
    """Public functions of a module and its public classes, less methods an interface documents."""
    for node in tree.body:
        if isinstance(node, Function) and not node.name.startswith("_"):
            yield node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            known = inherited if node.bases else set()
            for method in node.body:
                public = isinstance(method, Function) and not method.name.startswith("_")
                if public and method.name not in known:
                    yield method


def test_every_fault_code_has_a_test() -> None:
    """A fault id that the core can print is asserted somewhere in the tests."""
    tests = "\n".join(
        path.read_text(encoding="utf-8")
        for path in [*ROOT.glob("tests/**/*.py"), *ROOT.glob("plugins/*/tests/**/*.py")]
        if path != Path(__file__)
    )
    found = set()
    for path in SOURCES:
        for node, _, _ in calls(path):
            for keyword in node.keywords:
                if keyword.arg == "code" and isinstance(keyword.value, ast.Constant):
                    code = keyword.value.value
                    if isinstance(code, str) and code and not re.search(rf"\b{code}\b", tests):
                        found.add(f"{place(path)}: {code}")
    none_of(sorted(found))


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        (test_no_source_draws_from_the_global_generator, "x = torch.randn(3)"),
        (test_no_source_draws_from_the_global_generator, "x = torch.randn_like(y)"),
        (test_no_source_unpickles_or_runs_code_from_data, "import pickle"),
        (test_no_source_unpickles_or_runs_code_from_data, "x = torch.load(y)"),
        (test_no_source_unpickles_or_runs_code_from_data, "x = eval(y)"),
        (test_step_never_waits_for_the_device, "x = y.item()"),
        (test_every_fault_code_has_a_test, "raise DataError('x', code='D' '98')"),
        (test_public_functions_state_the_shapes_of_their_tensors, "def f(x: Tensor): 'No.'"),
        (test_functions_stay_readable, "def f():\n" + "    x = 1\n" * 60),
        (test_files_stay_readable, "x = 1\n" * 401),
        (test_sources_are_ascii, "x = '\N{GREEK SMALL LETTER MU}'"),
    ],
)
def test_rules_notice_a_planted_violation(
    rule: Callable[[], None], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rule above fails on a source that breaks it."""
    source = tmp_path / "advdiff_core" / "step" / "planted.py"
    source.parent.mkdir(parents=True)
    source.write_text(line + "\n", encoding="utf-8")
    (tmp_path / "README.md").touch()
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    monkeypatch.setitem(globals(), "SOURCES", [source])
    with pytest.raises(AssertionError, match=r"planted\.py"):
        rule()
