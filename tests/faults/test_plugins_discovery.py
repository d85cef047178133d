"""Faults of plugins P01-P09 and Q03, each with a distribution that has it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from helpers_dists import Site

from advdiff_core.discovery import Catalogue, Entry, scan
from advdiff_core.errors import PluginError

ATTACK = "advdiff.v1.attack"
GOOD = """
from advdiff_core import Attack
class Good(Attack):
    def search(self, victim, x, budget, domain, rng):
        return x
"""


def good(site: Site, name: str = "good", dist: str = "advdiff-good") -> None:
    """Write a distribution that works."""
    site.dist(dist, {ATTACK: {name: "good_part:Good"}}, modules={"good_part": GOOD})


def catalogue_of(site: Site, **environ: str) -> Catalogue:
    """What is in the folder, with only these environment variables."""
    return scan([site.folder], environ=environ)


def broken_entries(catalogue: Catalogue) -> list[Entry]:
    """Entries that stand for a distribution that cannot be read."""
    return [entry for entry in catalogue.entries if not entry.kind]


def load(site: Site, use: str, kind: str = "attack") -> type:
    """Find and load one component."""
    catalogue = catalogue_of(site)
    return catalogue.load(catalogue.find(kind, use))


def refusal(site: Site, use: str, kind: str = "attack") -> PluginError:
    """The error of using a component."""
    with pytest.raises(PluginError) as caught:
        load(site, use, kind)
    assert caught.value.exit_code == 3
    assert len(caught.value.lines()) == 1
    return caught.value


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"[console_scripts]\ngarbage\n", "line 2 is not 'name = module:Class'"),
        (b"stray line\n[console_scripts]\nx = y:z\n", "line 1"),
        (b"[console_scripts]\nx = \xff\xfe:z\n", "not UTF-8"),
        (b"\xff", "not UTF-8"),
        (b"[console_scripts]\n= y\n", "line 2"),
        (b"[console_scripts]\nx =\n", "line 2"),
    ],
)
def test_scan_survives_a_broken_neighbour(site: Site, raw: bytes, reason: str):
    """P01: a garbage line or bad UTF-8 in an unrelated distribution hides nothing and is listed."""
    site.dist("unrelated", raw, version="7.1")
    good(site)
    catalogue = catalogue_of(site)
    assert catalogue.find("attack", "good").distribution == "advdiff-good"
    (broken,) = broken_entries(catalogue)
    assert (broken.distribution, broken.version) == ("unrelated", "7.1")
    assert reason in broken.error


def test_scan_keeps_the_good_lines_of_a_broken_distribution(site: Site):
    """P01: one bad line does not take the other components of its distribution with it."""
    site.dist("advdiff-a", f"[{ATTACK}]\nstray\npgd = m:A\n")
    catalogue = catalogue_of(site)
    assert catalogue.names("attack") == ["pgd"]
    assert "line 2" in broken_entries(catalogue)[0].error


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("import never_installed", "ModuleNotFoundError: No module named 'never_installed'"),
        ("raise ImportError('no library')", "ImportError: no library"),
        ("def broken(:", "SyntaxError"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("class Stop(KeyboardInterrupt): pass\nraise Stop('x')", "Stop: x"),
        ("class Any(BaseException): pass\nraise Any", "Any"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import sys; sys.exit('bye')", "SystemExit: bye"),
    ],
)
def test_load_names_plugin_and_cause_when_the_import_raises(site: Site, source: str, cause: str):
    """P02: whatever a module raises while it is imported is one line with plugin, dist, version."""
    good(site)
    site.dist(
        "advdiff-bad", {ATTACK: {"bad": "bad_part:A"}}, version="3.2", modules={"bad_part": source}
    )
    error = refusal(site, "bad")
    assert error.code == "P02"
    assert "attack 'bad' of advdiff-bad 3.2 fails to import" in error.message
    assert cause in error.message
    assert load(site, "good").__name__ == "Good"


def test_load_says_where_in_the_plugin_the_import_raised(site: Site):
    """P02: the file and line of the plugin are in the message."""
    site.dist("advdiff-bad", {ATTACK: {"bad": "bad_part:A"}}, modules={"bad_part": "\n\n1 / 0"})
    assert "bad_part.py:3)" in refusal(site, "bad").message


def test_load_imports_only_what_is_named(site: Site):
    """P02, Q09: a broken plugin that nobody names is not even imported."""
    good(site)
    site.dist("advdiff-bad", {ATTACK: {"bad": "bad_part:A"}}, modules={"bad_part": "1 / 0"})
    load(site, "good")
    assert "bad_part" not in sys.modules


def test_load_lets_a_real_interrupt_through(site: Site):
    """P02: Ctrl-C during a slow import is no fault of the plugin."""
    source = f"import os, signal; os.kill(os.getpid(), {int(signal.SIGINT)})\nwhile True: pass"
    site.dist("advdiff-slow", {ATTACK: {"slow": "slow_part:A"}}, modules={"slow_part": source})
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        load(site, "slow")
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("source", "code", "words"),
    [
        ("", "P03", "module 'part' has no 'A'"),
        ("A = 3", "Q03", "is no class but int"),
        ("def A(): raise SystemExit", "Q03", "is no class but function"),
        ("class A: pass", "P03", "wanted a class derived from advdiff_core.Attack"),
        (
            "from advdiff_core import Attack\nclass A(Attack): pass",
            "P03",
            "A leaves out search",
        ),
        (
            "from advdiff_core import Sampler\nclass A(Sampler):\n"
            "    def grid(self): pass\n    def sample(self): pass",
            "P03",
            "is another kind of class",
        ),
    ],
)
def test_load_lists_what_is_missing(site: Site, source: str, code: str, words: str):
    """P03: a missing name, another interface and abstract methods left out are each named."""
    site.dist("advdiff-a", {ATTACK: {"a": "part:A"}}, modules={"part": source})
    error = refusal(site, "a")
    assert error.code == code
    assert words in error.message


def test_load_calls_nothing_before_the_class_is_checked(site: Site, tmp_path):
    """Q03: objects that are no component of the kind are never called, whatever they pretend."""
    marker = tmp_path / "called"
    source = f"""
class Trap:
    def __call__(self, *args, **kwargs): open({str(marker)!r}, "w")
    def __instancecheck__(self, other): open({str(marker)!r}, "w"); return True
    @property
    def __class__(self): open({str(marker)!r}, "w"); return type
A = Trap()
class Meta(type):
    def __subclasscheck__(cls, other): open({str(marker)!r}, "w"); return True
    def __call__(cls, *args): open({str(marker)!r}, "w")
class B(metaclass=Meta): pass
"""
    entries = {"a": "part:A", "b": "part:B", "system": "os:system", "run": "subprocess:Popen"}
    site.dist("advdiff-a", {ATTACK: entries}, modules={"part": source})
    for name in entries:
        assert refusal(site, name).code in ("Q03", "P03")
    assert not marker.exists()


def test_load_refuses_a_class_registered_as_a_virtual_subclass(site: Site):
    """Q03: `Attack.register` does not make an attack."""
    source = "from advdiff_core import Attack\nclass A: pass\nAttack.register(A)"
    site.dist("advdiff-a", {ATTACK: {"a": "part:A"}}, modules={"part": source})
    assert refusal(site, "a").code == "P03"


def test_a_name_of_two_distributions_is_refused_when_used(site: Site):
    """P04: both owners are named, other names work, and `dist:name` chooses."""
    good(site, "pgd", "advdiff-one")
    site.dist("advdiff-two", {ATTACK: {"pgd": "good_part:Good", "other": "good_part:Good"}})
    error = refusal(site, "pgd")
    assert error.code == "P04"
    assert "'pgd' of advdiff-one 1.0 and 'pgd' of advdiff-two 1.0" in error.message
    assert error.fix == 'write use = "advdiff-one:pgd" or use = "advdiff-two:pgd"'
    assert load(site, "other").__name__ == "Good"
    assert catalogue_of(site).find("attack", "advdiff-two:pgd").distribution == "advdiff-two"


def test_one_distribution_offering_a_name_twice_is_refused(site: Site):
    """P04: two lines with one name in one distribution cannot be told apart."""
    site.dist("advdiff-a", f"[{ATTACK}]\npgd = m:A\npgd = m:B\n")
    error = refusal(site, "pgd")
    assert (error.code, error.fix) == ("P04", "remove one of the two declarations")


@pytest.mark.parametrize(("one", "two"), [("pgd", "PGD"), ("my-pgd", "my_pgd"), ("Pgd", "pGD")])
def test_names_that_differ_in_spelling_only_clash(site: Site, one: str, two: str):
    """P05: case and `-` against `_` do not make another name."""
    good(site, one, "advdiff-one")
    site.dist("advdiff-two", {ATTACK: {two: "good_part:Good"}})
    for name in (one, two):
        assert refusal(site, name).code == "P04"
    assert catalogue_of(site).find("attack", f"advdiff-two:{two}").name == two


@pytest.mark.parametrize("name", ["\u0440gd", "\uff50gd", "pgd\u200b", "p\u0261d"])
def test_names_with_look_alike_letters_are_refused(site: Site, name: str):
    """P05: letters outside ASCII cannot pass for others; the real one keeps working."""
    good(site, "pgd", "advdiff-one")
    site.dist("advdiff-two", {ATTACK: {name: "good_part:Good"}})
    catalogue = catalogue_of(site)
    assert catalogue.find("attack", "pgd").distribution == "advdiff-one"
    (refused,) = [entry for entry in catalogue.entries if entry.error]
    assert refused.distribution == "advdiff-two"
    assert "other characters than ASCII" in refused.error
    assert refused.name.isprintable()


def test_a_leftover_dist_info_gives_one_entry_and_one_warning(site: Site):
    """P06: of two versions recorded in one folder the newer counts, and the listing says so."""
    good(site, "pgd", "advdiff-one")
    site.dist("advdiff-one", {ATTACK: {"pgd": "gone:Old"}}, version="0.9")
    site.dist("advdiff-one", {ATTACK: {"pgd": "good_part:Good"}}, version="1.10")
    catalogue = catalogue_of(site)
    assert catalogue.find("attack", "pgd").version == "1.10"
    assert "are both recorded in one folder; 1.10 is used" in broken_entries(catalogue)[0].error


@pytest.mark.parametrize(
    ("metadata", "suffix"),
    [
        (None, "dist-info"),
        ("Metadata-Version: 2.1\n\nName: in-the-text\n", "dist-info"),
        ("", "egg-info"),
        (None, "egg-info"),
        ("Name:\nVersion:\n", "dist-info"),
    ],
)
def test_missing_metadata_never_shows_none(site: Site, metadata: str | None, suffix: str):
    """P06: no METADATA, no Name, an .egg-info: the component works, its owner has a name."""
    site.dist(
        "advdiff-odd",
        {ATTACK: {"pgd": "good_part:Good"}},
        modules={"good_part": GOOD},
        metadata=metadata,
        suffix=suffix,
    )
    catalogue = catalogue_of(site)
    entry = catalogue.find("attack", "pgd")
    assert (entry.distribution, entry.version) == ("advdiff-odd", "1.0")
    assert catalogue.load(entry).__name__ == "Good"
    assert not any("None" in (e.name, e.distribution, e.version) for e in catalogue.entries)


def test_metadata_that_is_not_utf8_is_survived(site: Site):
    """P06: an unreadable METADATA leaves the folder's name."""
    folder = site.dist("advdiff-odd", {ATTACK: {"pgd": "m:A"}})
    (folder / "METADATA").write_bytes(b"Name: \xff\n")
    assert catalogue_of(site).find("attack", "pgd").distribution == "advdiff-odd"


def test_an_egg_info_file_is_no_obstacle(site: Site):
    """P06: the oldest form, a single file, has no entry points and hides nobody's."""
    (site.folder / "old-1.0.egg-info").write_text("Name: old\nVersion: 1.0\n")
    good(site)
    assert catalogue_of(site).names("attack") == ["good"]


def test_the_first_folder_on_the_path_wins(site: Site, tmp_path):
    """P06: a distribution met twice on the path counts once, as its modules do."""
    good(site)
    second = Site(tmp_path / "second")
    second.dist("advdiff-good", {ATTACK: {"good": "m:A", "more": "m:B"}}, version="9")
    found = scan([site.folder, second.folder], environ={})
    assert [entry.version for entry in found.entries] == ["1.0"]


def test_a_name_that_shadows_the_core_leaves_the_core_in_place(site: Site):
    """P07: the core's component wins with one warning; `dist:name` chooses the other."""
    site.dist("advdiff-core", {ATTACK: {"pgd": "good_part:Good"}}, modules={"good_part": GOOD})
    site.dist("advdiff-mine", {ATTACK: {"pgd": "mine:PGD"}})
    catalogue = catalogue_of(site)
    entry = catalogue.find("attack", "pgd")
    assert entry.is_core
    assert entry.warning.splitlines() == [entry.warning]
    assert "'pgd' of advdiff-mine 1.0 is hidden" in entry.warning
    assert 'use = "advdiff-mine:pgd"' in entry.warning
    assert not catalogue.find("attack", "advdiff-mine:pgd").is_core


@pytest.mark.parametrize(("version", "fix"), [(2, "advdiff-core"), (0, "advdiff-new")])
def test_another_contract_version_is_named_with_ours(site: Site, version: int, fix: str):
    """P08: a plugin made for another version is listed and refused with both versions."""
    site.dist("advdiff-new", {f"advdiff.v{version}.attack": {"pgd": "m:A"}})
    error = refusal(site, "pgd")
    (entry,) = catalogue_of(site).entries
    both = f"made for version {version} of the plugin contract, this advdiff-core has version 1"
    assert both in entry.error
    assert both in error.message
    assert (error.code, error.fix) == ("P08", f"upgrade {fix}")


def test_a_plugin_for_two_contract_versions_works(site: Site):
    """P08: beside a v2 entry, the v1 entry of the same name is used."""
    site.dist(
        "advdiff-both",
        {ATTACK: {"pgd": "good_part:Good"}, "advdiff.v2.attack": {"pgd": "gone:A"}},
        modules={"good_part": GOOD},
    )
    assert load(site, "pgd").__name__ == "Good"


def test_an_unknown_kind_is_listed_with_the_near_one(site: Site):
    """P08: a group of no kind is listed with what was probably meant."""
    site.dist("advdiff-a", {"advdiff.v1.attacc": {"pgd": "m:A"}, "advdiff.other": {"x": "m:A"}})
    errors = [entry.error for entry in catalogue_of(site).entries]
    assert any("has no kind 'attacc'; did you mean 'attack'?" in error for error in errors)
    assert any("'advdiff.other' is not advdiff.v1.<kind>" in error for error in errors)


SETTINGS = """
from __future__ import annotations
import datetime
from typing import Any, TYPE_CHECKING
import attrs
from advdiff_core import Attack, Spec, setting, settings
if TYPE_CHECKING:
    from nowhere import Missing
@settings
class Loop:
    inner: Loop | None = setting(None, help="itself")
def fail():
    raise OSError("no disk")
class A(Attack):
    @settings
    class Settings:
        {field}
    def search(self, victim, x, budget, domain, rng):
        return x
"""


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("eps: float = setting(2.0, le=1.0, help='')", "default of eps is not valid: 2.0 must be"),
        ("eps: float = setting('1', help='')", "default of eps is not valid: '1' is no float"),
        ("eps: int = setting(1.5, help='')", "1.5 is no int"),
        ("eps: bool = setting(1, help='')", "1 is no bool"),
        ("eps: tuple[int, int] = setting((1,), help='')", "(1,) is no tuple[int, int]"),
        ("eps: dict[str, int] = setting(factory=list, help='')", "[] is no dict[str, int]"),
        ("eps: float = setting(factory=fail, help='')", "cannot be made: no disk"),
        ("eps: float = setting(float('nan'), help='')", "nan is not a finite number"),
        ("loop: Loop | None = setting(None, help='')", "Loop contains itself"),
        ("when: datetime.date | None = setting(None, help='')", "when has type date; a recipe"),
        ("any: Any = setting(None, help='')", "any has type"),
        ("many: list[int] = setting(factory=list, help='')", "many has type list[int]"),
        ("keys: dict[int, str] = setting(factory=dict, help='')", "keys has type"),
        ("late: Missing = setting(None, help='')", "annotation of Settings cannot be resolved"),
        ("sub: Spec = setting(help='')", 'a Spec needs setting(kind="...")'),
        ("sub: Spec = setting(help='', kind='nothing')", "there is no kind 'nothing'"),
        ("sub: int = setting(3, help='', kind='attack')", "only a Spec takes it"),
        ("use: str = setting('x', help='')", "the key 'use' is the recipe's own"),
        (
            "a: int = attrs.field(default=1)\n        @a.validator\n"
            "        def _(self, attribute, value): raise ValueError('never')",
            "its defaults are not valid: never",
        ),
    ],
)
def test_load_refuses_settings_no_recipe_could_fill(site: Site, field: str, words: str):
    """P09: broken defaults, recursion and types that TOML has not are found before use."""
    source = SETTINGS.replace("{field}", field)
    site.dist("advdiff-a", {ATTACK: {"a": "part:A"}}, modules={"part": source})
    error = refusal(site, "a")
    assert error.code == "P09", error
    assert "attack 'a' of advdiff-a 1.0: Settings of A" in error.message
    assert words in error.message


def test_load_refuses_settings_that_are_no_attrs_class(site: Site):
    """P09: a plain class cannot be filled from a table."""
    source = GOOD + "    class Settings: pass\n"
    site.dist("advdiff-a", {ATTACK: {"a": "part:Good"}}, modules={"part": source})
    assert "Settings is not made with advdiff_core.settings" in refusal(site, "a").message


def test_the_allow_list_admits_only_what_it_names(site: Site):
    """Q09: ADVDIFF_PLUGINS=a,b leaves out every other distribution but the core."""
    site.dist("advdiff-core", {ATTACK: {"own": "m:A"}})
    for name in ("one", "two", "three"):
        site.dist(f"advdiff-{name}", {ATTACK: {name: "m:A"}})
    catalogue = catalogue_of(site, ADVDIFF_PLUGINS="Advdiff_One, advdiff-three")
    assert catalogue.names("attack") == ["one", "own", "three"]
    with pytest.raises(PluginError, match="not allowed by ADVDIFF_PLUGINS") as caught:
        catalogue.find("attack", "two")
    assert caught.value.fix == "add advdiff-two to ADVDIFF_PLUGINS"
    assert catalogue_of(site, ADVDIFF_PLUGINS="").names("attack") == ["own"]


def test_names_and_versions_are_escaped(site: Site):
    """R13: control characters in foreign metadata never reach a terminal."""
    text = "Metadata-Version: 2.1\nName: ev\x1b[2Jil\nVersion: 1\u202e0\n\n"
    site.dist("evil", f"[{ATTACK}]\np\x1b[31m = m:A\n[advdiff.v1.x\x1b]\ny = z:A\n", metadata=text)
    for entry in catalogue_of(site).entries:
        shown = (
            entry.kind,
            entry.name,
            entry.value,
            entry.distribution,
            entry.version,
            entry.error,
        )
        assert all(part.isprintable() for part in shown), shown


def test_discovery_works_in_the_c_locale(site: Site):
    """R17: metadata are UTF-8 whatever the locale."""
    text = "Metadata-Version: 2.1\nName: advdiff-ü\nVersion: 1\n\n"
    site.dist("advdiff-u", {ATTACK: {"pgd": "m:A"}}, metadata=text)
    folder = str(site.folder)
    code = f"from advdiff_core.discovery import scan; print(scan([{folder!r}]).names('attack'))"
    environ = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environ
    )
    assert done.stdout.strip() == "['pgd']"
