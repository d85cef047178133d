"""The verbs that look and list: their text, their JSON, and what they leave alone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

import advdiff_core.discovery
from advdiff_core.cli import environment, main
from advdiff_core.cli.app import VERBS, app
from advdiff_core.cli.numbers import parse_ranges, ranges_text, seeds_of
from advdiff_core.cli.output import number, table
from advdiff_core.discovery import scan
from advdiff_core.errors import UsageError

RECIPE = """
# Two moons, for the tests.
advdiff = 1
[run]
images = 64
batch = 32
[data]
use = "two-moons"
[models.student]
use = "mlp"
"""


class Done(NamedTuple):
    """What a command line did."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """Lines of stderr."""
        return self.err.splitlines()


Cli = Callable[..., Done]


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Cli]:
    """Run command lines in this process, in an empty folder, with the core's components alone."""
    paths = [path for path in sys.path if "toy_site" not in path]
    real = scan(paths, environ={"ADVDIFF_PLUGINS": ""})
    environment.catalogue.cache_clear()
    monkeypatch.setattr(advdiff_core.discovery, "scan", lambda: real)
    monkeypatch.chdir(tmp_path)

    def run(*args: object) -> Done:
        code = main([str(one) for one in args])
        return Done(code, *capsys.readouterr())

    yield run
    environment.catalogue.cache_clear()


def test_help_lists_every_verb_with_its_own_first_line(cli: Cli) -> None:
    """The list is written down apart from the verbs, so that it needs none of them."""
    done = cli("--help")
    assert done.code == 0
    context = click.Context(app, info_name="advdiff")
    for verb, text in VERBS.items():
        command = app.get_command(context, verb)
        assert command is not None
        assert (command.help or "").split("\n")[0] == text, verb
        assert command.name == verb
        assert text in " ".join(done.out.split())


@pytest.mark.parametrize("verb", list(VERBS))
def test_help_of_a_verb_reads_well(cli: Cli, verb: str) -> None:
    """Plain text of at most 80 columns; every option and argument is explained."""
    done = cli(verb, "--help")
    assert done.code == 0
    assert done.out.startswith(f"Usage: advdiff {verb} ")
    assert max(map(len, done.out.splitlines())) <= 80
    assert done.out.isascii()
    command = app.get_command(click.Context(app), verb)
    assert command is not None
    options = [one for one in command.params if isinstance(one, click.Option)]
    assert all(one.help for one in options)


def test_bare_advdiff_prints_help(cli: Cli) -> None:
    """Somebody who types the name alone wants to know what there is."""
    assert cli().out == cli("--help").out
    assert cli("--version").out == f"advdiff {advdiff_core.__version__}\n"


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["plugns"], "advdiff: error no such command 'plugns' - did you mean plugins? "
                     "see 'advdiff --help'"),
        (["--frob"], "advdiff: error no such option '--frob' - see 'advdiff --help'"),
        (["plugins", "--jsno"], "advdiff: error advdiff plugins: no such option '--jsno' - "
                                "did you mean --json? see 'advdiff plugins --help'"),
        (["check"], "advdiff: error advdiff check: missing argument 'RECIPE' - "
                    "see 'advdiff check --help'"),
        (["plugins", "--kind", "attak"], "advdiff: error --kind: there is no kind 'attak' - "
                                         "did you mean 'attack'?"),
        (["train"], "advdiff: error advdiff train: there is nothing to train - give a RECIPE, or "
                    "a run to go on with: --resume RUN; 'advdiff new' lists recipes"),
        (["show"], "advdiff: error advdiff show: there is nothing to show - give a run folder or "
                   "a recipe, or --diff A B; see 'advdiff show --help'"),
        (["sample", "r", "--num", "0"], "advdiff: error advdiff sample: invalid value for "
                                        "'--num': 0 is not in the range x>=1 - "
                                        "see 'advdiff sample --help'"),
        (["explain", "samplr"], "advdiff: error KIND: there is no kind 'samplr' - did you mean "
                                "'sampler'?"),
        (["explain", "recipe", "player"], "advdiff: error NAME: a recipe has no table 'player' - "
                                          "did you mean 'players'?"),
        (["new", "nosuch"], "advdiff: error NAME: no installed plugin ships a recipe 'nosuch' - "
                            "see 'advdiff new' for all"),
        (["completion"], "advdiff: error advdiff completion: missing argument '{bash|zsh|fish}'. "
                         "Choose from: bash, zsh, fish - see 'advdiff completion --help'"),
    ],
)  # fmt: skip
def test_usage_errors_are_one_line_with_the_mend(cli: Cli, args: list[str], line: str) -> None:
    """Exit code 2, nothing on stdout, what is wrong and what to write instead."""
    done = cli(*args)
    assert (done.code, done.out) == (2, "")
    assert done.lines == [line]


def test_hostile_arguments_are_escaped(cli: Cli) -> None:
    """Control characters of an argument never reach the terminal raw (Q07)."""
    for args in (["\x1b[2J"], ["--\x1b[2J"], ["explain", "\x1b[2J"], ["show", "\x1b]8;;x\x07"]):
        done = cli(*args)
        assert done.code == 2
        assert done.err.replace("\n", "").isprintable()
        assert len(done.lines) == 1


def test_plugins_lists_what_is_installed(cli: Cli) -> None:
    """The JSON has the promised keys; the text groups by kind."""
    rows = json.loads(cli("plugins", "--json").out)
    unet = next(row for row in rows if row["name"] == "unet")
    assert {key: unet[key] for key in ("kind", "name", "distribution", "version", "error")} == {
        "kind": "backbone", "name": "unet", "distribution": "advdiff-core",
        "version": advdiff_core.__version__, "error": None,
    }  # fmt: skip
    only = json.loads(cli("plugins", "--kind", "sampler", "--json").out)
    assert {row["kind"] for row in only} == {"sampler"}
    text = cli("plugins", "--kind", "sampler").out
    assert text.startswith("sampler\n  ddim ")


def test_plugins_names_what_cannot_be_used(cli: Cli) -> None:
    """A distribution that is installed and not allowed is listed with the reason."""
    rows = json.loads(cli("plugins", "--json").out)
    refused = [row for row in rows if row["error"]]
    assert all(row["error"] == "not allowed by ADVDIFF_PLUGINS" for row in refused)
    text = cli("plugins").out
    assert text.count("unusable: ") == len(refused)


def test_explain_describes_a_component(cli: Cli) -> None:
    """Key, type, default, bounds, unit, help and owner."""
    facts = json.loads(cli("explain", "sampler", "heun", "--json").out)
    assert (facts["kind"], facts["name"], facts["distribution"]) == (
        "sampler",
        "heun",
        "advdiff-core",
    )
    steps = next(key for key in facts["settings"] if key["key"] == "steps")
    assert steps["type"] == "integer"
    assert ">= 1" in steps["allowed"]
    assert steps["help"]
    text = cli("explain", "sampler.heun").out
    assert text.startswith("sampler heun, from advdiff-core")
    assert "role, ema, guidance, images, every (advdiff explain recipe sample)" in text


def test_explain_tells_the_size_of_a_network(cli: Cli) -> None:
    """Parameters and work of a forward, with the data they are for; no other kind has a size."""
    size = json.loads(cli("explain", "backbone", "mlp", "--json").out)["size"]
    assert size["shape"] == [3, 32, 32]
    assert 0 < size["macs"] < size["parameters"]  # Biases, and an embedding that is looked up.
    text = cli("explain", "backbone", "mlp").out
    assert f"on data of shape 3x32x32: {size['parameters']:,} parameters, " in text
    assert "MMAC a forward of one sample." in text
    assert "size" not in json.loads(cli("explain", "sampler", "heun", "--json").out)


def test_explain_lists_a_kind(cli: Cli) -> None:
    """A line per component, the first of its docstring."""
    text = cli("explain", "noise_schedule").out
    assert "vp-linear  Variance preserving" in text


def test_explain_describes_families_and_refuses_strangers(cli: Cli) -> None:
    """`torch:AdamW` has the arguments of that class; a misspelt one is corrected."""
    facts = json.loads(cli("explain", "optimizer", "torch:AdamW", "--json").out)
    assert "weight_decay" in {key["key"] for key in facts["settings"]}
    done = cli("explain", "optimizer", "torch:AdamWW")
    assert done.code == 2
    assert "did you mean 'AdamW'?" in done.err
    done = cli("explain", "sampler", "hein")
    assert done.code == 3
    assert "did you mean 'heun'?" in done.err


def test_explain_recipe_covers_every_table(cli: Cli) -> None:
    """The keys every recipe has, nested tables included."""
    tables = {one["table"]: one for one in json.loads(cli("explain", "recipe", "--json").out)}
    assert {"run", "data", "schedule", "models.<name>", "players.<name>", "evaluate"} <= set(tables)
    keys = {key["key"] for key in tables["players.<name>"]["settings"]}
    assert {"terms", "lr_schedule.law", "ema[].rate"} <= keys
    assert "from" in {key["key"] for key in tables["views.<name>"]["settings"]}
    assert all(key["help"] for one in tables.values() for key in one["settings"])


def test_show_prints_a_recipe_with_overrides(cli: Cli, tmp_path: Path) -> None:
    """As written, bases merged, overrides on top; nothing filled in."""
    (tmp_path / "base.toml").write_text(RECIPE)
    (tmp_path / "own.toml").write_text('extends = "base.toml"\n[run]\nbatch = 16\n')
    done = cli("show", "own.toml", "-s", "run.seed=5", "--json")
    assert json.loads(done.out) == {
        "advdiff": 1, "run": {"images": 64, "batch": 16, "seed": 5}, "data": {"use": "two-moons"},
        "models": {"student": {"use": "mlp"}},
    }  # fmt: skip
    assert "batch = 16" in cli("show", "own.toml").out
    resolved = json.loads(cli("show", "own.toml", "--resolved", "--json").out)
    assert resolved["schedule"]["use"] == "vp-linear"


def test_show_tells_two_recipes_apart(cli: Cli, tmp_path: Path) -> None:
    """Only the keys that differ; "-" where one has none."""
    (tmp_path / "a.toml").write_text(RECIPE)
    (tmp_path / "b.toml").write_text(RECIPE.replace("batch = 32", "seed = 1"))
    rows = json.loads(cli("show", "--diff", "a.toml", "b.toml", "--json").out)
    assert rows == [
        {"key": "run.batch", "a": 32, "b": None},
        {"key": "run.seed", "a": None, "b": 1},
    ]
    assert cli("show", "--diff", "a.toml", "b.toml").out.split()[:3] == ["key", "a.toml", "b.toml"]
    assert cli("show", "--diff", "a.toml", "a.toml").out == "no difference\n"


def test_check_prints_nothing_but_ok_for_a_sound_recipe(cli: Cli, tmp_path: Path) -> None:
    """Exit code 0, an empty list in JSON."""
    (tmp_path / "a.toml").write_text(RECIPE + '[terms.d]\nuse = "denoise"\n')
    done = cli("check", "a.toml")
    assert (done.code, done.out) == (0, "a.toml: ok\n")
    assert json.loads(cli("check", "a.toml", "--json").out) == []


def test_check_prints_every_fault_and_starts_nothing(cli: Cli, tmp_path: Path) -> None:
    """One line each on stderr and a count; in JSON file, line, key, message and fix."""
    bad = RECIPE.replace("batch = 32", "bach = 32").replace('"mlp"', '"mpl"')
    (tmp_path / "a.toml").write_text(bad)
    done = cli("check", "a.toml", "-s", "run.seed=-1")
    assert (done.code, done.out) == (2, "")
    assert done.lines[-1] == f"advdiff: {len(done.lines) - 1} faults, nothing was started"
    assert all(line.startswith("advdiff: error[R") for line in done.lines[:-1])
    done = cli("check", "a.toml", "--json")
    assert done.code == 2
    faults = json.loads(done.out)
    bach = next(fault for fault in faults if fault["key"] == "run.bach")
    assert bach["file"] == "a.toml"
    assert bach["line"] == 6
    assert "batch" in bach["fix"]
    assert set(bach) >= {"file", "line", "key", "message", "fix"}


def test_check_of_a_missing_file_is_a_fault(cli: Cli) -> None:
    """Not a traceback, not another exit code."""
    done = cli("check", "nosuch.toml", "--json")
    assert done.code == 2
    assert json.loads(done.out)[0]["code"] == "R01"


def test_completion_prints_a_script_for_each_shell(cli: Cli) -> None:
    """The scripts call advdiff itself."""
    for shell in ("bash", "zsh", "fish"):
        assert "_ADVDIFF_COMPLETE" in cli("completion", shell).out


@pytest.mark.parametrize(
    ("words", "typed", "expected"),
    [
        ("advdiff", "pl", {"plan", "plugins"}),
        ("advdiff check", "", {"a.toml", "folder/", "other/"}),
        ("advdiff check", "a", {"a.toml"}),
        ("advdiff check", "folder/", {"folder/b.toml"}),
        ("advdiff explain", "sam", {"sampler"}),
        ("advdiff explain sampler", "dd", {"ddim", "ddpm"}),
        ("advdiff sample", "other/", {"other/00001-x"}),
    ],
)
def test_completion_offers_what_fits(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: str, typed: str,
    expected: set[str],
) -> None:  # fmt: skip
    """Verbs, recipes and folders on the way to them, kinds, names, run folders."""
    (tmp_path / "a.toml").write_text("")
    (tmp_path / "a.txt").write_text("")
    (tmp_path / ".hidden.toml").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "b.toml").write_text("")
    (tmp_path / "other" / "00001-x").mkdir(parents=True)
    (tmp_path / "other" / "00001-x" / "recipe.lock.toml").write_text("")
    monkeypatch.setenv("_ADVDIFF_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", f"{words} {typed}")
    monkeypatch.setenv("COMP_CWORD", str(len(words.split())))
    done = cli()
    assert {line.partition(",")[2] for line in done.out.split()} == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("0-3", [0, 1, 2, 3]), ("5", [5]), ("1,4-5, 9", [1, 4, 5, 9])]
)
def test_ranges_count_both_ends(text: str, expected: list[int]) -> None:
    """`0-3` are four numbers."""
    assert parse_ranges(text, "--seeds") == expected


@given(st.lists(st.integers(0, 50), min_size=1))
def test_ranges_text_reads_back(numbers: list[int]) -> None:
    """The text of numbers means these numbers."""
    assert parse_ranges(ranges_text(numbers), "--seeds") == numbers


@pytest.mark.parametrize("text", ["", "a", "3-1", "-1", "1-", "1..3", "0-99999999999", "9" * 30])
def test_ranges_refuse_what_they_cannot_mean(text: str) -> None:
    """One line with an example, and no memory filled by a typing error."""
    with pytest.raises(UsageError, match="--seeds"):
        parse_ranges(text, "--seeds")


def test_seeds_and_num_must_agree() -> None:
    """Both may be given; they may not contradict each other."""
    assert seeds_of(None, None) == list(range(64))
    assert seeds_of(None, 3) == [0, 1, 2]
    assert seeds_of("7-9", 3) == seeds_of("7-9", None) == [7, 8, 9]
    with pytest.raises(UsageError, match="contradict"):
        seeds_of("7-9", 4)


def test_table_aligns_and_escapes() -> None:
    """Columns two spaces apart, no trailing space, no raw control character."""
    assert table([("a", 1), ("long", "\x1b[2J")], ("k", "v")) == "k     v\na     1\nlong  \\x1b[2J"
    assert table([]) == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234567, "1,234,567"), (0.123456, "0.1235"), (3.0, "3"), (float("nan"), "nan"), ("x", "x")],
)
def test_numbers_are_for_people(value: object, text: str) -> None:
    """Four digits, thousands separated."""
    assert number(value) == text


QUIET = """
import sys
from advdiff_core.cli import main
for args in {calls!r}:
    code = main(args)
    assert code == 0, (args, code)
    loaded = {{name.split(".")[0] for name in sys.modules}}
    heavy = loaded & {{"torch", "numpy", "PIL", "sklearn", "scipy", "rich", "jinja2"}}
    heavy |= {{name for name in loaded if name.startswith("advdiff_") and name != "advdiff_core"}}
    assert not heavy, (args, heavy)
"""


def test_listing_and_showing_load_neither_torch_nor_a_plugin(tmp_path: Path) -> None:
    """`--help` of every verb, plugins, new, show and completion stay light (Q09)."""
    (tmp_path / "a.toml").write_text(RECIPE)
    run = tmp_path / "00001-a"
    run.mkdir()
    (run / "recipe.lock.toml").write_text(RECIPE)
    (run / "metrics.jsonl").write_text('{"loss":1.0,"nimg":64}\n')
    calls = [
        ["--help"], *([verb, "--help"] for verb in VERBS), ["plugins"], ["plugins", "--json"],
        ["new"], ["completion", "zsh"], ["show", str(run)], ["show", str(run), "--resolved"],
        ["show", str(tmp_path / "a.toml")], ["show", "--diff", str(run), str(run)],
        ["explain", "recipe"],
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", QUIET.format(calls=calls)],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
