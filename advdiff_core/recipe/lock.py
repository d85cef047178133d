"""The frozen copy of a recipe: the resolved text and what it was resolved with."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from advdiff_core.discovery import CORE, Catalogue
from advdiff_core.recipe.lines import Key
from advdiff_core.recipe.problems import Problem
from advdiff_core.recipe.recipe import Recipe

__all__ = [
    "absent_plugins", "git_state", "lock_notes", "lock_table", "lock_text", "locked_data",
    "locked_inits",
]  # fmt: skip

_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,80}==[A-Za-z0-9][A-Za-z0-9.+!_-]{0,80}")


def lock_text(
    recipe: Recipe,
    folder: Path | None = None,
    *,
    init: Mapping[str, Mapping[str, str]] | None = None,
    fingerprint: str = "",
) -> str:
    """The text of `recipe.lock.toml`: every default, and a table `[lock]`.

    Args:
        recipe: The recipe.
        folder: Where to look for a git repository; the working directory if left out.
        init: What identifies the initial weights of a role, by role.
        fingerprint: Digest of the data.
    """
    table = lock_table(recipe, folder)
    if fingerprint:
        table["data"] = {"fingerprint": fingerprint, "settings": recipe.data_hash}
    return recipe.dumps({**table, "init": {**init}} if init else table)


def lock_table(recipe: Recipe, folder: Path | None = None) -> dict[str, Any]:
    """Versions of Python, torch and the plugins named, the recipe's hash, and the git state."""
    plugins = {spec.distribution: spec.version for spec in recipe.specs() if spec.distribution}
    table: dict[str, Any] = {
        "recipe_hash": recipe.recipe_hash,
        "python": platform.python_version(),
        "advdiff_core": _version(CORE),
        "torch": _version("torch"),
        "plugins": dict(sorted(plugins.items())),
    }
    git = git_state(folder or Path.cwd())
    return {**table, "git": git} if git else table


def _version(distribution: str) -> str:
    """Version from the metadata: importing torch to ask it would take seconds."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "unknown"


def git_state(folder: Path) -> dict[str, Any]:
    """Commit of the repository around `folder`, and whether files in it are changed; {} if none."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return {}
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "changed": changed != ""}


def _git(folder: Path, *arguments: str) -> str | None:
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True, text=True, timeout=10, check=True, env=environment,
            encoding="utf-8", errors="replace",
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def locked_inits(tables: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What `[lock.init]` says of initial weights, by role; what is no table is left out."""
    lock = tables.get("lock")
    found = lock.get("init") if isinstance(lock, Mapping) else None
    entries = found if isinstance(found, Mapping) else {}
    return {role: entry for role, entry in entries.items() if isinstance(entry, Mapping)}


def locked_data(tables: Mapping[str, Any]) -> Mapping[str, Any]:
    """What `[lock.data]` says of the data; {} if it says nothing."""
    lock = tables.get("lock")
    found = lock.get("data") if isinstance(lock, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def lock_notes(tables: Mapping[str, Any], recipe: Recipe) -> Iterator[Problem]:
    """Versions that differ from those in the recipe's own `[lock]`."""
    lock = tables.get("lock")
    if not isinstance(lock, Mapping):
        return
    locked = _locked_plugins(tables)
    present = {spec.distribution: spec.version for spec in recipe.specs()}
    here = {"torch": _version("torch"), "python": platform.python_version()}
    for name, now in here.items():
        yield from _changed(("lock", name), lock.get(name), now)
    for name, now in sorted(present.items()):
        yield from _changed(("lock", "plugins", name), locked.get(name), now)


def absent_plugins(tables: Mapping[str, Any], catalogue: Catalogue) -> list[str]:
    """Distributions in the recipe's own `[lock]` that are not installed, as `name==version`."""
    named = [f"{name}=={version}" for name, version in sorted(_locked_plugins(tables).items())]
    # They end up in a command that a user copies: nothing but a requirement may be in it.
    sound = [one for one in named if _REQUIREMENT.fullmatch(one)]
    return [one for one in sound if not catalogue.knows(one.partition("==")[0])]


def _locked_plugins(tables: Mapping[str, Any]) -> dict[str, Any]:
    lock = tables.get("lock")
    plugins = lock.get("plugins") if isinstance(lock, Mapping) else None
    return dict(plugins) if isinstance(plugins, Mapping) else {}


def _changed(path: Key, before: Any, now: str) -> Iterator[Problem]:
    if isinstance(before, str) and before != now:
        message = f"{path[-1]} was {before} when this recipe was frozen, it is {now} here"
        fix = "results may differ; install the old version to repeat the run"
        yield Problem(path=path, code="P14", message=message, fix=fix)
