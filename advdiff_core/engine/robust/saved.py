"""Adversarial inputs for people and programs: a picture, and the tensors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save
from torch import Tensor

from advdiff_core.engine.fsio import write_atomic
from advdiff_core.engine.safe_read import read_bytes
from advdiff_core.engine.tensor_file import load_tensors
from advdiff_core.errors import DataError
from advdiff_core.hooks.pictures import rows_png
from advdiff_core.types import Domain

if TYPE_CHECKING:
    from advdiff_core.engine.robust.job import Stage
    from advdiff_core.engine.robust.runner import Runner

__all__ = ["PICTURE", "TENSORS", "missing_saved", "save_examples"]

PICTURE = "adversarial.png"
TENSORS = "adversarial.safetensors"
#: Inputs shown in the picture.
SHOWN = 16


def missing_saved(folder: Path, count: int) -> bool:
    """Whether fewer than `count` inputs were asked for when the folder's were saved.

    Args:
        folder: Folder of an evaluation.
        count: Inputs wanted.
    """
    if not count:
        return False
    path = folder / TENSORS
    try:
        found = load_tensors(read_bytes(path, limit=2**36), where=str(path))
    except DataError:
        return True
    return "asked" not in found or int(found["asked"]) < count


def save_examples(runner: Runner, folder: Path) -> None:
    """Write the first inputs that broke a sample; of a denoiser those at the largest radius.

    What was found before a kill is searched again: it comes out the same.

    Args:
        runner: The finished evaluation.
        folder: Its folder.
    """
    wanted = dict(_wanted(runner))
    pairs = []
    for one, (stage, bucket) in wanted.items():
        if (stage.number, one) not in runner.kept:
            _search_again(runner, stage, bucket)
        pairs.append(runner.kept[stage.number, one])
    tensors = {"asked": torch.tensor(runner.job.save), "id": torch.tensor(list(wanted))}
    if pairs:
        clean, moved = (torch.stack(part).contiguous() for part in zip(*pairs, strict=True))
        tensors |= {"clean": clean, "adversarial": moved}
        write_atomic(
            folder / PICTURE, _picture(clean[:SHOWN], moved[:SHOWN], runner.subject.domain)
        )
    write_atomic(folder / TENSORS, save(tensors))


def _wanted(runner: Runner) -> Iterator[tuple[int, tuple[Stage, list[int]]]]:
    """The samples, each with the stage and the bucket that it was found in."""
    seen: set[int] = set()
    for stage in runner.stages:
        if not runner.is_kept(stage):
            continue
        for row in runner.findings.rows.get(stage.number, []):
            for one, score in zip(row["ids"], row["score"], strict=True):
                if score and one not in seen and len(seen) < runner.job.save:
                    seen.add(one)
                    yield one, (stage, row["ids"])


def _search_again(runner: Runner, stage: Stage, bucket: list[int]) -> None:
    done = runner.search(stage, bucket)
    for place, one in enumerate(bucket):
        runner.kept[stage.number, one] = (done.start.x[place].cpu(), done.x[place].cpu())


def _picture(clean: Tensor, moved: Tensor, domain: Domain | None) -> bytes:
    """Clean inputs, moved ones, and what was added, stretched to the whole range."""
    if clean.dim() not in (2, 4):
        clean, moved = clean.flatten(1), moved.flatten(1)
    if clean.dim() == 2:
        return rows_png([("clean", clean), ("adversarial", moved)])
    low, high = (domain.low, domain.high) if domain is not None else (-1.0, 1.0)
    delta = moved - clean
    largest = float(delta.abs().max()) or 1.0
    added = (low + high) / 2 + delta / largest * (high - low) / 2
    rows = [("clean", clean), ("adversarial", moved), (f"added, times {1 / largest:.3g}", added)]
    return rows_png(rows, Domain(low, high))
