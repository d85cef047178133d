"""The best checkpoint of a run, as its newest one names it. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from attrs import asdict, frozen

from advdiff_core.engine import manifest as layout
from advdiff_core.engine import strict_json
from advdiff_core.errors import DataError

__all__ = ["BEST", "Standing", "best_checkpoint", "names_best", "read_standing"]

#: What stands for the best checkpoint where one is named: `--checkpoint best`, `init = "RUN/best"`.
BEST: Final = "best"


@frozen(kw_only=True)
class Standing:
    """What the measurements of a run came to so far; a part of every checkpoint.

    Attributes:
        number: Name of the number that decides; "" before the first measurement.
        goal: "max" or "min".
        value: Its best value; None before there is one.
        nimg: Images seen by the best weights.
        measured: Images at the last measurement; -1 before the first.
        over: Whether patience is at its end.
    """

    number: str = ""
    goal: str = "max"
    value: float | None = None
    nimg: int = 0
    measured: int = -1
    over: bool = False

    def as_json(self) -> dict[str, Any]:
        """Its attributes."""
        return asdict(self)

    def __str__(self) -> str:
        """The best value in words; "" before there is one."""
        if self.value is None:
            return ""
        return f"{self.number} {self.value:.4g} at {self.nimg:,} images"

    @classmethod
    def read(cls, noted: object) -> Standing:
        """From what a checkpoint holds; as before the first measurement if that is nothing.

        Raises:
            DataError: S15 if it is something else.
        """
        if not noted:
            return cls()
        if not isinstance(noted, Mapping) or noted.keys() != _TYPES.keys():
            raise DataError("is no record of measurements", code="S15", where="validation")
        for name, types in _TYPES.items():
            if type(noted[name]) not in types:
                message = f"is no record of measurements: {name} is {noted[name]!r}"
                raise DataError(message, code="S15", where="validation")
        return cls(**noted)


#: Types of what a record of measurements holds.
_TYPES: Mapping[str, tuple[type, ...]] = {
    "number": (str,),
    "goal": (str,),
    "value": (float, int, type(None)),
    "nimg": (int,),
    "measured": (int,),
    "over": (bool,),
}


def read_standing(checkpoints: Path) -> Standing:
    """What the newest readable checkpoint says of the measurements of its run.

    Args:
        checkpoints: Folder of checkpoints.
    """
    for _, path in layout.candidates(checkpoints):
        with suppress(DataError):
            return Standing.read(_meta(path).get("validation"))
    return Standing()


def _meta(path: Path) -> Mapping[str, Any]:
    """What a checkpoint says about itself."""
    manifest = layout.read_manifest(path)
    data = layout.read_entry(path, layout.STATE, manifest.files[layout.STATE])
    state = strict_json.loads(data, where=str(path / layout.STATE))
    meta = state.get("meta") if isinstance(state, Mapping) else None
    if not isinstance(meta, Mapping):
        raise DataError("is not the state of a checkpoint", code="S15", where=str(path))
    return meta


def names_best(path: Path) -> bool:
    """Whether a path is `best` in a run or in its folder of checkpoints, and nothing of its own."""
    return path.name == BEST and not path.exists() and path.parent.is_dir()


def best_checkpoint(path: Path) -> Path:
    """The folder of the best checkpoint.

    Args:
        path: A run, or its folder of checkpoints.

    Raises:
        DataError: S02 if nothing was measured, or the checkpoint is gone.
    """
    root = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    standing = read_standing(root)
    if standing.value is None:
        message = "no checkpoint is the best: nothing was measured during this training"
        fix = "train with a table [validate], or name a checkpoint by its images"
        raise DataError(message, code="S02", where=str(path), fix=fix)
    found = root / str(standing.nimg)
    if not found.is_dir():
        message = f"the best checkpoint, of {standing.nimg:,} images, is gone"
        raise DataError(message, code="S02", where=str(path), fix="name another one")
    return found
