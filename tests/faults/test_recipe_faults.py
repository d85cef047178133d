"""Faults of recipes R01, R10, R12-R17, Q03, Q04: files, conflicts, bases, names, overrides."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tomli
import tomli_w
from helpers_dists import Site
from helpers_recipes import FULL, LEAST, fault_of, faults_of, load

from advdiff_core.discovery import Catalogue, scan
from advdiff_core.errors import Fault, RecipeError
from advdiff_core.recipe import check_recipe, load_recipe, recipe_from_dict
from advdiff_core.recipe.changes import changes

ESCAPE = "\x1b"


def refused(path: Path, catalogue: Catalogue) -> Fault:
    """The one fault of a file."""
    (fault,) = check_recipe(path, catalogue=catalogue)
    return fault


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "there is no such file"),
        (lambda path: path.mkdir(), "this is a directory"),
        (lambda path: path.write_text(" \n\t\n"), "the recipe is empty"),
        (lambda path: path.write_bytes(b"\xef\xbb\xbf\r\n"), "the recipe is empty"),
        (lambda path: path.touch(), "the recipe is empty"),
        (lambda path: os.mkfifo(path), "this is a named pipe"),
        (lambda path: path.symlink_to("/dev/zero"), "this is a device"),
        (lambda path: path.symlink_to(path), "cannot be opened: Too many levels"),
    ],
)
def test_what_is_no_recipe_file_is_refused_unread(
    toys: Catalogue, tmp_path: Path, make, words: str
):
    """R01: a missing file, a directory, an empty file, a FIFO and a device are each named."""
    path = tmp_path / "r.toml"
    make(path)
    begin = time.perf_counter()
    fault = refused(path, toys)
    assert time.perf_counter() - begin < 1
    assert (fault.code, fault.file) == ("R01", str(path))
    assert words in fault.message


def test_an_unreadable_file_is_refused(toys: Catalogue, tmp_path: Path, monkeypatch):
    """R01: a file without permission is named with the reason (faked where root may read all)."""
    path = tmp_path / "r.toml"
    path.write_text(LEAST)
    path.chmod(0)

    def denied(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    if os.access(path, os.R_OK):
        monkeypatch.setattr(os, "open", denied)
    assert "cannot be opened: Permission denied" in refused(path, toys).message


def test_an_odd_path_is_refused(toys: Catalogue, tmp_path: Path):
    """R01: a NUL in a path and a name too long are answered like any other."""
    assert refused(Path("a\0b"), toys).code == "R01"
    assert refused(tmp_path / ("x" * 300), toys).code == "R01"


def test_a_near_file_is_offered(toys: Catalogue, tmp_path: Path):
    """R01: a misspelt file name gets the one that is there."""
    (tmp_path / "quickstart.toml").write_text(LEAST)
    assert "quickstart.toml" in refused(tmp_path / "quickstrat.toml", toys).fix


CONFLICTS = {
    "two players list a term": (
        {"players.critic.terms": '["judge", "robust"]'},
        "players.student.terms.1",
        "term 'robust' is listed by the players 'critic' and 'student'",
        "players.critic.terms.1",
    ),
    "no player lists a term": (
        {"players.student.terms": '["denoise"]'},
        "terms.robust",
        "no player lists the term 'robust'",
        "",
    ),
    "a player lists a term twice": (
        {"players.student.terms": '["denoise", "robust", "denoise"]'},
        "players.student.terms.2",
        "term 'denoise' is listed twice by 'student'",
        "players.student.terms.0",
    ),
    "two players train a model": (
        {"players.critic.models": '["critic", "student"]'},
        "players.student",
        "role 'student' is trained by the players 'critic' and 'student'",
        "players.critic.models.1",
    ),
    "a frozen model is trained": (
        {"models.student.frozen": "true"},
        "players.student",
        "the model 'student' is frozen, yet the player 'student' trains it",
        "models.student.frozen",
    ),
    "an alignment target is trained": (
        {"players.critic.models": '["critic", "target"]'},
        "players.critic.models.1",
        "the alignment target 'target' is never trained",
        "models.target.kind",
    ),
    "views in a circle": (
        {"views.adv.from": '"worse"'},
        "views.adv.from",
        "in a circle: adv -> worse -> adv",
        "views.worse.from",
    ),
    "a view of itself": (
        {"views.adv.from": '"adv"'},
        "views.adv.from",
        "in a circle: adv -> adv",
        "views.adv.from",
    ),
    "a missing average is sampled": (
        {"sample.ema": "3"},
        "sample.ema",
        "average 3 of 'student' is wanted, 3 are kept",
        "players.student.ema",
    ),
    "a discriminator is sampled": (
        {"sample.role": '"critic"'},
        "sample.role",
        "the model 'critic' is no denoiser",
        "models.critic",
    ),
    "micro-batch above batch": (
        {"run.micro_batch": "64"},
        "run.micro_batch",
        "a micro-batch of 64 is above the batch of 32",
        "run.batch",
    ),
    "domain upside down": (
        {"data.domain": "[1, -1]"},
        "data.domain",
        "the domain begins at 1 and ends at -1",
        "",
    ),
    "a term ends before it begins": (
        {"terms.robust.until": "500"},
        "terms.robust.until",
        "the term ends at 500 images and begins at 1000",
        "terms.robust.after",
    ),
    "more steps than times": (
        {"sample.steps": "101"},
        "sample.steps",
        "101 steps over a schedule of 100 times",
        "schedule.num_steps",
    ),
    "a discriminator with a parametrization": (
        {"models.critic.parametrization": '"eps"'},
        "models.critic.parametrization",
        "found 'eps' (string) on a discriminator",
        "models.critic.kind",
    ),
    "an attack in another norm": (
        {"views.adv.perturb.attack.norm": '"linf"'},
        "views.adv.perturb.attack.norm",
        "found 'linf' (string), the perturbation projects with 'l2'",
        "views.adv.perturb.norm",
    ),
    "an attack of an attack in another norm": (
        {"views.adv.perturb.attack.attack": '{ use = "steps", norm = "linf" }'},
        "views.adv.perturb.attack.attack.norm",
        "found 'linf' (string), the perturbation projects with 'l2'",
        "views.adv.perturb.attack.norm",
    ),
    "two kinds of average": (
        {"players.student.ema": "[{ rate = 0.9, power = 0.1 }]"},
        "players.student.ema.0.power",
        "rate and power exclude each other",
        "players.student.ema.0.rate",
    ),
    "a law without a mean": (
        {"schedule.density": '{ law = "uniform", mean = 1.0 }'},
        "schedule.density.mean",
        "needs law = 'log-normal', found 'uniform'",
        "schedule.density.law",
    ),
    "a constant rate with an end": (
        {"players.student.lr_schedule.law": '"constant"'},
        "players.student.lr_schedule.final",
        "needs law = 'linear' or 'cosine' or 'one-cycle', found 'constant'",
        "players.student.lr_schedule.law",
    ),
}


def edited(changed: dict[str, str]) -> str:
    """FULL as its own canonical text with some keys set, so that each has a line of its own."""
    tables = tomli.loads(FULL)
    for key, value in changed.items():
        node = tables
        *above, last = key.split(".")
        for part in above:
            node = node.setdefault(part, {})
        node[last] = tomli.loads(f"v = {value}")["v"]
    return tomli_w.dumps(tables)


@pytest.mark.parametrize("name", CONFLICTS)
def test_a_conflict_names_both_keys_and_both_lines(toys: Catalogue, name: str):
    """R10: each rule over two keys names both of them, each with the line it is on."""
    changed, key, words, other = CONFLICTS[name]
    text = edited(changed)
    found = [fault for fault in faults_of(toys, text) if fault.code == "R10"]
    fault = next(fault for fault in found if fault.key.startswith(key))
    assert words in fault.message
    assert fault.fix
    recipe_lines = text.split("\n")
    assert fault.line >= 1
    if other:
        assert f"({other}" in fault.message
        line = int(fault.message.rpartition("line ")[2].rstrip(")"))
        last = other.rsplit(".", 1)[-1]
        assert last in recipe_lines[line - 1] or not last.isalpha() or other == "models.critic"


def test_numbers_that_just_fit_are_no_conflict(toys: Catalogue):
    """R10: as many steps as times, a micro-batch of the batch, the last average."""
    load(toys, FULL, ["sample.steps=100", "run.micro_batch=32", "sample.ema=2"])


def test_a_root_view_cannot_be_made_again(toys: Catalogue):
    """R10: "clean" and "image" are there already."""
    for name in ("clean", "image"):
        fault = fault_of(toys, LEAST + f'[views.{name}]\nperturb = {{ use = "push" }}\n')
        assert (fault.code, fault.line) == ("R10", 5)
        assert fault.message == f"'{name}' is a view every recipe has"


@pytest.mark.parametrize(
    ("override", "key", "near"),
    [
        ('terms.robust.view="advv"', "terms.robust.view", "did you mean 'adv'?"),
        ('terms.robust.view="zzz"', "terms.robust.view", "declare [views.zzz]"),
        ('terms.denoise.role="studnet"', "terms.denoise.role", "did you mean 'student'?"),
        ('views.worse.from="advv"', "views.worse.from", "did you mean 'adv'?"),
        ('players.critic.terms=["jugde"]', "players.critic.terms.0", "did you mean 'judge'?"),
        ('players.critic.models=["citric"]', "players.critic.models.0", "did you mean 'critic'?"),
        ('evaluate.metrics.1.role="x"', "evaluate.metrics.1.role", "declare [models.x]"),
        ('sample.role="ema"', "sample.role", "declare [models.ema]"),
    ],
)
def test_a_name_that_nothing_has_is_refused(toys: Catalogue, override: str, key: str, near: str):
    """R11: every reference to a role, view or term is checked, with the nearest name."""
    found = [fault for fault in faults_of(toys, FULL, [override]) if fault.key == key]
    assert [fault.code for fault in found] == ["R11"]
    assert near in found[0].fix


def test_a_fault_in_one_table_causes_none_in_another(toys: Catalogue):
    """A model whose component is missing still counts as declared."""
    fault = fault_of(toys, LEAST.replace('"net"', '"nett"'))
    assert fault.key == "models.student.use"


def test_all_independent_faults_come_in_one_go(toys: Catalogue):
    """Faults of every table are listed together, in the order of their lines."""
    text = """\
[run]
seed = "x"
bacth = 3
[data]
use = "digitz"
[models.student]
use = "net"
channels = 0
[terms.denoise]
use = "denoise"
view = "nowhere"
[players.student]
optimizer = { use = "adamw", lr = -1 }
[samplle]
"""
    found = faults_of(toys, text)
    assert [fault.line for fault in found] == [2, 3, 5, 8, 11, 13, 14]
    assert [fault.code for fault in found] == ["R07", "R06", "R11", "R08", "R11", "R08", "R06"]
    assert found[3].plugin == "advdiff-core"


def test_at_most_twenty_faults_are_printed(toys: Catalogue):
    """The command line shows twenty lines and how many were left out."""
    text = LEAST + "[run]\n" + "".join(f"zz{n} = 1\n" for n in range(30))
    with pytest.raises(RecipeError) as caught:
        load(toys, text)
    assert len(caught.value.faults) == 30
    assert caught.value.lines()[-1] == "advdiff: 10 more faults are not shown"


def test_recipes_that_extend_each_other_are_refused_with_the_chain(toys: Catalogue, tmp_path: Path):
    """R12: a loop of two names both files in order."""
    (tmp_path / "a.toml").write_text('extends = "b.toml"\n')
    (tmp_path / "b.toml").write_text('\nextends = ["./a.toml"]\n')
    fault = refused(tmp_path / "a.toml", toys)
    assert (fault.code, fault.file, fault.line) == ("R12", str(tmp_path / "b.toml"), 2)
    assert f"{tmp_path / 'a.toml'} -> b.toml -> ./a.toml" in fault.message


def test_a_recipe_that_extends_itself_is_refused(toys: Catalogue, tmp_path: Path):
    """R12: the shortest loop."""
    path = tmp_path / "a.toml"
    path.write_text('extends = "a.toml"')
    assert "in a circle" in refused(path, toys).message


def test_a_missing_base_is_named_with_the_chain(toys: Catalogue, tmp_path: Path):
    """R12: which recipe asked for it, at which line, and the nearest file."""
    (tmp_path / "a.toml").write_text('extends = "b.toml"')
    (tmp_path / "b.toml").write_text('\n\nextends = ["bsae.toml", "nothing-like-it"]')
    (tmp_path / "base.toml").write_text("")
    first, second = check_recipe(tmp_path / "a.toml", catalogue=toys)
    assert (first.code, first.line, first.fix) == ("R12", 3, "did you mean 'base.toml'?")
    assert f"(reached by {tmp_path / 'a.toml'} -> b.toml)" in first.message
    assert second.fix == "check the path"


@pytest.mark.parametrize(
    "name",
    [
        "../outside.toml",
        "sub/../../outside.toml",
        "../../../../../../etc/passwd",
        "/etc/passwd",
        "link.toml",
        "sub/up/outside.toml",
        "",
        ".",
        "a\0b",
        "x" * 300,
        "loop.toml",
    ],
)
def test_a_base_outside_the_folder_is_refused(toys: Catalogue, tmp_path: Path, name: str):
    """R12: neither `..` nor a link leads out of the recipe's folder."""
    folder = tmp_path / "recipes"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "outside.toml").write_text(LEAST)
    (folder / "link.toml").symlink_to(tmp_path / "outside.toml")
    (folder / "sub" / "up").symlink_to(tmp_path)
    (folder / "loop.toml").symlink_to(folder / "loop.toml")
    path = folder / "r.toml"
    path.write_text(f"extends = {name!r}" if "\0" not in name else 'extends = "a\\u0000b"')
    fault = refused(path, toys)
    assert fault.code in ("R12", "R01")
    assert "root:" not in fault.message


def test_a_base_in_a_folder_below_may_name_one_above_it(toys: Catalogue, tmp_path: Path):
    """R12: `..` is no fault where it stays inside the first recipe's folder."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "base.toml").write_text(LEAST)
    (tmp_path / "sub" / "mid.toml").write_text('extends = "../base.toml"')
    (tmp_path / "top.toml").write_text('extends = "sub/mid.toml"')
    assert load_recipe(tmp_path / "top.toml", catalogue=toys).data.spec.use == "digits"


def test_a_base_that_is_malformed_is_named_itself(toys: Catalogue, tmp_path: Path):
    """R02, R12: the fault is at the base's own line, not at the line that names it."""
    (tmp_path / "base.toml").write_text("a = 1\nb = [")
    (tmp_path / "r.toml").write_text('extends = "base.toml"')
    fault = refused(tmp_path / "r.toml", toys)
    assert (fault.code, fault.file, fault.line) == ("R02", str(tmp_path / "base.toml"), 2)


def test_a_pyramid_of_bases_is_refused(toys: Catalogue, tmp_path: Path):
    """R05, R12: twelve recipes, each three times the next one, are not read 3^12 times."""
    for level in range(12):
        below = f"r{level + 1}.toml"
        (tmp_path / f"r{level}.toml").write_text(f"extends = {[below] * 3}")
    (tmp_path / "r12.toml").write_text(LEAST)
    begin = time.perf_counter()
    found = check_recipe(tmp_path / "r0.toml", catalogue=toys)
    assert time.perf_counter() - begin < 5
    assert {fault.code for fault in found} == {"R12"}
    assert "more than 64 recipes" in found[0].message


@pytest.mark.parametrize("value", ["3", "[1]", "{ a = 1 }", "[['x']]"])
def test_extends_takes_names_only(toys: Catalogue, tmp_path: Path, value: str):
    """R07: anything but a string or an array of strings."""
    (tmp_path / "r.toml").write_text(f"extends = {value}\n{LEAST}")
    fault = refused(tmp_path / "r.toml", toys)
    assert (fault.code, fault.key, fault.line) == ("R07", "extends", 1)


BAD_NAMES = ["\x1b[2J", "a\nb", "a\u202eb", "a\0b", "a b", "é", "-x", "", "a" * 65, "a\u200bb"]


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
@pytest.mark.parametrize("table", ["models", "views", "terms", "players"])
def test_names_with_control_characters_are_refused_and_escaped(
    toys: Catalogue, name: str, table: str
):
    """R13: names of tables are plain ASCII; whatever is echoed of others is escaped."""
    body = {
        "models": {"use": "net"},
        "views": {"perturb": {"use": "push"}},
        "terms": {"use": "denoise"},
        "players": {"models": ["student"], "terms": ["denoise"]},
    }
    tables = {
        "data": {"use": "digits"},
        "models": {"student": {"use": "net"}},
        table: {name: body[table]},
    }
    with pytest.raises(RecipeError) as caught:
        recipe_from_dict(tables, catalogue=toys)
    assert "R13" in {fault.code for fault in caught.value.faults}
    for line in caught.value.lines():
        assert line.isprintable()
        assert ESCAPE not in line


@pytest.mark.parametrize("key", ["run.name", "models.student.use", "models.student.label"])
@pytest.mark.parametrize("value", ["\x1b[2J", "a\u202eb", "a\0b", "a\u0085b", "\u2066x"], ids=ascii)
def test_strings_with_control_characters_are_refused(toys: Catalogue, key: str, value: str):
    """R13: also in the values of every string key, component names included."""
    table, name = key.rsplit(".", 1)
    tables = {"data": {"use": "digits"}, "models": {"student": {"use": "net"}}, "run": {}}
    target = tables["run"] if table == "run" else tables["models"]["student"]
    target[name] = value
    with pytest.raises(RecipeError) as caught:
        recipe_from_dict(tables, catalogue=toys)
    (fault,) = caught.value.faults
    assert fault.code == "R13"
    assert all(line.isprintable() for line in caught.value.lines())


def test_hostile_text_is_escaped_wherever_it_is_echoed(toys: Catalogue, tmp_path: Path):
    """R13: keys, values, file names and parser messages never carry an ESC to the terminal."""
    for text in (
        '"\\u001b[2J" = 1',
        '[run]\n"\\u001b]8;;x" = 1',
        '[run]\nseed = "\\u001b[31m"',
        'a = "\x1b',
        "\x1b[2J = 1",
        '[data]\nuse = "\\u001b"\n[models.student]\nuse = "net:\\u202e"',
        'extends = "\\u001b.toml"',
        'extends = "\\u001b:x"',
        '[hooks."\\u001b"]\nx = 1',
        "advdiff = '\\\x1b'",
    ):
        path = tmp_path / f"r{ESCAPE}.toml"
        path.write_text(text)
        with pytest.raises(RecipeError) as caught:
            load_recipe(path, catalogue=toys)
        assert all(line.isprintable() for line in caught.value.lines()), text


def test_huge_but_legal_values_are_warned_of(toys: Catalogue):
    """R14: a run of years, a batch of millions and a million steps get an estimate."""
    big = [
        "run.images=9_000_000_000_000_000",
        "run.batch=4_000_000",
        "sample.steps=1_000_000",
        "schedule.num_steps=1_000_001",
    ]
    begin = time.perf_counter()
    recipe = load(toys, FULL, big)
    assert time.perf_counter() - begin < 2
    lines = [fault.as_line("warning") for fault in recipe.warnings]
    assert any("run.images" in line and "years at 10 a second" in line for line in lines)
    assert any("run.batch" in line and "4,000,000 images" in line for line in lines)
    assert any("sample.steps" in line and "1,000,000 is far above" in line for line in lines)
    assert all(line.startswith("advdiff: warning[R14] -s: ") for line in lines)


def test_a_term_that_never_counts_is_warned_of(toys: Catalogue):
    """R14: a short test run of a long recipe goes on, with a warning at the line of the term."""
    recipe = load(toys, FULL, ["run.images=1000"])
    (warning,) = recipe.warnings
    assert "begins after 1,000 images, the run ends at 1,000" in warning.message
    assert FULL.split("\n")[warning.line - 1] == "after = 1_000"


def test_a_weight_that_never_gets_to_its_height_is_warned_of(toys: Catalogue):
    """R14: the ramp is longer than what is left of the run, or of the term."""
    for override, end in (("run.images=50", 50), ("terms.denoise.until=40", 40)):
        text = LEAST + '[terms.denoise]\nuse = "denoise"\nafter = 10\nramp = 45\n'
        (warning,) = load(toys, text, ["run.images=100", "run.batch=1", override]).warnings
        wanted = f"the weight rises until 55 images, the term ends at {end}"
        assert (warning.key, warning.message) == ("terms.denoise.ramp", wanted)
    assert load(toys, text, ["run.images=55", "run.batch=1"]).warnings == ()


def test_a_model_nobody_trains_is_warned_of(toys: Catalogue):
    """R14: a second network without a player and without weights to start from."""
    (warning,) = load(toys, LEAST + '[models.teacher]\nuse = "net"\nfrozen = true\n').warnings
    assert "'teacher' is trained by no player and starts from random weights" in warning.message


SAFE = {"run.images": 20_000, "run.log_every": 7, "run.checkpoint_every": 9, "run.keep": 5}
UNSAFE = {
    "run.seed": 8,
    "run.batch": 16,
    "data.max_bad": 5,
    "schedule.num_steps": 200,
    "models.student.channels": 48,
    "players.student.optimizer.lr": 0.5,
    "terms.robust.weight": 0.4,
    "views.adv.perturb.radius": 0.5,
}


def test_changed_keys_are_told_apart_by_whether_a_run_may_go_on(toys: Catalogue):
    """R15: between save and resume, lengths and intervals may differ; what is learnt may not."""
    before = load(toys, FULL, ["run.micro_batch=8"])
    for key, value in SAFE.items():
        after = load(toys, FULL, ["run.micro_batch=8", f"{key}={value}"])
        assert before != after
        assert changes(before, after) == []
    for key, value in UNSAFE.items():
        after = load(toys, FULL, ["run.micro_batch=8", f"{key}={value}"])
        ((changed, _, new),) = changes(before, after)
        assert (changed, new) == (key, value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run.batch="], "'run.batch=': there is no value"),
        (["run.batch"], "'run.batch': this is not key=value"),
        (["=3"], "this is not key=value"),
        ([""], "this is not key=value"),
        (["run..batch=3"], "this is not key=value"),
        (["run.batch=[1,"], "'run.batch=[1,': the value is not TOML"),
        (['run.name="x'], "the value is not TOML"),
        (["run.batch=1\nseed=2"], "a value is on one line"),
        (["run.seed=1", "run.seed.x=2"], "'run.seed=1': clashes with -s 'run.seed.x=2'"),
        (["run.seed.x=2", "run.seed=1"], "'run.seed=1': clashes with -s 'run.seed.x=2'"),
        (["run.batch.x=3"], "run.batch is 32 (recipe.toml:8), not a table"),
        (["data.classes.7=3"], "data.classes is an array of 3, '7' is no position in it"),
        (["data.classes.x=3"], "'x' is no position in it"),
        (["data.classes.0.x=3"], "data.classes.0 is 0"),
        ([".".join(["a"] * 40) + "=1"], "32 parts"),
        (["run.seed=" + "1" * 5000], "4300 digits"),
    ],
)
def test_an_override_that_cannot_be_is_named(toys: Catalogue, arguments: list[str], words: str):
    """R16: an argument that is unparsable or clashes is named instead of a line."""
    found = faults_of(toys, FULL, arguments)
    assert {(fault.code, fault.file, fault.line) for fault in found} == {("R16", "-s", 0)}
    assert words in found[0].message


def test_all_wrong_overrides_come_in_one_go(toys: Catalogue):
    """R16: each wrong argument has its own line."""
    assert len(faults_of(toys, LEAST, ["a", "b=", "c=[", "run.seed=1", "run.seed.x=1"])) == 4


def test_a_fault_in_the_value_of_an_override_names_the_option(toys: Catalogue):
    """R16: the key and `-s` stand where file and line would."""
    fault = fault_of(toys, LEAST, ["run.seed=x"])
    assert fault.as_line().startswith("advdiff: error[R07] -s: run.seed: found 'x' (string)")


def reordered(text: str) -> str:
    """Tables back to front; only entries of an array of tables keep their order."""
    blocks = text.replace("advdiff = 1", "").strip().split("\n\n")
    entries = [block for block in blocks if block.startswith("[[")]
    others = [block for block in blocks if not block.startswith("[[")]
    return "\n".join([*reversed(others), *entries])


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.rstrip("\n"),
        lambda text: text.replace(" = ", "\t=\t"),
        lambda text: "\ufeff" + text,
        lambda text: "# comment é\n\n" + text,
        lambda text: reordered(text),
        lambda text: text.replace("10_000", "10000").replace('"8/255"', "0.03137254901960784"),
    ],
    ids=["crlf", "no newline", "tabs", "bom", "comments", "order", "spelling"],
)
def test_spelling_does_not_change_the_recipe(toys: Catalogue, tmp_path: Path, rewrite):
    """R17: CRLF, tabs, comments, order of tables and spelling of numbers: the same recipe hash."""
    path = tmp_path / "r.toml"
    path.write_text(rewrite(FULL), encoding="utf-8", newline="")
    recipe = load_recipe(path, catalogue=toys)
    assert recipe == load(toys, FULL)
    assert recipe.recipe_hash == load(toys, FULL).recipe_hash


def test_odd_file_names_and_locales_are_no_obstacle(tmp_path: Path):
    """R17: a path that is not UTF-8, read in the C locale, gives the same recipe hash."""
    folder = os.fsencode(tmp_path) + b"/b\xe9 \xf0\x9f\x90\x8d"
    os.mkdir(folder)
    text = b'[data]\nuse = "two-moons"\n[models.student]\nuse = "mlp"\n# \xc3\xa9\n'
    path = folder + b"/r\xff.toml"
    with open(path, "wb") as file:
        file.write(text)
    code = (
        "import sys, os; from advdiff_core.recipe import load_recipe;"
        "r = load_recipe(sys.argv[1]); print(r.recipe_hash, r.run.name)"
    )
    environ = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, path]
    done = subprocess.run(command, capture_output=True, check=True, env=environ)
    here = load_recipe(os.fsdecode(path))
    assert done.stdout.decode().split() == [here.recipe_hash, "r"]


def test_the_hash_sees_every_value_but_the_name(toys: Catalogue):
    """R17: another value is another hash; another name of the run is not."""
    first = load(toys, FULL)
    assert load(toys, FULL, ["run.name=other"]).recipe_hash == first.recipe_hash
    for key, value in {**SAFE, **UNSAFE}.items():
        assert load(toys, FULL, [f"{key}={value}"]).recipe_hash != first.recipe_hash, key


CODE = [
    "os:system",
    "builtins.eval",
    "os.path.join",
    "subprocess:Popen",
    "toy_core_parts:Net",
    "toy_core_parts.Net",
    "py:os.system",
    "__import__('os')",
    "os.system;ls",
    "../net",
    "/etc/passwd",
    "net\n",
    "$(id)",
    "${run.name}",
    "a:b:c:d",
    ":net",
    "net:",
    "::",
]


@pytest.mark.parametrize("use", CODE, ids=ascii)
@pytest.mark.parametrize(
    "place",
    ["data.use", "schedule.use", "models.student.use", "terms.denoise.use", "sample.use",
     "players.student.optimizer.use", "views.adv.perturb.use", "views.adv.perturb.attack.use",
     "evaluate.metrics.0.use", "data.corrupt.0.use"],
)  # fmt: skip
def test_a_recipe_cannot_name_code(toys: Catalogue, tmp_path: Path, use: str, place: str):
    """Q03: only registered names resolve, wherever a component is named; nothing is imported."""
    before = set(sys.modules)
    quoted = use.replace("\n", "\\n")
    found = faults_of(toys, FULL, [f'{place}="{quoted}"'])
    fault = next(fault for fault in found if fault.key == place)
    assert fault.code in ("Q03", "R11", "R13")
    new = set(sys.modules) - before
    assert not any(name.split(".")[0] in ("subprocess", "py") for name in new)


@pytest.mark.parametrize("key", ["_target_", "_component_", "class_path", "_partial_"])
def test_keys_that_name_code_elsewhere_are_refused(toys: Catalogue, key: str):
    """Q03: the spellings of Hydra, torchtune and jsonargparse are answered plainly."""
    fault = fault_of(toys, f'[data]\nuse = "digits"\n[models.student]\n{key} = "os.system"\n')
    assert (fault.code, fault.line) == ("Q03", 4)
    assert "names components, never code" in fault.message
    fault = fault_of(toys, LEAST + f'{key} = "os.system"\n')
    assert fault.code == "Q03"


@pytest.mark.parametrize(
    "name", ["../x", "/tmp/x", "..", ".", "a/b", "a\\\\b", ".hidden", "~/x", "x/../../y", "a/"]
)
def test_a_run_name_cannot_leave_its_folder(toys: Catalogue, name: str):
    """Q04: separators, `..` and leading dots are refused in the name of a run and of tables."""
    fault = fault_of(toys, LEAST, [f'run.name="{name}"'])
    assert (fault.code, fault.key) == ("Q04", "run.name")
    found = faults_of(toys, LEAST, [f'terms."{name}".use=denoise'])
    assert "Q04" in {fault.code for fault in found}


def test_a_file_name_makes_a_safe_run_name(toys: Catalogue, tmp_path: Path):
    """Q04: the default name of a run comes from the file's, with only what names may hold."""
    for file, name in {
        "quick start.recipe.toml": "quick-start",
        "..toml": "run",
        "é.toml": "run",
        "a.b.toml": "a-b",
    }.items():
        (tmp_path / file).write_text(LEAST)
        assert load_recipe(tmp_path / file, catalogue=toys).run.name == name


def test_only_what_a_recipe_names_is_imported(site: Site):
    """P02, Q09: a broken neighbour of the same kind does not matter to a recipe."""
    site.toy_core(module="toy_alone")
    site.dist(
        "advdiff-bad",
        {"advdiff.v1.backbone": {"bad": "bad_net:A"}},
        modules={"bad_net": "raise SystemExit"},
    )
    catalogue = scan([site.folder], environ={})
    load(catalogue, LEAST)
    assert "bad_net" not in sys.modules
    with pytest.raises(RecipeError) as caught:
        load(catalogue, LEAST.replace('"net"', '"bad"'))
    (fault,) = caught.value.faults
    assert (fault.code, fault.key, fault.line) == ("P02", "models.student.use", 4)
    assert "backbone 'bad' of advdiff-bad 1.0 fails to import: SystemExit" in fault.message
    assert fault.plugin == "advdiff-bad"
    assert caught.value.exit_code == 3


def test_a_plugin_fault_beside_a_recipe_fault_is_a_recipe_fault(toys: Catalogue):
    """The exit code is 3 only where nothing but plugins is wrong."""
    broken = [Fault(code="P02", key="", message="x"), Fault(code="R06", key="", message="y")]
    assert RecipeError(broken).exit_code == 2
    assert RecipeError(broken[:1]).exit_code == 3
    assert RecipeError([]).exit_code == 2


def test_a_shadowed_core_name_is_warned_of_once(site: Site):
    """P07: the recipe works with the core's component and says whose is hidden."""
    site.toy_core(module="toy_shadowed")
    site.dist("advdiff-mine", {"advdiff.v1.backbone": {"net": "nowhere:Net"}})
    catalogue = scan([site.folder], environ={})
    (warning,) = load(catalogue, LEAST).warnings
    assert (warning.code, warning.line) == ("P07", 4)
    assert "advdiff-mine:net" in warning.message
    fault = fault_of(catalogue, LEAST.replace('"net"', '"advdiff-mine:net"'))
    assert fault.code == "P02"


def test_a_component_that_takes_a_key_of_the_core_is_refused(site: Site):
    """P09: a loss term with a setting `weight` could never be given both."""
    source = """
from advdiff_core import LossTerm, setting, settings
class Term(LossTerm):
    @settings
    class Settings:
        weight: float = setting(1.0, help="mine")
    def forward(self, step): ...
"""
    site.toy_core(module="toy_taken")
    group = {"advdiff.v1.loss_term": {"mine": "taken_term:Term"}}
    site.dist("advdiff-mine", group, modules={"taken_term": source})
    catalogue = scan([site.folder], environ={})
    fault = fault_of(catalogue, LEAST + '[terms.a]\nuse = "mine"\n')
    assert (fault.code, fault.key) == ("P09", "terms.a")
    assert "has a setting 'weight', the core's own key here" in fault.message


def test_permissions_of_a_recipe_do_not_change(toys: Catalogue, tmp_path: Path):
    """Reading leaves the file as it was."""
    path = tmp_path / "r.toml"
    path.write_text(LEAST)
    before = path.stat()
    load_recipe(path, catalogue=toys)
    after = path.stat()
    assert (before.st_mtime_ns, stat.S_IMODE(before.st_mode)) == (
        after.st_mtime_ns,
        stat.S_IMODE(after.st_mode),
    )
