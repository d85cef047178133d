"""What docs/testing.md shows is what happens."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest

from advdiff_core.discovery import KINDS
from advdiff_core.testing import LawBroken, assert_equivariant, broken_laws
from advdiff_core.testing.collecting import law_of
from advdiff_core.testing.index import LAW_NAMES

TEXT = (Path(__file__).parents[2] / "docs" / "testing.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]
SHOWN = [text for language, text in BLOCKS if language == "text"]


def block(words: str) -> str:
    """The Python block that holds these words."""
    return next(text for text in PYTHON if words in text)


@pytest.fixture
def page(request: pytest.FixtureRequest):
    """Runs blocks of the page as one module."""
    module = types.ModuleType("page_of_testing")
    sys.modules[module.__name__] = module

    def run(source: str) -> types.ModuleType:
        exec(compile(source, "docs/testing.md", "exec"), vars(module))
        return module

    yield run
    del sys.modules[module.__name__]


def findings(text: str) -> list[str]:
    """Messages of laws, without the name the component goes by."""
    return [
        re.sub(r"^(law '[\w-]+') of .*?: found", r"\1: found", line) for line in text.splitlines()
    ]


def test_planted_bug_is_found_as_shown(page) -> None:
    """Both mistakes are told in the words of the page, and the mend on it mends them."""
    source = block("class Nudge")
    broken = broken_laws(page(source).Nudge)
    assert findings("\n".join(broken.values())) == findings(SHOWN[0])
    mend = next(text for text in PYTHON if "steepest_ascent(slope" in text)
    wrong = next(line for line in source.splitlines() if "slope.norm()" in line)
    mended = "from advdiff_core.math import norms\n" + source.replace(wrong, mend.rstrip("\n"))
    assert broken_laws(page(mended).Nudge) == {}


def test_equivariance_snippets_hold(page) -> None:
    """The snippets run, and the counterexample is the one shown."""
    made = page(block("def denoise"))
    page(block("def test_error_is_bounded")).test_error_is_bounded()
    page(block("assert_group_equivariant"))
    with pytest.raises(LawBroken) as caught:
        assert_equivariant(made.denoise, made.schedule, shape=(2,), tolerance=0.5)
    assert str(caught.value) == SHOWN[1].strip()


def test_facts_snippet_holds(page) -> None:
    """The tests of a plugin with a ray and a regulariser of its own pass, and can fail."""
    made = page(block("class Cone"))
    made.test_the_cone_widens()
    made.test_drift_is_silent_where_it_should_be()
    mistake = block("class Cone").replace("view.delta / view.sigma", "view.delta")
    with pytest.raises(LawBroken, match="Drift costs an exactly equivariant denoiser"):
        page(mistake).test_drift_is_silent_where_it_should_be()
    backwards = block("class Cone").replace("* noised.sigma.flatten()", "/ noised.sigma.flatten()")
    with pytest.raises(LawBroken, match="the radius falls with noise"):
        page(backwards).test_the_cone_widens()


def test_step_snippet_holds(page) -> None:
    """A step without an engine."""
    page("import torch\n" + block("build_stage(data="))


def test_tables_name_every_law() -> None:
    """Each law stands in the table of its kind, with its promise."""
    titles = {kind: kind.replace("_", " ").capitalize() or "Every kind" for kind in ("", *KINDS)}
    for kind, title in titles.items():
        table = TEXT.split(f"### {title}\n")[1].split("\n#")[0]
        rows = dict(re.findall(r"^\| `([\w-]+)` \| (.*) \|$", table, re.MULTILINE))
        wanted = {name: law_of(kind or "dataset", name).summary for name in LAW_NAMES[kind]}
        assert rows == wanted
