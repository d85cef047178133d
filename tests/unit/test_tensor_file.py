"""safetensors files: own writer, the library's reader, and the checks between."""

import json
import struct
import time

import pytest
import safetensors.torch
import torch

from advdiff_core.engine import tensor_file
from advdiff_core.engine.manifest import TensorEntry
from advdiff_core.engine.tensor_file import (
    DTYPES,
    check_header,
    chunks,
    describe,
    load_tensors,
    total_size,
)
from advdiff_core.errors import DataError


def file_of(tensors):
    """The bytes of a file."""
    return b"".join(bytes(chunk) for chunk in chunks(tensors))


def raw_file(header, body=b""):
    """A file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    """A header entry."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize("name", sorted(DTYPES))
def test_tensor_file_keeps_each_dtype_to_the_bit(name):
    """S12: every dtype comes back as it was, NaN bits included."""
    dtype = DTYPES[name]
    bits = torch.arange(64, dtype=torch.uint8).repeat(4) * 37
    bits = bits % 2 if dtype == torch.bool else bits
    tensor = bits.view(dtype)
    again = load_tensors(file_of({"t": tensor}), where="x")["t"]
    assert again.dtype == dtype
    assert torch.equal(again.view(torch.uint8), tensor.view(torch.uint8))


def test_tensor_file_is_what_the_library_writes():
    """Any reader of safetensors can open it: the same bytes as the library's own."""
    tensors = {
        "b.weight": torch.randn(3, 2, generator=torch.Generator().manual_seed(1)),
        "a.bias": torch.arange(5, dtype=torch.float64),
        "flag": torch.tensor(True),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "none": torch.empty(0, 4),
    }
    ours, theirs = file_of(tensors), safetensors.torch.save(tensors)
    assert ours == theirs


def test_tensor_file_has_the_size_that_was_told():
    """The size is known before a byte is written, for the check of free space."""
    tensors = {"a": torch.ones(7, 3), "b": torch.tensor(1, dtype=torch.int8)}
    assert total_size(tensors) == len(file_of(tensors))
    assert describe(tensors) == {"a": TensorEntry("F32", (7, 3)), "b": TensorEntry("I8", ())}


def test_tensor_file_writes_values_whatever_the_layout():
    """Transposed, sliced, conjugated and trained tensors are written row by row as they read."""
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "transposed": base.T,
        "sliced": base[:, ::2],
        "expanded": torch.ones(1).expand(3),
        "conjugated": torch.tensor([1 + 2j]).conj(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    again = load_tensors(file_of(tensors), where="x")
    for name, tensor in tensors.items():
        assert torch.equal(again[name], tensor), name


def test_tensor_file_is_written_in_pieces(monkeypatch):
    """A large tensor is not handed to the disk in one call."""
    monkeypatch.setattr(tensor_file, "_PIECE", 16)
    pieces = list(chunks({"a": torch.arange(10.0)}))
    assert [len(piece) for piece in pieces[1:]] == [16, 16, 8]
    assert torch.equal(load_tensors(b"".join(pieces), where="x")["a"], torch.arange(10.0))


def test_loaded_tensors_are_writable_and_own_their_memory():
    """Changing one changes neither another nor the bytes it was read from."""
    data = file_of({"a": torch.zeros(2), "b": torch.zeros(2)})
    copy = bytes(data)
    loaded = load_tensors(data, where="x")
    loaded["a"] += 1
    assert data == copy
    assert torch.equal(loaded["b"], torch.zeros(2))


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "Q01"),
        (b"\x80\x04\x95", "Q01"),
        (b"PK\x03\x04" + b"\0" * 60, "Q01"),
        (struct.pack("<Q", 2**63) + b"{}", "Q01"),
        (raw_file(b'{"a"'), "S15"),
        (raw_file(b'{"a": 1, "a": 2}'), "S15"),
        (raw_file(b'{"a": ' + b"[" * 1000 + b"}"), "S15"),
        (raw_file({"a": 1}), "Q10"),
        (raw_file({"a": {"dtype": "F32"}}), "Q10"),
        (raw_file({"a": entry("F128")}, b"\0" * 4), "Q10"),
        (raw_file({"a": entry(["F32"])}, b"\0" * 4), "Q10"),
        (raw_file({"a": entry(shape=[2])}, b"\0" * 4), "Q10"),
        (raw_file({"a": entry(shape=[-1, -1])}, b"\0" * 4), "Q10"),
        (raw_file({"a": entry(shape=[1.0])}, b"\0" * 4), "Q10"),
        (raw_file({"a": entry(shape=[2**60], offsets=[0, 2**62])}, b"\0" * 4), "Q10"),
        (raw_file({"a": entry(shape=[2**31, 2**31, 4], offsets=[0, 0])}), "Q10"),
        (raw_file({"a": entry(offsets=[0, 4])}, b"\0" * 3), "Q10"),
        (raw_file({"a": entry(offsets=[0, 4])}, b"\0" * 8), "Q10"),
        (raw_file({"a": entry(), "b": entry()}, b"\0" * 4), "Q10"),
        (raw_file({"a": entry(offsets=[4, 8])}, b"\0" * 8), "Q10"),
    ],
)
def test_load_refuses_a_malformed_file(data, code):
    """Q10: overlaps, holes, overflows and other formats are refused, nothing is allocated."""
    with pytest.raises(DataError) as caught:
        load_tensors(data, where="weights.safetensors")
    assert caught.value.code == code
    assert caught.value.where.startswith("weights.safetensors")


def test_load_names_the_malformed_tensor():
    """Q10: the message points at the entry."""
    with pytest.raises(
        DataError, match=r"malformed tensor entry: F32 \[3\] at bytes 0 to 4 of 4"
    ) as e:
        load_tensors(raw_file({"conv.weight": entry(shape=[3])}, b"\0" * 4), where="w")
    assert e.value.where == "w: conv.weight"


def test_load_tells_how_to_replace_another_format():
    """Q01: a renamed pickle is named for what it is not, with the way out."""
    with pytest.raises(DataError, match="is not a safetensors file") as caught:
        load_tensors(b"\x80\x02}q\x00.", where="w")
    assert "save_file" in caught.value.fix


def test_load_caps_header_and_number_of_tensors():
    """Q10: 99 MB of header or 100,001 tensors are refused in little time."""
    begin = time.perf_counter()
    with pytest.raises(DataError, match="a header of 99,000,000 bytes; at most 25,000,000"):
        check_header(raw_file(b"{" + b" " * 98_999_999), where="w")
    many = dict.fromkeys(map(str, range(100_001)), 0)
    with pytest.raises(DataError, match="has 100,001 tensors; at most 100,000 are read"):
        check_header(raw_file(many), where="w")
    assert time.perf_counter() - begin < 10.0


def test_header_metadata_is_no_tensor():
    """Files of other tools carry notes; they are passed over."""
    data = safetensors.torch.save({"a": torch.ones(1)}, metadata={"format": "pt"})
    assert check_header(data, where="w") == {"a": TensorEntry("F32", (1,))}
    assert list(load_tensors(data, where="w")) == ["a"]
