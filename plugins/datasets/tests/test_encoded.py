"""Folders, databases, shards and the hub: the pictures that lie in them, and faults by name."""

import builtins
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from advdiff_datasets.folders import CelebA, ImageNetFolder
from advdiff_datasets.hugging_face import HuggingFace
from advdiff_datasets.lsun import LSUN
from advdiff_datasets.webshards import WebDataset

from advdiff_core.errors import DataError
from advdiff_core.interfaces.component import Build

sys.path.insert(0, str(Path(__file__).parent))
import encoded_files as make


def built(cls, path, **keys):
    """A data set of a folder."""
    kind = cls.settings_type("owner/name") if cls is HuggingFace else cls.Settings
    return cls(kind(path=path, **keys), Build(path="data"))


def refused(cls, path, **keys) -> DataError:
    """The error of building it."""
    with pytest.raises(DataError) as caught:
        built(cls, path, **keys)
    assert len(caught.value.lines()) == 1
    return caught.value


def unreadable(data, index: int) -> DataError:
    """The error of reading a sample."""
    with pytest.raises(DataError) as caught:
        data.batch(torch.tensor([index]))
    return caught.value


def holds(data, numbers: list[int], labels: list[int] | None, size=(8, 8)) -> None:
    """The data set holds these of the test's pictures, with these labels, in any order asked."""
    order = torch.arange(len(numbers)).flip(0)
    got = data.batch(order)
    wanted = np.stack([make.array(number, size) for number in numbers])
    pixels = torch.from_numpy(wanted).permute(0, 3, 1, 2).double() / 127.5 - 1
    assert data.info.count == len(numbers)
    assert torch.allclose(got.x.double(), pixels.flip(0), atol=1e-6, rtol=0)
    assert (None if got.y is None else got.y.flip(0).tolist()) == labels


@pytest.mark.parametrize("flat", [False, True])
def test_imagenet_numbers_classes_as_train_does(tmp_path: Path, flat: bool):
    """Subfolders in order of name; a flat val takes wnids or numbers from a file."""
    make.imagenet(tmp_path, flat=flat)
    labels = make.write(tmp_path / "val.txt", "n01440764\n1\n") if flat else None
    holds(built(ImageNetFolder, tmp_path), [0, 1, 2, 3], [0, 0, 1, 1])
    val = built(ImageNetFolder, tmp_path, split="val", val_labels=labels)
    holds(val, [10, 11], [0, 1])
    assert val.info.classes == 2
    assert val.fingerprint() != built(ImageNetFolder, tmp_path).fingerprint()


def test_imagenet_keeps_the_numbers_of_train_where_val_lacks_a_class(tmp_path: Path):
    """The second class stays number 1."""
    make.imagenet(tmp_path)
    for file in (tmp_path / "val" / "n01440764").iterdir():
        file.unlink()
    (tmp_path / "val" / "n01440764").rmdir()
    holds(built(ImageNetFolder, tmp_path, split="val"), [11], [1])


@pytest.mark.parametrize(
    ("lines", "code", "words"),
    [
        ("n01440764\n", "D03", "has 1 lines for 2 pictures"),
        ("n01440764\nn02102041\n", "D03", "line 2: 'n02102041' is no class of train/"),
        ("0\n2\n", "D03", "no number below 2"),
    ],
)
def test_imagenet_refuses_labels_that_do_not_fit(tmp_path: Path, lines: str, code: str, words: str):
    """D03 with the line."""
    make.imagenet(tmp_path, flat=True)
    path = make.write(tmp_path / "val.txt", lines)
    error = refused(ImageNetFolder, tmp_path, split="val", val_labels=path)
    assert error.code == code
    assert words in error.message


def test_imagenet_says_what_is_missing(tmp_path: Path):
    """D01: no folder, no labels, no pictures; D03: a class that train does not have."""
    assert "path/train/<wnid>" in refused(ImageNetFolder, tmp_path).fix
    make.imagenet(tmp_path, flat=True)
    assert refused(ImageNetFolder, tmp_path, split="val").fix.startswith("set val_labels")
    missing = refused(ImageNetFolder, tmp_path, split="val", val_labels=tmp_path / "no.txt")
    assert missing.message.startswith("cannot be read")
    make.write(tmp_path / "val" / "n3" / "x.png", make.png(1))
    assert "train/ has no class 'n3'" in refused(ImageNetFolder, tmp_path, split="val").message
    (tmp_path / "empty" / "train" / "n1").mkdir(parents=True)
    assert "holds no PNG" in refused(ImageNetFolder, tmp_path / "empty").message


@pytest.mark.parametrize("inside", ["", "celeba"])
def test_celeba_reads_parts_and_attributes(tmp_path: Path, inside: str):
    """The lists say which picture belongs where; -1 and 1 become 0 and 1."""
    make.celeba(tmp_path / inside)
    holds(built(CelebA, tmp_path), [0, 2], None, size=(10, 6))
    holds(built(CelebA, tmp_path, split="test", attribute="Smiling"), [3], [1], size=(10, 6))
    everyone = built(CelebA, tmp_path, split="all", attribute="Smiling")
    holds(everyone, [0, 1, 2, 3], [0, 1, 0, 1], size=(10, 6))
    assert everyone.info.classes == 2


def test_celeba_cuts_the_square_and_resizes(tmp_path: Path):
    """A resolution gives square images."""
    make.celeba(tmp_path)
    assert built(CelebA, tmp_path, resolution=4).info.shape == (3, 4, 4)


def edit(path: Path, old: str, new: str) -> None:
    """Replace text in a file."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("list_eval_partition.txt", "000000.png 0", "000000.png", "line 1 is not 'name part'"),
        ("list_eval_partition.txt", "000000.png", "../../x.png", "which is no file name"),
        ("list_eval_partition.txt", " 0", " 7", "names no picture of the part 'train'"),
        ("list_attr_celeba.txt", "000002.png  1 -1", "000002.png  1 0", "line 5 is not a name"),
        ("list_attr_celeba.txt", "000002.png", "000009.png", "says nothing of 000002.png"),
        ("list_attr_celeba.txt", "Smiling", "Smirking", "has no attribute 'Smiling'"),
    ],
)
def test_celeba_refuses_damaged_lists(tmp_path: Path, file: str, old: str, new: str, words: str):
    """The file and line are named; a list cannot point out of the folder."""
    make.celeba(tmp_path)
    edit(tmp_path / file, old, new)
    error = refused(CelebA, tmp_path, attribute="Smiling")
    assert words in error.message
    assert error.where.endswith(file)


def test_celeba_and_lsun_say_what_to_put_where(tmp_path: Path):
    """D01 with the archive's name."""
    assert refused(CelebA, tmp_path).fix == "unpack img_align_celeba.zip there"
    assert "lmdb.zip" in refused(LSUN, tmp_path).fix


def test_lsun_reads_a_database_in_order_of_keys(tmp_path: Path):
    """WebP values by key; `first` takes the beginning."""
    make.lmdb(tmp_path)
    data = built(LSUN, tmp_path)
    holds(data, [0, 1, 2, 3, 4], None)
    holds(built(LSUN, tmp_path, first=2), [0, 1], None)
    assert data.fingerprint() != built(LSUN, tmp_path, first=2).fingerprint()
    threads = built(LSUN, tmp_path, threads=4)
    many = torch.arange(5).repeat(20)
    assert torch.equal(threads.batch(many).x, data.batch(many).x)


def test_lsun_reads_a_folder_of_pictures(tmp_path: Path):
    """In order of name."""
    for number in (2, 0, 1):
        make.write(tmp_path / f"{number}.png", make.png(number))
    holds(built(LSUN, tmp_path), [0, 1, 2], None)
    holds(built(LSUN, tmp_path, first=1), [0], None)


def test_lsun_names_damage(tmp_path: Path):
    """D02: a database that is none, and an entry that is no picture."""
    make.write(tmp_path / "a" / "data.mdb", b"\0" * 8192)
    assert refused(LSUN, tmp_path / "a").message.startswith("is damaged: InvalidError")
    import lmdb

    make.lmdb(tmp_path / "b")
    with lmdb.open(str(tmp_path / "b")) as database, database.begin(write=True) as writer:
        writer.put(b"003", b"no picture")
    error = unreadable(built(LSUN, tmp_path / "b"), 3)
    assert error.where.endswith("entry 003")
    assert "is no PNG, JPEG or WebP" in error.message


@pytest.mark.parametrize("labels", ["none", "cls", "json"])
def test_webdataset_reads_samples_of_all_shards_by_index(tmp_path: Path, labels: str):
    """Shards in order of name; labels from either member."""
    make.shards(tmp_path)
    data = built(WebDataset, tmp_path, labels=labels)
    holds(data, [0, 1, 2, 3], None if labels == "none" else [0, 1, 2, 3])
    assert data.info.classes == (0 if labels == "none" else 4)
    holds(built(WebDataset, tmp_path / "train-0001.tar"), [2, 3], None)


def test_webdataset_reads_what_the_library_writes(tmp_path: Path):
    """Samples of webdataset's own writer, in its own order."""
    import webdataset

    with webdataset.TarWriter(str(tmp_path / "s.tar")) as writer:
        for number in range(3):
            writer.write({"__key__": f"k{number}", "png": make.png(number), "cls": number + 1})
    holds(built(WebDataset, tmp_path, labels="cls"), [0, 1, 2], [1, 2, 3])


@pytest.mark.parametrize("end", [100, 512, 700, 1030, 2000])
def test_webdataset_names_a_shard_that_was_cut_off(tmp_path: Path, end: int):
    """D02 with the shard, wherever it ends."""
    make.shards(tmp_path)
    shard = tmp_path / "train-0001.tar"
    shard.write_bytes(shard.read_bytes()[:end])
    error = refused(WebDataset, tmp_path, labels="cls")
    assert error.code in ("D02", "D03")
    assert "train-0001.tar" in error.where


@pytest.mark.parametrize(
    ("members", "code", "words"),
    [
        ({"1.txt": b"x"}, "D02", "has no picture beside it"),
        ({"1.png": b"p", "1.PNG": b"p"}, "D02", "has two members 1.PNG"),
        ({"1.png": b"p"}, "D03", "has no .cls member beside it"),
        ({"1.png": b"p", "1.cls": b"one"}, "D03", "holds no label: ValueError in 'one'"),
        ({"1.png": b"p", "1.cls": b"-1"}, "D03", "has the label -1"),
        ({"1.png": b"p", "1.cls": b"9"}, "D03", "has the label 9, outside 0..4"),
        ({"1.png": b"p", "1.cls": b"0" * 70000}, "D03", "labels have at most 65,536"),
    ],
)
def test_webdataset_refuses_samples_that_do_not_fit(tmp_path: Path, members, code: str, words: str):
    """D02, D03 with shard and member."""
    make.tar(tmp_path / "s.tar", members)
    error = refused(WebDataset, tmp_path, labels="cls", classes=5)
    assert error.code == code
    assert words in error.message
    assert "s.tar" in error.where


def test_webdataset_refuses_json_without_the_key(tmp_path: Path):
    """D03: another key, a fraction, no object."""
    for number, text in enumerate((b'{"class": 1}', b'{"label": 1.5}', b"[1]", b"{")):
        path = make.tar(tmp_path / f"{number}.tar", {"1.png": b"p", "1.json": text})
        assert refused(WebDataset, path, labels="json").code == "D03"


def test_webdataset_wants_shards_with_seeks(tmp_path: Path):
    """D01 for nothing and for a packed tar in a folder, D02 for one named itself."""
    assert refused(WebDataset, tmp_path).message == "holds no *.tar files"
    assert refused(WebDataset, tmp_path / "no").message == "there is no such folder"
    make.write(tmp_path / "s.tar.gz", b"\x1f\x8b" + b"0" * 600)
    assert "is no tar file" in refused(WebDataset, tmp_path / "s.tar.gz").message
    make.tar(tmp_path / "e.tar", {})
    assert refused(WebDataset, tmp_path).message == "holds no samples"


def test_hugging_face_reads_a_folder_of_save_to_disk(tmp_path: Path):
    """Columns are found by their types; a column of numbers is a label when named."""
    make.hugging_face(tmp_path / "a")
    data = built(HuggingFace, tmp_path / "a")
    holds(data, [0, 1, 2, 3], [0, 1, 2, 1])
    assert data.info.classes == 3
    holds(built(HuggingFace, tmp_path / "a", split="test"), [3], [1])
    counted = built(HuggingFace, tmp_path / "a", label="count", image="img")
    assert (counted.info.classes, counted.batch(torch.tensor([0])).y.tolist()) == (8, [7])
    make.hugging_face(tmp_path / "b", splits=False)
    assert built(HuggingFace, tmp_path / "b").fingerprint() == data.fingerprint()
    assert counted.fingerprint() != data.fingerprint()


@pytest.mark.parametrize(
    ("keys", "words", "fix"),
    [
        ({"split": "tests"}, "has no split 'tests'; it has train, test", 'split = "test"'),
        ({"image": "image"}, "has no column 'image' of pictures", 'image = "img"'),
        ({"label": "kinds"}, "has no column 'kinds' of classes", 'label = "kind"'),
    ],
)
def test_hugging_face_names_splits_and_columns(tmp_path: Path, keys, words: str, fix: str):
    """D01 with what there is."""
    make.hugging_face(tmp_path)
    error = refused(HuggingFace, tmp_path, **keys)
    assert words in error.message
    assert fix in error.fix


def test_hugging_face_without_download_asks_no_network(tmp_path: Path, monkeypatch):
    """D01 at once, saying how to go on; the library's switches are as they were."""
    import socket

    import datasets
    from huggingface_hub import constants

    def fail(*args: object, **keys: object) -> None:
        message = "a socket was opened"
        raise AssertionError(message)

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setattr(socket, "getaddrinfo", fail)
    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    error = refused(HuggingFace, None)
    assert error.where == "hf:owner/name"
    assert "a socket was opened" not in error.message
    assert error.fix == "set path to a folder of save_to_disk, or download = true"
    assert before == (datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE)


def test_hugging_face_names_another_folder(tmp_path: Path):
    """D01: a folder of something else."""
    error = refused(HuggingFace, tmp_path)
    assert error.message.startswith("cannot be read: FileNotFoundError")
    assert "save_to_disk" in error.fix


@pytest.mark.parametrize("name", [None, "", "a/b/c", "../x", "a b"])
def test_hugging_face_wants_a_name(name):
    """The message shows the form."""
    with pytest.raises(ValueError, match="write hf:<owner>/<name>"):
        HuggingFace.settings_type(name)


@pytest.mark.parametrize(
    ("cls", "library", "extra"), [(HuggingFace, "datasets", "hf"), (LSUN, "lmdb", "lmdb")]
)
def test_a_missing_library_is_named(tmp_path: Path, monkeypatch, cls, library: str, extra: str):
    """D01 with the line to install it."""
    make.write(tmp_path / "data.mdb", b"x")
    real = builtins.__import__

    def without(name: str, *args: object, **keys: object) -> object:
        if name == library:
            raise ImportError(name)
        return real(name, *args, **keys)

    monkeypatch.setattr(builtins, "__import__", without)
    error = refused(cls, tmp_path)
    assert f'pip install "advdiff-datasets[{extra}]"' in error.fix


def test_a_picture_that_cannot_be_decoded_is_named(tmp_path: Path):
    """D02: empty, cut off, another size, gone, a bomb."""
    make.imagenet(tmp_path)
    folder = tmp_path / "train" / "n02102040"
    data = built(ImageNetFolder, tmp_path)
    (folder / "n02102040_0.PNG").write_bytes(b"")
    (folder / "n02102040_1.PNG").write_bytes(make.png(3)[:-100])
    assert "is empty" in unreadable(data, 2).message
    assert "cannot be decoded" in unreadable(data, 3).message
    (folder / "n02102040_0.PNG").write_bytes(make.png(3, (8, 9)))
    assert "the first image is 8 x 8" in unreadable(data, 2).message
    (folder / "n02102040_0.PNG").unlink()
    assert "cannot be read: No such file" in unreadable(data, 2).message
    small = built(ImageNetFolder, tmp_path / ".." / tmp_path.name, resolution=8, max_pixels=64)
    assert small.batch(torch.tensor([0])).x.shape == (1, 3, 8, 8)
    (folder / "n02102040_1.PNG").write_bytes(make.png(3, (9, 8)))
    assert "more than max_pixels = 64" in unreadable(small, 2).message
