"""What is installed, as the command line needs it."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from advdiff_core.discovery import Catalogue
    from advdiff_core.hooks.manager import Hooks

__all__ = ["catalogue", "load_hooks"]


@cache
def catalogue() -> Catalogue:
    """Everything installed, read once."""
    from advdiff_core.discovery import scan

    return scan()


def load_hooks() -> Hooks:
    """Import and build the listeners that are installed and allowed."""
    from advdiff_core.discovery.loading import isolated
    from advdiff_core.hooks.manager import Hooks
    from advdiff_core.hooks.terminal import say

    return Hooks.load(catalogue().of_kind("hooks"), warn=say, guard=isolated)
