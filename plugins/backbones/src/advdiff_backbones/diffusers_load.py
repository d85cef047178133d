"""Networks of diffusers, new or from a folder or the hub."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from advdiff_backbones.classifier import refusal
from advdiff_backbones.diffusers_kinds import Kind
from advdiff_core.errors import DataError
from advdiff_core.interfaces.component import Build

__all__ = ["load_net", "need_diffusers", "pretrained"]

INSTALL = 'pip install "advdiff-backbones[diffusers]"'


def need_diffusers(build: Build) -> None:
    """Require the library.

    Raises:
        RecipeError: R10 naming what to install.
    """
    if importlib.util.find_spec("diffusers") is None:
        message = "this needs the library diffusers, which is not installed"
        raise refusal(build, "use", message, fix=INSTALL)


def load_net(kind: Kind, config: Any, build: Build) -> Any:
    """The network that settings mean.

    Args:
        kind: Which class.
        config: Settings with `path`, `subfolder`, `pretrained`, `config`.
        build: What the component is told.

    Raises:
        RecipeError: R10 if diffusers is missing, or refuses the arguments.
        DataError: D01 if nothing can be read at `path`.
    """
    need_diffusers(build)
    import diffusers

    net = _loaded(getattr(diffusers, kind.name), kind, config, build)
    for part in net.modules():
        if type(part).__name__ == "LabelEmbedding":
            # DiT's own label dropout, fixed at a tenth; the adapter drops labels itself.
            part.dropout_prob = 0.0
    return net


def _loaded(cls: Any, kind: Kind, config: Any, build: Build) -> Any:
    if bool(config.path) == bool(config.config):
        raise refusal(
            build, "path", "wanted either path or config, found "
            f"{'both' if config.path else 'neither'}",
            fix='write path = "FOLDER" for a trained network, config = { ... } for a new one',
        )  # fmt: skip
    if config.path and config.pretrained:
        return pretrained(cls, config.path, config.subfolder, build)
    arguments = _read_config(cls, config, build) if config.path else _arguments(kind, config, build)
    try:
        return cls.from_config(arguments) if config.path else cls(**arguments)
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        text = " ".join(str(error).split())
        raise refusal(
            build, "config", f"{kind.name} refuses these arguments: {text}",
            fix=f"see the arguments of diffusers.{kind.name}",
        ) from error  # fmt: skip


def _arguments(kind: Kind, config: Any, build: Build) -> dict[str, Any]:
    """Constructor arguments: what follows from the data, overruled by what the recipe says."""
    assert build.data is not None, "a backbone is built after the data"
    found = kind.defaults(build.data)
    classes = build.data.classes if config.conditional else 0
    if kind.null_inside:
        found[kind.label_key] = max(classes, 1)
    elif kind.label_key and classes:
        found[kind.label_key] = classes + 1
    return {**found, **config.config}


def _read_config(cls: Any, config: Any, build: Build) -> Any:
    try:
        return cls.load_config(config.path, subfolder=config.subfolder or None)
    except Exception as error:
        raise _unreadable(config.path, error, build, "path") from error


def pretrained(cls: Any, path: str, subfolder: str, build: Build, *, key: str = "path") -> Any:
    """A model of diffusers with its weights, which are read from safetensors alone.

    Args:
        cls: Class of diffusers.
        path: Folder or hub repository.
        subfolder: Folder inside of it; "" for none.
        build: What the component is told.
        key: Key of the recipe that holds `path`.

    Raises:
        DataError: D01 if nothing can be read there.
    """
    try:
        return cls.from_pretrained(
            path, subfolder=subfolder or None, use_safetensors=True, low_cpu_mem_usage=False
        )
    except Exception as error:
        raise _unreadable(path, error, build, key) from error


def _unreadable(path: str, error: Exception, build: Build, key: str) -> DataError:
    text = " ".join(str(error).split())
    kind = "folder" if Path(path).is_dir() else "folder or reachable hub repository"
    fix = (
        "put config.json and the .safetensors file of the network into a folder and write its path"
    )
    message = f"cannot read the {kind} {path}: {type(error).__name__}: {text}"
    return DataError(message, code="D01", where=f"{build.path}.{key}", fix=fix)
