"""Nested state goes to named tensors and JSON and back without losing a bit."""

import enum
import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from advdiff_core.engine import strict_json
from advdiff_core.engine.state_codec import Encoder, decode
from advdiff_core.engine.tensor_file import DTYPES, chunks, load_tensors
from advdiff_core.errors import DataError

KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=4) | st.sampled_from(
    ["a", "b", "a.b", "", "$tensor", "$$", "__metadata__", "0"]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**200), 2**200)
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
)


@st.composite
def tensors(draw):
    """A tensor of any stored dtype, random bits, up to 4 axes, in any dense order or sliced."""
    dtype = draw(st.sampled_from(sorted(DTYPES.values(), key=str)))
    shape = draw(st.lists(st.integers(0, 3), max_size=4))
    count = math.prod(shape) * dtype.itemsize
    data = bytearray(draw(st.binary(min_size=count, max_size=count)))
    raw = torch.frombuffer(data, dtype=torch.uint8) if count else torch.empty(0, dtype=torch.uint8)
    raw = raw % 2 if dtype == torch.bool else raw
    tensor = raw.view(dtype).reshape(shape)
    tensor = tensor.permute(draw(st.permutations(range(len(shape)))))
    if shape and draw(st.booleans()):
        tensor = tensor[:: draw(st.integers(1, 2))]
    return tensor


STATES = st.recursive(
    SCALARS | tensors(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=12,
)


def through_disk(state, path=""):
    """Encode, write both files as bytes, read them, decode."""
    encoder = Encoder()
    text = strict_json.dumps(encoder.encode(state, path))
    stored = load_tensors(b"".join(chunks(encoder.tensors)), where="t")
    return decode(strict_json.loads(text, where="s"), stored, where="s"), encoder


def same(one, other):
    """Equal in type, value and bits, whatever the order of keys."""
    if isinstance(one, torch.Tensor):
        if one.dtype != other.dtype or one.shape != other.shape:
            return False
        flat = [t.contiguous().as_strided((t.numel(),), (1,)) for t in (one, other)]
        return torch.equal(*[t.view(torch.uint8) for t in flat])
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return repr(one) == repr(other)


@settings(max_examples=200)
@given(STATES)
@example(torch.zeros(2, dtype=torch.bfloat16)[::2])  # one element with a stride of 2.
def test_state_survives_to_the_bit(state):
    """Any nesting, key, dtype, layout and number comes back as it was."""
    again, _ = through_disk(state)
    assert same(state, again)


@given(tensors())
def test_layout_survives_where_it_is_dense(tensor):
    """The strides of a permuted tensor come back; a tensor with holes comes back row by row."""
    again, _ = through_disk({"t": tensor})
    found = again["t"].stride()
    assert found == tensor.stride() or again["t"].is_contiguous()
    if tensor.is_contiguous():
        assert again["t"].is_contiguous()


@pytest.mark.parametrize(
    "layout", [torch.channels_last, torch.contiguous_format], ids=["channels_last", "contiguous"]
)
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 1, 1), (1, 3, 4, 4)])
def test_memory_format_survives(layout, shape):
    """Exact strides, also where sizes of 1 make them ambiguous: they choose kernels."""
    tensor = torch.arange(math.prod(shape)).float().reshape(shape).to(memory_format=layout)
    again, _ = through_disk({"t": tensor})
    assert again["t"].stride() == tensor.stride()
    assert torch.equal(again["t"], tensor)


def test_tied_tensors_are_stored_once_and_come_back_tied():
    """Two names of one parameter remain one; a view of a part of it does not."""
    weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    state = {"embed": {"w": weight}, "head": {"w": weight}, "part": weight[0]}
    again, encoder = through_disk(state)
    assert sorted(encoder.tensors) == ["embed.w", "part"]
    assert again["embed"]["w"] is again["head"]["w"]
    again["embed"]["w"] += 1
    assert torch.equal(again["part"], torch.arange(3.0))


def test_states_of_one_encoder_share_names_without_clash():
    """Paths that join to one name get different ones."""
    state = {"a": {"b.c": torch.zeros(1)}, "a.b": {"c": torch.ones(1)}}
    again, encoder = through_disk(state)
    assert sorted(encoder.tensors) == ["a.b.c", "a.b.c~"]
    assert float(again["a.b"]["c"]) == 1.0


def test_names_are_paths_so_that_others_can_read_the_file():
    """Roles and parameters are readable by name."""
    state = {
        "models": {"student": {"conv.weight": torch.ones(1)}},
        "ema": {"student": [{"w": torch.ones(2)}]},
    }
    _, encoder = through_disk(state)
    assert sorted(encoder.tensors) == ["ema.student.0.w", "models.student.conv.weight"]


class Color(enum.IntEnum):
    """An int that is not one."""

    RED = 1


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ((1, 2), "a builtins.tuple is none of dict, list, tensor"),
        ({1, 2}, "a builtins.set is none of"),
        (b"x", "a builtins.bytes is none of"),
        (1j, "a builtins.complex is none of"),
        (np.float64(1.0), "a numpy.float64 is none of"),
        (np.zeros(2), "a numpy.ndarray is none of"),
        (Color.RED, "Color is none of"),
        (torch.float32, "a torch.dtype is none of"),
        (torch.nn.Linear(1, 1), "Linear is none of"),
        ({1: 2}, "the key 1 is not a str"),
        ("\ud800", "the text holds a lone surrogate"),
        ({"\ud800": 1}, "the text holds a lone surrogate"),
        (1 << 5000, "the integer has more than 4096 bits"),
        (torch.zeros(1, dtype=torch.complex128), "safetensors has no torch.complex128"),
        (torch.zeros(1, device="meta"), "only dense tensors with data"),
        (torch.zeros(2, 2).to_sparse(), "only dense tensors with data"),
    ],
)
def test_encode_refuses_what_cannot_be_stored_and_names_it(value, why):
    """S12: the path leads to the culprit; nothing is stored in part or converted silently."""
    with pytest.raises(DataError) as caught:
        Encoder().encode({"players": {"student": [0, value]}})
    assert (caught.value.code, caught.value.exit_code) == ("S12", 4)
    assert caught.value.where == "players.student.1"
    assert why in caught.value.message


def test_encode_refuses_a_tensor_subclass():
    """A subclass may hold its data elsewhere."""

    class Wrapped(torch.Tensor):
        pass

    with pytest.raises(DataError, match="Wrapped is not a plain tensor"):
        Encoder().encode([torch.zeros(1).as_subclass(Wrapped)])


def test_encode_refuses_endless_nesting():
    """A state that holds itself is named, not followed."""
    state = {}
    state["a"] = state
    with pytest.raises(DataError, match="nested too deep"):
        Encoder().encode(state)


@pytest.mark.parametrize(
    ("tree", "code", "why"),
    [
        ({"$tensor": "gone"}, "S12", "tensor 'gone' is missing"),
        ({"$pickle": "x"}, "S15", "has an unknown tag '$pickle'"),
        ({"$float": "1.5"}, "S15", "has an unknown tag '$float'"),
        ({"$int": "1_0"}, "S15", "has an unknown tag '$int'"),
        ({"$int": 5}, "S15", "is malformed"),
        ({"$float": []}, "S15", "is malformed"),
        ({"$tensor": ["t"]}, "S15", "is malformed"),
        ({"$tensor": "t", "stride": [7, 1]}, "S15", "stride [7, 1] does not fit shape [2, 3]"),
        ({"$tensor": "t", "stride": [1]}, "S15", "stride [1] does not fit"),
        ({"$tensor": "t", "stride": [2**62, 1]}, "S15", "does not fit"),
        ({"$tensor": "t", "stride": 5}, "S15", "is malformed"),
        ({"$tensor": "t", "stride": ["1", "2"]}, "S15", "is malformed"),
    ],
)
def test_decode_refuses_a_malformed_tree_and_names_the_place(tree, code, why):
    """S12, S15: hostile JSON gets one line, and no memory of its choice."""
    with pytest.raises(DataError) as caught:
        decode({"a": [tree]}, {"t": torch.zeros(2, 3)}, where="state.json")
    assert (caught.value.code, caught.value.where) == (code, "state.json: a.0")
    assert why in caught.value.message
