"""What stored weights were trained on, as far as it was written down beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from advdiff_core.engine import manifest as layout
from advdiff_core.engine.importing.folder import FACTS, read_folder
from advdiff_core.engine.stored import read_state
from advdiff_core.engine.weights import find_checkpoint
from advdiff_core.interfaces.frozen_network import Worn, noise_at
from advdiff_core.step.scene import Scene
from advdiff_core.types import DataInfo, Domain

__all__ = ["denoisers_noted", "samples_noted", "trained_as", "trained_on"]


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
    noted = read_folder(path).facts["data"] if (path / FACTS).exists() else _meta(path, "samples")
    return _read(noted) if isinstance(noted, Mapping) else None


def _meta(path: Path, key: str) -> Any:
    """What a checkpoint says under a key; None if it has none."""
    found, _ = find_checkpoint(path)
    return read_state(found, layout.read_manifest(found))["meta"].get(key)


def denoisers_noted(scene: Scene) -> dict[str, Any]:
    """What a checkpoint says of how its denoisers were worn, by role, in JSON types."""
    if scene.schedule is None:
        return {}
    noise = [list(row) for row in noise_at(scene.schedule)]
    return {
        name: {
            "parametrization": info.parametrization, "sigma_data": info.sigma_data, "noise": noise,
        }
        for name, info in scene.models.items()
        if info.parametrization != "none"
    }  # fmt: skip


def trained_as(path: Path, role: str) -> Worn | None:
    """How stored weights were worn as a denoiser in training; None if nothing says so.

    Args:
        path: As for `trained_on`; an imported model and a file say nothing.
        role: Role that gets the weights: of the same name there, or the only one.

    Raises:
        DataError: If what is there is damaged.
    """
    if path.is_file() or (path / FACTS).exists():
        return None
    noted = _meta(path, "denoisers") or {}
    found = noted.get(next(iter(noted)) if len(noted) == 1 else role)
    if not isinstance(found, Mapping):
        return None
    noise = tuple((float(t), float(a), float(s)) for t, a, s in found["noise"])
    return Worn(
        parametrization=found["parametrization"], sigma_data=found["sigma_data"], noise=noise
    )


def _read(noted: Mapping[str, Any]) -> DataInfo:
    domain = None if noted["domain"] is None else Domain(*noted["domain"])
    return DataInfo(shape=tuple(noted["shape"]), count=0, domain=domain, classes=noted["classes"])
