"""Damaged checkpoints: every bit, every cut, every swap is noticed, and the one before is used."""

import os
import shutil
import threading

import pytest
import torch

from advdiff_core.engine.checkpoint import Store, load, newest_valid, save
from advdiff_core.errors import DataError

META = {"health": {"finite": True}}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two small checkpoints, 10 and 20."""
    root = tmp_path_factory.mktemp("checkpoints")
    for nimg in (10, 20):
        shared = {"models": {"m": {"w": torch.tensor([float(nimg), 0.0])}}}
        rank_state = {"r": torch.tensor(nimg)}
        save(Store(root=root), nimg, shared=shared, rank_state=rank_state, meta=META)
    return root


@pytest.fixture
def root(pair, tmp_path):
    """A copy of the two to be damaged."""
    return shutil.copytree(pair, tmp_path / "checkpoints")


def check_fallback(root, file):
    """20 is refused, naming the file; 10 is used and the reason is told."""
    with pytest.raises(DataError) as caught:
        load(root / "20")
    assert caught.value.exit_code == 4
    assert caught.value.code in {"S01", "S02", "S11"}
    assert str(root / "20" / file) in caught.value.where
    path, skipped = newest_valid(root)
    assert path == root / "10"
    assert [bad for bad, _ in skipped] == [root / "20"]


def files(root):
    """The files of checkpoint 20."""
    return sorted((root / "20").iterdir())


def test_every_flipped_bit_is_noticed(root):
    """S01: 100 % of the bits of all five files, manifest and COMMIT included."""
    flips = noticed = 0
    for path in files(root):
        data = bytearray(path.read_bytes())
        descriptor = os.open(path, os.O_WRONLY)
        for bit in range(8 * len(data)):
            place, mask = bit // 8, 1 << bit % 8
            os.pwrite(descriptor, bytes([data[place] ^ mask]), place)
            flips += 1
            try:
                load(root / "20")
            except DataError as error:
                named = path.name in error.where or path.name in {"COMMIT", "manifest.json"}
                noticed += named and error.code in {"S01", "S11"}
            os.pwrite(descriptor, bytes([data[place]]), place)
        os.close(descriptor)
    assert load(root / "20").nimg == 20
    assert flips == 8 * sum(path.stat().st_size for path in files(root)) > 7_000
    assert noticed == flips


def test_every_truncation_is_noticed(root):
    """S02: each file cut at each length."""
    for path in files(root):
        data = path.read_bytes()
        for size in range(len(data)):
            os.truncate(path, size)
            with pytest.raises(DataError):
                load(root / "20")
            path.write_bytes(data)
    os.truncate(path, len(data) - 1)
    check_fallback(root, path.name)


@pytest.mark.parametrize("index", range(5))
def test_zeroed_tail_is_noticed(root, index):
    """S02: the length is right, the last bytes were never written."""
    path = files(root)[index]
    data = path.read_bytes()
    for count in range(1, len(data)):
        changed = data[: len(data) - count] + bytes(count)
        if changed != data:
            path.write_bytes(changed)
            with pytest.raises(DataError):
                load(root / "20")
    check_fallback(root, "COMMIT" if path.name == "manifest.json" else path.name)


@pytest.mark.parametrize("index", range(5))
def test_file_of_another_checkpoint_is_noticed(root, index):
    """S02: each file exchanged with its namesake of checkpoint 10."""
    path = files(root)[index]
    shutil.copy(root / "10" / path.name, path)
    check_fallback(root, "COMMIT" if path.name == "manifest.json" else path.name)


def test_files_exchanged_for_each_other_are_noticed(root):
    """S02: shared and rank state under each other's names."""
    one, other = root / "20" / "shared.safetensors", root / "20" / "rank-0000.safetensors"
    one.rename(root / "x")
    other.rename(one)
    (root / "x").rename(other)
    check_fallback(root, "")


@pytest.mark.parametrize("index", range(5))
@pytest.mark.parametrize("how", ["missing", "grown", "folder", "pipe", "empty", "device"])
def test_file_that_is_none_is_noticed(root, index, how):
    """S02: gone, longer, empty, or something that is no file; never a hang."""
    path = files(root)[index]
    data = path.read_bytes()
    path.unlink()
    if how == "grown":
        path.write_bytes(data + b"\0")
    elif how == "folder":
        path.mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "empty":
        path.touch()
    elif how == "device":
        path.symlink_to("/dev/zero")
    # Another manifest is first noticed by COMMIT, which holds its hash.
    blamed = "COMMIT" if path.name == "manifest.json" and how in {"grown", "empty"} else path.name
    check_fallback(root, blamed)


def test_extra_file_is_noticed(root):
    """S02: what does not belong is named, with what to do about it."""
    (root / "20" / "rank-0001.safetensors").write_bytes(b"")
    check_fallback(root, "rank-0001.safetensors")
    with pytest.raises(DataError, match="does not belong to the checkpoint - move it elsewhere"):
        load(root / "20")


def test_all_damaged_leaves_none_but_tells_every_reason(root):
    """S01: nothing is used that is not whole."""
    for nimg in ("10", "20"):
        (root / nimg / "COMMIT").unlink()
    path, skipped = newest_valid(root)
    assert path is None
    assert [bad.name for bad, _ in skipped] == ["20", "10"]
    assert all("COMMIT: the file is missing" in reason for _, reason in skipped)


def test_loading_survives_files_that_change_meanwhile(root):
    """S14: 1,000 loads while another thread replaces, cuts, restores: an error or a true load."""
    path = root / "20" / "shared.safetensors"
    data = path.read_bytes()
    other = (root / "10" / "shared.safetensors").read_bytes()
    stop = threading.Event()

    def disturb():
        for turn in range(10**9):
            if stop.is_set():
                return
            if turn % 3 == 0:
                os.truncate(path, turn % len(data))
            else:
                path.write_bytes(data if turn % 3 == 1 else other)

    worker = threading.Thread(target=disturb)
    worker.start()
    loaded = refused = 0
    try:
        for _ in range(1000):
            try:
                found = load(root / "20")
            except DataError:
                refused += 1
            else:
                assert found.shared["models"]["m"]["w"].tolist() == [20.0, 0.0]
                loaded += 1
    finally:
        stop.set()
        worker.join()
    assert loaded + refused == 1000
    assert refused > 0


def test_loaded_tensors_outlive_their_file(root):
    """S14: no mapping of the file stays: overwriting it changes nothing that was loaded."""
    found = load(root / "20")
    path = root / "20" / "shared.safetensors"
    path.write_bytes(bytes(path.stat().st_size))
    os.truncate(path, 0)
    assert found.shared["models"]["m"]["w"].tolist() == [20.0, 0.0]
