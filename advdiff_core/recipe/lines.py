"""Which line every key of a TOML text is on.

Parsers give values without places. This scanner walks a text that a parser has already accepted,
so it need not judge it, and records the line of every table, key and array entry. It also notices
what TOML 1.1 allows and 1.0 does not, for interpreters whose parser has moved on.
"""

from __future__ import annotations

import re
from bisect import bisect_right

import tomli

from advdiff_core.recipe.limits import Finding

__all__ = ["Key", "LineMap", "scan_lines"]

#: Place of a value: names of tables and keys, positions in arrays.
Key = tuple[str | int, ...]

_BLANK = re.compile(r"[ \t]*")
_SPACE = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
# No possessive quantifiers: CPython before 3.11.4 matches them wrongly inside alternatives.
_STRING = re.compile(
    r'"""[^"\\]*(?:(?:\\[\s\S]|"(?!""))[^"\\]*)*"{3,5}|'
    r"'''[^']*(?:'(?!'')[^']*)*'{3,5}|"
    r'"[^"\\\n]*(?:\\.[^"\\\n]*)*"|'
    r"'[^'\n]*'"
)
_SCALAR = re.compile(r"[^,\]}#\n]*")
_NEW_ESCAPE = re.compile(r"(?<!\\)(?:\\\\)*\\[ex]")
_SHORT_TIME = re.compile(r"(?:^|[Tt ])\d\d:\d\d(?!:)")


class LineMap(dict[Key, int]):
    """Line (1-based) of each key; `newer` holds what only TOML 1.1 allows."""

    def __init__(self) -> None:
        super().__init__()
        self.newer: list[Finding] = []


def scan_lines(text: str) -> LineMap:
    r"""Map every table, key and array entry of a valid TOML text to its line.

    Args:
        text: The text, with "\n" line ends.
    """
    return _Scanner(text).run()


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.found = LineMap()
        self.table: Key = ()
        self.arrays: dict[Key, int] = {}
        self.breaks = [m.start() for m in re.finditer("\n", text)]

    def run(self) -> LineMap:
        self._skip(_SPACE)
        while self.at < len(self.text):
            if self.text.startswith("[[", self.at):
                self._header(array=True)
            elif self.text[self.at] == "[":
                self._header(array=False)
            else:
                self._pair(self.table)
            self._skip(_SPACE)
        return self.found

    def _line(self) -> int:
        return bisect_right(self.breaks, self.at - 1) + 1

    def _skip(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.at)
        assert match is not None
        self.at = match.end()
        return match.group()

    def _mark(self, key: Key) -> None:
        self.found.setdefault(key, self._line())

    def _header(self, *, array: bool) -> None:
        line_start = self.at
        self.at += 2 if array else 1
        parts = self._key()
        self.at, end = line_start, self.at
        path: Key = ()
        for part in parts[:-1]:
            path = self._enter((*path, part))
        path = (*path, parts[-1])
        self._mark(path)
        if array:
            self.arrays[path] = self.arrays.get(path, -1) + 1
            path = (*path, self.arrays[path])
        else:
            path = self._enter(path)
        self._mark(path)
        self.table = path
        self.at = end + (2 if array else 1)

    def _enter(self, path: Key) -> Key:
        """Step into a table, or into the newest entry of an array of tables."""
        self._mark(path)
        return (*path, self.arrays[path]) if path in self.arrays else path

    def _pair(self, table: Key) -> None:
        start = self.at
        parts = self._key()
        end, self.at = self.at, start
        path = table
        for part in parts:
            path = (*path, part)
            self._mark(path)
        self.at = end + 1
        self._value(path)

    def _key(self) -> list[str]:
        """Read a dotted key; stops at the `=` or `]` behind it."""
        parts: list[str] = []
        while True:
            self._skip(_BLANK)
            quoted = self.text[self.at] in "\"'"
            raw = self._skip(_STRING if quoted else _BARE_KEY)
            parts.append(_decode(raw) if quoted else raw)
            self._escapes(raw)
            self._skip(_BLANK)
            if self.text[self.at] != ".":
                return parts
            self.at += 1

    def _value(self, path: Key) -> None:
        self._skip(_BLANK)
        head = self.text[self.at]
        if head in "\"'":
            self._escapes(self._skip(_STRING))
        elif head == "[":
            self._array(path)
        elif head == "{":
            self._inline_table(path)
        elif _SHORT_TIME.search(self._skip(_SCALAR)):
            self._newer("a time without seconds")

    def _array(self, path: Key) -> None:
        self.at += 1
        position = 0
        while True:
            self._skip(_SPACE)
            if self.text[self.at] == "]":
                break
            self._mark((*path, position))
            self._value((*path, position))
            position += 1
            self._skip(_SPACE)
            if self.text[self.at] == ",":
                self.at += 1
        self.at += 1

    def _inline_table(self, path: Key) -> None:
        self.at += 1
        comma = False
        while True:
            self._inline_space()
            if self.text[self.at] == "}":
                break
            self._pair(path)
            self._inline_space()
            comma = self.text[self.at] == ","
            self.at += comma
        if comma:
            self._newer("a comma before the closing brace of an inline table")
        self.at += 1

    def _inline_space(self) -> None:
        if "\n" in self._skip(_SPACE):
            self._newer("a line break in an inline table")

    def _escapes(self, raw: str) -> None:
        if raw.startswith('"') and _NEW_ESCAPE.search(raw):
            self._newer("the escape \\e or \\x")

    def _newer(self, what: str) -> None:
        self.found.newer.append(Finding(self._line(), what))


def _decode(quoted: str) -> str:
    value: str = tomli.loads(f"k = {quoted}")["k"]
    return value
