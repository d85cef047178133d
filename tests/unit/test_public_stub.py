"""What type checkers are told of the public surface is what there is."""

from __future__ import annotations

import ast
from pathlib import Path

import advdiff_core

STUB = Path(advdiff_core.__file__).with_suffix(".pyi")


def test_stub_names_what_the_package_resolves() -> None:
    """Every public name, from its home; add a new one to advdiff_core/__init__.pyi."""
    nodes = [n for n in ast.parse(STUB.read_text()).body if isinstance(n, ast.ImportFrom)]
    told = {alias.asname: node.module for node in nodes for alias in node.names}
    eager = dict.fromkeys(("Spec", "setting", "settings"), "advdiff_core.settings")
    assert told == {**advdiff_core._HOME, **eager}
