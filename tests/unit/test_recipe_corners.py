"""Corners of discovery and of the loader that no ordinary recipe reaches."""

from __future__ import annotations

import importlib
import os
import sys
import threading
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from helpers_dists import Site
from helpers_recipes import FULL, LEAST, fault_of, faults_of, load

from advdiff_core.discovery import Catalogue, UnknownComponentError, scan
from advdiff_core.discovery.shipped import shipped_recipes
from advdiff_core.errors import PluginError
from advdiff_core.recipe import check_recipe, lock_table
from advdiff_core.recipe.changes import changes
from advdiff_core.recipe.problems import Mismatch
from advdiff_core.recipe.scalars import strict_literal

ATTACK = "advdiff.v1.attack"
PART = """
import attrs
from advdiff_core import Attack, setting, settings
class A(Attack):
    @settings
    class Settings:
        {field}
    def search(self, victim, x, budget, domain, rng): ...
"""


def attack_with(site: Site, field: str) -> Catalogue:
    """A catalogue whose attack `a` has one field in its settings, beside the toy core."""
    site.toy_core(module="toy_corner")
    source = PART.replace("{field}", field)
    site.dist("advdiff-a", {ATTACK: {"a": "corner:A"}}, modules={"corner": source})
    return scan([site.folder], environ={})


def test_a_use_of_four_parts_means_nothing(toys: Catalogue):
    """No reading of `a:b:c:d` is a component."""
    with pytest.raises(UnknownComponentError):
        toys.find("attack", "a:b:c:d")


def test_settings_may_have_fields_that_are_computed(site: Site):
    """A field that is not for the constructor is no key of the recipe."""
    catalogue = attack_with(site, "hidden: int = attrs.field(init=False, default=3)")
    assert catalogue.load(catalogue.find("attack", "a")).Settings().hidden == 3
    override = 'views.adv.perturb.attack={ use = "a", hidden = 3 }'
    found = faults_of(catalogue, FULL, [override, "views.adv.perturb.norm=linf"])
    assert [(f.code, f.key) for f in found] == [("R06", "views.adv.perturb.attack.hidden")]


def test_a_default_that_is_no_tuple_is_refused(site: Site):
    """P09: a list as a default could be changed by anyone."""
    catalogue = attack_with(site, "many: tuple[int, ...] = setting(factory=list, help='')")
    with pytest.raises(PluginError, match=r"\[\] is no tuple"):
        catalogue.load(catalogue.find("attack", "a"))


def test_validators_of_a_component_are_heard(site: Site):
    """R08: what a component's own validators refuse is a fault of its table."""
    field = (
        "low: int = setting(0, help='')\n        high: int = setting(1, help='')\n"
        "        def __attrs_post_init__(self):\n"
        "            if self.low >= self.high: raise ValueError('low must be below high')"
    )
    catalogue = attack_with(site, field)
    override = 'views.adv.perturb.attack={ use = "a", low = 5 }'
    text = FULL.replace(', attack = { use = "steps", norm = "l2" }', "")
    fault = fault_of(catalogue, text, [override])
    assert (fault.code, fault.key) == ("R08", "views.adv.perturb.attack")
    assert fault.message == "these settings do not go together: low must be below high"
    assert fault.plugin == "advdiff-a"


def test_components_load_in_a_thread(toys: Catalogue):
    """Signals are left alone where they cannot be touched."""
    found: list[type] = []
    fresh = Catalogue(entries=toys.entries)
    thread = threading.Thread(
        target=lambda: found.append(fresh.load(fresh.find("attack", "steps")))
    )
    thread.start()
    thread.join()
    assert found[0].__name__ == "Steps"


def test_a_plugin_may_take_the_interrupt_handler_over(site: Site):
    """A module that sets its own handler while it is imported keeps it."""
    import signal

    before = signal.getsignal(signal.SIGINT)
    source = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n" + PART.replace(
        "{field}", "pass"
    )
    site.dist("advdiff-a", {ATTACK: {"a": "taker:A"}}, modules={"taker": source})
    catalogue = scan([site.folder], environ={})
    try:
        catalogue.load(catalogue.find("attack", "a"))
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_foreign_finder_that_raises_is_listed(monkeypatch: pytest.MonkeyPatch, site: Site):
    """P01: what was found before a finder broke is kept, and the break is named."""
    site.dist("advdiff-a", {ATTACK: {"a": "m:A"}})
    real = list(metadata.distributions(path=[str(site.folder)]))

    def broken(**_: object):
        yield from real
        raise RuntimeError("no such index")

    monkeypatch.setattr(metadata, "distributions", broken)
    entries = scan(environ={}).entries
    assert [entry.name for entry in entries if not entry.error] == ["a"]
    assert "no such index" in next(entry.error for entry in entries if entry.error)


def test_a_distribution_that_raises_while_it_is_read_is_listed(monkeypatch: pytest.MonkeyPatch):
    """P06: a distribution of another installer, without a folder, breaks nothing."""

    class Odd(metadata.Distribution):
        def read_text(self, filename: str) -> str:
            return f"[{ATTACK}]\na = m:A\n" if filename == "entry_points.txt" else "Name: odd\n"

        def locate_file(self, path: object):
            raise NotImplementedError("nowhere")

    monkeypatch.setattr(metadata, "distributions", lambda **_: [Odd(), Odd()])
    entries = scan(environ={}).entries
    assert [entry.distribution for entry in entries] == ["unknown", "unknown"]
    assert all("nowhere" in entry.error for entry in entries)


def test_shipped_recipes_survive_a_package_without_a_spec(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    """P06: a module put into `sys.modules` by hand, and entry points that cannot be read."""
    site.dist("advdiff-a", "[advdiff.v1.attack]\nstray\n", modules={"advdiff_a": ""})
    module = importlib.import_module("advdiff_a")
    monkeypatch.setattr(module, "__spec__", None)
    assert shipped_recipes("advdiff-a") == {}
    assert shipped_recipes("") is None


def test_another_component_or_length_is_one_change(toys: Catalogue):
    """R15: a component that is replaced, and an array of another length, are named as a whole."""
    before = load(toys, FULL)
    after = load(toys, FULL, ["schedule.use=vp-cosine"])
    assert changes(before, after) == [("schedule.use", "vp-linear", "vp-cosine")]
    after = load(toys, FULL, ["data.corrupt=[]"])
    ((key, old, new),) = changes(before, after)
    assert (key, len(old), new) == ("data.corrupt", 2, [])
    after = load(toys, FULL, ["data.corrupt.1.std=1"])
    assert changes(before, after) == [("data.corrupt.1.std", 0.1, 1.0)]


def test_a_near_choice_is_offered(toys: Catalogue):
    """R08: a misspelt choice gets the right one, an odd one gets none."""
    fault = fault_of(toys, LEAST, ["models.student.norm=grroup"])
    assert fault.message == "'grroup' is not one of 'group', 'layer'"
    assert fault.fix == "did you mean 'group'?"
    assert fault_of(toys, LEAST, ["models.student.norm=zzz"]).fix == ""


def test_an_average_needs_one_rate(toys: Catalogue):
    """R11: an empty table says nothing."""
    fault = fault_of(toys, LEAST, ["players.student.ema=[{}]"])
    assert (fault.code, fault.message) == ("R11", "wanted one of rate, power, halflife")


def test_a_players_table_of_the_wrong_form_is_the_only_fault(toys: Catalogue):
    """R07: what depends on the players is not judged without them."""
    assert fault_of(toys, LEAST, ["players=3"]).code == "R07"
    assert fault_of(toys, LEAST, ["players.student=3"]).code == "R07"
    assert fault_of(toys, LEAST, ["hooks=3"]).code == "R07"
    assert fault_of(toys, LEAST, ["sample=3"]).code == "R07"


def test_a_player_needs_models_and_terms(toys: Catalogue):
    """R11: each may be empty only by mistake."""
    codes = {f.key: f.code for f in faults_of(toys, LEAST, ["players.student.models=[]"])}
    assert codes["players.student.models"] == "R11"
    codes = {f.key: f.code for f in faults_of(toys, LEAST, ["players.student.terms=[]"])}
    assert codes["players.student.terms"] == "R11"


def test_an_empty_path_and_an_odd_key_are_refused(toys: Catalogue):
    """R07, R13: nothing has no name."""
    assert fault_of(toys, LEAST, ['data.path=""']).message == "found '' (string), wanted a path"
    assert fault_of(toys, LEAST, ['models.student.gains={ "\\u001b" = 1 }']).code == "R13"


def test_choices_may_be_of_any_type():
    """R07: booleans among choices are listed as TOML writes them."""
    assert strict_literal(True, (True, "auto")) is True
    with pytest.raises(Mismatch, match='wanted one of true, "auto"'):
        strict_literal(1, (True, "auto"))


def test_a_sound_recipe_has_no_faults(toys: Catalogue, tmp_path: Path):
    """`check_recipe` answers with an empty list."""
    path = tmp_path / "r.toml"
    path.write_text(FULL)
    assert check_recipe(path, catalogue=toys) == []


def test_a_version_that_is_not_known_is_called_so(toys: Catalogue, monkeypatch: pytest.MonkeyPatch):
    """The frozen copy never holds an empty version."""

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert lock_table(load(toys, LEAST))["torch"] == "unknown"


def test_a_disk_that_fails_is_named(
    toys: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """R01: an error while reading is no crash."""
    path = tmp_path / "r.toml"
    path.write_text(LEAST)

    def fail(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "read", fail)
    (fault,) = check_recipe(path, catalogue=toys)
    assert (fault.code, fault.message) == ("R01", "cannot be read: Input/output error")


def test_a_folder_that_is_missing_offers_nothing(toys: Catalogue, tmp_path: Path):
    """R01: no near file where there is no folder."""
    (fault,) = check_recipe(tmp_path / "no" / "r.toml", catalogue=toys)
    assert fault.fix == "check the path"


def test_both_parsers_must_accept_a_recipe(toys: Catalogue, monkeypatch: pytest.MonkeyPatch):
    """R02: what only the newer parser takes is refused, with the older one's reason."""

    def fail(_: str) -> None:
        raise tomllib.TOMLDecodeError("Not so (at line 2, column 1)")

    monkeypatch.setattr(tomllib, "loads", fail)
    fault = fault_of(toys, LEAST)
    assert (fault.code, fault.line) == ("R02", 2)
    assert fault.message.startswith("not valid TOML 1.0, which recipes are: Not so")


def test_a_clash_in_a_recipe_is_a_fault_of_its_line(site: Site):
    """P04: both owners are named at the line that uses the name, and the exit code is 3."""
    site.toy_core(module="toy_clash")
    for name in ("one", "two"):
        site.dist(f"advdiff-{name}", {"advdiff.v1.backbone": {"big": "toy_clash:Net"}})
    catalogue = scan([site.folder], environ={})
    fault = fault_of(catalogue, LEAST.replace('"net"', '"big"'))
    assert (fault.code, fault.line) == ("P04", 4)
    assert "'big' of advdiff-one 1.0 and 'big' of advdiff-two 1.0" in fault.message
    load(catalogue, LEAST.replace('"net"', '"advdiff-two:big"'))


FAMILY = """
from advdiff_core import Attack, setting, settings
class A(Attack):
    variants = "anything"
    @classmethod
    def settings_type(cls, variant):
        if variant == "raise": raise RuntimeError("boom")
        if variant == "class": return int
        @settings
        class Bad:
            eps: float = setting("x", help="")
        return Bad
    def search(self, victim, x, budget, domain, rng): ...
"""


@pytest.mark.parametrize(
    ("variant", "code", "words"),
    [
        ("bad", "P09", "Settings of bad: the default of eps is not valid"),
        ("class", "P09", "is not made with advdiff_core.settings"),
        ("raise", "P02", "RuntimeError: boom"),
    ],
)
def test_a_family_whose_settings_are_broken_is_refused(
    site: Site, variant: str, code: str, words: str
):
    """P02, P09: settings made per variant are checked like all others."""
    site.toy_core(module="toy_family")
    site.dist("advdiff-a", {ATTACK: {"fam": "family_part:A"}}, modules={"family_part": FAMILY})
    catalogue = scan([site.folder], environ={})
    override = f"views.adv.perturb.attack.use=fam:{variant}"
    text = FULL.replace('attack = { use = "steps", norm = "l2" }', 'attack = { use = "steps" }')
    fault = fault_of(catalogue, text, [override])
    assert (fault.code, fault.plugin) == (code, "advdiff-a")
    assert words in fault.message


def test_the_toys_are_not_installed(toys: Catalogue):
    """Tests that scan what is really installed do not find the toys."""
    assert not any(entry.name == "push" for entry in scan().entries)
    assert "toy_core_parts" in sys.modules or toys


def test_the_package_lists_its_public_names():
    """`dir()` shows what can be imported, before anything is."""
    from advdiff_core import recipe

    assert dir(recipe) == sorted(recipe.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = recipe.nothing
