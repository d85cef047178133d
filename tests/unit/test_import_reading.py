"""What comes out of honest pickles: the same as Python, torch and numpy make of them."""

from __future__ import annotations

import collections
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_foreign import torch_bytes
from torch import Tensor, nn

from advdiff_core.engine.importing.sources import open_source
from advdiff_core.engine.importing.states import find_states, load_state
from advdiff_core.errors import DataError
from advdiff_core.pickles.machine import read_pickle


def bits(tensor: Tensor) -> Tensor:
    """The bytes of a tensor."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


TENSORS: dict[str, Tensor] = {
    "turned": torch.arange(6.0).reshape(2, 3).t(),
    "sliced": torch.arange(10.0)[3:9:2],
    "scalar": torch.tensor(3.5, dtype=torch.float64),
    "empty": torch.empty(0, 4),
    "half": torch.arange(4.0).half(),
    "bf16": torch.arange(4.0).bfloat16(),
    "fp8": torch.arange(4.0).to(torch.float8_e4m3fn),
    "long": torch.arange(4),
    "short": torch.arange(4, dtype=torch.int16),
    "wide": torch.arange(4, dtype=torch.int32).to(torch.uint16),
    "flags": torch.tensor([True, False]),
    "complex": torch.complex(torch.ones(2), torch.zeros(2)),
    "parameter": nn.Parameter(torch.ones(2)),
    "images": torch.rand(1, 2, 3, 4, generator=torch.Generator().manual_seed(0)).to(
        memory_format=torch.channels_last
    ),
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_tensors_are_those_that_torch_reads(tmp_path: Path, legacy: bool, protocol: int) -> None:
    """Every dtype and layout, shared storages, as `torch.load` gives them."""
    shared = torch.arange(12.0)
    # torch cannot read back what it wrote for these types before 1.6.
    late = ("wide", "fp8") if legacy else ()
    known = {name: tensor for name, tensor in TENSORS.items() if name not in late}
    value = {**known, "first": shared[:6], "rest": shared[4:].view(2, 4)}
    data = torch_bytes(value, legacy=legacy, protocol=protocol)
    path = tmp_path / "x.pt"
    path.write_bytes(data)
    wanted = torch.load(io.BytesIO(data), weights_only=False)
    with open_source(path) as source:
        (state,) = find_states(source.tree, "x")
        found = load_state(state, size=len(data), where="x")
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        flat = (
            one.detach().contiguous().reshape(-1).view(torch.uint8) for one in (found[name], tensor)
        )
        assert torch.equal(*flat), name


VALUES: list[Any] = [
    None, True, 3, -(2**70), 2.5, "text \N{SNOWMAN}", b"bytes", (1, (2, 3)), [1, [2]], {"a": {}},
    {1, 2}, frozenset([1]), bytearray(b"xy"), collections.OrderedDict([("b", 1), ("a", 2)]),
    collections.Counter("aab"), np.float64(2.5), np.int32(7), np.bool_(True), 1e300, "", (), [],
    [0] * 1001, {str(n): n for n in range(1001)}, {(1, "a"): None, None: 1},
]  # fmt: skip


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("value", VALUES, ids=lambda value: f"{type(value).__name__}{value!r:.9}")
def test_plain_values_are_those_that_python_reads(value: Any, protocol: int) -> None:
    """Containers and scalars of every protocol; sets may come as lists."""
    found = read_pickle(io.BytesIO(pickle.dumps(value, protocol)), where="x")
    if isinstance(value, set | frozenset):
        assert set(found) == value
    else:
        assert found == value


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<i2", "?", "u1", "<c8", "<f2"])
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_numpy_arrays_are_those_that_numpy_reads(tmp_path: Path, dtype: str, protocol: int) -> None:
    """Either byte order, either order of axes."""
    array = np.arange(6).reshape(2, 3).astype(dtype)
    value = {"a": array, "b": np.asfortranarray(array), "c": array[:0]}
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(value, protocol))
    with open_source(path) as source:
        (state,) = find_states(source.tree, "x")
        found = load_state(state, size=10_000, where="x")
    for name, tensor in found.items():
        assert np.array_equal(tensor.numpy(), value[name])


def test_arrays_of_objects_are_refused(tmp_path: Path) -> None:
    """Q10: they hold pickles, not numbers."""
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({"a": np.array([1, "x"], dtype=object)}))
    with open_source(path) as source, pytest.raises(DataError, match="is no array of numbers"):
        load_state(find_states(source.tree, "x")[0], size=10_000, where="x")


def test_torch_modules_pickled_whole_are_read(tmp_path: Path) -> None:
    """Of torch's own classes: parameters and persistent buffers, as their state dict has them."""
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    network.register_buffer("passing", torch.ones(1), persistent=False)
    path = tmp_path / "x.pt"
    torch.save(network, path)
    with open_source(path) as source:
        (state,) = find_states(source.tree, "x")
        found = load_state(state, size=10_000, where="x")
    wanted = network.state_dict()
    assert set(found) == set(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
