"""Random damage to pickles: nothing runs, and nothing but an AdvdiffError comes out."""

from __future__ import annotations

import io
import pickletools
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_foreign import HOSTILE, edm_bytes, hostile, torch_bytes, watched
from hypothesis import given, settings
from hypothesis import strategies as st

from advdiff_core.engine.importing.states import find_states, load_state, skeleton
from advdiff_core.errors import AdvdiffError
from advdiff_core.pickles.machine import read_pickle
from advdiff_core.pickles.torch_files import read_legacy, read_zip

MARKER = Path("marker-that-must-not-be-made")
WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}
PICKLES = [
    *(hostile(name, MARKER) for name in sorted(HOSTILE) if not name.startswith("torch")),
    *(edm_bytes(WEIGHTS, MARKER, protocol) for protocol in (0, 2, 4)),
]
OPCODES = [op.code.encode("latin-1") for op in pickletools.opcodes]
NAMES = [
    b"cbuiltins\neval\n", b"cposix\nsystem\n", b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ccollections\nOrderedDict\n", b"ctorch.nn.modules.linear\nLinear\n", b"cnumpy\ndtype\n",
    b"ctorch.storage\n_load_from_bytes\n", b"ccopyreg\n_reconstructor\n", b"cnumpy\nndarray\n",
    b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n", b"K\x01", b"X\x01\x00\x00\x00a",
    b"ctorch._tensor\n_rebuild_from_type_v2\n", b"cnumpy.core.multiarray\nscalar\n",
    b"c_codecs\nencode\n", b"cbuiltins\nbytearray\n", b"\x85", b"\x86", b"\x87", b"0", b"2",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def nothing_was_made() -> Any:
    """No marker beside the tests, before and after."""
    assert not MARKER.exists()
    yield
    assert not MARKER.exists()


def read_harmlessly(read: Any, data: bytes) -> None:
    """Read as `advdiff import` does; whatever is raised is ours, and nothing runs."""
    modules = set(sys.modules)
    with watched() as events:
        try:
            tree = read(io.BytesIO(data), where="file")
            for state in find_states(tree, "file"):
                skeleton(state, "file")
                load_state(state, size=len(data), where="file")
        except AdvdiffError as error:
            lines = error.lines()
        else:
            lines = [""]
    assert len(lines) == 1
    assert events == []
    assert set(sys.modules) == modules
    assert not MARKER.exists()


@st.composite
def damaged(draw: st.DrawFn, files: list[bytes]) -> bytes:
    """A file with bytes changed, left out, doubled, or replaced by whole instructions."""
    data = bytearray(draw(st.sampled_from(files)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        what = draw(st.sampled_from(["change", "cut", "instruction", "double", "end"]))
        if what == "change":
            data[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif what == "cut":
            del data[at : at + draw(st.integers(1, 40))]
        elif what == "instruction":
            data[at:at] = draw(st.sampled_from([*OPCODES, *NAMES]))
        elif what == "double":
            data[at:at] = data[at : at + draw(st.integers(1, 60))]
        else:
            del data[at:]
    return bytes(data)


@settings(max_examples=500)
@given(damaged(PICKLES))
def test_damaged_pickles_run_nothing(data: bytes) -> None:
    """Mutations of honest and hostile pickles."""
    read_harmlessly(read_pickle, data)


@settings(max_examples=500)
@given(st.lists(st.sampled_from([*OPCODES, *NAMES]) | st.binary(max_size=6), max_size=60))
def test_random_programs_run_nothing(parts: list[bytes]) -> None:
    """Instructions in any order, names of the list and others among them."""
    read_harmlessly(read_pickle, b"\x80\x04" + b"".join(parts) + b".")


@given(damaged([torch_bytes(WEIGHTS, legacy=True), hostile("torch legacy", MARKER)]))
def test_damaged_legacy_files_run_nothing(data: bytes) -> None:
    """Pickles in a row, then storages."""
    read_harmlessly(read_legacy, data)


@given(damaged([torch_bytes(WEIGHTS), hostile("torch zip", MARKER)]))
def test_damaged_zip_files_run_nothing(data: bytes) -> None:
    """Zip files of torch."""
    read_harmlessly(read_zip, data)
