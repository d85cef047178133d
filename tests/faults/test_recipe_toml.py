"""R02, R03, R05, R09: texts that are no TOML, no recipe, or a bomb."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

import pytest
from helpers_recipes import LEAST

from advdiff_core.discovery import Catalogue
from advdiff_core.errors import RecipeError
from advdiff_core.recipe import load_recipe
from advdiff_core.recipe.limits import MAX_BYTES

#: Own snippets of everything TOML 1.0 forbids; each stands alone behind a good first line.
INVALID = [
    b"a",
    b"a =",
    b"= 1",
    b"a = 1 b = 2",
    b"a b = 1",
    b"a. = 1",
    b".a = 1",
    b"a..b = 1",
    b"a = 1\na = 2",
    b"a.b = 1\na = 2",
    b"a = 1\na.b = 2",
    b"[a]\n[a]",
    b"[a]\nb = 1\n[a.b]",
    b"[a.b]\n[a]\nb = 1",
    b"[[a]]\n[a]",
    b"[a]\n[[a]]",
    b"a = [1]\n[[a]]",
    b"a = { b = 1 }\n[a.c]",
    b"a = { b = 1 }\na.c = 2",
    b"a = { b = 1, b = 2 }",
    b"a = { b = 1 c = 2 }",
    b"a = { b }",
    b"a = { , }",
    b"a = { b = 1",
    b"[a",
    b"[a]]",
    b"[[a]",
    b"[]",
    b"[a.]",
    b"[a] b = 1",
    b"[a\nb]",
    b"a = [1 2]",
    b"a = [1,,2]",
    b"a = [,]",
    b"a = [1",
    b"a = 1]",
    b"a = True",
    b"a = yes",
    b"a = nope",
    b"a = none",
    b"a = 01",
    b"a = 1_",
    b"a = _1",
    b"a = 1__0",
    b"a = 0x",
    b"a = 0xg",
    b"a = 0b2",
    b"a = +0x1",
    b"a = 1.",
    b"a = .5",
    b"a = 1.e5",
    b"a = 1e",
    b"a = 1e1.5",
    b"a = Inf",
    b"a = NaN",
    b"a = 2020-13-01",
    b"a = 2020-02-30",
    b"a = 25:00:00",
    b"a = 2020-01-01T",
    b'a = "x',
    b'a = "x\ny"',
    b'a = "\\q"',
    b'a = "\\u12"',
    b'a = "\\ud800"',
    b'a = "\\U00110000"',
    b'a = "\x00"',
    b'a = "\x1b"',
    b'a = "\x7f"',
    b"a = 'x",
    b"a = 'x'y'",
    b"a = '''x''''''",
    b'a = """x',
    b'a = """\\q"""',
    b'a = """\x00"""',
    b"a = x",
    b"a = 1 # \x00",
    b"a = 1 # \x1f",
    b"a\rb = 1",
    b"a = 1\rb = 2",
    b"\xff = 1",
    b"a = '\xe9'",
    b"a = '\xc0\x80'",
    b"# \xf8",
    b"a\xc2\xa0= 1",
    b"\xe2\x80\x8ba = 1",
    b'"""a""" = 1',
    b"a = 1,",
    b"{ a = 1 }",
    b"a: 1",
    b"- a",
    b"<a>1</a>",
    b'{"a": 1}',
    b"a = ${x}",
    b"a = 8/255",
    b"a = 1 + 1",
    b"import os",
]

#: Valid TOML 1.0 that is no recipe, with forms that have tripped readers.
NO_RECIPE = [
    b"a = 1",
    b"\xef\xbb\xbfa = 1",
    b"a = 1\r\nb = 2\r\n",
    b"a = [1, 'x', [2.0], { y = 1979-05-27 }]",
    b"a.b.c.d = 1979-05-27T07:32:00Z\na.b.e = inf",
    b"[[a]]\n[[a.b]]\n[a.b.c]\n[[a]]",
    b"'' = 1\n[\"\"]\n",
    b"a = nan\nb = -inf\nc = 1e400",
    b'a = "\\u0000\\u001b[2J\\u202e"',
    b'"\\u001b[31m" = 1',
    b"run = 1\ndata = 2\nmodels = 3\nterms = 'x'\nplayers = []\nviews = 0.5\nschedule = true",
    b"[run]\n[data]\n[schedule]\n[models]\n[views]\n[terms]\n[players]\n[sample]\n[evaluate]\n[hooks]",
    b"[models]\nstudent = 1\n[terms]\na = []\n[players]\np = 'x'\n[views]\nv = 1.5",
    b"lock = 3\nextends = 4\nhooks = 5\nadvdiff = '1'",
    b"extends = [[]]\n",
    b"[[run]]\nseed = 1",
    b"[[data]]\nuse = 'x'",
    b"[[models.student]]\nuse = 'x'",
    b"data.use = 1979-05-27\nmodels.student.use = 07:32:00",
    b"[data]\nuse = {}\n[models.student]\nuse = []",
]


def refuse(catalogue: Catalogue, path: Path) -> RecipeError:
    """The error of a recipe that must be refused."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, catalogue=catalogue)
    assert caught.value.exit_code == 2
    assert len(caught.value.lines()) <= 21
    for line in caught.value.lines():
        assert line.isprintable(), line
    return caught.value


def test_the_corpus_is_large():
    """At least sixty snippets of our own are tried."""
    assert len(INVALID) >= 60


@pytest.mark.parametrize("snippet", INVALID, ids=repr)
def test_malformed_toml_is_refused_with_a_line(toys: Catalogue, tmp_path: Path, snippet: bytes):
    """R02: every malformed text is refused, with a line at or after the good first one."""
    path = tmp_path / "r.toml"
    path.write_bytes(b"first = 1\n" + snippet)
    (fault,) = refuse(toys, path).faults
    assert fault.code == "R02"
    assert 2 <= fault.line <= 2 + snippet.count(b"\n")
    assert fault.file == str(path)


def cpython_corpus() -> list[Path]:
    """The texts of CPython's own tests, where this Python ships them."""
    return sorted((Path(sys.base_prefix) / "lib").glob("python3*/test/test_tomllib/data/**/*.toml"))


@pytest.mark.skipif(not cpython_corpus(), reason="this Python ships no tests")
def test_the_corpus_of_cpython_is_refused(toys: Catalogue):
    """R02, R03: of CPython's texts, malformed or not, none is a recipe and none a crash."""
    for path in cpython_corpus():
        if path.stat().st_size == 0:
            continue
        error = refuse(toys, path)
        if "invalid" in path.parts:
            assert [fault.code for fault in error.faults] == ["R02"], path
            assert error.faults[0].line >= 1


@pytest.mark.parametrize("text", NO_RECIPE, ids=repr)
def test_toml_that_is_no_recipe_is_refused(toys: Catalogue, tmp_path: Path, text: bytes):
    """R03: valid TOML with other keys, or other shapes, is refused fault by fault."""
    path = tmp_path / "r.toml"
    path.write_bytes(text)
    assert refuse(toys, path).faults


def test_a_byte_order_mark_is_accepted(toys: Catalogue, tmp_path: Path):
    """R03: a BOM, as some editors write it, changes nothing."""
    path = tmp_path / "r.toml"
    path.write_bytes(b"\xef\xbb\xbf" + LEAST.encode())
    assert load_recipe(path, catalogue=toys).data.spec.use == "digits"


BOMBS = {
    "brackets": b"[" * 100_000,
    "arrays": b"a = " + b"[" * 100_000,
    "tables": b"a = " + b"{b=" * 30_000,
    "dotted key": b".".join([b"a"] * 50_000) + b" = 1",
    "dotted quoted key": b".".join([b'"a"'] * 50_000) + b" = 1",
    "dotted header": b"[" + b".".join([b"a"] * 50_000) + b"]",
    "digits": b"a = " + b"1" * 5_000,
    "string": b"a = '" + b"x" * 20_000_000 + b"'",
    "escapes": b'"\\"' * 200_000,
    "quotes": b'"' * 1_000_000,
    "open string": b'a = "' + b'\\"' * 500_000,
    "open block": b'a = """' + b'\\"' * 500_000,
    "equals": b"=" * 1_000_000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_at_once(toys: Catalogue, tmp_path: Path, name: str):
    """R05: depth, length and digit bombs cost under a second and name the limit, or are no TOML."""
    path = tmp_path / "r.toml"
    path.write_bytes(BOMBS[name])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    (fault,) = refuse(toys, path).faults
    assert time.perf_counter() - begin < 1.0
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200_000
    assert fault.code in ("R05", "R02")
    limits = ("64 brackets", "32 parts", "4300 digits", "1 MiB")
    assert fault.code == "R02" or any(limit in fault.message for limit in limits)


def test_the_size_limit_is_exact(toys: Catalogue, tmp_path: Path):
    """R05: a file of exactly 1 MiB is read, one byte more is not."""
    path = tmp_path / "r.toml"
    text = LEAST.encode() + b"#"
    path.write_bytes(text.ljust(MAX_BYTES, b"x"))
    load_recipe(path, catalogue=toys)
    path.write_bytes(text.ljust(MAX_BYTES + 1, b"x"))
    assert "1048577 bytes" in refuse(toys, path).faults[0].message


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[run]\nseed = 1\nseed = 2", 3),
        ("[run]\nseed = 1\n[data]\nuse = 'a'\n[run]\n", 5),
        ("run.seed = 1\nrun = 3", 2),
        ("[run]\nseed = 1\nseed.x = 2", 3),
        ("[data]\ncorrupt = [{ use = 'a', use = 'b' }]", 2),
        ("[[data.corrupt]]\n[data]\ncorrupt = []", 3),
    ],
)
def test_keys_given_twice_are_refused_with_their_line(
    toys: Catalogue, tmp_path: Path, text: str, line: int
):
    """R09: a duplicate key, a table defined again, a dotted key over a value."""
    path = tmp_path / "r.toml"
    path.write_text(text)
    (fault,) = refuse(toys, path).faults
    assert (fault.code, fault.line) == ("R02", line)
