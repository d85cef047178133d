"""Reads what is installed, one distribution at a time, so that a broken one never hides another.

`importlib.metadata.entry_points()` raises as soon as one `entry_points.txt` in the environment has
a stray line or a byte that is not UTF-8; it also calls a distribution without a name None. Here
each distribution is read on its own and what is wrong with it becomes a sentence.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from os import fspath
from pathlib import Path

from attrs import field, frozen

from advdiff_core.discovery.kinds import canonical_distribution
from advdiff_core.errors import escape

__all__ = ["Declaration", "Installed", "installed"]

UNKNOWN = "unknown"
_FOLDER = re.compile(r"(?P<name>.+?)(-(?P<version>[^-]+)(-py[^-]*)?)?\.(dist-info|egg-info)")


@frozen
class Declaration:
    """One line of an `entry_points.txt`: `name = value` in a `[group]`."""

    group: str
    name: str
    value: str


@frozen(kw_only=True)
class Installed:
    """An installed distribution, as far as its metadata could be read.

    Attributes:
        name: Its name as declared; read off the folder's name if the metadata have none.
        version: Its version, "unknown" if there is none.
        folder: Where it is installed, "" if that is not a folder.
        declarations: Its entry points in groups that begin with "advdiff.".
        problems: What is wrong with its metadata, one sentence each.
    """

    name: str
    version: str = UNKNOWN
    folder: str = ""
    declarations: tuple[Declaration, ...] = ()
    problems: tuple[str, ...] = field(default=())


def installed(paths: Sequence[str | Path] | None = None) -> Iterator[Installed]:
    """Read every installed distribution that offers advdiff entry points, or is broken.

    Of several versions of one distribution, the first on the path counts, as for imports; within
    one folder (a leftover of a failed upgrade) the highest does, with a problem that says so.

    Args:
        paths: Folders to look in instead of `sys.path`.
    """
    chosen: dict[str, Installed] = {}
    for found in _read_all(paths):
        key = canonical_distribution(found.name) if found.name != UNKNOWN else f"?{len(chosen)}"
        chosen[key] = _prefer(chosen[key], found) if key in chosen else found
    yield from chosen.values()


def _read_all(paths: Sequence[str | Path] | None) -> Iterator[Installed]:
    """Walk the distributions by hand: a finder of a foreign package may raise at any step."""
    folders = sys.path if paths is None else [fspath(path) for path in paths]
    walk = iter(metadata.distributions(path=folders))
    while True:
        try:
            distribution = next(walk, None)
        except Exception as error:
            yield Installed(
                name=UNKNOWN, problems=(f"looking for distributions failed: {error!r}",)
            )
            return
        if distribution is None:
            return
        try:
            found = _read(distribution)
        except Exception as error:
            name, version = _folder_parts(distribution)
            found = Installed(name=name, version=version, problems=(f"unreadable: {error!r}",))
        if found is not None:
            yield found


def _read(distribution: metadata.Distribution) -> Installed | None:
    try:
        text = distribution.read_text("entry_points.txt")
    except UnicodeDecodeError as error:
        text, problems = "", [f"entry_points.txt is not UTF-8 (byte {error.start})"]
    else:
        declarations, problems = parse(text) if text else ((), [])
    if not text and not problems:
        return None
    if not problems and not declarations:
        return None
    name, version, complaints = _identity(distribution)
    return Installed(
        name=escape(name, limit=100),
        version=escape(version, limit=50),
        folder=str(distribution.locate_file("")),
        declarations=tuple(declarations) if text else (),
        problems=(*problems, *complaints),
    )


def parse(text: str) -> tuple[tuple[Declaration, ...], list[str]]:
    """The advdiff declarations in an `entry_points.txt`, and what is wrong with its lines."""
    found: list[Declaration] = []
    problems: list[str] = []
    group = None
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line or line[0] in "#;":
            continue
        if line[0] == "[" and line[-1] == "]":
            group = line[1:-1].strip()
            continue
        name, equals, value = (part.strip() for part in line.partition("="))
        if group is None or not equals or not name or not value:
            problems.append(f"entry_points.txt line {number} is not 'name = module:Class'")
        elif group.startswith("advdiff."):
            found.append(Declaration(group, name, value))
    return tuple(found), problems[:3]


def _identity(distribution: metadata.Distribution) -> tuple[str, str, list[str]]:
    """Name, version and complaints; the folder's name stands in for missing metadata."""
    headers: dict[str, str] = {}
    with contextlib.suppress(UnicodeDecodeError):
        headers = _headers(distribution)
    name, version = _folder_parts(distribution)
    if "name" in headers:
        return headers["name"], headers.get("version", version), []
    return (
        name,
        headers.get("version", version),
        ["its metadata have no name; the folder's is used"],
    )


def _headers(distribution: metadata.Distribution) -> dict[str, str]:
    """`Name` and `Version` from the head of METADATA; parsing it all costs a millisecond each."""
    text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
    headers: dict[str, str] = {}
    for line in text.lstrip().splitlines():
        key, colon, value = line.partition(":")
        if not line.strip():
            break
        if colon and key.lower() in ("name", "version") and value.strip():
            headers.setdefault(key.lower(), value.strip())
    return headers


def _folder_parts(distribution: metadata.Distribution) -> tuple[str, str]:
    """Name and version as the metadata folder is called, for example `foo-1.2.dist-info`."""
    folder = Path(str(getattr(distribution, "_path", ""))).name
    match = _FOLDER.fullmatch(folder)
    if match is None:
        return UNKNOWN, UNKNOWN
    return canonical_distribution(match["name"]), match["version"] or UNKNOWN


def _prefer(first: Installed, other: Installed) -> Installed:
    """Of two records of one distribution, the one whose code an import would find."""
    if first.folder != other.folder or first.version == other.version:
        return first
    winner, loser = sorted((first, other), key=lambda one: _version_key(one.version), reverse=True)
    problem = (
        f"versions {loser.version} and {winner.version} are both recorded in one folder; "
        f"{winner.version} is used; reinstall it to clean up"
    )
    return Installed(
        name=winner.name,
        version=winner.version,
        folder=winner.folder,
        declarations=winner.declarations,
        problems=(*winner.problems, problem),
    )


def _version_key(version: str) -> tuple[tuple[int, ...], str]:
    # Enough to order a leftover against its successor; a full PEP 440 order needs `packaging`.
    return tuple(int(part) for part in re.findall(r"\d+", version)[:6]), version
