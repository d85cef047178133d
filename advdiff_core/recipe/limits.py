"""Limits on the text of a recipe, held before a parser sees it.

A dotted key of 50,000 parts costs the standard parser 46 seconds, 900 nested arrays a
RecursionError and a number of 5,000 digits a plain ValueError: one pass over the tokens refuses
all of them first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

__all__ = [
    "MAX_BYTES",
    "MAX_DEPTH",
    "MAX_DIGITS",
    "MAX_PARTS",
    "Finding",
    "first_excess",
    "unclosed",
]

#: Largest file, in bytes.
MAX_BYTES = 2**20
#: Deepest nesting of arrays and inline tables.
MAX_DEPTH = 64
#: Most parts of a dotted key.
MAX_PARTS = 32
#: Longest number, in characters; Python itself stops at 4,300 digits.
MAX_DIGITS = 4300

# Unrolled loops with an optional end: linear on hostile text. Not possessive groups: they lose
# characters before Python 3.11.5 (python/cpython#106052).
_TOKEN = re.compile(
    r'(?P<block>"""[^"\\]*(?:(?:\\[\s\S]|"(?!""))[^"\\]*)*(?:"{3,5})?|'
    r"'''[^']*(?:'(?!'')[^']*)*(?:'{3,5})?)"
    r'|(?P<part>"[^"\\\n]*(?:\\.[^"\\\n]*)*"?|'
    r"'[^'\n]*'?|[A-Za-z0-9_+-]+)"
    r"|(?P<dot>\.)|(?P<open>[\[{])|(?P<close>[\]}])|(?P<comment>#[^\n]*)|(?P<line>\n)"
)


class Finding(NamedTuple):
    """Something found in the text, and the line it is on (1-based)."""

    line: int
    message: str


class _Token(NamedTuple):
    kind: str
    text: str
    line: int


def _tokens(text: str) -> Iterator[_Token]:
    line = 1
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or ""
        token = match.group()
        yield _Token(kind, token, line)
        if kind in ("line", "block"):
            line += token.count("\n")


def first_excess(text: str) -> Finding | None:
    """The first place where `text` goes beyond a limit, or None."""
    depth = parts = 0
    before = ""
    for token in _tokens(text):
        depth += (token.kind == "open") - (token.kind == "close")
        depth = max(depth, 0)
        if depth > MAX_DEPTH:
            return Finding(token.line, f"more than {MAX_DEPTH} brackets deep")
        if token.kind == "part":
            parts = parts + 1 if before == "dot" else 1
            if parts > MAX_PARTS:
                return Finding(token.line, f"a key of more than {MAX_PARTS} parts")
            if len(token.text) > MAX_DIGITS and token.text.lstrip("+-")[:1].isdigit():
                return Finding(token.line, f"a number of more than {MAX_DIGITS} digits")
        before = token.kind
    return None


def unclosed(text: str) -> Finding | None:
    """The innermost bracket or triple-quoted string that is opened and never closed, or None."""
    stack: list[_Token] = []
    for token in _tokens(text):
        if token.kind == "block" and not _is_closed(token.text):
            return Finding(token.line, f"the string opened with {token.text[:3]} is never closed")
        if token.kind == "open":
            stack.append(token)
        elif token.kind == "close" and stack:
            stack.pop()
    if not stack:
        return None
    return Finding(stack[-1].line, f"the {stack[-1].text!r} is never closed")


def _is_closed(block: str) -> bool:
    quote = block[:3]
    return len(block) >= 2 * len(quote) and block.endswith(quote)
