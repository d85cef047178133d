"""Q01: files of other programs are data. Nothing in them runs, and what is refused is named."""

from __future__ import annotations

import json
import pickle
import struct
import sys
import time
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
import torch
from helpers_foreign import HOSTILE, edm_bytes, hostile, torch_bytes, unpickle, watched

from advdiff_core.cli import main
from advdiff_core.engine import strict_json
from advdiff_core.engine.importing import sources, states
from advdiff_core.engine.importing.sources import open_source
from advdiff_core.engine.importing.states import find_states, load_state, skeleton
from advdiff_core.errors import DataError
from advdiff_core.pickles import machine
from advdiff_core.pickles.torch_files import Bounded

WEIGHTS = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.ones(2)}


def reading(path: Path) -> dict[str, torch.Tensor]:
    """Everything `advdiff import` does with a file before it meets a network."""
    with open_source(path) as source:
        found = find_states(source.tree, str(path))
        for state in found:
            skeleton(state, str(path))
        return load_state(found[0], size=path.stat().st_size, where=str(path))


def refused(tmp_path: Path, data: bytes, name: str = "file.pt") -> DataError:
    """The error of a file, which is one line."""
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        reading(path)
    assert len(caught.value.lines()) == 1
    assert caught.value.where.startswith(str(path))
    return caught.value


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_import_runs_nothing_of_a_hostile_file(tmp_path: Path, name: str) -> None:
    """Q01: no marker, no import, no compilation; the refusal names the global."""
    marker = tmp_path / "marker"
    data = hostile(name, marker)
    path = tmp_path / "evil.pt"
    path.write_bytes(data)
    modules = set(sys.modules)
    with watched() as events, pytest.raises(DataError) as caught:
        reading(path)
    assert events == []
    assert set(sys.modules) == modules
    assert not marker.exists()
    assert caught.value.code == "Q01"
    assert HOSTILE[name][1] in caught.value.message


@pytest.mark.parametrize("name", sorted(set(HOSTILE) - {"torch zip", "torch legacy", "dotted"}))
def test_hostile_files_are_armed(tmp_path: Path, name: str) -> None:
    """What the tests above rest on: Python's own unpickler does run them."""
    marker = tmp_path / "marker"
    try:
        unpickle(hostile(name, marker))
    except Exception as error:
        print("after the deed:", error)
    assert marker.exists()


@pytest.mark.parametrize("name", ["torch zip", "torch legacy"])
def test_hostile_torch_files_are_armed(tmp_path: Path, name: str) -> None:
    """Torch without `weights_only` runs them."""
    marker = tmp_path / "marker"
    torch.load(BytesIO(hostile(name, marker)), weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_import_reads_edm_pickles_and_leaves_their_source_alone(
    tmp_path: Path, protocol: int
) -> None:
    """The tensors are those of the modules; the source code that comes with them stays text."""
    marker = tmp_path / "marker"
    data = edm_bytes(WEIGHTS, marker, protocol)
    path = tmp_path / "edm.pkl"
    path.write_bytes(data)
    with watched() as events, open_source(path) as source:
        found = {state.key: state for state in find_states(source.tree, str(path))}
        state = load_state(found["ema"], size=len(data), where=str(path))
    assert events == []
    assert not marker.exists()
    assert set(found) == {"ema", "augment_pipe"}
    assert set(state) == {f"model.{name}" for name in WEIGHTS}
    for name, tensor in WEIGHTS.items():
        assert torch.equal(state[f"model.{name}"], tensor)
    assert found["ema"].config["."] == {
        "class": "EDMPrecond", "img_resolution": 32, "label_dim": 10, "model_type": "SongUNet",
    }  # fmt: skip
    unpickle(data)
    assert marker.exists(), "the source was harmless, so the test says nothing"


def test_import_refuses_unknown_names_even_if_never_called(tmp_path: Path) -> None:
    """A name on the stack is refused before anything could be done with it."""
    error = refused(tmp_path, b"cantigravity\nfly\n0N.")
    assert "antigravity.fly" in error.message
    assert "nothing was run" in error.fix
    assert "antigravity" not in sys.modules


def test_import_refuses_models_pickled_whole(tmp_path: Path) -> None:
    """A class of someone's own needs their code; the mend says what to save instead."""
    error = refused(tmp_path, b"\x80\x02cmodels.resnet\nResNet\n)\x81}b.")
    assert "models.resnet.ResNet" in error.message
    assert "torch.save(model.state_dict())" in error.fix


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00N\x82\x01.", "EXT1"),
        (b"\x80\x05\x97.", "NEXT_BUFFER"),
        (b"Pname\n.", "PERSID"),
        (b"ctorch\nTensor\n)R.", "torch.Tensor"),
        (b"}N\x85R.", "calls a dict"),
        (b"\x80\x04N}b.", "sets the state of a NoneType"),
        (b"\x80\x04ctorch.nn.modules.linear\nLinear\n)}\x8c\x01aK\x01s\x92.", "by keyword"),
    ],
)
def test_import_refuses_instructions_no_checkpoint_needs(
    tmp_path: Path, data: bytes, word: str
) -> None:
    """Extension codes, buffers outside, calls of anything but a known name."""
    error = refused(tmp_path, b"\x80\x02" + data if data[:1] in b"PN" else data)
    assert error.code == "Q01"
    known = {"PERSID": "refers to data outside of it"}
    assert known.get(word, word) in error.message


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04", b"\x80\x04.", b"\x80\x04(K\x01.", b"\x80\x04h\x05.", b"\x80\x04K\x01K\x02a.",
        b"\x80\x04]\x94h\x00h\x00s.", b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
        b"\x80\x04B\xff\xff\xff\xffabc.", b"\x80\x04X\xff\xff\xff\x7fabc.", b"\x80\x04)(t}(Kt.",
        b"\x80\x04}]K\x01s.", b"\x80\x04}((((ttt)tK\x01s.", b"\x80\x04N0" + b"\xff" * 9,
        b"\x80\x04" + b"L" + b"9" * 10_000 + b"L\n.", b"(i\n\n.", b"\x80\x04\x8f]](\x90.",
        b"p99999999999999999999999999999999\n.", b"\x80\x04}\x8a\xff" + b"\x7f" * 255 + b"K\x01s.",
    ],
)  # fmt: skip
def test_import_survives_malformed_pickles(tmp_path: Path, data: bytes) -> None:
    """Q10: an empty stack, a missing mark, a huge length: one line, at once."""
    started = time.monotonic()
    error = refused(tmp_path, data, "bad.pkl")
    assert error.code in ("Q10", "Q01")
    assert time.monotonic() - started < 2


def test_import_never_asks_a_file_for_more_than_it_has() -> None:
    """A buffered file takes memory for whatever count a pickle names, before it reads."""
    asked: list[int] = []

    class Asked(BytesIO):
        def read(self, count: int | None = -1) -> bytes:
            asked.append(-1 if count is None else count)
            return super().read(count)

    file = Bounded(Asked(b"\x80\x04B\xff\xff\xff\x7fabc."))
    with pytest.raises(DataError):
        machine.read_pickle(file, where="x")  # type: ignore[arg-type]
    assert Bounded(Asked(b"abc")).read() == b"abc"
    assert all(0 <= count <= 20 for count in asked)


def test_import_reads_at_most_so_many_instructions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of small instructions cannot keep the machine busy for hours."""
    monkeypatch.setattr(machine, "MAX_STEPS", 1000)
    error = refused(tmp_path, b"\x80\x04" + b"N0" * 600 + b"N.")
    assert error.code == "Q10"
    assert "1,000 instructions" in error.message


def tensor_program(shape: str, stride: str, offset: str = "K\x00", count: int = 4) -> bytes:
    """A zip file of torch whose pickle describes any view of a storage of `count` floats."""
    program = (
        f"\x80\x02}}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storage"
        f"ctorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK{chr(count)}tQ{offset}"
        f"{shape}{stride}\x89}}tRs."
    ).encode("latin-1")
    return zip_of({"a/data.pkl": program, "a/data/0": b"\0" * 16})


def zip_of(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip file."""
    file = BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return file.getvalue()


def test_tensor_programs_are_read(tmp_path: Path) -> None:
    """What the next test rests on: the program is right but for the view."""
    path = tmp_path / "file.pt"
    path.write_bytes(tensor_program("K\x02K\x02\x86", "K\x02K\x01\x86"))
    assert torch.equal(reading(path)["w"], torch.zeros(2, 2))


@pytest.mark.parametrize(
    ("shape", "stride", "offset", "count"),
    [
        ("K\x03K\x02\x86", "K\x02K\x01\x86", "K\x00", 4),
        ("K\x02K\x02\x86", "K\x09K\x01\x86", "K\x00", 4),
        ("K\x02K\x02\x86", "K\x02K\x01\x86", "K\x01", 4),
        ("K\x05\x85", "K\x00\x85", "K\x00", 4),
        ("\x8a\x08" + "\x00" * 7 + "\x40\x85", "K\x00\x85", "K\x00", 4),
        ("J\xff\xff\xff\xff\x85", "K\x01\x85", "K\x00", 4),
        ("K\x04\x85", "J\xff\xff\xff\xff\x85", "K\x03", 4),
        ("K\x04\x85", "K\x01K\x01\x86", "K\x00", 4),
        ("K\x04\x85", "K\x01\x85", "J\xff\xff\xff\xff", 4),
        ("K\x05\x85", "K\x01\x85", "K\x00", 5),
    ],
)
def test_import_refuses_views_beyond_their_storage(
    tmp_path: Path, shape: str, stride: str, offset: str, count: int
) -> None:
    """Q10: too large, outside, expanded to 2^62, negative: no memory is read or taken."""
    error = refused(tmp_path, tensor_program(shape, stride, offset, count))
    assert error.code == "Q10"


def test_import_bounds_what_views_of_one_storage_take(tmp_path: Path) -> None:
    """A thousand names for one storage would take a thousand times the memory of the file."""
    big = torch.zeros(100_000)
    data = torch_bytes({f"w{n}": big for n in range(1000)})
    error = refused(tmp_path, data)
    assert error.code == "Q10"
    assert "8 times the file" in error.message


@pytest.mark.parametrize(
    ("entries", "compression", "word"),
    [
        ({"a/data.pkl": b"N.", "a/data/0": b"\0" * 10_000}, zipfile.ZIP_DEFLATED, "compressed"),
        ({"a/data.pkl": b"N.", "../../x": b"1"}, zipfile.ZIP_STORED, "leads elsewhere"),
        ({"a/data.pkl": b"N.", "/etc/x": b"1"}, zipfile.ZIP_STORED, "leads elsewhere"),
        ({"a/data.pkl": b"N.", "b/data.pkl": b"N."}, zipfile.ZIP_STORED, "not one of torch.save"),
        ({"a/x": b"N."}, zipfile.ZIP_STORED, "not one of torch.save"),
        ({"a/data.pkl": b"N.", "a/code/m.py": b"1"}, zipfile.ZIP_STORED, "TorchScript"),
        ({"a/data.pkl": b"N.", "a/byteorder": b"big"}, zipfile.ZIP_STORED, "byte order"),
    ],
)
def test_import_refuses_archives_torch_does_not_write(
    tmp_path: Path, entries: dict[str, bytes], compression: int, word: str
) -> None:
    """Q05: bombs, paths that lead out, other zip files; nothing is extracted."""
    before = set(tmp_path.rglob("*"))
    error = refused(tmp_path, zip_of(entries, compression))
    assert word in error.message
    assert set(tmp_path.rglob("*")) - before == {tmp_path / "file.pt"}


def test_import_refuses_an_archive_that_declares_more_than_it_has(tmp_path: Path) -> None:
    """Sizes in the directory of a zip file are claims."""
    data = bytearray(zip_of({"a/data.pkl": b"N.", "a/data/0": b"\0" * 64}))
    entry = data.rindex(b"PK\x01\x02")
    data[entry + 20 : entry + 28] = struct.pack("<II", 2**31, 2**31)
    assert "said to hold" in refused(tmp_path, bytes(data)).message


def test_import_refuses_an_archive_with_a_name_twice(tmp_path: Path) -> None:
    """Which of the two would be read is anyone's guess."""
    file = BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", b"N.")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a/data.pkl", b"K\x01.")
    assert "2 entries of 1 names" in refused(tmp_path, file.getvalue()).message


def test_import_notices_a_flipped_bit_in_a_torch_file(tmp_path: Path) -> None:
    """Each entry has a checksum."""
    data = bytearray(torch_bytes({"w": torch.arange(64.0)}))
    data[data.index(torch.arange(64.0).numpy().tobytes()) + 40] ^= 1
    error = refused(tmp_path, bytes(data))
    assert error.code == "Q10"
    assert "is damaged" in error.message


@pytest.mark.parametrize("legacy", [False, True])
def test_import_refuses_every_truncation(tmp_path: Path, legacy: bool) -> None:
    """Whatever is cut off: one line, never half of the weights."""
    data = torch_bytes(WEIGHTS, legacy=legacy)
    for size in range(len(data) - 1, 0, -7):
        assert refused(tmp_path, data[:size]).code in ("Q01", "Q10")


def test_import_refuses_bytes_behind_a_pickle(tmp_path: Path) -> None:
    """A second pickle behind the first is not read and not passed over."""
    assert "behind the end" in refused(tmp_path, pickle.dumps({"w": 1}) + b"cos\nsystem\n.").message


@pytest.mark.parametrize(
    ("head", "word"),
    [
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"), (b"\x1f\x8b\x08", "a gzip file"),
        (b"hello, world", "of no known format"), (b"", "of no known format"),
        (b"a" * 257 + b"ustar" + b"\0" * 100, "a tar file"),
    ],
)  # fmt: skip
def test_import_names_other_formats(tmp_path: Path, head: bytes, word: str) -> None:
    """Q01: what it is, and what is read instead."""
    error = refused(tmp_path, head)
    assert (error.code, error.message) == ("Q01", f"is {word}")
    assert error.fix == "safetensors (or its .index.json), torch.save files and pickles are read"


def test_import_refuses_what_is_no_file(tmp_path: Path) -> None:
    """A folder, nothing at all, a pipe that would wait for ever."""
    import os

    os.mkfifo(tmp_path / "pipe")
    for name, word in (("", "a folder"), ("gone", "missing"), ("pipe", "not a regular file")):
        with pytest.raises(DataError, match=word) as caught, open_source(tmp_path / name):
            pass
        assert caught.value.code == "S02"


def test_import_refuses_files_beyond_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sparse file of a petabyte is not opened."""
    monkeypatch.setattr(sources, "MAX_FILE", 100)
    with (tmp_path / "big").open("wb") as file:
        file.truncate(101)
    with pytest.raises(DataError, match="more than the 100"), open_source(tmp_path / "big"):
        pass


@pytest.mark.parametrize("shard", ["../x.safetensors", "/etc/passwd", "a/b", "..", "", 3, "a\\b"])
def test_import_keeps_an_index_in_its_folder(tmp_path: Path, shard: object) -> None:
    """Q04: an index names files beside it."""
    text = json.dumps({"weight_map": {"w": shard}}).encode()
    error = refused(tmp_path, text, "model.safetensors.index.json")
    assert error.code == "Q01"
    assert "names of files beside it" in error.message


def test_import_bounds_modules_in_circles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that is its own child, and one whose children share children."""
    circle = (
        b"\x80\x02ctorch.nn.modules.container\nSequential\n)\x81q\x00}("
        b"X\x0b\x00\x00\x00_parameters}X\x08\x00\x00\x00_modules}X\x01\x00\x00\x000h\x00sub."
    )
    assert "in a circle" in refused(tmp_path, circle).message
    monkeypatch.setattr(states, "_MAX_MODULES", 500)
    inner = torch.nn.Sequential(torch.nn.Linear(1, 1))
    for _ in range(12):
        inner = torch.nn.Sequential(inner, inner)
    assert "more than 500 modules" in refused(tmp_path, pickle.dumps(inner)).message


def shared_dicts(width: int, inner: object) -> object:
    """Four levels of dicts, each holding the one below `width` times: width^4 paths."""
    for _ in range(4):
        inner = {f"k{n}": inner for n in range(width)}
    return inner


def test_import_bounds_what_is_met_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small file whose shared parts make 10^10 paths: refused at once."""
    monkeypatch.setattr(states, "_MAX_ENTRIES", 50_000)
    started = time.monotonic()
    data = pickle.dumps(shared_dicts(320, {"w": 1}))
    assert "too many entries" in refused(tmp_path, data).message
    shared: object = "x"
    for _ in range(4):
        shared = [shared] * 300
    module = torch.nn.Linear(1, 1)
    module._init_kwargs = {"a": shared}
    assert "too many settings" in refused(tmp_path, pickle.dumps(module)).message
    assert time.monotonic() - started < 20


def test_import_writes_no_value_of_a_file_out_as_text(tmp_path: Path) -> None:
    """The text of nested lists that share their parts would have 10^30 letters."""
    bomb: object = "x"
    for _ in range(100):
        bomb = [bomb, bomb]
    dtype = b"cnumpy\ndtype\n(" + pickle.dumps(bomb, 0)[:-1] + b"I00\nI01\ntR"
    scalar = b"cnumpy.core.multiarray\nscalar\n(" + dtype + b"S'x'\ntR."
    encoding = b"c_codecs\nencode\n(S'x'\n" + pickle.dumps(bomb, 0)[:-1] + b"tR."
    for data in (scalar, encoding):
        assert refused(tmp_path, data).code == "Q10"
    persistent = (
        b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n((dS'class_name'\n"
        + pickle.dumps(bomb, 0)[:-1] + b"sS'state'\n(dS'_parameters'\n(dsstR."
    )  # fmt: skip
    path = tmp_path / "file.pkl"
    path.write_bytes(persistent)
    with open_source(path) as source:
        assert source.tree.kind == "?"


def test_import_keeps_settings_that_can_be_read_again(tmp_path: Path) -> None:
    """Huge integers, lone surrogates, control characters: as text, or as the name of the type."""
    module = torch.nn.Linear(1, 1)
    module._init_kwargs = {
        "big": 2**200, "deep": [[[[[[1]]]]]], "inf": float("inf"), "text": "\ud800\x1b", 3: 4,
        "thing": b"x", "fine": [1, 2.5, None, True],
    }  # fmt: skip
    path = tmp_path / "file.pkl"
    path.write_bytes(pickle.dumps(module))
    with open_source(path) as source:
        (state,) = find_states(source.tree, "x")
    assert strict_json.loads(strict_json.dumps(state.config), where="x") == state.config
    assert state.config["."] == {
        "class": "torch.nn.modules.linear.Linear", "big": "<int>", "deep": [[[["<list>"]]]],
        "inf": "inf", "text": "\\ud800\\x1b", "thing": "<bytes>", "fine": [1, 2.5, None, True],
    }  # fmt: skip


@pytest.mark.parametrize("shape", [(2**70,), (-5,), ("a",), (((),),), 2**70, (0, 2**63)])
def test_import_refuses_arrays_of_impossible_shapes(tmp_path: Path, shape: object) -> None:
    """Q10: whatever NumPy thinks of them."""
    dtype = b"cnumpy\ndtype\n(S'f4'\nI00\nI01\ntR"
    data = (
        b"(dS'w'\ncnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n"
        + pickle.dumps(shape, 0)[:-1] + dtype + b"I00\nc_codecs\nencode\n(S'1234'\n"
        b"S'latin1'\ntRtbs."
    )  # fmt: skip
    error = refused(tmp_path, data)
    assert error.code == "Q10"
    assert "w: is no array of numbers" in str(error)


def test_import_refuses_empty_tensors_too_large_to_count(tmp_path: Path) -> None:
    """An axis of none beside axes of 2^62."""
    huge = "\x8a\x08" + "\x00" * 7 + "\x40"
    error = refused(tmp_path, tensor_program(f"K\x00{huge}{huge}\x87", "K\x00K\x00K\x00\x87"))
    assert error.code == "Q10"
    assert "impossible shape" in error.message


@pytest.mark.parametrize("name", ["x" * 600, "a\x1b[2J", "a\nb"])
def test_import_refuses_names_nobody_gives(tmp_path: Path, name: str) -> None:
    """Q07: control characters and walls of text."""
    error = refused(tmp_path, torch_bytes({name: torch.ones(1)}))
    assert error.code == "Q10"
    assert "\x1b" not in error.lines()[0]


def test_import_of_a_hostile_file_is_one_line_and_exit_code_4(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a person sees on the command line."""
    path = tmp_path / "evil.pkl"
    path.write_bytes(hostile("os.system", tmp_path / "marker"))
    out = tmp_path / "out"
    code = main(["import", str(path), "--use", "mlp", "--shape", "2", "--out", str(out)])
    printed = capsys.readouterr()
    assert code == 4
    assert printed.out == ""
    assert printed.err.startswith(f"advdiff: error[Q01] {path}: the pickle names posix.system")
    assert len(printed.err.splitlines()) == 1
    assert not out.exists()
    assert not (tmp_path / "marker").exists()
