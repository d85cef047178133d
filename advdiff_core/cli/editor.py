"""The line by which an editor finds the schema of a recipe."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["PLACE", "found_line", "schema_line"]

#: Where `advdiff new` looks for the schema, in the recipe's folder and in those above.
PLACE = Path(".advdiff") / "recipe.schema.json"


def schema_line(schema: Path, folder: Path) -> str:
    """The comment that names a schema, as taplo, Even Better TOML and tombi read it.

    Args:
        schema: The file.
        folder: Folder of the recipe.
    """
    path = Path(os.path.relpath(schema, folder)).as_posix()
    return f"#:schema {path if path.startswith('../') else f'./{path}'}"


def found_line(folder: Path) -> str:
    """The line for recipes in a folder; "" if neither it nor one above has a schema."""
    whole = folder.absolute()
    for place in (whole, *whole.parents):
        if (place / PLACE).is_file():
            return schema_line(place / PLACE, whole)
    return ""
