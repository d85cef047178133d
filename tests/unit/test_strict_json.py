"""JSON that refuses what the standard library lets through."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advdiff_core.engine import strict_json
from advdiff_core.errors import DataError

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text('ab[]{}"\\', max_size=4), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(VALUES)
def test_json_gives_back_what_it_was_given(value):
    """Any plain value survives, floats to the last bit, and the bytes are ASCII."""
    data = strict_json.dumps(value)
    assert data.isascii()
    assert data.endswith(b"\n")
    again = strict_json.loads(data, where="x")
    assert repr(again) == repr(strict_json.loads(strict_json.dumps(again), where="x"))
    assert again == value


def test_json_of_equal_values_is_equal():
    """Keys are sorted, so that a hash of the text is a hash of the value."""
    assert strict_json.dumps({"b": 1, "a": 2}) == strict_json.dumps({"a": 2, "b": 1})


def test_json_refuses_to_write_a_number_that_is_not_finite():
    """There is no NaN in JSON."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        strict_json.dumps(float("nan"))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b"[-Infinity]", "-Infinity is not a JSON number"),
        (b"[1e400]", "1e400 is out of range"),
        (b'{"a": 1, "b": 2, "a": 3}', "key 'a' appears twice"),
        (b"[" * 100_000, "nested deeper than 64"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "nested deeper than 64"),
        (b'{"a\\"[[": ' + b"[" * 64 + b"]" * 64 + b"}", "nested deeper than 64"),
        (b"9" * 5_000, "more than 20 digits"),
        (b"-" + b"9" * 21, "more than 20 digits"),
        (b'"\\ud800"', "surrogates not allowed"),
        (b'{"\\uDC00": 1}', "surrogates not allowed"),
        (b'"\xff"', "can't decode byte"),
        (b"\xef\xbb\xbf{}", "Unexpected UTF-8 BOM"),
        (b"", "Expecting value"),
        (b"{} {}", "Extra data"),
        (b"{'a': 1}", "property name"),
    ],
)
def test_json_refuses_each_loophole(data, why):
    """S15: one line that names the file and the cause, in little time."""
    begin = time.perf_counter()
    with pytest.raises(DataError) as caught:
        strict_json.loads(data, where="state.json")
    assert time.perf_counter() - begin < 5.0
    assert (caught.value.code, caught.value.where) == ("S15", "state.json")
    assert why in caught.value.message


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 64 + b"]" * 64,
        b'"' + b"[" * 100 + b'"',
        rb'"\"[[[[\\"',
        rb'["\\", "' + b"[" * 80 + b'"]',
    ],
)
def test_json_counts_depth_outside_of_strings_alone(data):
    """Brackets in text are text; 64 levels are allowed."""
    strict_json.loads(data, where="x")
