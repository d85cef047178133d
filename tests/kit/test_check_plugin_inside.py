"""What `advdiff check-plugin` finds by importing and trying a plugin, each in its own process."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers_kit import built

from advdiff_core.engine.golden import differences
from advdiff_core.errors import DataError
from advdiff_core.kit import golden_file
from advdiff_core.kit.build import Built
from advdiff_core.kit.examine import components
from advdiff_core.kit.findings import Finding
from advdiff_core.kit.laws import is_tried, laws, read_report
from advdiff_core.kit.typing import types

ROOT = Path(__file__).parents[2]

FAULTY = '''\
"""Mistakes."""

from advdiff_core import Corruption, setting, settings


class Silent(Corruption):
    """says little"""

    @settings
    class Settings:
        """Keys."""

        std: float = setting(0.1, help="")

    def corrupt(self, x, indices):
        """As it is."""
        return x

    def affected(self, indices):
        """None."""
        return indices < 0


class Half(Corruption):
    """Leaves out a method."""

    def corrupt(self, x, indices):
        """As it is."""
        return x


class Same(Silent):
    """Has a name of the core's."""


class Deaf:
    """Listens to nothing."""


print("chatter")
'''

GROUPS = {
    "advdiff.v1.corruption": {
        "silent": "advdiff_made.faulty:Silent", "half": "advdiff_made.faulty:Half",
        "gaussian": "advdiff_made.faulty:Same", "lost": "advdiff_made.lost:Lost",
    },
    "advdiff.v1.hooks": {"deaf": "advdiff_made.faulty:Deaf"},
}  # fmt: skip

RECIPE = """\
[data]
use = "two-moons"
[models.student]
use = "mlp"
width = 8
{more}
"""


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Types are remembered between sessions; the laws of a term are tried with few witnesses."""
    monkeypatch.setenv("MYPY_CACHE_DIR", str(ROOT / ".mypy_cache" / "plugins"))
    monkeypatch.setenv("PYTEST_ADDOPTS", "--advdiff-examples=2")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def lines(findings: Iterator[Finding], topic: str) -> list[str]:
    """Findings of a topic that are not ok."""
    loud = (one for one in findings if one.status != "ok" and one.topic == topic)
    return [f"{one.status}: {one.found} - {one.fix}" for one in loud]


def work(tmp_path: Path) -> Path:
    """A folder to work in."""
    folder = tmp_path / "work"
    folder.mkdir(exist_ok=True)
    return folder


def test_every_mistake_of_a_component_is_named(tmp_path: Path) -> None:
    """No summary, no help, a missing method, a missing module, a core's name, a deaf listener."""
    some = built(tmp_path, {"faulty.py": FAULTY}, groups=GROUPS)
    found = lines(components(some, work(tmp_path), {}), "components")
    # Where in Python's own sources an import failed is not ours.
    found = [re.sub(r" \(\S+:\d+\)", "", line) for line in found]
    who = "advdiff-made 1.2"
    hidden = [line for line in found if "'gaussian'" in line and "key 'std'" not in line]
    assert [line.partition(" 0.")[0] for line in hidden] == [
        "bad: corruption 'gaussian' is also offered by advdiff-core"
    ]
    assert [line for line in found if "'gaussian'" not in line] == [
        f"bad: corruption 'half' of {who}: Half leaves out affected - Corruption asks for each of "
        "them",
        f"bad: corruption 'lost' of {who} fails to import: ModuleNotFoundError: No module named "
        "'advdiff_made.lost' - reinstall or upgrade advdiff-made, or leave it out of the recipe",
        "bad: corruption 'silent': Silent does not say what it is - begin its docstring with a "
        "sentence on the first line; advdiff plugins shows it",
        "bad: corruption 'silent': key 'std' has no help - write setting(..., help=\"...\")",
        f"bad: advdiff hook 'deaf' ({who}) failed in loading: TypeError: it offers none of "
        + found[-1].partition("none of ")[2],
    ]


def test_plugin_that_ends_the_interpreter_is_named(tmp_path: Path) -> None:
    """Not even os._exit at import ends the examination."""
    groups = {"advdiff.v1.attack": {"x": "advdiff_made.x:X"}}
    some = built(tmp_path, {"x.py": "import os\nos._exit(7)\n"}, groups=groups)
    assert lines(components(some, work(tmp_path), {}), "components") == [
        "bad: importing or trying it ends the interpreter: exit status 7 - "
        "import nothing that ends the process, and never exit"
    ]


TERM = '''\
"""A term."""

from advdiff_core import EpsHat, LossTerm, View, setting, settings


class Term(LossTerm):
    """Mean squared error."""

    @settings
    class Settings:
        """Keys."""

        role: str = setting("student", ref="role", help="denoiser")

    def __init__(self, settings, build):
        super().__init__(settings, build)
        self.needs = (EpsHat(settings.role, "clean"), View("clean"))

    def forward(self, step):
        """The loss [B]."""
        error = step.get(self.needs[0]) - step.get(self.needs[1]).eps
        return error.square().flatten(1).mean(1)SCALE


def wrong() -> int:
    """A wrong type."""
    return "x"
'''


def term(folder: Path, scale: str = "", **recipes: str) -> Built:
    """A plugin with one loss term, and recipes."""
    folder.mkdir(exist_ok=True)
    modules = {"term.py": TERM.replace("SCALE", scale)}
    modules |= {f"recipes/{name}.toml": text for name, text in recipes.items()}
    value = "advdiff_made.term:Term"
    groups = {"advdiff.v1.loss_term": {"squares": value, "idle": value}}
    return built(folder, modules, groups=groups)


def test_recipes_are_tried_and_their_numbers_kept(tmp_path: Path) -> None:
    """Faults and missing data are told, first steps are recorded, and compared the next time."""
    own = RECIPE.format(more='[terms.squares]\nuse = "squares"')
    absent = '[data]\nuse = "tensor-file"\npath = "nowhere.npz"\n[models.student]\nuse = "mlp"\n'
    some = term(tmp_path, wrong=RECIPE.format(more="[run]\nbatch = 0"), absent=absent, own=own)
    steps: dict[str, Any] = {}
    found = lines(components(some, work(tmp_path), steps), "recipes")
    assert found[0].startswith("note: absent: checked, but not tried: ")
    assert found[1].startswith("bad: wrong.toml:7: run.batch: 0 must be at least 1 - ")
    assert found[2:] == [
        "note: no recipe uses loss_term 'idle' - add one to the folder recipes of its package: "
        "users copy it, and its numbers are kept"
    ]
    assert list(steps) == ["own"]
    assert lines(golden_file.compared(some, steps), "golden") == [
        "note: no numbers are kept to compare with - advdiff check-plugin . --record keeps those "
        "of the first steps in tests/golden.json"
    ]
    assert lines(golden_file.record(some, steps), "golden") == []
    assert lines(golden_file.compared(some, steps), "golden") == []
    assert lines(golden_file.compared(some, scaled(steps, 1 + 1e-5)), "golden") == []
    told = lines(golden_file.compared(some, scaled(steps, 2.0)), "golden")
    before = steps["own"]["means"]["loss/squares"]
    mend = "if it is meant to be: advdiff check-plugin . --record, and say why in the commit"
    text = f"bad: own: means of 'loss/squares' are {2 * before:.6g}, were {before:.6g} - {mend}"
    assert told == [text]
    gone = lines(golden_file.compared(some, {}), "golden")
    assert gone == [f"bad: own: its first steps are recorded, but it takes none - {mend}"]
    more = lines(golden_file.compared(some, {**steps, "new": steps["own"]}), "golden")
    assert more == [f"bad: new: its first steps are not recorded - {mend}"]
    assert lines(golden_file.record(some, {}), "golden") == [
        "note: no recipe takes a step: nothing is recorded - add a recipe to the package"
    ]


def scaled(steps: dict[str, Any], factor: float) -> dict[str, Any]:
    """The same steps with another loss."""
    own = json.loads(json.dumps(steps["own"]))
    own["means"]["loss/squares"] *= factor
    return {"own": own}


def test_passes_and_tables_are_compared_exactly() -> None:
    """A pass more is a difference, and so is a name that came or went."""
    golden = {"passes": {"student": [1, 0, 1]}, "means": {"loss/a": 1.0}, "weights": {"s": 2.0}}
    found = {"passes": {"student": [2, 0, 1]}, "means": {"loss/b": 1.0}, "weights": {"s": 2.0}}
    assert list(differences(found, golden)) == [
        "passes of 'student' are [2, 0, 1], were [1, 0, 1]",
        "means of 'loss/a' are gone",
        "means of 'loss/b' are new",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read: JSONDecodeError"),
        ("[]", "cannot be read: TypeError"),
        ('{"format": 2, "recipes": {}}', "has format 2, wanted 1"),
    ],
)
def test_damaged_golden_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    """The file, what is wrong, and how it is written anew."""
    some = term(tmp_path)
    assert some.project.folder is not None
    path = some.project.folder / golden_file.FILE
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        list(golden_file.compared(some, {}))
    assert str(caught.value).startswith(f"{path}: {message}")
    assert caught.value.fix == "write it anew with --record"


def test_types_are_told_with_their_place(tmp_path: Path) -> None:
    """The line of mypy, under the plugin's own file."""
    found = lines(types(term(tmp_path), work(tmp_path)), "types")
    assert any(
        line.startswith("bad: src/advdiff_made/term.py:27: Incompatible return value type")
        for line in found
    ), found
    assert all(line.endswith("- see: mypy --strict") for line in found)


def test_broken_law_is_told_in_its_own_words(tmp_path: Path) -> None:
    """The laws are tried though the plugin has no tests, and the broken one says which it is."""
    groups = {"advdiff.v1.loss_term": {"squares": "advdiff_made.term:Term"}}
    some = built(tmp_path, {"term.py": TERM.replace("SCALE", ".mean()")}, groups=groups)
    found = lines(laws(some, work(tmp_path)), "laws")
    assert found[0].startswith("bad: law 'one-loss-per-sample' of loss_term 'squares'")
    assert found[0].endswith("- see: python -m pytest")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def test_nothing():\n    pass\n", "bad: none was tried: 1 passed in"),
        ("import nowhere_at_all\n", "ModuleNotFoundError: No module named 'nowhere_at_all' - see"),
    ],
)
def test_laws_that_nobody_tries_are_told(tmp_path: Path, text: str, message: str) -> None:
    """Tests of the plugin that try nothing, or that cannot be collected."""
    some = term(tmp_path)
    assert some.project.folder is not None
    tests = some.project.folder / "tests"
    tests.mkdir()
    (tests / "test_laws.py").write_text(f"# advdiff_core.testing: laws()\n{text}")
    (found,) = lines(laws(some, work(tmp_path)), "laws")
    assert message in found


def test_component_that_the_tests_leave_out_is_told(tmp_path: Path) -> None:
    """A report that knows one component only, and that of a family by its variant."""
    report = tmp_path / "laws.xml"
    report.write_text(
        '<testsuites><testsuite><testcase name="test_laws[loss_term:a#2/one-loss]"/>'
        '<testcase name="test_laws[optimizer:torch:Lion/builds]"><skipped/></testcase>'
        '<testcase name="test_own"/></testsuite></testsuites>'
    )
    outcome = read_report(report)
    assert (outcome.tried, outcome.kept) == ({"loss_term:a", "optimizer:torch:Lion"}, 1)
    assert is_tried("optimizer:torch", outcome.tried)
    assert not is_tried("loss_term:b", outcome.tried)


def test_tools_that_are_missing_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pytest or Hypothesis the laws count as broken; without mypy types are not checked."""
    some = term(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert lines(laws(some, work(tmp_path)), "laws") == [
        "bad: not tried: pytest and hypothesis not installed - pip install 'advdiff-core[testing]'"
    ]
    assert lines(types(some, work(tmp_path)), "types") == [
        "note: not checked: mypy is not installed - pip install mypy"
    ]
