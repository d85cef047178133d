"""`advdiff check-plugin`: new plugins of every kind pass; every mistake is named with its mend."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers_kit import HEAD, built

from advdiff_core.cli import environment, main
from advdiff_core.discovery import HOOKS, KINDS
from advdiff_core.errors import DataError
from advdiff_core.kit import golden_file, sources, wheel
from advdiff_core.kit.build import Built
from advdiff_core.kit.examine import built_plugin
from advdiff_core.kit.findings import Finding
from advdiff_core.kit.project import open_project

ROOT = Path(__file__).parents[2]
Report = dict[str, Any]


def lines(findings: Iterator[Finding]) -> list[str]:
    """Findings that are not ok, as they are printed."""
    return [f"{f.status} {f.topic}: {f.found} - {f.fix}" for f in findings if f.status != "ok"]


@pytest.fixture(scope="module", autouse=True)
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Types are remembered between sessions, laws tried with few witnesses."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MYPY_CACHE_DIR", str(ROOT / ".mypy_cache" / "plugins"))
        patch.setenv("PYTEST_ADDOPTS", "--advdiff-examples=2")
        patch.setenv("OMP_NUM_THREADS", "1")
        environment.catalogue.cache_clear()
        yield


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new plugin of every kind, with golden numbers."""
    folder = tmp_path_factory.mktemp("new") / "advdiff-every"
    assert main(["new-plugin", "advdiff-every", "--kind", "all", "--out", str(folder)]) == 0
    return folder


def report(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, Report]:
    """Exit code and the object on stdout."""
    capsys.readouterr()
    code = main(["check-plugin", *map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_new_plugin_of_every_kind_passes_unedited(
    everything: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing to mend, nothing even to know once it is recorded; its folder is left as it was."""
    before = sorted(everything.rglob("*"))
    code, found = report(capsys, everything, "--record")
    loud = [one for one in found["findings"] if one["status"] != "ok"]
    assert (code, found["plugin"], found["ok"], loud) == (0, "advdiff-every", True, [])
    topics = {one["topic"] for one in found["findings"]}
    assert topics == {
        "metadata", "entries", "wheel", "imports", "docs", "components", "recipes", "golden",
        "types", "laws",
    }  # fmt: skip
    told = [one["found"] for one in found["findings"] if one["topic"] == "components"]
    assert {text.split(" ")[0] for text in told} == {*KINDS, HOOKS}
    golden = everything / golden_file.FILE
    assert sorted(everything.rglob("*")) == sorted([*before, golden])
    assert list(json.loads(golden.read_text())["recipes"]) == ["every"]


def test_text_has_a_line_per_finding_and_a_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is printed for people: status, topic, finding, mend; and the exit code of plugins."""
    some = built(tmp_path, {})
    findings = [Finding(topic="docs", status="bad", found="x\n", fix="y")]
    monkeypatch.setattr("advdiff_core.kit.examine.build", lambda *_: some)
    monkeypatch.setattr("advdiff_core.kit.examine.examine", lambda *_, **__: iter(findings))
    assert main(["check-plugin", "advdiff-core"]) == 3
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        "bad   docs       x\\n - y", "advdiff-core: 1 to mend, 0 to know, 0 ok",
    ]  # fmt: skip
    assert captured.err == "advdiff: building advdiff-core\n"


# What is no plugin.


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "nowhere",
            "advdiff: error PLUGIN: 'nowhere' is neither a folder nor an installed distribution - "
            "name a folder that holds a pyproject.toml",
        ),
        (
            "advdiff-cor",
            "advdiff: error PLUGIN: 'advdiff-cor' is neither a folder nor an installed "
            "distribution - did you mean 'advdiff-core'?",
        ),
        (
            "empty",
            "advdiff: error empty: this folder holds no pyproject.toml - "
            "name the plugin's own folder; 'advdiff new-plugin' makes one",
        ),
        (
            "nameless",
            "advdiff: error nameless/pyproject.toml: there is no name in its table [project] - "
            'write name = "advdiff-..."',
        ),
        (
            "torch --record",
            "advdiff: error --record: torch is installed without its sources, which golden numbers "
            "belong to - name the folder of its sources",
        ),
    ],
)
def test_what_is_no_plugin_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    name: str, message: str,
) -> None:  # fmt: skip
    """One line that says what to name instead."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "nameless").mkdir()
    (tmp_path / "nameless/pyproject.toml").write_text("[project]\nversion = '1'\n")
    assert main(["check-plugin", *name.split()]) in (2, 4)
    assert capsys.readouterr().err.splitlines()[-1] == message


def test_broken_pyproject_is_named(tmp_path: Path) -> None:
    """File and line of what is no TOML."""
    (tmp_path / "pyproject.toml").write_text("[project\n")
    with pytest.raises(DataError, match=r"cannot be read: .*line 1.* - mend the file"):
        open_project(str(tmp_path))


def test_plugin_may_be_named_by_its_distribution() -> None:
    """An editable installation leads to its sources; another is examined as it is installed."""
    assert open_project("advdiff_core").folder == ROOT
    assert open_project("Torch") == open_project("torch")
    assert open_project("torch").folder is None
    assert open_project(str(ROOT / "pyproject.toml")).name == "advdiff-core"


def test_wheel_that_cannot_be_built_is_told_with_its_cause(tmp_path: Path) -> None:
    """The backend's own words, and how to see them all."""
    (tmp_path / "advdiff-x").mkdir()
    file = tmp_path / "advdiff-x/pyproject.toml"
    file.write_text(
        '[build-system]\nrequires = []\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "advdiff-x"\nversion = "1"\nreadme = "missing.md"\n'
    )
    project = open_project(str(tmp_path / "advdiff-x"))
    with pytest.raises(DataError) as caught, built_plugin(project):
        pass
    assert "its wheel cannot be built: OSError: Readme file does not exist: missing.md" in str(
        caught.value
    )
    assert caught.value.fix.startswith("see: pip wheel --no-deps --no-build-isolation")


# Metadata, entry points and the wheel.


def test_metadata_of_a_whole_plugin_pass(tmp_path: Path) -> None:
    """Nothing to say."""
    assert lines(wheel.metadata(built(tmp_path, {}))) == []


def test_every_gap_of_the_metadata_is_named(tmp_path: Path) -> None:
    """README, licence and its text, Python, description; the keyword is advice."""
    bare = built(tmp_path, {}, head="\n".join(HEAD.splitlines()[:3]) + "\n", readme="")
    assert lines(wheel.metadata(bare)) == [
        'bad metadata: there is no README in it - write readme = "README.md" and the file',
        'bad metadata: no licence is named - write license = "Apache-2.0", or another SPDX '
        "identifier",
        "bad metadata: the text of the licence is not in it - add the file LICENSE, and write "
        'license-files = ["LICENSE"]',
        'bad metadata: no version of Python is named - write requires-python = ">=3.11"',
        'bad metadata: there is no description - write description = "..."',
        "note metadata: without the keyword advdiff-plugin nobody finds it on an index - write "
        'keywords = ["advdiff-plugin"]',
    ]


def test_entry_points_are_held_to_the_contract(tmp_path: Path) -> None:
    """Version, kind and form of each; a plugin without any is none."""
    groups = {
        "advdiff.v1.attack": {"good": "advdiff_made.a:A", "bad": "advdiff_made"},
        "advdiff.v2.attack": {"new": "advdiff_made.a:A"},
        "advdiff.v1.atack": {"near": "advdiff_made.a:A"},
    }
    found = lines(wheel.entry_points(built(tmp_path / "some", {}, groups=groups)))
    mend = "mend it in pyproject.toml"
    assert sorted(found) == [
        f"bad entries: atack 'near': version 1 of the plugin contract has no kind 'atack'; did you "
        f"mean 'attack'? - {mend}",
        f"bad entries: attack 'bad': 'advdiff_made' is not module:Class - {mend}",
        f"bad entries: attack 'new': made for version 2 of the plugin contract, this advdiff-core "
        f"has version 1 - {mend}",
    ]
    assert lines(wheel.entry_points(built(tmp_path / "none", {}))) == [
        'bad entries: it declares no component - add [project.entry-points."advdiff.v1.'
        'perturbation"] to pyproject.toml, "name = module:Class" in it'
    ]


def test_wheel_holds_what_users_need_and_nothing_else(tmp_path: Path) -> None:
    """Without py.typed, with tests and caches, without the recipes of its sources."""
    some = built(
        tmp_path, {}, files=("tests/test_x.py", "advdiff_made/__pycache__/x.cpython-311.pyc")
    )
    assert some.project.folder is not None
    for place in ("src/advdiff_made/recipes", "recipes"):
        (some.project.folder / place).mkdir()
        (some.project.folder / place / "r.toml").touch()
    assert lines(wheel.contents(some)) == [
        "bad wheel: type checkers ignore advdiff_made: there is no py.typed in it - add an empty "
        "file src/advdiff_made/py.typed",
        "bad wheel: it holds advdiff_made/__pycache__/x.cpython-311.pyc and 1 more, which users do "
        "not need - leave them out: name the packages that belong to it",
        "bad wheel: recipes/r.toml is not in it - move it to the folder recipes of the package "
        "advdiff_made",
        "bad wheel: src/advdiff_made/recipes/r.toml is not in it - let the backend take every file "
        "of the package",
    ]


def test_wheel_without_python_is_named(tmp_path: Path) -> None:
    """A backend that finds no package builds an empty wheel."""
    some = built(tmp_path, {})
    empty = Built(project=some.project, path=some.path, info=some.info, files=())
    assert (
        "bad wheel: it holds no Python file - tell the backend:" in lines(wheel.contents(empty))[0]
    )


# Imports and docstrings.

IMPORTS = '''\
"""A module."""

import json
from typing import TYPE_CHECKING

import advdiff_core.engine.api
import numpy
import scipy.stats
import attrs, torch
import nowhere_to_be_found
import advdiff_robustadv.rays
from advdiff_core import Attack, cli, norms_of_mine
from advdiff_core.hooks.specs import hookimpl
from advdiff_core.step.queries import View
from advdiff_core.math import norms
from . import other
import hypothesis

if TYPE_CHECKING:
    import rich.console

try:
    import click
except ImportError:
    click = None


def lazy():
    """A function."""
    import sklearn
    import pytest
'''


def test_imports_are_declared_and_public(tmp_path: Path) -> None:
    """Undeclared, private, another plugin's, or an extra's that is always imported."""
    requires = ["advdiff-core>=0.1", "NumPy", 'pytest ; extra == "a"', "hypothesis; extra=='a'"]
    requires += ["rich; extra == 'a'", "click; extra == 'a'"]
    some = built(tmp_path, {"x.py": IMPORTS}, requires=requires)
    file = "src/advdiff_made/x.py"
    public = f"plugins may import advdiff_core and its modules {', '.join(sources.PUBLIC)}"
    assert lines(sources.dependencies(some)) == [
        f"bad imports: {file}:6: imports advdiff_core.engine.api, a private part of the core - "
        f"{public}",
        f"bad imports: {file}:8: imports scipy.stats, which it does not depend on - "
        'add "scipy" to dependencies in pyproject.toml',
        f"bad imports: {file}:10: imports nowhere_to_be_found, which it does not depend on - "
        'add "nowhere-to-be-found" to dependencies in pyproject.toml',
        f"bad imports: {file}:11: imports advdiff_robustadv.rays, of the plugin advdiff-robustadv "
        "- two plugins meet only in a recipe; copy nothing, declare a component of your own",
        f"bad imports: {file}:12: imports advdiff_core.cli, a private part of the core - {public}",
        f"bad imports: {file}:12: imports advdiff_core.norms_of_mine, a private part of the core - "
        f"{public}",
        f"bad imports: {file}:17: imports hypothesis, which only an extra installs, whenever the "
        "module is imported - import it where it is used, or move it to dependencies",
        f"bad imports: {file}:30: imports sklearn, which it does not depend on - "
        'add "scikit-learn" to dependencies in pyproject.toml',
    ]


def test_core_has_to_be_a_dependency(tmp_path: Path) -> None:
    """Without it the plugin is installed alone."""
    assert lines(sources.dependencies(built(tmp_path, {}, requires=()))) == [
        'bad imports: advdiff-core is no dependency of it - write dependencies = ["advdiff-core"]'
    ]


def test_public_modules_are_those_of_the_import_contract() -> None:
    """What plugins may import is what the contracts of the first-party plugins do not forbid."""
    import tomllib

    import advdiff_core

    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    contract = next(one for one in config["contracts"] if one["name"].startswith("Plugins: public"))
    forbidden = {name.partition(".")[2] for name in contract["forbidden_modules"]}
    folder = Path(advdiff_core.__file__).parent
    parts = {path.stem for path in folder.glob("*") if path.suffix in ("", ".py")}
    parts -= {"__init__", "__main__", "__pycache__", "py"}
    open_to_all = {name.partition(".")[0] for name in sources.PUBLIC} - {"step"}
    assert parts - open_to_all == forbidden


def test_public_parts_without_docstring_are_named(tmp_path: Path) -> None:
    """Modules, classes, functions and methods; private ones are their author's affair."""
    text = "class A:\n    def go(self): ...\n    def _in(self): ...\n\n\ndef f(): ...\n"
    some = built(tmp_path, {"x.py": text, "broken.py": "def\n", "_y.py": '"""Y."""\n'})
    file = "src/advdiff_made/x.py"
    mend = "has no docstring - say what it is"
    assert lines(sources.docstrings(some)) == [
        f"bad docs: {file}: the module {mend}", f"bad docs: {file}:1: A {mend}",
        f"bad docs: {file}:2: A.go {mend}", f"bad docs: {file}:6: f {mend}",
    ]  # fmt: skip
    many = built(tmp_path / "many", {"x.py": '"""X."""\n' + "def f(): ...\n" * 25})
    found = lines(sources.docstrings(many))
    assert len(found) == 21
    assert found[-1] == "bad docs: and 5 more - mend these first"
