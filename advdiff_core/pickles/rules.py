"""The names a pickle may hold, and what stands in for each: our own functions. Free of torch.

A name that is only ever an argument (a dtype, a class of storages) has no function. Modules of
torch.nn are inert objects whose tensors are taken and whose code is not needed.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from advdiff_core.errors import DataError
from advdiff_core.pickles.objects import Inert, Named, Storage, TensorRef

__all__ = ["DTYPES_OF_TORCH", "STORAGES", "as_array", "call", "is_known", "known_name"]

#: Class of a storage to the data type of its elements.
STORAGES = {
    "torch.BFloat16Storage": "BF16", "torch.BoolStorage": "BOOL", "torch.ByteStorage": "U8",
    "torch.CharStorage": "I8", "torch.ComplexFloatStorage": "C64", "torch.DoubleStorage": "F64",
    "torch.FloatStorage": "F32", "torch.HalfStorage": "F16", "torch.IntStorage": "I32",
    "torch.LongStorage": "I64", "torch.ShortStorage": "I16", "torch.storage.UntypedStorage": "U8",
}  # fmt: skip

#: dtypes by the name torch gives them.
DTYPES_OF_TORCH = {
    "torch.bfloat16": "BF16", "torch.bool": "BOOL", "torch.complex64": "C64",
    "torch.float16": "F16", "torch.float32": "F32", "torch.float64": "F64",
    "torch.float8_e4m3fn": "F8_E4M3", "torch.float8_e4m3fnuz": "F8_E4M3FNUZ",
    "torch.float8_e5m2": "F8_E5M2", "torch.float8_e5m2fnuz": "F8_E5M2FNUZ",
    "torch.int16": "I16", "torch.int32": "I32", "torch.int64": "I64", "torch.int8": "I8",
    "torch.uint16": "U16", "torch.uint32": "U32", "torch.uint64": "U64", "torch.uint8": "U8",
}  # fmt: skip

_TENSOR_TYPES = frozenset({
    "torch.Tensor", "torch.nn.parameter.Buffer", "torch.nn.parameter.Parameter",
})  # fmt: skip
_BASES = frozenset({"builtins.dict", "builtins.list", "builtins.object"})
_MODULE = re.compile(r"torch\.nn\.modules\.[a-z]+\.[A-Z][A-Za-z0-9]*")
_SCALAR_TYPE = re.compile(r"b1|[iu][1248]|f[248]|c(8|16)")
_RENAMED = (
    ("__builtin__", "builtins"), ("copy_reg", "copyreg"), ("numpy.core.", "numpy._core."),
)  # fmt: skip


def known_name(module: str, name: str) -> str:
    """`module.name`, in the spelling of today's Python and NumPy."""
    for old, new in _RENAMED:
        if module == old or (old.endswith(".") and module.startswith(old)):
            module = new + module[len(old) :]
    return f"{module}.{name}"


def is_known(path: str) -> bool:
    """True if the name may stand in a pickle."""
    values = (STORAGES, DTYPES_OF_TORCH, _TENSOR_TYPES, _BASES, _CALLS)
    return any(path in table for table in values) or _MODULE.fullmatch(path) is not None


def call(path: str, arguments: tuple[Any, ...], where: str) -> Any:
    """What stands in for a call of the name `path`.

    Args:
        path: A known name.
        arguments: As in the pickle.
        where: The file, for messages.

    Raises:
        DataError: Q01 if it is a name for arguments alone; Q10 from a storage inside the pickle.
        ValueError: For arguments the original would not take either.
        TypeError: Likewise.
    """
    if path == "torch.storage._load_from_bytes":
        return _nested_storage(*arguments, where=where)
    if path in _CALLS:
        return _CALLS[path](*arguments)
    if path == "builtins.dict":
        return {}
    if _MODULE.fullmatch(path):
        return Inert(path, arguments)
    message = f"the pickle calls {path}, which is no function of a checkpoint"
    raise DataError(message, code="Q01", where=where, fix="nothing was run")


def _nested_storage(data: Any, *, where: str) -> Any:
    """A storage that was pickled as the bytes of a file of its own, as EDM's are."""
    from advdiff_core.pickles.torch_files import read_legacy

    if type(data) is not bytes:
        raise TypeError("a storage that is no bytes")
    found = read_legacy(io.BytesIO(data), where=where)
    if not isinstance(found, Storage):
        raise TypeError(f"a {type(found).__name__} instead of a storage")
    return found


def _rebuild_tensor(*parts: Any) -> TensorRef:
    return TensorRef.checked(*parts[:4])


def _rebuild_tensor_v3(*parts: Any) -> TensorRef:
    storage, offset, shape, stride, _, _, dtype, *_ = parts
    return TensorRef.checked(storage, offset, shape, stride, DTYPES_OF_TORCH[dtype.path])


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    if not isinstance(data, TensorRef):
        raise TypeError(f"a parameter of a {type(data).__name__}")
    return data


def _rebuild_from_type(function: Any, kind: Any, arguments: Any, _: Any) -> Any:
    """A tensor with attributes; only torch's own classes."""
    if not isinstance(function, Named) or not isinstance(kind, Named):
        raise TypeError("a tensor of unknown type")
    if kind.path not in _TENSOR_TYPES:
        raise ValueError(f"a tensor of type {kind.path}")
    return _REBUILDS[function.path](*arguments)


def _reconstruct_persistent(meta: Any) -> Inert:
    """An object of NVIDIA's persistence module: its state. Its source code stays text."""
    title = meta["class_name"]
    # No other value is turned into text: shared parts of a list would be written out each time.
    return Inert(title if type(title) is str else "?", (), meta["state"])


def _reconstructor(kind: Any, base: Any, state: Any) -> Any:
    if base != Named("builtins.object"):
        state = dict(state) if base == Named("builtins.dict") and type(state) is dict else None
        return {} if state is None else state
    return call(kind.path, (), "")


def _encode(text: Any, codec: Any = "utf-8") -> bytes:
    if type(text) is not str or codec not in ("latin1", "latin-1", "utf-8"):
        raise ValueError("an encoding that is not read")
    return text.encode(codec)


def _sized(size: Any = ()) -> tuple[Any, ...]:
    return tuple(size)


def _items(*entries: Any) -> dict[Any, Any]:
    """A dict of the pairs that old pickles of ordered dicts hold."""
    pairs = entries[0] if entries else []
    pairs = pairs.items() if type(pairs) is dict else pairs
    return {key: value for key, value in pairs if type(key) in (str, int)}


def _first_of(*parts: Any) -> str:
    return ":".join(str(part) for part in parts if type(part) in (str, int))


def _path(*parts: Any) -> str:
    return "/".join(part for part in parts if type(part) is str)


def _scalar(kind: Any, data: Any) -> Any:
    return np.frombuffer(data, _numpy_dtype(kind), count=1)[0].item()


def _numpy_dtype(kind: Any) -> np.dtype[Any]:
    """The dtype of numbers that an inert `numpy.dtype` describes."""
    if not isinstance(kind, Inert) or kind.kind != "numpy.dtype":
        raise TypeError("an array whose type is no dtype")
    name = kind.args[0]
    if type(name) is not str or not _SCALAR_TYPE.fullmatch(name):
        raise ValueError("an array of other things than numbers")
    order = kind.state[1] if type(kind.state) is tuple and len(kind.state) > 1 else "="
    return np.dtype(f"{order}{name}" if order in ("<", ">") else name)


def _frombuffer(data: Any, kind: Any, shape: Any, order: Any) -> Inert:
    return Inert("numpy.ndarray", (), (1, shape, kind, order == "F", data))


def as_array(inert: Inert) -> np.ndarray[Any, Any]:
    """The numbers of an inert `numpy.ndarray`.

    Raises:
        ValueError: If its bytes do not fit its shape.
        TypeError: If it holds anything but numbers.
    """
    _, shape, kind, fortran, data = inert.state
    if type(data) is str:
        # Strings of Python 2 are bytes.
        data = data.encode("latin-1")
    if type(shape) is not tuple or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("its shape is no tuple of sizes")
    flat = np.frombuffer(data, _numpy_dtype(kind))
    return flat.reshape(shape, order="F" if fortran else "C")


def _inert(kind: str) -> Callable[..., Inert]:
    return lambda *arguments: Inert(kind, arguments)


_REBUILDS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
}
_CALLS: dict[str, Callable[..., Any]] = {
    **_REBUILDS,
    "_codecs.encode": _encode,
    "argparse.Namespace": _inert("argparse.Namespace"),
    "builtins.bytearray": lambda data=b"", codec="latin-1": (
        _encode(data, codec) if type(data) is str else bytes(memoryview(data))
    ),
    "builtins.bytes": lambda data=b"": bytes(memoryview(data)),
    "builtins.frozenset": lambda items=(): list(items),
    "builtins.set": lambda items=(): list(items),
    "collections.Counter": _items,
    "collections.OrderedDict": _items,
    "collections.defaultdict": lambda *_: {},
    "copyreg._reconstructor": _reconstructor,
    "dnnlib.util.EasyDict": lambda *_: {},
    "numpy._core.multiarray._reconstruct": lambda *_: Inert("numpy.ndarray"),
    "numpy._core.multiarray.scalar": _scalar,
    "numpy._core.numeric._frombuffer": _frombuffer,
    "numpy.dtype": _inert("numpy.dtype"),
    "numpy.ndarray": _inert("numpy.ndarray"),
    "pathlib.PosixPath": _path,
    "pathlib.PurePosixPath": _path,
    "torch.Size": _sized,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.device": _first_of,
    "torch.storage._load_from_bytes": _nested_storage,
    "torch_utils.persistence._reconstruct_persistent_obj": _reconstruct_persistent,
}
