"""Reading the text of a recipe: limits, TOML 1.0, and the line of each key."""

from __future__ import annotations

import pytest
from helpers_recipes import FULL

from advdiff_core.errors import Fault, RecipeError
from advdiff_core.recipe import limits
from advdiff_core.recipe.lines import scan_lines
from advdiff_core.recipe.read import parse_text


def refusal(text: str) -> Fault:
    """The fault of a text that is refused."""
    with pytest.raises(RecipeError) as caught:
        parse_text(text, "r.toml")
    (fault,) = caught.value.faults
    return fault


LINES = """\
top = 1                                   # 1
[a]                                       # 2
x = "# no comment ]"                      # 3
b.c = { d = 1, "e f".g = [1, { h = 2 }] } # 4
[[a.list]]                                # 5
y = [                                     # 6
  1,                                      # 7
  { z = '''                               # 8
[not a table]
''' },
]
[[a.list]]                                # 12
inner = 1                                 # 13
[[a.list.deep]]                           # 14
v = 1                                     # 15
[a.list.sub]                              # 16
w = 1                                     # 17
[ "q.r" . 's' ]                           # 18
"\\u0041" = 1                             # 19
"""

WANTED = {
    ("top",): 1,
    ("a",): 2,
    ("a", "x"): 3,
    ("a", "b"): 4,
    ("a", "b", "c", "d"): 4,
    ("a", "b", "c", "e f", "g", 1, "h"): 4,
    ("a", "list", 0): 5,
    ("a", "list", 0, "y"): 6,
    ("a", "list", 0, "y", 0): 7,
    ("a", "list", 0, "y", 1, "z"): 8,
    ("a", "list", 1): 12,
    ("a", "list", 1, "inner"): 13,
    ("a", "list", 1, "deep", 0, "v"): 15,
    ("a", "list", 1, "sub", "w"): 17,
    ("q.r", "s"): 18,
    ("q.r", "s", "A"): 19,
}


@pytest.mark.parametrize("key", WANTED)
def test_scan_lines_knows_every_form_of_key(key: tuple[str | int, ...]):
    """Dotted and quoted keys, inline tables, arrays of tables and long strings have their line."""
    parse_text(LINES, "lines.toml")
    assert scan_lines(LINES)[key] == WANTED[key]


def test_parse_text_accepts_both_line_ends_tabs_and_no_final_newline():
    """R17: CRLF, tabs and a missing newline at the end change nothing."""
    plain = parse_text(FULL, "r.toml")
    windows = parse_text(FULL.replace("\n", "\r\n").replace(" = ", "\t=\t").rstrip(), "r.toml")
    assert windows.data["run"] == plain.data["run"]
    assert windows.lines == plain.lines


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("x = 1\na = {\n b = 1 }", 3, "a line break in an inline table"),
        ("x = 1\na = { b = 1, }", 2, "a comma before the closing brace"),
        ("x = 1\na = { b = 1, # c\n c = 2 }", 3, "a line break in an inline table"),
        ('x = 1\na = "\\e[0m"', 2, "the escape"),
        ('x = 1\n"\\x41" = 1', 2, "the escape"),
        ("x = 1\na = 07:32", 2, "a time without seconds"),
        ("x = 1\na = 2020-01-01T07:32", 2, "a time without seconds"),
    ],
)
def test_parse_text_refuses_what_only_toml_1_1_allows(text: str, line: int, what: str):
    """One recipe is not valid on one Python and refused on the next: it is TOML 1.0 on all."""
    fault = refusal(text)
    assert (fault.code, fault.line) == ("R02", line)
    assert what in fault.message
    assert "TOML 1.0" in fault.message


@pytest.mark.parametrize("text", ['a = "\\\\e"', "a = '\\e'", "a = 07:32:00", 'a = "07:32"'])
def test_parse_text_accepts_what_only_looks_like_toml_1_1(text: str):
    """An escaped backslash, a literal string and a full time are TOML 1.0."""
    parse_text(text, "r.toml")


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a = 1\nb = [1,\n2\n", 2, "the '[' is never closed"),
        ("a = 1\nb = { c = 1\n", 2, "the '{' is never closed"),
        ("a = 1\n\nb = '''x\ny\n", 3, "the string opened with ''' is never closed"),
        ("a = 1\na = 2", 2, "Cannot overwrite a value"),
        ("[a]\n[a]", 2, "twice"),
        ("a.b = 1\n[a]\n", 2, "twice"),
        ("a = 1\na.b = 2", 2, "Cannot overwrite a value"),
        ("a = truu", 1, "Invalid value, in 'a = truu'"),
    ],
)
def test_parse_text_gives_a_line_where_the_parser_gives_none(text: str, line: int, words: str):
    """R02, R09: "at end of document" becomes the line where the trouble began."""
    fault = refusal(text)
    assert (fault.code, fault.line) == ("R02", line)
    assert words in fault.message


@pytest.mark.parametrize("depth", [limits.MAX_DEPTH, limits.MAX_DEPTH + 1])
def test_parse_text_holds_the_depth_limit_exactly(depth: int):
    """R05: the deepest legal nesting passes, one more is refused."""
    text = f"a = {'[' * depth}{']' * depth}"
    if depth <= limits.MAX_DEPTH:
        parse_text(text, "r.toml")
    else:
        assert refusal(text).message.startswith("more than 64 brackets deep")


@pytest.mark.parametrize("parts", [limits.MAX_PARTS, limits.MAX_PARTS + 1])
@pytest.mark.parametrize("form", ["{} = 1", "[{}]", "[[{}]]", "a = {{ {} = 1 }}"])
def test_parse_text_holds_the_limit_of_key_parts_exactly(parts: int, form: str):
    """R05: the longest legal dotted key passes, one more part is refused."""
    text = form.format(" . ".join((["k", '"q"', "'l'"] * 11)[:parts]))
    if parts <= limits.MAX_PARTS:
        parse_text(text, "r.toml")
    else:
        assert refusal(text).message.startswith("a key of more than 32 parts")


@pytest.mark.parametrize(
    "text",
    [
        "a = '" + "[" * 100 + "'",
        'a = """\n' + "[{" * 100 + '"""',
        "# " + "[" * 100 + "\na = 1",
        "a = '" + ".".join(["k"] * 100) + "'",
        "a = [" + ", ".join(['"x"'] * 100) + "]",
        "a = [" + ", ".join(["1.5"] * 100) + "]",
        'a = "\\"[' + "[" * 100 + '"',
        "a = '" + "1" * 5000 + "'",
    ],
)
def test_limits_do_not_count_inside_strings_and_comments(text: str):
    """R05: brackets, dots and digits in strings, comments and lists are no nesting."""
    parse_text(text, "r.toml")


def test_numbers_of_too_many_digits_are_named():
    """R05: Python's own limit on digits is answered before it raises."""
    fault = refusal("x = 1\na = " + "1" * 5000)
    assert (fault.code, fault.line) == ("R05", 2)
    assert "4300 digits" in fault.message
