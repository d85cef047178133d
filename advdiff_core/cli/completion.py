"""What the shell offers after a Tab: recipes, run folders, kinds and names of components."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import click
from click.shell_completion import CompletionItem

__all__ = ["distributions", "kinds", "names", "paths", "recipes", "runs", "shipped"]

#: What a run folder always holds.
LOCK = "recipe.lock.toml"


def recipes(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """TOML files, and folders on the way to them."""
    del ctx, param
    return [_item(path) for path in _beginning(incomplete) if path.is_dir() or _is_toml(path)]


def runs(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Run folders, and folders on the way to them; those under `runs` without typing it."""
    del ctx, param
    folders = [path for path in _beginning(incomplete) if path.is_dir()]
    if not incomplete and Path("runs").is_dir():
        folders = [*sorted(Path("runs").iterdir()), *folders]
    return [_item(path) for path in folders]


def paths(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Recipes and run folders."""
    return recipes(ctx, param, incomplete)


def kinds(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Kinds of components."""
    from advdiff_core.discovery import KINDS

    del ctx, param
    return _matching([*KINDS, "hooks", "recipe"], incomplete)


def names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of components of the kind before them."""
    from advdiff_core.cli.environment import catalogue

    del param
    kind = ctx.params.get("kind")
    return _matching(catalogue().names(str(kind)), incomplete) if kind else []


def distributions(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Distributions that offer components."""
    from advdiff_core.cli.environment import catalogue

    del ctx, param
    return _matching(catalogue().distributions(), incomplete)


def shipped(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Recipes that come with plugins."""
    from advdiff_core.cli.shipped import shipped_recipes

    del ctx, param
    return _matching([one.reference for one in shipped_recipes()], incomplete)


def _matching(choices: Iterable[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(one) for one in choices if one.startswith(incomplete)]


def _beginning(incomplete: str) -> list[Path]:
    """Paths that begin as typed; hidden ones only if asked for."""
    folder, start = os.path.split(incomplete)
    try:
        found = sorted(Path(folder or ".").iterdir())
    except OSError:
        return []
    return [
        Path(folder) / path.name
        for path in found
        if path.name.startswith(start) and (start.startswith(".") or path.name[0] != ".")
    ]


def _item(path: Path) -> CompletionItem:
    is_folder = path.is_dir() and not (path / LOCK).exists()
    return CompletionItem(f"{path}/" if is_folder else str(path))


def _is_toml(path: Path) -> bool:
    return path.suffix == ".toml"
