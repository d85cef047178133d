"""JSON without its loopholes: no NaN, no duplicate keys, bounded depth, digits and size."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from itertools import accumulate
from typing import Any

from advdiff_core.errors import DataError

__all__ = ["MAX_DEPTH", "MAX_DIGITS", "dumps", "loads"]

MAX_DEPTH = 64
MAX_DIGITS = 20  # 2**64 has 20; longer integers are kept as tagged text by the state codec.

_ESCAPE = re.compile(rb"\\.", re.DOTALL)
_STRING = re.compile(rb'"[^"]*"')
_KEEP = b'"[]{}'
_DROP = bytes(set(range(256)) - set(_KEEP))
_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


def dumps(value: Any) -> bytes:
    """JSON in ASCII with sorted keys and a newline: the same value gives the same bytes.

    Raises:
        ValueError: A float is not finite.
    """
    text = json.dumps(value, allow_nan=False, sort_keys=True, separators=(",", ":"))
    return text.encode("ascii") + b"\n"


def loads(data: bytes, *, where: str) -> Any:
    """Read JSON that came from a disk.

    Args:
        data: UTF-8 bytes.
        where: File, for the message.

    Raises:
        DataError: S15: not UTF-8, not JSON, a duplicate key, NaN or infinity, an integer of more
            than 20 digits, a lone surrogate, or nesting deeper than 64.
    """
    try:
        _check_depth(data)
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_bounded,
        )
        if rb"\ud" in data.lower():
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except ValueError as error:
        raise DataError(f"is not valid JSON: {error}", code="S15", where=where) from error
    return value


def _check_depth(data: bytes) -> None:
    """Bound the nesting without recursion: strings are cut out, then brackets counted."""
    plain = _ESCAPE.sub(b"", data) if b"\\" in data else data
    brackets = _STRING.sub(b"", plain.translate(None, _DROP))
    if max(accumulate(_STEP.get(byte, 0) for byte in brackets), default=0) > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"key {twice!r} appears twice")
    return found


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is out of range")
    return value


def _bounded(text: str) -> int:
    if len(text.lstrip("-")) > MAX_DIGITS:
        raise ValueError(f"an integer has more than {MAX_DIGITS} digits")
    return int(text)
