"""Statistics of real data in a feature space, kept in files that say what they were made with."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from attrs import frozen
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from advdiff_core.errors import DataError, StorageError
from advdiff_core.math.statistics import Moments

__all__ = ["Reference", "cached", "read_reference", "write_reference"]

_KEY = "advdiff.reference"
#: What two statistics must have in common to be compared.
SAME = ("features", "weights", "resize", "normalise", "dtype", "bits", "shape")


@frozen(kw_only=True)
class Reference:
    """Statistics of real data.

    Attributes:
        moments: Mean and covariance of the features.
        provenance: Extractor (features, weights, resize, normalise, dtype, bits), `shape` of the
            images, `count`, and `data`, the fingerprint of their dataset.
    """

    moments: Moments
    provenance: Mapping[str, Any]


def write_reference(path: Path, reference: Reference) -> None:
    """Write statistics to a `.safetensors` file, whole or not at all.

    Raises:
        StorageError: If it cannot be written.
    """
    tensors = {"mean": reference.moments.mean, "covariance": reference.moments.covariance}
    told = json.dumps(dict(reference.provenance), sort_keys=True)
    temp = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in tensors.items()}, temp, metadata={_KEY: told})
        temp.replace(path)
    except (OSError, SafetensorError) as cause:
        message = f"the statistics cannot be written: {cause}"
        raise StorageError(message, code="S04", where=str(path), fix="free the place") from cause


def read_provenance(path: Path, where: str) -> dict[str, Any]:
    """What a file of statistics says it was made with.

    Raises:
        DataError: D01 if there is no such file, D02 if it holds no statistics.
    """
    if not path.is_file():
        fix = "copy one from the folder references of a run, or leave the key out"
        raise DataError(f"there is no file {path}", code="D01", where=where, fix=fix)
    try:
        with safe_open(path, framework="pt") as file:
            found = json.loads((file.metadata() or {})[_KEY])
            names = set(file.keys())
    except (SafetensorError, KeyError, ValueError, OSError) as cause:
        message = f"{path} holds no statistics of advdiff-metrics"
        raise DataError(message, code="D02", where=where, fix="name another file") from cause
    if not isinstance(found, dict) or names != {"mean", "covariance"}:
        message = f"{path} holds no statistics of advdiff-metrics"
        raise DataError(message, code="D02", where=where, fix="name another file")
    return found


def read_reference(path: Path, wanted: Mapping[str, Any], where: str) -> Reference:
    """Statistics of a file, if they were made the way `wanted` says.

    Args:
        path: The file.
        wanted: Provenance of what they will be compared with; count and data may differ.
        where: Metric that reads them.

    Raises:
        DataError: D01, D02; D04 if something in the provenance differs, naming it.
    """
    told = read_provenance(path, where)
    for key in SAME:
        if told.get(key) != _plain(wanted.get(key)):
            message = f"{path} has {key} {told.get(key)!r}, wanted {wanted.get(key)!r}"
            fix = "use statistics of the same extractor and images, or leave reference out"
            raise DataError(message, code="D04", where=where, fix=fix)
    with safe_open(path, framework="pt") as file:
        mean, covariance = file.get_tensor("mean"), file.get_tensor("covariance")
    width = len(mean)
    if covariance.shape != (width, width) or not bool(torch.isfinite(covariance).all()):
        message = f"{path} holds statistics that are damaged"
        raise DataError(message, code="D02", where=where, fix="make them again")
    return Reference(moments=Moments.known(int(told["count"]), mean, covariance), provenance=told)


def cached(
    folder: Path, name: str, wanted: Mapping[str, Any], make: Callable[[], Moments], where: str
) -> Moments:
    """Statistics from `folder/references/`, made and put there if they are not.

    Args:
        folder: Folder of the run.
        name: Extractor, for the file's name.
        wanted: Whole provenance; its digest is part of the file's name.
        make: Makes them.
        where: Metric that reads them.
    """
    text = json.dumps(_plain(wanted), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    path = folder / "references" / f"{name}-{digest}.safetensors"
    if path.is_file():
        return read_reference(path, wanted, where).moments
    moments = make()
    write_reference(path, Reference(moments=moments, provenance=wanted))
    return moments


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(value))
