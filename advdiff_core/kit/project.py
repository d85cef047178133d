"""The plugin that is examined: a folder with a pyproject.toml, or an installed distribution."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

from attrs import field, frozen

from advdiff_core.discovery.kinds import canonical_distribution
from advdiff_core.discovery.shipped import editable_project
from advdiff_core.errors import DataError, UsageError, escape, nearest

__all__ = ["Project", "open_project"]


@frozen(kw_only=True)
class Project:
    """A plugin before anything of it was built.

    Attributes:
        name: Its distribution, in normal form.
        folder: Its sources; None for a distribution that is installed without them.
        table: The table `[project]` of its pyproject.toml.
    """

    name: str
    folder: Path | None
    table: dict[str, Any] = field(factory=dict, repr=False)


def open_project(target: str) -> Project:
    """The plugin that a user means.

    Args:
        target: A folder with a pyproject.toml, or the name of an installed distribution.

    Raises:
        UsageError: If it is neither.
        DataError: If its pyproject.toml cannot be read.
    """
    folder = Path(target)
    if folder.is_file() and folder.name == "pyproject.toml":
        folder = folder.parent
    if (folder / "pyproject.toml").exists():
        return _from_folder(folder)
    try:
        installed = metadata.distribution(canonical_distribution(target))
    except (metadata.PackageNotFoundError, ValueError):
        raise _nothing(target) from None
    sources = editable_project(installed)
    if sources is not None and (sources / "pyproject.toml").is_file():
        return _from_folder(sources)
    return Project(name=canonical_distribution(installed.metadata["Name"]), folder=None)


def _nothing(target: str) -> UsageError:
    if Path(target).is_dir():
        message = "this folder holds no pyproject.toml"
        fix = "name the plugin's own folder; 'advdiff new-plugin' makes one"
        return UsageError(message, where=target, fix=fix)
    names = {one.metadata["Name"] or "" for one in metadata.distributions()}
    near = nearest(target, sorted(names - {""}))
    fix = f"did you mean {near!r}?" if near else "name a folder that holds a pyproject.toml"
    message = f"{escape(target)!r} is neither a folder nor an installed distribution"
    return UsageError(message, where="PLUGIN", fix=fix)


def _from_folder(folder: Path) -> Project:
    file = folder / "pyproject.toml"
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8")).get("project", {})
    except (OSError, ValueError) as error:
        message = f"cannot be read: {error}"
        raise DataError(message, where=str(file), fix="mend the file") from error
    name = table.get("name") if isinstance(table, dict) else None
    if not isinstance(name, str):
        message = "there is no name in its table [project]"
        raise DataError(message, where=str(file), fix='write name = "advdiff-..."')
    return Project(name=canonical_distribution(name), folder=folder.resolve(), table=table)
