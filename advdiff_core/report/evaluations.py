"""The evaluations under attack that a run folder holds. Free of torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from advdiff_core.engine import strict_json
from advdiff_core.engine.safe_read import read_bytes
from advdiff_core.errors import AdvdiffError, DataError

__all__ = ["read_robust"]

_MAX = 2**30
_NEEDED = ("config", "clean", "curve", "stages", "notes", "flags", "time")


def read_robust(folder: Path, problems: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """The finished evaluations of a run: name of the folder, content of `report.json`.

    Args:
        folder: The run folder.
        problems: Gets what could not be read.
    """
    try:
        places = sorted(path for path in (folder / "robust").iterdir() if path.is_dir())
    except OSError:
        return []
    found = []
    for place in places:
        path = place / "report.json"
        if not path.exists():
            problems.append(f"{path}: the evaluation is not finished; repeat its command to go on")
            continue
        try:
            found.append((place.name, _read(path)))
        except AdvdiffError as error:
            problems.append(str(error))
    return found


def _read(path: Path) -> dict[str, Any]:
    tables = strict_json.loads(read_bytes(path, limit=_MAX), where=str(path))
    if not isinstance(tables, dict) or any(key not in tables for key in _NEEDED):
        raise DataError("is no report of an evaluation", code="S15", where=str(path))
    return tables
