"""Reads the text of one recipe: a regular file, UTF-8, TOML 1.0, within limits, with lines."""

from __future__ import annotations

import os
import re
import stat
import tomllib
from pathlib import Path
from typing import Any

import tomli
from attrs import field, frozen

from advdiff_core.errors import Fault, RecipeError, escape, nearest
from advdiff_core.recipe import limits
from advdiff_core.recipe.lines import LineMap, scan_lines

__all__ = ["Document", "parse_text", "read_file"]

_PLACE = re.compile(r" \(at (?:line (?P<line>\d+), column \d+|end of document)\)$")


@frozen(kw_only=True)
class Document:
    """One TOML text, parsed.

    Attributes:
        data: Its tables.
        lines: Line of each key.
        file: The file as the user named it.
        path: The same, resolved; None for a text that is no file.
    """

    data: dict[str, Any]
    lines: LineMap = field(repr=False)
    file: str
    path: Path | None = None


def read_file(path: str | Path, name: str = "") -> Document:
    """Read a recipe from a regular file.

    Args:
        path: The file.
        name: What to call it in messages; `path` as given if left out.

    Raises:
        RecipeError: R01 for anything that is not a readable file with content, R02 for malformed
            TOML, R05 beyond a limit.
    """
    name = name or str(path)
    raw = _read_bytes(Path(path), name)
    if not raw.strip(b" \t\r\n\xef\xbb\xbf"):
        raise _refuse("R01", name, 0, "the recipe is empty", "it needs [data] and [models.student]")
    return parse_text(_decode(raw, name), name, Path(path).resolve())


def _refuse(code: str, name: str, line: int, message: str, fix: str = "") -> RecipeError:
    return RecipeError([Fault(code=code, file=name, line=line, key="", message=message, fix=fix)])


def _read_bytes(path: Path, name: str) -> bytes:
    """The content of a regular file; refuses everything else without reading it."""
    try:
        # Non-blocking, or opening a FIFO would wait for its writer.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise _refuse("R01", name, 0, "there is no such file", _near_file(path)) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise _refuse("R01", name, 0, f"cannot be opened: {reason}") from None
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            message = f"this is {_file_kind(status.st_mode)}, wanted a recipe file"
            raise _refuse("R01", name, 0, message)
        return _read_limited(handle, name, status.st_size)
    finally:
        os.close(handle)


def _read_limited(handle: int, name: str, size: int) -> bytes:
    raw = b""
    if size <= limits.MAX_BYTES:
        try:
            while chunk := os.read(handle, limits.MAX_BYTES + 1 - len(raw)):
                raw += chunk
        except OSError as error:
            raise _refuse("R01", name, 0, f"cannot be read: {error.strerror}") from None
    if max(size, len(raw)) > limits.MAX_BYTES:
        message = f"{max(size, len(raw))} bytes, a recipe has at most {limits.MAX_BYTES} (1 MiB)"
        raise _refuse("R05", name, 0, message, "put data into files and name them by path")
    return raw


def _file_kind(mode: int) -> str:
    kinds = (
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISFIFO, "a named pipe"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    )
    return next((words for test, words in kinds if test(mode)), "no regular file")


def _near_file(path: Path) -> str:
    try:
        names = [one.name for one in path.parent.iterdir()]
    except OSError:
        return "check the path"
    near = nearest(path.name, names)
    return f"did you mean {str(path.parent / near)!r}?" if near else "check the path"


def _decode(raw: bytes, name: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        message = f"byte 0x{raw[error.start]:02x} is not UTF-8"
        raise _refuse("R02", name, line, message, "save the file as UTF-8") from None


def parse_text(text: str, name: str, path: Path | None = None) -> Document:
    """Parse a TOML 1.0 text.

    Both parsers must accept it: tomli reads TOML 1.1 too, the standard library's of older Pythons
    does not, and one recipe must not be valid on one Python and refused on the next.

    Args:
        text: The text.
        name: What to call it in messages.
        path: The file it came from.

    Raises:
        RecipeError: R02 for malformed TOML, R05 beyond a limit; always with a line.
    """
    text = text.replace("\r\n", "\n")
    excess = limits.first_excess(text)
    if excess:
        message = f"{excess.message}, which no recipe needs"
        raise _refuse("R05", name, excess.line, message, "write it flatter or shorter")
    data = _parse(text, name)
    lines = scan_lines(text)
    _check_version(text, name, lines)
    return Document(data=data, lines=lines, file=name, path=path)


def _parse(text: str, name: str) -> dict[str, Any]:
    try:
        return tomli.loads(text)
    except (ValueError, RecursionError, OverflowError) as error:
        line, message, fix = _explain(text, error)
        raise _refuse("R02", name, line, f"not valid TOML: {message}", fix) from None


def _check_version(text: str, name: str, lines: LineMap) -> None:
    if lines.newer:
        place = lines.newer[0]
        message = f"{place.message} is TOML 1.1, recipes are TOML 1.0"
        raise _refuse("R02", name, place.line, message)
    try:
        tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        line, message, fix = _explain(text, error)
        message = f"not valid TOML 1.0, which recipes are: {message}"
        raise _refuse("R02", name, line, message, fix) from None


def _explain(text: str, error: Exception) -> tuple[int, str, str]:
    """Line, message and mend of a parser's error, also where the parser gives no line."""
    message = str(error)
    place = _PLACE.search(message)
    message = escape(_PLACE.sub("", message)) or type(error).__name__
    if place and place["line"]:
        line = int(place["line"])
        return line, f"{message}, in {escape(_line_text(text, line), limit=60)!r}", ""
    opened = limits.unclosed(text)
    if opened:
        return opened.line, opened.message, "close it"
    last = text.rstrip().count("\n") + 1
    return last, f"{message}, in {escape(_line_text(text, last), limit=60)!r}", ""


def _line_text(text: str, line: int) -> str:
    return text.split("\n", line)[line - 1].strip()
