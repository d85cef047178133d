"""What the scripts of this folder share with those of others, and where their numbers are kept."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from lab import Lab, arguments, toml

__all__ = ["RECORDS", "SIZE", "Lab", "arguments", "open_lab", "recipe", "toml"]

#: Folder of the finished numbers, in git; runs themselves are not.
RECORDS = Path(__file__).with_name("records")
#: Height and width of all images: a quarter of the arithmetic of 32.
SIZE = 16
PLUGINS = Path(__file__).parents[3] / "plugins"


def open_lab(given: Namespace) -> Lab:
    """The lab of this folder, for the options of a script."""
    return Lab(given.out, given.data, RECORDS)


def recipe(plugin: str, name: str) -> Path:
    """A recipe that a plugin ships."""
    return PLUGINS / plugin / f"src/advdiff_{plugin}/recipes/{name}.toml"
