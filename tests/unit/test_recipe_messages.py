"""How faults are worded, escaped, ordered and counted."""

from __future__ import annotations

import pytest

from advdiff_core.errors import Fault, RecipeError, escape, nearest
from advdiff_core.recipe.layers import Place, dotted, place_of
from advdiff_core.recipe.problems import described, is_clean, is_name, sort_faults


@pytest.mark.parametrize(
    ("written", "choices", "meant"),
    [
        ("ddmi", ["ddpm", "ddim"], "ddim"),
        ("bacth", ["batch", "patch"], "batch"),
        ("us", ["use", "usage"], "use"),
        ("seeed", ["seed", "speed"], "seed"),
        ("learning_rate", ["lr", "rate"], None),
        ("zzz", ["use"], None),
        ("ADAMW", ["adamw", "adam"], "adamw"),
        ("x", [], None),
    ],
)
def test_nearest_prefers_one_slip_of_the_finger(written: str, choices: list[str], meant):
    """A swap, a drop or a doubled letter is nearer than another word of the same letters."""
    assert nearest(written, choices) == meant
    assert nearest(written, choices[::-1]) == meant


def test_nearest_is_quick_on_a_long_word():
    """R05: a key of a megabyte is compared by its beginning."""
    assert nearest("x" * 2**20, ["use", "batch"] * 20) is None


def test_escape_makes_everything_printable_and_short():
    """R13: control, bidi and surrogate characters are shown as escapes, long text is cut."""
    shown = escape("\x1b[2J\u202e\ud800\x00é\n")
    assert shown.isprintable()
    assert shown == "\\x1b[2J\\u202e\\ud800\\x00é\\n"
    assert escape("x" * 500).endswith("...")
    assert len(escape("x" * 500)) == 200


def test_a_fault_is_one_line_with_place_words_and_mend():
    """The line has the form every tool of the field can read: file:line: key: words - mend."""
    fault = Fault(
        code="R08", file="a.toml", line=14, key="attack.eps", message="8 must be at most 1.0",
        fix='write "8/255"', plugin="advdiff-x",
    )  # fmt: skip
    line = 'error[R08] a.toml:14: attack.eps: 8 must be at most 1.0 (advdiff-x) - write "8/255"'
    assert fault.as_line() == f"advdiff: {line}"
    assert fault.as_line("warning") == f"advdiff: {line.replace('error', 'warning')}"
    assert fault.as_json() == {
        "code": "R08", "file": "a.toml", "line": 14, "key": "attack.eps",
        "message": "8 must be at most 1.0", "fix": 'write "8/255"', "plugin": "advdiff-x",
    }  # fmt: skip


def test_faults_are_sorted_by_file_and_line_without_repetition():
    """The recipe's own faults come first, then those of bases, each in order of lines."""
    faults = [
        Fault(code="R06", file=file, line=line, key="", message="m")
        for file, line in [("base", 1), ("top", 9), ("top", 2), ("-s", 0), ("top", 2)]
    ]
    ordered = [(fault.file, fault.line) for fault in sort_faults(faults, "top")]
    assert ordered == [("top", 2), ("top", 9), ("-s", 0), ("base", 1)]


def test_an_error_without_faults_still_says_something():
    """No error is silent."""
    assert str(RecipeError([]).message) == "recipe refused"


def test_dotted_quotes_what_toml_would():
    """A key is shown so that it can be pasted behind `-s`."""
    assert dotted(("terms", "a b", 0, 'q"\\', "")) == 'terms."a b".0."q\\"\\\\".""'


def test_place_of_falls_back_to_the_table_around():
    """A key that was filled in has the line of the innermost table that was written."""
    places = {("a",): Place("f", 3), ("a", "b"): Place("f", 5)}
    assert place_of(places, ("a", "b", "c", 0)).line == 5
    assert place_of(places, ("a", "x")).line == 3
    assert place_of(places, ("z",)) == Place()


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (True, "true (boolean)"),
        (3, "3 (integer)"),
        (1.5, "1.5 (number)"),
        ("a\x1b", "'a\\x1b' (string)"),
        ([1], "[1] (array)"),
        ({"a": 1}, "a table"),
        (None, "None (NoneType)"),
    ],
)
def test_values_are_described_with_their_toml_type(value: object, shown: str):
    """R07: what was found is named as TOML names it."""
    assert described(value) == shown


def test_long_values_are_cut():
    """A string of a megabyte does not fill the terminal."""
    assert len(described("x" * 2**20)) < 80


@pytest.mark.parametrize("name", ["a", "A-1_b.c", "0", "_x", "x" * 64])
def test_is_name_takes_plain_names(name: str):
    """Letters, digits and three marks, at most 64."""
    assert is_name(name)


@pytest.mark.parametrize("name", ["", ".", "..", ".a", "-a", "a/b", "a b", "x" * 65, "é", "a\n"])
def test_is_name_refuses_what_paths_or_terminals_would_mind(name: str):
    """Q04, R13: nothing that could leave a folder or lie on a screen."""
    assert not is_name(name)


@pytest.mark.parametrize("mark", ["\x00", "\x1b", "\x7f", "\x85", "\u200b", "\u202e", "\ufeff"])
def test_is_clean_refuses_what_cannot_be_seen(mark: str):
    """R13: tab and newline are the only control characters a string may hold."""
    assert is_clean("a\tb\nc d é \U0001f40d")
    assert not is_clean(f"a{mark}b")
