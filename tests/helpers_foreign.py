"""Checkpoints as other programs write them, honest and hostile, made on the spot."""

from __future__ import annotations

import collections
import io
import pickle
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["HOSTILE", "edm_bytes", "hostile", "persistent_tree", "torch_bytes", "watched"]

#: Source code that EDM's pickles carry and that loading them runs; here it tells on whoever does.
SOURCE = "open({marker!r}, 'w').close()\n"


class _Easy(dict):  # type: ignore[type-arg]
    """Stands for dnnlib.util.EasyDict."""


_Easy.__module__, _Easy.__qualname__, _Easy.__name__ = "dnnlib.util", "EasyDict", "EasyDict"


def _reconstruct_persistent_obj(meta: Any) -> Any:
    """Stands for the original, which runs the source it is given."""
    exec(meta["module_src"], {})
    return meta


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
_reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"


class Persistent(nn.Module):
    """A module that pickles as those of NVIDIA's persistence module do."""

    def __init__(self, title: str, source: str, **kwargs: Any) -> None:
        super().__init__()
        self.title, self.source = title, source
        self._init_args = ()
        self._init_kwargs = _Easy(kwargs)

    def __reduce__(self) -> Any:
        """As `torch_utils.persistence` does it: class name, source and state in one dict."""
        state = {k: v for k, v in self.__dict__.items() if k not in ("title", "source")}
        meta = {
            "type": "class", "version": 6, "module_src": self.source, "class_name": self.title,
            "state": state,
        }  # fmt: skip
        return _reconstruct_persistent_obj, (meta,), None


@contextmanager
def _original_modules() -> Iterator[None]:
    """The modules of the original program, for as long as something is pickled or unpickled."""
    names = {
        "torch_utils": {}, "dnnlib": {}, "dnnlib.util": {"EasyDict": _Easy},
        "torch_utils.persistence": {"_reconstruct_persistent_obj": _reconstruct_persistent_obj},
    }  # fmt: skip
    for name, parts in names.items():
        module = types.ModuleType(name)
        vars(module).update(parts)
        sys.modules[name] = module
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


def persistent_tree(
    state: Mapping[str, Tensor], source: str = "", title: str = "SongUNet", **kwargs: Any
) -> Persistent:
    """Nested persistent modules whose state dict is `state`."""
    root = Persistent(title, source, **kwargs)
    for name, tensor in state.items():
        *parts, last = name.split(".")
        at: nn.Module = root
        for part in parts:
            if part not in at._modules:
                at.add_module(part, Persistent("Part", source))
            at = at._modules[part]  # type: ignore[assignment]
        if tensor.is_floating_point() and "running" not in last and "filter" not in last:
            at.register_parameter(last, nn.Parameter(tensor.clone()))
        else:
            at.register_buffer(last, tensor.clone())
    return root


def edm_bytes(state: Mapping[str, Tensor], marker: Path, protocol: int = 4) -> bytes:
    """A network-snapshot pickle of EDM: `ema` is a preconditioner around the network."""
    source = SOURCE.format(marker=str(marker))
    inner = persistent_tree(state, source, model_channels=128, channel_mult=[2, 2, 2])
    outer = Persistent("EDMPrecond", source, img_resolution=32, label_dim=10, model_type="SongUNet")
    outer.add_module("model", inner)
    augment = persistent_tree({"Hz_fbank": torch.ones(4, 8)}, source, title="AugmentPipe", p=0.12)
    data = _Easy(
        ema=outer, loss_fn=Persistent("EDMLoss", source), augment_pipe=augment,
        dataset_kwargs=_Easy(path="cifar10.zip", use_labels=True, sizes={1, 2}),
    )  # fmt: skip
    with _original_modules():
        return pickle.dumps(data, protocol=protocol)


def torch_bytes(value: Any, *, legacy: bool = False, protocol: int = 2) -> bytes:
    """A file of `torch.save`, of today or before 1.6."""
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=not legacy, pickle_protocol=protocol)
    return file.getvalue()


def unpickle(data: bytes) -> Any:
    """What Python itself makes of a pickle: shows that a hostile one is armed."""
    with _original_modules():
        return pickle.loads(data)


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Any, *args: Any, state: Any = None) -> None:
        self.parts = (function, args) if state is None else (function, args, state)

    def __reduce__(self) -> Any:
        """The call."""
        return self.parts


def _text(marker: Path) -> str:
    return f"__import__('pathlib').Path({str(marker)!r}).touch()"


def _evaluated(marker: Path) -> bytes:
    return pickle.dumps({"ema": Calls(eval, _text(marker))}, 4)


def _executed(marker: Path) -> bytes:
    return pickle.dumps([Calls(exec, _text(marker))], 2)


def _shell(marker: Path) -> bytes:
    import os

    return pickle.dumps({"state_dict": Calls(os.system, f"touch '{marker}'")}, 0)


def _popen(marker: Path) -> bytes:
    import subprocess

    return pickle.dumps(Calls(subprocess.call, ["touch", str(marker)]), 3)


def _nested(marker: Path) -> bytes:
    """The result of a call inside the arguments of an allowed one."""
    inner = Calls(eval, f"({_text(marker)}, [('a', 1)])[1]")
    return pickle.dumps(Calls(collections.OrderedDict, inner), 4)


def _state(marker: Path) -> bytes:
    """A harmless call whose state is set by a harmful one."""
    state = Calls(eval, f"({_text(marker)}, {{'x': 1}})[1]")
    return pickle.dumps(Calls(collections.OrderedDict, state=state), 2)


def _memo(marker: Path) -> bytes:
    """The function is fetched from the memo, where it was put under another pretext."""
    text = _text(marker).encode()
    return b"cbuiltins\neval\np7\n0(d0g7\n(X" + len(text).to_bytes(4, "little") + text + b"tR."


def _stack_global(marker: Path) -> bytes:
    """The name is put together on the stack, from strings of the memo."""
    text = _text(marker).encode()
    return (
        b"\x80\x04\x8c\x08builtins\x94\x8c\x04eval\x940h\x00h\x01\x93(X"
        + len(text).to_bytes(4, "little") + text + b"tR."
    )  # fmt: skip


def _instance(marker: Path) -> bytes:
    """INST of protocol 0 calls too."""
    return b"(S" + repr(_text(marker)).encode() + b"\nibuiltins\neval\n."


def _object(marker: Path) -> bytes:
    """OBJ of protocol 1 calls too."""
    text = _text(marker).encode()
    return b"(cbuiltins\neval\nX" + len(text).to_bytes(4, "little") + text + b"o."


def _dotted(marker: Path) -> bytes:
    """A name with dots walks from a harmless module to `os.system`."""
    command = f"touch '{marker}'".encode()
    return (
        b"\x80\x04\x8c\x07pathlib\x8c\x09os.system\x93(X"
        + len(command).to_bytes(4, "little") + command + b"tR."
    )  # fmt: skip


def _partial(marker: Path) -> bytes:
    import functools

    return pickle.dumps(Calls(functools.reduce, eval, [_text(marker), {}]), 4)


def _torch_zip(marker: Path) -> bytes:
    return torch_bytes({"model": {"w": torch.ones(2)}, "epoch": Calls(eval, _text(marker))})


def _torch_legacy(marker: Path) -> bytes:
    return torch_bytes({"model": Calls(eval, _text(marker)), "w": torch.ones(2)}, legacy=True)


def _inside_storage(marker: Path) -> bytes:
    """A storage of EDM is a file inside the pickle: a pickle of its own."""
    evil = torch_bytes(Calls(eval, _text(marker)), legacy=True)
    return pickle.dumps(Calls(torch.storage._load_from_bytes, evil), 4)


#: Hostile files: what they do, and the name that the refusal must give.
HOSTILE: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "eval": (_evaluated, "builtins.eval"),
    "exec": (_executed, "builtins.exec"),
    "os.system": (_shell, "posix.system"),
    "subprocess": (_popen, "subprocess.call"),
    "nested": (_nested, "builtins.eval"),
    "state": (_state, "builtins.eval"),
    "memo": (_memo, "builtins.eval"),
    "stack global": (_stack_global, "builtins.eval"),
    "inst": (_instance, "builtins.eval"),
    "obj": (_object, "builtins.eval"),
    "dotted": (_dotted, "pathlib.os.system"),
    "reduce": (_partial, "functools.reduce"),
    "torch zip": (_torch_zip, "builtins.eval"),
    "torch legacy": (_torch_legacy, "builtins.eval"),
    "in a storage": (_inside_storage, "builtins.eval"),
}


def hostile(name: str, marker: Path) -> bytes:
    """A file that makes `marker` when it is unpickled."""
    return HOSTILE[name][0](marker)


_EVENTS = ("compile", "exec", "import", "os.system", "os.posix_spawn", "subprocess.Popen")
_seen: list[str] | None = None


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _seen is not None and event in _EVENTS:
        _seen.append(f"{event} {args[:1]!r}")


sys.addaudithook(_audit)
# Python imports its own codecs when they are first used.
"".encode("raw_unicode_escape")


@contextmanager
def watched() -> Iterator[list[str]]:
    """Everything Python compiles, runs or imports in the block, by its own audit events."""
    global _seen
    _seen = []
    try:
        yield _seen
    finally:
        _seen = None
