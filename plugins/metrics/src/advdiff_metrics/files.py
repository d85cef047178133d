"""Weights from files: found or refused in one line, read as tensors and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from advdiff_core.errors import AdvdiffError, DataError, PluginError

__all__ = ["file_digest", "installed", "load_strictly", "read_tensors", "wanted_file"]

T = TypeVar("T")


def installed(read: Callable[[], T], *, package: str, where: str, extra: str = "") -> T:
    """What `read` imports.

    Args:
        read: Imports a library and returns something of it.
        package: What is missing if it cannot.
        where: Metric that needs it.
        extra: Extra of this plugin that installs it, if one does.

    Raises:
        PluginError: P05 naming what to install.
    """
    try:
        return read()
    except ImportError as cause:
        message = f"needs {package}, which cannot be imported: {cause}"
        fix = f'pip install "advdiff-metrics[{extra}]"' if extra else f"pip install {package}"
        raise PluginError(message, code="P05", where=where, fix=fix) from cause


def wanted_file(path: Path, *, where: str, fix: str) -> Path:
    """`path`, if there is a file.

    Raises:
        DataError: D01 if there is none.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}", code="D01", where=where, fix=fix)
    return path


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits; read once per size and time of change."""
    found = path.stat()
    return _digest(path, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=64)
def _digest(path: Path, size: int, changed: int) -> str:
    del size, changed
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_tensors(path: Path, *, where: str) -> dict[str, Tensor]:
    """Tensors of a `.safetensors` file or a `.pth` of tensors; a table in `model` or so is opened.

    Args:
        path: The file. Nothing in it is run: pickles are read with `weights_only=True`.
        where: Metric that needs it, for messages.

    Raises:
        DataError: D02 if it is damaged, or holds anything but tensors.
    """
    try:
        raw = _read(path)
    except AdvdiffError:
        raise
    except Exception as cause:
        reason = str(cause).split("\n", maxsplit=1)[0][:160]
        message = f"{path} cannot be read as tensors: {reason}"
        fix = "get the file again; convert a pickle of objects to safetensors where it was made"
        raise DataError(message, code="D02", where=where, fix=fix) from cause
    for key in ("state_dict", "model", "teacher"):
        raw = raw[key] if isinstance(raw.get(key), Mapping) else raw
    tensors = {str(name): value for name, value in raw.items() if isinstance(value, Tensor)}
    if not tensors:
        raise DataError(
            f"{path} holds no tensors", code="D02", where=where, fix="name another file"
        )
    return tensors


def _read(path: Path) -> Mapping[str, Any]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    found = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(found, Mapping):
        message = f"it holds a {type(found).__name__}, wanted tensors by name"
        raise TypeError(message)
    return found


def load_strictly(
    net: nn.Module, tensors: Mapping[str, Tensor], *, where: str, spare: tuple[str, ...] = ()
) -> None:
    """Put tensors into a network, name by name.

    Args:
        net: The network.
        tensors: Its tensors.
        where: File they come from.
        spare: Beginnings of names that the network may lack or the file may hold beyond it.

    Raises:
        DataError: S12 if a name is missing or unexpected, or a shape differs.
    """
    wanted = dict(net.state_dict())
    both = [name for name in wanted if name in tensors]
    missing = [name for name in wanted if name not in tensors and not name.startswith(spare)]
    beyond = [name for name in tensors if name not in wanted and not name.startswith(spare)]
    shapes = [name for name in both if wanted[name].shape != tensors[name].shape]
    for what, names in (
        ("lacks", missing),
        ("has beyond it", beyond),
        ("has in other shape", shapes),
    ):
        if names:
            message = f"does not fit the network: it {what} {len(names)} tensors, first {names[0]}"
            fix = "name the weights of this architecture"
            raise DataError(message, code="S12", where=where, fix=fix)
    net.load_state_dict({name: tensors[name] for name in both}, strict=False)
