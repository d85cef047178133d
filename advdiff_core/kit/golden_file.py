"""The golden numbers of a plugin: kept in its tests, compared with later."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from advdiff_core.errors import DataError, StorageError
from advdiff_core.hooks.files import write_file
from advdiff_core.kit.build import Built
from advdiff_core.kit.findings import Finding, bad, capped, note, ok

__all__ = ["FILE", "compared", "record"]

#: Where they are kept, inside the project.
FILE = Path("tests") / "golden.json"
#: Layout of the file.
FORMAT = 1
RECORD = "if it is meant to be: advdiff check-plugin . --record, and say why in the commit"

Steps = Mapping[str, Mapping[str, Any]]


def record(built: Built, steps: Steps) -> Iterator[Finding]:
    """Write the numbers of the first steps of every recipe.

    Raises:
        StorageError: If they cannot be written.
    """
    assert built.project.folder is not None, "the caller has looked"
    if not steps:
        fix = "add a recipe to the package"
        yield note("golden", "no recipe takes a step: nothing is recorded", fix)
        return
    path = built.project.folder / FILE
    content = {"format": FORMAT, "recipes": steps}
    try:
        path.parent.mkdir(exist_ok=True)
        write_file(path, json.dumps(content, indent=1, sort_keys=True) + "\n")
    except OSError as error:
        message = f"cannot be written: {error.strerror}"
        raise StorageError(message, where=str(path), fix="check its folder") from error
    yield ok("golden", f"recorded the first steps of {', '.join(sorted(steps))} in {FILE}")


def compared(built: Built, steps: Steps) -> Iterator[Finding]:
    """What is not as it was recorded.

    Raises:
        DataError: If the file is damaged.
    """
    folder = built.project.folder
    if folder is None or not (folder / FILE).exists():
        fix = "advdiff check-plugin . --record keeps those of the first steps in " + str(FILE)
        if folder is not None and steps:
            yield note("golden", "no numbers are kept to compare with", fix)
        return
    golden = _read(folder / FILE)
    findings = [
        bad("golden", f"{name}: {text}", RECORD)
        for name in sorted({*steps, *golden})
        for text in _differences(name, steps, golden)
    ]
    yield from capped(findings)
    if not findings:
        yield ok("golden", f"the first steps of {', '.join(sorted(golden))} are as recorded")


def _differences(name: str, steps: Steps, golden: Steps) -> Iterator[str]:
    from advdiff_core.engine.golden import differences

    if name not in golden:
        yield "its first steps are not recorded"
    elif name not in steps:
        yield "its first steps are recorded, but it takes none"
    else:
        yield from differences(steps[name], golden[name])


def _read(path: Path) -> Steps:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        recipes: Steps = content["recipes"]
        known = content["format"] == FORMAT and all(isinstance(r, dict) for r in recipes.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"cannot be read: {type(error).__name__}: {error}"
        raise DataError(message, where=str(path), fix="write it anew with --record") from error
    if not known:
        found = content["format"]
        message = f"has format {found!r}, wanted {FORMAT}"
        raise DataError(message, where=str(path), fix="write it anew with --record")
    return recipes
