"""How laws are collected, tried, shrunk and told."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
import torch
from helpers_dists import Site
from hypothesis import strategies as st

from advdiff_core import Perturbation
from advdiff_core.discovery import KINDS, scan
from advdiff_core.errors import UsageError
from advdiff_core.settings import setting, settings
from advdiff_core.testing import LawBroken, broken_laws, laws
from advdiff_core.testing.collecting import kind_of, law_of
from advdiff_core.testing.findings import NotApplicable, shown, wrong
from advdiff_core.testing.guess import number_inside
from advdiff_core.testing.index import LAW_NAMES, SLOW
from advdiff_core.testing.kinds.common import COMMON, _same
from advdiff_core.testing.law import Law, try_law
from advdiff_core.testing.modules import LayerWatch
from advdiff_core.testing.state import leaves, world_state
from advdiff_core.testing.subject import Subject

BACKBONE = Subject("backbone", "mlp", scan(), owner="advdiff-core")


def test_nested_tables_in_arrays_may_come_back_with_their_defaults() -> None:
    """As a table does; another number of entries, and another value, are no round trip."""
    written = [{"use": "ddim", "eta": 0.0}, {"use": "heun", "rho": 7.0}]
    assert _same(written, [{"use": "ddim"}, {"use": "heun"}])
    assert not _same(written, [{"use": "ddim"}])
    assert not _same([1, 2], [1, 3])


def law(check, **witness) -> Law:
    """A law of its own."""
    return Law(name="small", summary="", check=check, witness=witness)


@pytest.mark.parametrize("kind", ["", *KINDS])
def test_index_names_every_law(kind: str) -> None:
    """The torch-free table and the laws agree, and each law says what it promises."""
    module = f"advdiff_core.testing.kinds.{kind}"
    found = importlib.import_module(module).LAWS.by_name if kind else COMMON.by_name
    assert LAW_NAMES[kind] == tuple(found)
    assert {name for name, one in found.items() if one.slow} == set(found) & SLOW
    assert all(one.summary.endswith(".") for one in found.values())


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_share_no_law_names_with_all(kind: str) -> None:
    """A name means one law of a component."""
    assert not set(LAW_NAMES[""]) & set(LAW_NAMES[kind])


def test_witness_is_shrunk_to_the_smallest() -> None:
    """Of all batches that break a law, the smallest with the smallest seed is told."""

    def check(_, *, seed: int, size: int) -> None:
        if seed >= 7 and size >= 3:
            raise wrong("a crowd", wanted="fewer", mend="send some home")

    small = law(check, seed=st.integers(0, 999), size=st.integers(1, 50))
    with pytest.raises(LawBroken) as caught:
        try_law(small, BACKBONE, witnesses=50)
    title = f"backbone 'mlp' ({BACKBONE.entry.owner})"
    assert str(caught.value) == (
        f"law 'small' of {title}: found a crowd, wanted fewer; witness: seed=7, size=3 - "
        "send some home"
    )
    assert caught.value.__cause__ is None


def test_search_is_the_same_each_time() -> None:
    """A second try sees the same witnesses."""
    seen: list[list[int]] = []

    def check(_, *, seed: int) -> None:
        seen[-1].append(seed)

    for _ in range(2):
        seen.append([])
        try_law(law(check, seed=st.integers(0, 10**9)), BACKBONE, witnesses=20)
    assert seen[0] == seen[1]
    assert len(seen[0]) == 20


def test_an_exception_of_the_component_is_told_and_kept() -> None:
    """Whatever it raises becomes one line, with the cause for the traceback."""

    def check(_, *, size: int) -> None:
        raise ZeroDivisionError("by\nnothing")

    with pytest.raises(
        LawBroken, match=r"found ZeroDivisionError: by nothing, wanted no"
    ) as caught:
        try_law(law(check, size=st.integers(1, 3)), BACKBONE, witnesses=3)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_law_that_is_broken_now_and_then_says_so() -> None:
    """Behaviour that depends on something global is no error of Hypothesis."""
    calls: list[int] = []

    def check(_, *, size: int) -> None:
        calls.append(size)
        if len(calls) == 2:
            raise wrong("bad luck", wanted="none", mend="draw from rng")

    with pytest.raises(LawBroken, match=r"bad luck.*not each time: it depends on global state"):
        try_law(law(check, size=st.integers(1, 9)), BACKBONE, witnesses=5)


def test_laws_that_say_nothing_are_skipped() -> None:
    """`NotApplicable` passes through Hypothesis as a skip."""

    def check(_, *, size: int) -> None:
        raise NotApplicable("no taps")

    with pytest.raises(NotApplicable, match="no taps"):
        try_law(law(check, size=st.integers(1, 3)), BACKBONE, witnesses=3)


def test_shown_values_are_short_and_on_one_line() -> None:
    """Numbers have four digits, texts 200 characters."""
    assert shown(1 / 3) == "0.3333"
    assert shown("a\n b") == "a b"
    assert len(shown("x" * 999)) == 200


def test_leaves_names_what_was_disturbed() -> None:
    """Each part of the process has a name and a mend."""
    module = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.BatchNorm1d(1))
    x = torch.zeros(2, 1)
    disturbances = {
        "torch's global generator.*never from a global one": lambda: torch.rand(1),
        "its input x.*do not edit in place": lambda: x.add_(1),
        "buffer 1.running_mean.*": lambda: module(torch.ones(3, 1)),
        "train mode of 1.*never call train": lambda: module[1].eval(),
        "requires_grad of 0.weight.*restore": lambda: module[0].weight.requires_grad_(False),
        "parameter 0.bias.*": lambda: module[0].bias.data.add_(1),
        "environment variable PLANTED.*to its user": lambda: os.environ.update(PLANTED="1"),
        "the blanket warning filters": lambda: __import__("warnings").simplefilter("ignore"),
    }
    with torch.random.fork_rng(devices=[]):
        for words, disturb in disturbances.items():
            with (
                pytest.raises(Exception, match=f"changes {words}"),
                leaves("it", module, inputs={"x": x}),
            ):
                disturb()
    os.environ.pop("PLANTED")
    assert "the default dtype" in world_state()


def test_layer_watch_tells_what_ran_after_a_tensor() -> None:
    """Layers that ran later are named; views and in-place additions do not fool it."""
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    with torch.no_grad():
        watch = LayerWatch(net)
        with watch:
            first = net[0](torch.ones(1, 2))
            second = net[1](first.view(2).view(1, 2))
            second += first
            net[2](second)
    assert watch.layers_after(first) == ["1", "2"]
    assert watch.layers_after(second) == ["2"]


@pytest.mark.parametrize(
    ("bounds", "whole", "wanted"),
    [
        ({}, True, 1), ({}, False, 0.5), ({"ge": 3}, True, 4), ({"ge": 0, "le": 1}, False, 0.5),
        ({"gt": 0}, False, 0.5), ({"lt": 1}, False, 0.5), ({"ge": 0, "lt": 2}, True, 1),
        ({"gt": 1, "lt": 3}, True, 2),
    ],
)  # fmt: skip
def test_guessed_numbers_keep_their_bounds(bounds: dict, whole: bool, wanted: float) -> None:
    """Small numbers, not zero where it can be."""
    assert number_inside(bounds, whole=whole) == wanted


def test_a_key_that_nobody_can_guess_asks_for_an_example() -> None:
    """The message writes the example to be filled in."""
    subject = Subject("dataset", "tensor-file", scan(), owner="advdiff-core")
    with pytest.raises(
        LawBroken, match=r"no value for its key 'path', a Path.*examples="
    ) as caught:
        try_law(law_of("dataset", "builds"), subject, witnesses=1)
    assert '{"dataset:tensor-file": [{"path": ...}]}' in str(caught.value)
    with pytest.raises(NotApplicable, match="see law 'builds'"):
        try_law(law_of("dataset", "batches-as-described"), subject, witnesses=1)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"plugin": "advdiff-cores"}, "no installed distribution 'advdiff-cores' declares"),
        ({"expected_failures": {"shape": "x"}}, "expected_failures names 'shape'"),
        ({"examples": {"backbone:mpl": [{}]}}, "examples names 'backbone:mpl'"),
    ],
)
def test_misspelt_keys_are_refused(keys: dict, message: str) -> None:
    """Names that mean nothing are errors with the nearest that does."""
    with pytest.raises(UsageError, match=message) as caught:
        laws(**{"plugin": "advdiff-core", **keys})
    assert "did you mean" in caught.value.fix


def test_hypothesis_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it no law is collected, and the message says what to install."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="Hypothesis, which is not installed") as caught:
        laws("advdiff-core")
    assert caught.value.fix == "pip install hypothesis"


def test_a_plugin_that_cannot_be_imported_breaks_one_law(site: Site) -> None:
    """Law `builds` tells why, the others are skipped."""
    entries = {"advdiff.v1.backbone": {"gone": "gone_module:Net"}}
    site.dist("advdiff-gone", entries, modules={"gone_module": "raise OSError('no libfoo')"})
    subject = Subject("backbone", "gone", scan(), owner="advdiff-gone")
    with pytest.raises(LawBroken, match=r"builds.*fails to import: OSError: no libfoo"):
        try_law(law_of("backbone", "builds"), subject, witnesses=1)
    for name in ("is-documented", "keeps-final-methods", "settings-round-trip", "shapes"):
        with pytest.raises(NotApplicable):
            try_law(law_of("backbone", name), subject, witnesses=1)


def test_kind_is_found_by_the_base_class() -> None:
    """And what is no component is refused."""
    assert kind_of(BACKBONE.component) == "backbone"
    with pytest.raises(UsageError, match="int is no component"):
        kind_of(int)


class Broken(Perturbation):
    """Has a key that only its author knows, and one that is nested."""

    @settings
    class Settings:
        """Keys."""

        attack: object = setting(kind="attack", help="nested")

    def budget(self, noised, rng):
        """Never called."""

    def search(self, noised, budget, probe, rng):
        """Never called."""


def test_settings_that_no_recipe_can_fill_are_told() -> None:
    """What discovery would refuse, `builds` refuses too."""
    assert "a Spec needs" in broken_laws(Broken, only=["builds"])["builds"]
    assert attrs.has(Broken.Settings)


PLUGIN = '''
"""A plugin with one healthy and one faulty component."""
from advdiff_core import LossTerm, EpsHat, View
from advdiff_core.settings import setting, settings

class Good(LossTerm):
    """Squared error."""
    def __init__(self, settings, build):
        super().__init__(settings, build)
        self.needs = (EpsHat("student"), View("clean"))
    def forward(self, step):
        error = step.get(self.needs[0]) - step.get(self.needs[1]).eps
        return error.square().flatten(1).mean(1)

class Bad(Good):
    """Averages over the batch."""
    def forward(self, step):
        return super().forward(step).mean()
'''
MODULE = """
from advdiff_core.testing import laws
import sys

def test_nothing_heavy_was_imported_while_collecting():
    assert not {"torch", "hypothesis.core", "advdiff_mine"} & set(sys.modules)

test_laws = laws("advdiff_mine", expected_failures=%r)
"""


def run_pytest(folder: Path, expected: dict[str, str], *options: str) -> str:
    """Output of pytest on a plugin's own test module."""
    (folder / "test_mine.py").write_text(MODULE % expected, encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\nxfail_strict = false\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:hypothesispytest",
         "-k", "not import-is-clean", *options, "."],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """A folder with an installed plugin."""
    entries = {"advdiff.v1.loss_term": {"good": "advdiff_mine:Good", "bad": "advdiff_mine:Bad"}}
    Site(tmp_path).dist("advdiff-mine", entries, modules={"advdiff_mine": PLUGIN})
    return tmp_path


def test_a_plugin_author_sees_one_line_per_broken_law(plugin: Path) -> None:
    """Laws of a distribution run as a test of its own, in any environment, without torch first."""
    output = run_pytest(plugin, {}, "--advdiff-examples=2")
    line = (
        "law 'one-loss-per-sample' of loss_term 'bad' (advdiff-mine 1.0): found a loss of shape [] "
        "for 1 samples, wanted [B] = [1]; witness: world="
    )
    assert line in output
    assert "3 failed" in output
    assert "Traceback" not in output.replace("traceback entries", "")


def test_expected_failures_are_strict(plugin: Path) -> None:
    """A law that holds although it is expected to fail is a failure, by component or by name."""
    reason = "averages on purpose"
    names = ("one-loss-per-sample", "samples-are-independent", "follows-the-order-of-samples")
    expected = {f"loss_term:bad/{name}": reason for name in names}
    output = run_pytest(plugin, {**expected, "edits-nothing": "a guess"}, "--advdiff-examples=2")
    assert "3 xfailed" in output
    # Twice, and twice again in the longer summary that pytest prints where CI is set.
    assert output.count("[XPASS(strict)] a guess") in (2, 4)
    assert "2 failed" in output


def test_options_are_checked(plugin: Path) -> None:
    """A number of witnesses below one is refused in one line."""
    output = run_pytest(plugin, {}, "--advdiff-examples=0")
    assert "--advdiff-examples: found '0', wanted a number above 0" in output


def test_pytest_plugin_loads_next_to_nothing() -> None:
    """Every pytest of the environment pays for it."""
    script = (
        "import sys, pytest; before = set(sys.modules); import advdiff_core.testing.pytest_plugin; "
        "import advdiff_core.testing; print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert not {"torch", "hypothesis", "numpy", "rich", "click"} & loaded


def test_fixtures_hand_out_the_kit(advdiff_stage, advdiff_broken_laws) -> None:
    """The entry point gives any test a stage and the laws."""
    assert callable(advdiff_stage)
    assert advdiff_broken_laws(BACKBONE.component, only=["is-documented"]) == {}
