"""The catalogue: what is listed, what a name means, and what loading checks."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest
from helpers_dists import Site

from advdiff_core.discovery import CONTRACT, KINDS, UnknownComponentError, group_of, scan
from advdiff_core.discovery.kinds import canonical, canonical_distribution, is_component_name
from advdiff_core.discovery.loading import interface_of
from advdiff_core.errors import PluginError

ATTACK = "advdiff.v1.attack"


def test_every_kind_has_an_abstract_interface():
    """Each kind names a class that can be imported and not be built as it is."""
    for kind in KINDS:
        interface = interface_of(kind)
        assert interface.__abstractmethods__, kind


def test_group_of_holds_the_contract_version():
    """The group's name says which contract a plugin was made for."""
    assert group_of("attack") == f"advdiff.v{CONTRACT}.attack" == ATTACK


def test_scan_lists_entries_with_their_owner(site: Site):
    """An entry has kind, name, value, distribution and version, and no error."""
    site.dist("advdiff-mine", {ATTACK: {"pgd": "mine:PGD"}}, version="2.3")
    (entry,) = scan([site.folder]).entries
    found = (entry.kind, entry.name, entry.value, entry.distribution, entry.version, entry.error)
    assert found == ("attack", "pgd", "mine:PGD", "advdiff-mine", "2.3", "")
    assert entry.qualified == "advdiff-mine:pgd"


def test_scan_imports_neither_plugins_nor_torch():
    """Q09, P15: listing everything installed leaves torch and every plugin unimported."""
    code = (
        "import sys; from advdiff_core.discovery import scan; found = scan().entries;"
        "bad = [m for m in sys.modules if m == 'torch' or m.startswith('advdiff_') and"
        " not m.startswith('advdiff_core')]; print(len(found), bad)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split(maxsplit=1)
    assert int(answer[0]) > 0
    assert answer[1].strip() == "[]"


def test_scan_of_two_hundred_distributions_is_quick(site: Site):
    """P15: 200 distributions that offer components are listed in well under 0.3 s."""
    for number in range(200):
        site.dist(
            f"advdiff-p{number}",
            {ATTACK: {f"a{number}": f"never{number}:A"}},
            modules={f"never{number}": "import torch, never_installed"},
        )
    begin = time.perf_counter()
    entries = scan([site.folder]).entries
    assert len(entries) == 200
    assert time.perf_counter() - begin < 0.3
    assert not any(name.startswith("never") for name in sys.modules)


def test_find_returns_the_entry_of_a_name(site: Site):
    """`name` and `dist:name`, the distribution in any spelling, mean the same entry."""
    site.dist("Advdiff_Mine", {ATTACK: {"pgd": "mine:PGD"}})
    catalogue = scan([site.folder])
    assert catalogue.find("attack", "pgd") == catalogue.find("attack", "advdiff-mine:pgd")


def test_find_offers_the_nearest_name_when_it_is_misspelt(site: Site):
    """A swapped letter is answered with the name that was meant, not a similar one."""
    site.dist("advdiff-mine", {"advdiff.v1.sampler": {"ddim": "m:A", "ddpm": "m:B"}})
    with pytest.raises(UnknownComponentError, match="offers a sampler 'ddmi'") as caught:
        scan([site.folder]).find("sampler", "ddmi")
    assert caught.value.fix == "did you mean 'ddim'?"
    assert caught.value.code == "R11"


def test_find_asks_for_the_distribution_when_nothing_is_near(site: Site):
    """A name nobody offers is answered with what to install and what there is."""
    site.dist("advdiff-mine", {ATTACK: {"pgd": "mine:PGD"}})
    with pytest.raises(UnknownComponentError) as caught:
        scan([site.folder]).find("attack", "zzzzzz")
    assert caught.value.fix == "install the distribution that offers it; installed: pgd"


def test_find_takes_names_as_they_are_spelt(site: Site):
    """P05: another case is another name, with the right one offered."""
    site.dist("advdiff-mine", {ATTACK: {"pgd": "mine:PGD"}})
    for use in ("PGD", "advdiff-mine:PGD"):
        with pytest.raises(UnknownComponentError) as caught:
            scan([site.folder]).find("attack", use)
        assert "pgd'?" in caught.value.fix


def test_find_says_when_the_name_is_of_another_kind(site: Site):
    """A sampler where an attack is wanted is called a sampler."""
    site.dist("advdiff-mine", {"advdiff.v1.sampler": {"ddim": "m:A"}})
    with pytest.raises(UnknownComponentError, match="'ddim' is a sampler, wanted a attack"):
        scan([site.folder]).find("attack", "ddim")


def test_resolve_splits_a_family_from_its_variant(site: Site):
    """`torch:AdamW` is the family `torch` with a variant, `dist:torch:AdamW` too."""
    site.dist("advdiff-mine", {"advdiff.v1.optimizer": {"torch": "m:Family"}})
    catalogue = scan([site.folder])
    entry, variant = catalogue.resolve("optimizer", "torch:AdamW")
    assert (entry.name, variant) == ("torch", "AdamW")
    assert catalogue.resolve("optimizer", "advdiff-mine:torch:AdamW") == (entry, "AdamW")
    assert catalogue.resolve("optimizer", "advdiff-mine:torch") == (entry, None)


def test_load_returns_every_toy_component(toy_site: Site):
    """A concrete class of its kind passes every check."""
    catalogue = scan([toy_site.folder])
    for entry in catalogue.entries:
        if entry.kind != "hooks":
            assert issubclass(catalogue.load(entry), interface_of(entry.kind))


def test_names_of_a_kind_leave_out_what_cannot_be_used(site: Site):
    """Choices offered to a user all work."""
    site.dist("advdiff-a", {ATTACK: {"good": "m:A", "bad": "not a value"}})
    assert scan([site.folder]).names("attack") == ["good"]


@pytest.mark.parametrize(
    ("left", "right"),
    [("PGD", "pgd"), ("my_pgd", "my-pgd"), ("pgd", "\uff50gd"), ("\ufb01t", "fit")],
)
def test_canonical_joins_names_that_look_alike(left: str, right: str):
    """Case, `-` against `_` and unicode forms do not make two names."""
    assert canonical(left) == canonical(right)


def test_canonical_distribution_follows_pep_503():
    """Runs of `-`, `_` and `.` are one dash, in lower case."""
    assert canonical_distribution("Advdiff__Mine.Too") == "advdiff-mine-too"


@pytest.mark.parametrize("name", ["", "a b", "pgd\n", "-x", "é", "a" * 101, "a:b", "x\u202e"])
def test_is_component_name_refuses_what_cannot_be_typed_safely(name: str):
    """Only short ASCII names are names."""
    assert not is_component_name(name)


def test_entries_are_sorted_whatever_the_order_of_folders(site: Site, tmp_path: Any):
    """The listing does not depend on directory order."""
    for name in ("zz", "aa", "mm"):
        site.dist(f"advdiff-{name}", {ATTACK: {name: "m:A"}})
    assert [entry.name for entry in scan([site.folder]).entries] == ["aa", "mm", "zz"]


def test_load_gives_the_same_class_each_time(toy_site: Site):
    """A second load of an entry is no second import."""
    catalogue = scan([toy_site.folder])
    entry = catalogue.find("attack", "steps")
    assert catalogue.load(entry) is catalogue.load(entry)


def test_load_of_an_unusable_entry_says_why(site: Site):
    """An entry listed with an error raises that error when it is loaded."""
    site.dist("advdiff-a", {ATTACK: {"bad": "not a value"}})
    (entry,) = scan([site.folder]).entries
    with pytest.raises(PluginError, match="'not a value' is not module:Class"):
        scan([site.folder]).load(entry)
