"""`advdiff explain`: sources and examples, for whatever is installed."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from advdiff_core.cli import environment, main
from advdiff_core.cli.example_text import example_of
from advdiff_core.cli.source_text import citations
from advdiff_core.discovery import KINDS, Entry, scan
from advdiff_core.engine import size
from advdiff_core.errors import RecipeError
from advdiff_core.recipe import recipe_from_dict
from advdiff_core.settings import Spec, setting, settings

Capture = pytest.CaptureFixture[str]
#: Members that stand for their family.
MEMBERS = {"torch": "torch:NAdam"}


@pytest.fixture(autouse=True)
def everything(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All that is installed, read anew."""
    monkeypatch.delenv("ADVDIFF_PLUGINS", raising=False)
    # Counting the parameters of every network takes most of a minute, and has tests of its own.
    monkeypatch.setattr(size, "default_size", lambda *arguments: None)
    environment.catalogue.cache_clear()
    yield
    environment.catalogue.cache_clear()


def entries() -> list[Any]:
    """Every component that needs no name of a member."""
    found: list[Entry] = [one for kind in KINDS for one in scan(environ={}).of_kind(kind)]
    return [pytest.param(one, id=f"{one.kind}-{one.name}") for one in found]


@pytest.mark.parametrize("entry", entries())
def test_example_can_be_pasted(entry: Entry, capsys: Capture) -> None:
    """In a recipe it has no fault of its own: no unknown, missing or wrong key."""
    name = MEMBERS.get(entry.name, entry.qualified)
    if environment.catalogue().load(entry).variants and entry.name not in MEMBERS:
        pytest.skip("no member of this family is sure to be there")
    assert main(["explain", entry.kind, name, "--json"]) == 0
    example = json.loads(capsys.readouterr().out)["example"]
    tables = tomllib.loads(example)
    assert f'use = "{name}"' in example
    # What it refers to may be missing, and it may not go together with this data and network.
    other = re.compile(r"error\[R(09|10)\]|there is no (view|role|term)")
    assert [line for line in faults_of(pasted(tables)) if not other.search(line)] == []


def pasted(tables: dict[str, Any]) -> dict[str, Any]:
    """A small recipe with the keys of an example."""
    made: dict[str, Any] = {
        "data": {"use": "two-moons"}, "models": {"student": {"use": "mlp"}},
        "terms": {"denoise": {"use": "denoise"}}, "players": {"student": {}},
    }  # fmt: skip
    for name, table in tables.items():
        replaced = "use" in table
        made[name] = table if replaced else {**made.get(name, {}), **table}
    return made


def faults_of(tables: dict[str, Any]) -> list[str]:
    """What the loader says of a recipe."""
    try:
        recipe_from_dict(tables)
    except RecipeError as error:
        return error.lines()
    return []


def test_source_is_what_the_docstring_cites(capsys: Capture) -> None:
    """Paper and equation, in the text and in the JSON; a plugin may say more by `source`."""
    assert main(["explain", "sampler", "ddim", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["source"] == "Song et al. (2021), eq. 12 and 16"
    assert main(["explain", "perturbation", "ray-fgsm"]) == 0
    assert "\nSource: What Is Adversarial Training for Diffusion Models?" in capsys.readouterr().out
    assert main(["explain", "optimizer", "sgd"]) == 0
    assert "Source" not in capsys.readouterr().out


def test_citations_are_found_in_every_form_of_the_house() -> None:
    """Names, year, and equations, sections or algorithms; nothing that only looks like one."""
    text = """Ho et al. (2020, eq. 14), then (Song et al., 2021, eq. 12 and 16), Kingma & Ba 2015;
    LeCun, Cortes, Burges 1998. (Krizhevsky 2009). Lu et
    al. (2022, algorithm 2), Song et al. (2021), eq. 33, `t`; Wang et al. (2023): blocks.
    Ho et al. (2020, eq. 14) again. CIFAR 2000 images, In 2020 others. Discrete: 1000 steps."""
    assert citations(text) == [
        "Ho et al. (2020), eq. 14", "Song et al. (2021), eq. 12 and 16", "Kingma & Ba (2015)",
        "LeCun, Cortes, Burges (1998)", "Krizhevsky (2009)", "Lu et al. (2022), algorithm 2",
        "Song et al. (2021), eq. 33", "Wang et al. (2023)",
    ]  # fmt: skip


@settings
class Inner:
    """A nested table."""

    depth: int = setting(help="depth", ge=3)


class Owner:
    """A component with required keys of every type."""

    @settings
    class Settings:
        """Its keys."""

        count: int = setting(help="count", gt=4, lt=9)
        share: float = setting(help="share", gt=0.0, lt=1.0)
        low: float = setting(help="low", le=-2.0)
        plain: float = setting(help="plain")
        on: bool = setting(help="on")
        law: Literal["a", "b"] = setting(help="law")
        pick: str = setting(help="pick", choices=("x", "y"))
        where: Path | None = setting(help="where")
        size: tuple[int, int] = setting(help="size", ge=1)
        many: tuple[float, ...] = setting(help="many", ge=0.0)
        view: str = setting(help="view", ref="view")
        table: dict[str, float] = setting(help="table")
        inner: Inner = setting(help="inner")
        attack: Spec = setting(help="attack", kind="attack")
        radius: float = setting(8 / 255, help="radius")
        shown: tuple[int, ...] = setting((1, 2), help="shown")
        bound: float = setting(1.0, help="bound", applies=("law", ("b",)))
        silent: str = setting("", help="silent")


def test_example_fills_what_must_be_there() -> None:
    """Values of every type within their bounds, nested components and tables included."""
    text = example_of("backbone", "odd:x", Owner.Settings, Owner, lambda kind: f"some-{kind}")
    assert text.splitlines() == [
        "[models.student]", 'use = "odd:x"', "count = 5", "share = 0.5", "low = -3.0",
        "plain = 1.0", "on = false", 'law = "a"', 'pick = "x"', 'where = "path/to/it"',
        "size = [1, 1]", "many = [1.0]", 'view = "clean"', "table = {}", "inner = { depth = 3 }",
        'attack = { use = "some-attack" }', 'radius = "8/255"', "shown = [1, 2]",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "first"),
    [
        ("attack", '[views.adv]\nperturb = { use = "attack", attack = { use = "x", lr = 1.0 } }'),
        ("metric", '[evaluate]\nmetrics = [{ use = "x", lr = 1.0 }]'),
        ("optimizer", '[players.student]\noptimizer = { use = "x", lr = 1.0 }'),
        ("discriminator", '[models.judge]\nuse = "x"\nkind = "discriminator"\nlr = 1.0'),
        ("loss_term", '[terms.x]\nuse = "x"\nlr = 1.0'),
        ("unheard-of", ""),
    ],
)
def test_example_stands_where_the_kind_belongs(kind: str, first: str) -> None:
    """Each kind in its table."""

    @settings
    class Settings:
        lr: float = setting(1.0, help="rate")

    assert example_of(kind, "x", Settings, type("Owner", (), {}), str) == first
