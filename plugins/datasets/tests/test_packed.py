"""CIFAR and MNIST: every published form gives the same samples, and damage is named."""

import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from advdiff_datasets.cifar import CIFAR10, CIFAR100
from advdiff_datasets.idx import MNIST, FashionMNIST
from advdiff_datasets.packed import area_averaged
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from advdiff_core.errors import DataError, RecipeError
from advdiff_core.interfaces.component import Build
from advdiff_core.types import DataInfo, Domain

sys.path.insert(0, str(Path(__file__).parent))
import packed_files as make


def built(cls, path, **keys):
    """A data set of the files in a folder."""
    return cls(cls.Settings(path=path, **keys), Build(path="data"))


def refused(cls, path, **keys) -> DataError:
    """The error of building it."""
    with pytest.raises(DataError) as caught:
        built(cls, path, **keys)
    assert len(caught.value.lines()) == 1
    return caught.value


def same(data, x: np.ndarray, y: np.ndarray) -> None:
    """The data set holds these bytes and labels, in this order, scaled to [-1, 1]."""
    got = data.batch(torch.arange(data.info.count))
    wanted = torch.from_numpy(x.reshape(len(x), *data.info.shape)).double() / 127.5 - 1
    assert torch.allclose(got.x.double(), wanted, atol=1e-6, rtol=0)
    assert got.y.tolist() == y.tolist()
    assert got.x.dtype == torch.float32
    assert got.y.dtype == torch.int64


def test_files_that_are_read_twice_are_held_once(tmp_path: Path):
    """By a run and its validation; other files, another split and changed ones are read."""
    make.cifar10_binary(tmp_path)
    first, second = built(CIFAR10, tmp_path), built(CIFAR10, tmp_path)
    assert second._x.data_ptr() == first._x.data_ptr()
    assert built(CIFAR10, tmp_path, split="test")._x.data_ptr() != first._x.data_ptr()
    assert built(CIFAR10, tmp_path, size=16).info.shape == (3, 16, 16)
    changed = next(tmp_path.rglob("data_batch_1.bin"))
    content = changed.read_bytes()
    changed.write_bytes(content[:1] + bytes(255 - byte for byte in content[1:2]) + content[2:])
    os.utime(changed, ns=(0, 0))
    assert built(CIFAR10, tmp_path).fingerprint() != first.fingerprint()


@pytest.mark.parametrize("archive", [False, True])
@pytest.mark.parametrize("maker", [make.cifar10_pickles, make.cifar10_binary])
def test_cifar10_reads_both_versions_unpacked_or_not(tmp_path: Path, maker, archive: bool):
    """Pickled, binary, and either in its archive: same pixels, labels and fingerprint."""
    x, y = maker(tmp_path)
    if archive:
        kind = "python" if maker is make.cifar10_pickles else "binary"
        make.packed(tmp_path, f"cifar-10-{kind}.tar.gz")
    data = built(CIFAR10, tmp_path)
    same(data, x, y)
    assert data.info == DataInfo(shape=(3, 32, 32), count=15, domain=Domain(-1.0, 1.0), classes=10)
    assert data.fingerprint() == built(CIFAR10, tmp_path).fingerprint()
    assert data.fingerprint() != built(CIFAR10, tmp_path, split="test").fingerprint()


def test_cifar10_takes_the_folder_of_the_files_itself(tmp_path: Path):
    """`path` may be the folder that holds the batches."""
    x, y = make.cifar10_binary(tmp_path)
    same(built(CIFAR10, tmp_path / "cifar-10-batches-bin"), x, y)


@pytest.mark.parametrize("binary", [False, True])
def test_cifar100_reads_fine_labels(tmp_path: Path, binary: bool):
    """The second label byte, or `fine_labels`."""
    x, y = make.cifar100(tmp_path, binary=binary)
    data = built(CIFAR100, tmp_path, split="test")
    same(data, x, y)
    assert data.info.classes == 100


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("cls", [MNIST, FashionMNIST])
def test_mnist_reads_idx_files_packed_or_not(tmp_path: Path, cls, gz: bool):
    """Files in `path`, or where torchvision puts them."""
    x, y = make.mnist(tmp_path / cls.__name__ / "raw", gz=gz)
    same(built(cls, tmp_path), x, y)
    same(built(cls, tmp_path / cls.__name__ / "raw", split="test"), x, y)


def test_mnist_pads_with_background(tmp_path: Path):
    """Two pixels on each side make 32x32 of the value -1."""
    x, y = make.mnist(tmp_path)
    data = built(MNIST, tmp_path, pad=2)
    assert data.info.shape == (1, 32, 32)
    same(data, np.pad(x, ((0, 0), (2, 2), (2, 2))), y)


def test_images_are_averaged_down_to_the_size(tmp_path: Path):
    """Half the size is the mean of 2x2 bytes, rounded once; the fingerprint knows it."""
    x, y = make.cifar10_binary(tmp_path)
    whole, half = built(CIFAR10, tmp_path), built(CIFAR10, tmp_path, size=16)
    blocks = x.reshape(-1, 3, 16, 2, 16, 2).astype(np.float64).mean((3, 5))
    same(half, np.rint(blocks).astype(np.uint8), y)
    assert half.info.shape == (3, 16, 16)
    assert half.fingerprint() != whole.fingerprint()
    assert built(CIFAR10, tmp_path, size=32).fingerprint() == whole.fingerprint()


@given(size=st.integers(1, 28), value=st.integers(0, 255))
def test_any_smaller_size_keeps_flat_images_and_the_range(size: int, value: int):
    """A flat image stays as it is; others stay between their smallest and largest byte."""
    flat = torch.full((1, 1, 28, 28), value, dtype=torch.uint8)
    assert torch.equal(area_averaged(flat, size), flat[..., :size, :size])
    mixed = torch.from_numpy(make.pixels(2, 3, 28, 28, seed=value))
    small = area_averaged(mixed, size)
    assert small.dtype == torch.uint8
    assert small.shape == (2, 3, size, size)
    assert int(small.min()) >= int(mixed.min())
    assert int(small.max()) <= int(mixed.max())


@pytest.mark.parametrize(("cls", "pad", "most"), [(MNIST, 2, 32), (FashionMNIST, 0, 28)])
def test_a_size_above_the_stored_one_is_refused(tmp_path: Path, cls, pad: int, most: int):
    """R10 with the largest size there is; the border counts."""
    make.mnist(tmp_path)
    assert built(cls, tmp_path, pad=pad, size=most).info.shape == (1, most, most)
    with pytest.raises(
        RecipeError, match=rf"33 pixels are wanted, the images have {most}"
    ) as caught:
        built(cls, tmp_path, pad=pad, size=33)
    (fault,) = caught.value.faults
    assert (fault.key, fault.fix) == (
        "data.size", f"write at most {most}, or 0 for the images as stored",
    )  # fmt: skip


def test_a_batch_may_be_edited(tmp_path: Path):
    """Samples are copies."""
    make.mnist(tmp_path)
    data = built(MNIST, tmp_path)
    first = data.batch(torch.tensor([0])).x
    kept = first.clone()
    first.zero_()
    assert torch.equal(data.batch(torch.tensor([0])).x, kept)


class Runs:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_a_pickle_that_names_code_is_refused_and_runs_nothing(tmp_path: Path):
    """Q01: the name is told, the marker is not made."""
    make.cifar10_pickles(tmp_path)
    marker = tmp_path / "ran"
    target = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    target.write_bytes(pickle.dumps({b"data": Runs(marker)}, protocol=2))
    error = refused(CIFAR10, tmp_path)
    assert error.code == "Q01"
    assert "posix.mkdir" in error.message
    assert error.where.endswith("data_batch_2")
    assert not marker.exists()


def test_arrays_of_objects_are_refused(tmp_path: Path):
    """D02: an array of objects is a pickle in a pickle."""
    make.cifar10_pickles(tmp_path)
    target = tmp_path / "cifar-10-batches-py" / "data_batch_1"
    target.write_bytes(pickle.dumps({b"data": np.array([None])}, protocol=2))
    error = refused(CIFAR10, tmp_path)
    assert (error.code, "is no CIFAR file" in error.message) == ("D02", True)


def change(path: Path, edit) -> None:
    """Replace a file's bytes."""
    path.write_bytes(edit(path.read_bytes()))


@pytest.mark.parametrize(
    ("edit", "code", "words"),
    [
        (lambda raw: raw[:-1], "D02", "wanted a multiple of 3,073: it was cut off"),
        (lambda raw: b"", "D02", "has 0 bytes"),
        (
            lambda raw: raw[:3073] + b"\x0a" + raw[3074:],
            "D03",
            "label 10 of image 1 is outside 0..9",
        ),
    ],
)
def test_damage_to_a_binary_batch_is_named(tmp_path: Path, edit, code: str, words: str):
    """D02, D03: cut off, empty, a label that no class has."""
    make.cifar10_binary(tmp_path)
    change(tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin", edit)
    error = refused(CIFAR10, tmp_path)
    assert error.code == code
    assert words in error.message
    assert error.where.endswith("data_batch_3.bin")


@pytest.mark.parametrize(
    ("stored", "code", "words"),
    [
        ({b"labels": [0]}, "D02", "wanted a dict with 'data' and 'labels'"),
        ([1], "D02", "wanted a dict"),
        ({b"data": np.zeros((1, 3071), np.uint8), b"labels": [0]}, "D02", "wanted uint8 [N, 3072]"),
        ({b"data": np.zeros((1, 3072)), b"labels": [0]}, "D02", "torch.float64"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]}, "D03", "for 2 images"),
        ({b"data": np.zeros((1, 3072), np.uint8), b"labels": [10]}, "D03", "label 10 of image 0"),
        ({b"data": np.zeros((1, 3072), np.uint8), b"labels": [0.5]}, "D03", "one integer each"),
    ],
)
def test_pickles_of_another_content_are_refused(tmp_path: Path, stored, code: str, words: str):
    """D02, D03: what is found and what is wanted."""
    make.cifar10_pickles(tmp_path)
    target = tmp_path / "cifar-10-batches-py" / "test_batch"
    target.write_bytes(pickle.dumps(stored, protocol=2))
    error = refused(CIFAR10, tmp_path, split="test")
    assert error.code == code
    assert words in error.message


def test_every_prefix_of_a_pickle_is_refused_in_words(tmp_path: Path):
    """D02: a file that was cut off anywhere."""
    make.cifar10_pickles(tmp_path, count=1)
    target = tmp_path / "cifar-10-batches-py" / "test_batch"
    whole = target.read_bytes()
    for end in [*range(200), *range(200, len(whole), 97)]:
        target.write_bytes(whole[:end])
        assert refused(CIFAR10, tmp_path, split="test").code == "Q10"


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda raw: raw[:-1], "its head says 3,920"),
        (lambda raw: b"\x1f\x8b" + raw, "is no idx file of bytes with 3 axes: begins with 1f8b"),
        (lambda raw: raw[:7], "is no idx file"),
        (lambda raw: make.idx(make.pixels(4, 28, 28)), "has 5 labels for 4 images"),
        (lambda raw: make.idx(np.zeros((0, 28, 28))), "has 5 labels for 0 images"),
    ],
)
def test_damaged_idx_files_are_named(tmp_path: Path, edit, words: str):
    """D02: cut off, another kind of file, another count."""
    make.mnist(tmp_path)
    change(tmp_path / "train-images-idx3-ubyte", edit)
    assert words in refused(MNIST, tmp_path).message


def test_a_damaged_gz_file_is_named(tmp_path: Path):
    """D02: the checksum of the packed file."""
    make.mnist(tmp_path, gz=True)
    change(tmp_path / "train-labels-idx1-ubyte.gz", lambda raw: raw[:-8] + b"\0\1\2\3" + raw[-4:])
    error = refused(MNIST, tmp_path)
    assert error.message.startswith("is damaged")


def test_a_label_out_of_range_in_an_idx_file_is_named(tmp_path: Path):
    """D03: MNIST has ten classes."""
    make.mnist(tmp_path)
    change(tmp_path / "t10k-labels-idx1-ubyte", lambda raw: raw[:-1] + b"\x0b")
    assert "label 11 of image 4 is outside 0..9" in refused(MNIST, tmp_path, split="test").message


def test_missing_files_are_named_with_the_mend(tmp_path: Path):
    """D01: nothing there, or one of several."""
    error = refused(CIFAR10, tmp_path)
    assert "cifar-10-batches-py/, cifar-10-batches-bin/" in error.message
    assert error.fix == "put one there, or set download = true"
    assert "train-images-idx3-ubyte" in refused(FashionMNIST, tmp_path).message
    make.cifar10_binary(tmp_path)
    (tmp_path / "cifar-10-batches-bin" / "data_batch_4.bin").unlink()
    assert refused(CIFAR10, tmp_path).message == "has no data_batch_4.bin beside the other files"


def test_damaged_archives_are_named(tmp_path: Path):
    """D01, D02: another archive, and one that was cut off."""
    make.cifar10_binary(tmp_path)
    make.packed(tmp_path, "cifar-100-binary.tar.gz")
    assert "holds no cifar-100-binary/train.bin" in refused(CIFAR100, tmp_path).message
    change(tmp_path / "cifar-100-binary.tar.gz", lambda raw: raw[:200])
    assert refused(CIFAR100, tmp_path).message.startswith("is damaged")


@pytest.mark.parametrize(
    ("cls", "words"),
    [(CIFAR10, "cifar-10-python.tar.gz"), (MNIST, "train-images-idx3-ubyte.gz")],
)
def test_a_failed_download_says_what_to_put_where(tmp_path: Path, monkeypatch, cls, words: str):
    """D01: without a network, one line with the files."""

    def fail(*args: object, **keys: object) -> None:
        message = "<urlopen error no route>\nand more"
        raise OSError(message)

    monkeypatch.setattr(f"torchvision.datasets.{cls.__name__}", fail)
    error = refused(cls, tmp_path, download=True)
    assert error.message == "download failed: OSError: <urlopen error no route>"
    assert words in error.fix


def test_nothing_is_downloaded_unless_asked(tmp_path: Path, monkeypatch):
    """Torchvision is not called, and not called either if the files are there."""
    monkeypatch.setattr("torchvision.datasets.MNIST", None)
    refused(MNIST, tmp_path)
    make.mnist(tmp_path)
    assert built(MNIST, tmp_path, download=True).info.count == 5


def test_real_cifar10_is_read_as_torchvision_reads_it(real_data: Path, tmp_path: Path):
    """10,000 real images in the pickled form: the same pixels and labels from both readers."""
    from torchvision import datasets

    mosaic = np.asarray(Image.open(real_data / "data/cifar10/train_1.webp").convert("RGB"))
    x = mosaic.reshape(100, 32, 100, 32, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3072)
    y = np.load(real_data / "data/cifar10/labels.npz")["y_train"][:10000]
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    stored = {"data": np.ascontiguousarray(x), "labels": y.tolist()}
    for name in [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]:
        (folder / name).write_bytes(make.python2(stored))
    ours = built(CIFAR10, tmp_path, split="test")
    monkey = pytest.MonkeyPatch()
    monkey.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkey.setattr(datasets.CIFAR10, "_load_meta", lambda self: None)
    theirs = datasets.CIFAR10(tmp_path, train=False)
    monkey.undo()
    got = ours.batch(torch.arange(10000))
    assert torch.equal(
        ((got.x + 1) * 127.5).round().to(torch.uint8),
        torch.from_numpy(theirs.data).permute(0, 3, 1, 2),
    )
    assert got.y.tolist() == theirs.targets
