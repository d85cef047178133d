"""The reported line of a key is the line to edit, whatever the layout of the file."""

from __future__ import annotations

import random
from typing import Any

import pytest
import tomli
from helpers_recipes import FULL
from hypothesis import given
from hypothesis import strategies as st

from advdiff_core.recipe.lines import scan_lines
from advdiff_core.recipe.read import parse_text


class Writer:
    """Writes a random TOML text in every style; each leaf is a number of its own."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.lines: list[str] = []
        self.count = 10_000

    def text(self) -> str:
        """The whole text."""
        self.body(self.random.randint(0, 3))
        for _ in range(self.random.randint(0, 4)):
            self.table(())
        return "\n".join(self.lines) + self.random.choice(["", "\n", "  # end"])

    def leaf(self) -> str:
        """A scalar, on one line or several."""
        self.count += 1
        forms = [
            str(self.count),
            f'"{self.count} # \\" ["',
            f"'{self.count} ] \\'",
            f"{self.count}.5",
        ]
        forms += [f'"""{self.count}\n[x]\n"" """', f"'''{self.count}\n# ''\n'''"]
        return self.random.choice(forms)

    def key(self) -> str:
        """A key no other has."""
        self.count += 1
        return self.random.choice([f"k{self.count}", f'"k {self.count}"', f"'k.{self.count}'"])

    def value(self, depth: int = 0) -> str:
        """A scalar, array or inline table."""
        choice = self.random.random()
        if depth > 2 or choice < 0.6:
            return self.leaf()
        entries = self.random.randint(0, 3)
        if choice < 0.8:
            gap = self.random.choice([" ", "\n  ", " # c ]\n"])
            inner = "".join(f"{self.value(depth + 1)}{gap},{gap}" for _ in range(entries))
            return f"[{gap}{inner}]"
        inner = ", ".join(f"{self.dotted()} = {self.value(depth + 1)}" for _ in range(entries))
        return f"{{ {inner} }}"

    def dotted(self) -> str:
        """A key of one to three parts."""
        return " . ".join(self.key() for _ in range(self.random.choice([1, 1, 2, 3])))

    def body(self, pairs: int) -> None:
        """Some pairs of a table."""
        for _ in range(pairs):
            if self.random.random() < 0.3:
                self.lines.append(self.random.choice(["", "# [x] = '", "   "]))
            self.lines += f"{self.dotted()} = {self.value()}  # c".split("\n")

    def table(self, above: tuple[str, ...]) -> None:
        """A table or two entries of an array of tables, and tables in it."""
        name = (*above, self.key())
        brackets = self.random.choice([("[", "]"), ("[[", "]]")])
        for _ in range(2 if brackets[0] == "[[" else 1):
            self.lines.append(f"  {brackets[0]} {' . '.join(name)} {brackets[1]} # c")
            self.body(self.random.randint(0, 3))
            if len(name) < 4 and self.random.random() < 0.5:
                self.table(name)


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> dict[tuple[str | int, ...], Any]:
    """Every scalar by path."""
    if isinstance(value, dict):
        items: Any = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    else:
        return {path: value}
    found: dict[tuple[str | int, ...], Any] = {}
    for key, inner in items:
        found |= leaves(inner, (*path, key))
    return found


@given(st.integers(0, 2**32))
def test_the_reported_line_holds_the_leaf(seed: int):
    """For random texts in every style, the line of each leaf shows that leaf's own number."""
    text = Writer(seed).text()
    document = parse_text(text, "random.toml")
    lines = text.split("\n")
    for path, value in leaves(document.data).items():
        number = str(value).split(" ")[0].split("\n")[0]
        assert number in lines[document.lines[path] - 1], (path, document.lines[path])


def test_deleting_the_reported_line_changes_the_leaf():
    """For each leaf of a whole recipe, the text without the reported line no longer holds it."""
    found = leaves(tomli.loads(FULL))
    lines = FULL.split("\n")
    places = scan_lines(FULL)
    assert len(found) > 80
    for path, value in found.items():
        at = places[path] - 1
        try:
            edited = leaves(tomli.loads("\n".join(lines[:at] + lines[at + 1 :])))
        except tomli.TOMLDecodeError:
            continue
        kept = edited.get(path)
        # An entry of an array is replaced by the one behind it.
        assert kept != value or isinstance(path[-1], int), path


@pytest.mark.parametrize("seed", range(20))
def test_every_table_and_entry_has_a_line(seed: int):
    """No path of a parsed text is missing from the map, and the map holds no other."""
    text = Writer(seed).text()
    data, places = tomli.loads(text), scan_lines(text)
    for path in leaves(data):
        for length in range(1, len(path) + 1):
            assert path[:length] in places
    for path in places:
        node = data
        for part in path:
            node = node[part]
