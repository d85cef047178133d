"""Augmentations of a run: each with random numbers keyed by the position in the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import frozen
from torch import Tensor

from advdiff_core.draws import BLOCK, Draws
from advdiff_core.errors import Fault, RecipeError
from advdiff_core.interfaces.augmentation import Augmentation
from advdiff_core.step.scene import Role
from advdiff_core.types import Augmented, DataInfo

__all__ = ["Pipeline", "check_roles", "rows_of"]


@frozen(kw_only=True)
class Pipeline:
    """The augmentations of a recipe, applied in order.

    Numbers are keyed by seed, stream, step and the name of the augmentation, in blocks of the
    global batch: the position of a sample in the run decides, not how the batch is cut.

    Attributes:
        parts: Augmentations by name.
        seed: Seed of the run.
        batch: Samples per step.
    """

    parts: Sequence[tuple[str, Augmentation]] = ()
    seed: int = 0
    batch: int = BLOCK

    def __bool__(self) -> bool:
        return bool(self.parts)

    @property
    def mixes(self) -> bool:
        """True if some part mixes samples."""
        return any(part.mixes for _, part in self.parts)

    def widened(self, position: int, size: int) -> tuple[int, int]:
        """First position and number of samples to read, so that mixed samples find each other."""
        if not self.mixes:
            return position, size
        step, first = divmod(position, self.batch)
        low = first // BLOCK * BLOCK
        high = min(-(-(first + size) // BLOCK) * BLOCK, self.batch)
        return step * self.batch + low, high - low

    def __call__(self, batch: Augmented, *, position: int, stream: str = "") -> Augmented:
        """Augmented copies of the samples [B, ...] at positions of one step."""
        step, start = divmod(position, self.batch)
        size = len(batch.x)
        assert start + size <= self.batch, "samples of one step at a time"
        for name, part in self.parts:
            key = (self.seed, step, stream, "augment", name)
            rng = Draws(key, start=start, size=size, total=self.batch, device=batch.x.device)
            batch = part.augment(batch, rng)
        return batch


def check_roles(augment: Pipeline, roles: Mapping[str, Role], data: DataInfo) -> None:
    """Refuse models that cannot be trained on what the augmentations make.

    Raises:
        RecipeError: R10 for mixed labels beside other models than classifiers, or for a denoiser
            that would learn to augment because it is not told what was done.
    """
    for place, (name, part) in enumerate(augment.parts):
        where = f"data.augment.{place}.use"
        if part.mixes and not data.classes:
            _refuse(where, f"{name!r} mixes labels, and the data have none", "take it out")
        if part.mixes:
            _check_mixed(where, name, roles)
        if part.condition_dim:
            _check_told(where, name, part.condition_dim, roles)


def _check_mixed(where: str, name: str, roles: Mapping[str, Role]) -> None:
    for role in roles.values():
        if role.wear is not None or role.info.kind != "backbone":
            what = "denoiser" if role.wear is not None else role.info.kind
            message = f"{name!r} mixes labels, and the {what} {role.name!r} takes whole ones"
            _refuse(where, message, "take it out, or train classifiers alone")


def _check_told(where: str, name: str, wanted: int, roles: Mapping[str, Role]) -> None:
    for role in roles.values():
        found = role.augment_dim
        if role.wear is not None and role.owner is not None and found != wanted:
            known = f"takes {found} numbers, not {wanted}" if found else "is not told what was done"
            message = f"{name!r} would leak into samples: {role.name!r} {known}"
            fix = f"use a backbone with augment_dim = {wanted}, or take {name!r} out"
            _refuse(where, message, fix)


def _refuse(where: str, message: str, fix: str) -> None:
    raise RecipeError([Fault(code="R10", key=where, message=message, fix=fix)])


def rows_of(batch: Augmented, rows: slice) -> Augmented:
    """Some rows of a batch."""

    def cut(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[rows]

    return Augmented(batch.x[rows], cut(batch.y), cut(batch.c_augment))
