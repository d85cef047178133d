"""What stored weights were trained on, as far as it was written down beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from advdiff_core.engine import manifest as layout
from advdiff_core.engine.importing.folder import FACTS, read_folder
from advdiff_core.engine.stored import read_state
from advdiff_core.engine.weights import find_checkpoint
from advdiff_core.types import DataInfo, Domain

__all__ = ["samples_noted", "trained_on"]


def samples_noted(info: DataInfo) -> dict[str, Any]:
    """What a checkpoint says of the samples that its networks were trained on, in JSON types."""
    domain = None if info.domain is None else [info.domain.low, info.domain.high]
    return {"shape": list(info.shape), "classes": info.classes, "domain": domain}


def trained_on(path: Path) -> DataInfo | None:
    """The samples that stored weights were trained on, of count 0; None if nothing says so.

    Args:
        path: A run or checkpoint, a folder of `advdiff import`, or a safetensors file, which says
            nothing.

    Raises:
        DataError: If what is there is damaged.
    """
    if path.is_file():
        return None
    if (path / FACTS).exists():
        noted = read_folder(path).facts["data"]
    else:
        found, _ = find_checkpoint(path)
        noted = read_state(found, layout.read_manifest(found))["meta"].get("samples")
    return _read(noted) if isinstance(noted, Mapping) else None


def _read(noted: Mapping[str, Any]) -> DataInfo:
    domain = None if noted["domain"] is None else Domain(*noted["domain"])
    return DataInfo(shape=tuple(noted["shape"]), count=0, domain=domain, classes=noted["classes"])
