"""Metrics that a recipe takes from another one, to measure a finished run by them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from advdiff_core.discovery import Catalogue
from advdiff_core.errors import Fault, RecipeError
from advdiff_core.recipe.extends import with_bases
from advdiff_core.recipe.read import read_file

__all__ = ["borrowed_metrics", "inline_text"]

KEY = "evaluate.metrics"


def borrowed_metrics(path: Path, catalogue: Catalogue) -> str:
    """The metrics of the recipe at `path`, those it extends included, as an override `key=value`.

    Nothing else of it is looked at: neither its data nor its models need to be at hand.

    Args:
        path: The recipe.
        catalogue: What is installed.

    Raises:
        RecipeError: If it cannot be read, or R10 if it names no metrics.
    """
    tables = with_bases(read_file(path), catalogue).data
    evaluate = tables.get("evaluate")
    metrics = evaluate.get("metrics") if isinstance(evaluate, dict) else None
    if not metrics:
        message = "it names no metrics that a run could be measured by"
        fault = Fault(code="R10", file=str(path), key=KEY, message=message, fix="name another one")
        raise RecipeError([fault])
    return f"{KEY}={inline_text(metrics)}"


def inline_text(value: Any) -> str:
    """A value as TOML in one line: tables and arrays in braces and brackets."""
    if isinstance(value, dict):
        pairs = (f"{inline_text(key)} = {inline_text(inner)}" for key, inner in value.items())
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(inline_text, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value)
