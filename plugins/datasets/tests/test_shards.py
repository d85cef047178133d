"""npz-shards: what is read, how little of it at a time, and every fault by shard and index."""

import hashlib
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from advdiff_datasets.npz_map import members
from advdiff_datasets.shards import NpzShards
from helpers_shards import sparse_shard
from hypothesis import given
from hypothesis import strategies as st

from advdiff_core.errors import DataError
from advdiff_core.interfaces.component import Build
from advdiff_core.types import DataInfo, Domain

COUNTS = (5, 1, 7)
CLASSES = 4


def pixels(number, count, shape=(6, 5, 3)):
    """Images of a shard."""
    return np.random.default_rng(number).integers(0, 256, (count, *shape), dtype=np.uint8)


def write(folder, counts=COUNTS, **others):
    """Shards of so many images, with other arrays where they are given."""
    folder.mkdir(exist_ok=True)
    for number, count in enumerate(counts):
        label = np.arange(count, dtype=np.int64) % CLASSES
        arrays = {"image": pixels(number, count), "label": label, **others}
        np.savez(folder / f"shard-{number:05}.npz", **arrays)
    return folder


def listed(folder, **changes):
    """Write the index of the shards in a folder."""
    shards = []
    for path in sorted(folder.glob("*.npz")):
        raw = path.read_bytes()
        count = len(np.load(path)["label"])
        digest = hashlib.sha256(raw).hexdigest()
        shards.append({"file": path.name, "count": count, "bytes": len(raw), "sha256": digest})
    index = {"format": "advdiff-shards", "version": 1, "classes": CLASSES, "shards": shards}
    (folder / "index.json").write_text(json.dumps(index | changes))
    return folder


def opened(path, **keys):
    """The dataset."""
    return NpzShards(NpzShards.Settings(path=path, **keys), Build(path="data"))


def refused(path, **keys):
    """The error of opening it."""
    with pytest.raises(DataError) as caught:
        opened(path, **keys)
    assert caught.value.fix or caught.value.code in ("D01", "D03")
    return caught.value


def test_images_come_out_in_order_scaled_and_with_their_labels(tmp_path):
    """Sample k is row k of the shards one after the other; 0 and 255 become -1 and 1."""
    data = opened(write(tmp_path / "a"))
    total = sum(COUNTS)
    assert data.info == DataInfo(
        shape=(3, 6, 5), count=total, domain=Domain(-1.0, 1.0), classes=CLASSES
    )
    x, y = data.batch(torch.arange(total))
    raw = np.concatenate([pixels(n, count) for n, count in enumerate(COUNTS)])
    expected = torch.from_numpy(raw).permute(0, 3, 1, 2).double() / 127.5 - 1
    torch.testing.assert_close(x.double(), expected, rtol=0, atol=1e-6)
    assert y.tolist() == [k % CLASSES for count in COUNTS for k in range(count)]


@given(st.lists(st.integers(0, sum(COUNTS) - 1), min_size=1, max_size=30))
def test_any_indices_in_any_order_read_the_same_samples(tmp_path_factory, which):
    """A batch over all shards equals the rows of the whole."""
    folder = tmp_path_factory.getbasetemp() / "any"
    data = opened(folder if folder.is_dir() else write(folder))
    whole, labels = data.batch(torch.arange(data.info.count))
    x, y = data.batch(torch.tensor(which))
    assert torch.equal(x, whole[which])
    assert torch.equal(y, labels[which])


def test_one_file_and_other_names_will_do(tmp_path):
    """The released files of Wang et al. are single ones; labels may be left out."""
    path = tmp_path / "1m.npz"
    np.savez(path, data=pixels(0, 3), image=np.zeros(2))
    data = opened(path, images="data", labels="")
    assert (data.info.count, data.info.classes) == (3, 0)
    assert data.batch(torch.tensor([2])).y is None


def test_index_says_what_there_is(tmp_path):
    """Shards of the index count, and no other file; its classes are taken."""
    folder = listed(write(tmp_path / "a"))
    np.savez(folder / "other.npz", image=pixels(9, 2), label=np.zeros(2, np.int64))
    assert opened(folder, verify=True).info.count == sum(COUNTS)
    assert opened(listed(write(tmp_path / "b"), classes=9)).info.classes == 9


def test_fingerprint_tells_data_apart(tmp_path):
    """The same data in another folder are the same; another pixel or label is another dataset."""
    first = opened(write(tmp_path / "a")).fingerprint()
    assert opened(write(tmp_path / "b")).fingerprint() == first
    other = pixels(0, 5)
    other[3, 0, 0, 0] ^= 1
    changed = write(tmp_path / "c")
    np.savez(changed / "shard-00000.npz", image=other, label=np.arange(5) % CLASSES)
    relabelled = write(tmp_path / "d")
    np.savez(relabelled / "shard-00000.npz", image=pixels(0, 5), label=np.zeros(5, np.int64))
    found = [opened(folder).fingerprint() for folder in (changed, relabelled)]
    assert len({first, *found}) == 3


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"image": pixels(0, 5).astype(np.float32)}, "'image' is float32 of shape [5, 6, 5, 3]"),
        (
            {"image": pixels(0, 5)[..., 0]},
            "'image' is uint8 of shape [5, 6, 5], wanted uint8 [N, H",
        ),
        ({"image": pixels(0, 5, (3, 6, 5))}, "'image' is uint8 of shape [5, 3, 6, 5]"),
        ({"label": np.zeros(5)}, "'label' is float64 of shape [5], wanted whole numbers [5]"),
        ({"label": np.zeros(4, np.int64)}, "'label' is int64 of shape [4], wanted whole"),
        (
            {"image": pixels(0, 5, (6, 6, 3))},
            "has images of [6, 6, 3], shard-00000.npz of [6, 5, 3]",
        ),
    ],
)
def test_arrays_of_other_kinds_are_refused_by_shard(tmp_path, arrays, words):
    """D03: another type, shape or count, and shards that do not fit each other."""
    folder = write(tmp_path / "a", counts=(5,))
    given = {"image": pixels(1, 5), "label": np.zeros(5, np.int64), **arrays}
    np.savez(folder / "shard-00001.npz", **given)
    error = refused(folder)
    assert error.code == "D03"
    assert error.where.endswith("shard-00001.npz")
    assert words in error.message


@pytest.mark.parametrize(
    ("label", "classes", "words"),
    [
        (7, 4, "label 7 of image 2 (sample 7) is outside 0..3"),
        (-1, 0, "label -1 of image 2 (sample 7) is outside 0 and above"),
    ],
)
def test_labels_out_of_range_are_named_by_shard_and_index(tmp_path, label, classes, words):
    """D03 before anything is trained."""
    folder = write(tmp_path / "a", counts=(5, 5))
    labels = np.zeros(5, np.int64)
    labels[2] = label
    np.savez(folder / "shard-00001.npz", image=pixels(1, 5), label=labels)
    error = refused(folder, classes=classes)
    assert (error.code, error.where) == ("D03", str(folder / "shard-00001.npz"))
    assert error.message == words


@pytest.mark.parametrize("size", [0, 1, 100, 400, -1, -30])
def test_truncated_shards_are_named(tmp_path, size):
    """D02 for a shard that was cut short anywhere, with and without an index."""
    folder = listed(write(tmp_path / "a"))
    path = folder / "shard-00002.npz"
    raw = path.read_bytes()
    path.write_bytes(raw[:size])
    for _ in range(2):
        error = refused(folder)
        assert (error.code, error.where) == ("D02", str(path))
        (folder / "index.json").unlink(missing_ok=True)


def test_a_shard_that_shrinks_later_is_an_error_and_no_crash(tmp_path):
    """D02 with the sample asked for; other shards can still be read."""
    folder = write(tmp_path / "a")
    data = opened(folder)
    path = folder / "shard-00002.npz"
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(200)
    with pytest.raises(DataError) as caught:
        data.batch(torch.tensor([0, 8]))
    assert (caught.value.code, caught.value.where) == ("D02", str(path))
    assert caught.value.message == (
        f"sample 8 cannot be read: the file has 200 bytes, had {size:,}"
    )
    assert len(data.batch(torch.tensor([0, 5])).x) == 2
    path.unlink()
    with pytest.raises(DataError, match="has 0 bytes"):
        data.batch(torch.tensor([8]))


def test_damaged_content_is_found_where_it_is_asked_for(tmp_path):
    """`verify` compares hashes; without an index there is none to compare with."""
    folder = listed(write(tmp_path / "a"))
    path = folder / "shard-00001.npz"
    raw = bytearray(path.read_bytes())
    raw[300] ^= 1
    path.write_bytes(raw)
    opened(folder)
    error = refused(folder, verify=True)
    assert (error.code, error.where) == ("D02", str(path))
    assert "has the hash" in error.message
    (folder / "index.json").unlink()
    assert "verify: no index.json says" in refused(folder, verify=True).message


def test_compressed_shards_are_refused(tmp_path):
    """They cannot be mapped; the message names the function that writes the other kind."""
    np.savez_compressed(tmp_path / "a.npz", image=pixels(0, 5), label=np.zeros(5, np.int64))
    error = refused(tmp_path)
    assert error.message == "image.npy is compressed and cannot be mapped into memory"
    assert "numpy.savez" in error.fix


def test_pickled_objects_are_refused(tmp_path):
    """D12: nothing is unpickled."""
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, archive.open("image.npy", "w") as f:
        np.lib.format.write_array(f, np.array([{}], dtype=object), allow_pickle=True)
    assert refused(tmp_path).code == "D12"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "JSONDecodeError"),
        ("[1]", "TypeError"),
        ('{"format": "x", "version": 1}', "found 'x' 1, wanted 'advdiff-shards' 1"),
        ("[" * 100_000, "RecursionError"),
        (None, "'../shard-00000.npz' is not the name of a file in the folder"),
    ],
)
def test_damaged_indices_are_named(tmp_path, text, words):
    """D02: no JSON, other JSON, nesting without end, files outside the folder."""
    folder = write(tmp_path / "a")
    if text is None:
        one = {"file": "../shard-00000.npz", "count": 5, "bytes": 9, "sha256": ""}
        listed(folder, shards=[one])
    else:
        (folder / "index.json").write_text(text)
    error = refused(folder)
    assert (error.code, error.where) == ("D02", str(folder / "index.json"))
    assert words in error.message


def test_index_and_files_must_agree(tmp_path):
    """D02 for another number of bytes or images, D01 for a missing shard."""
    folder = listed(write(tmp_path / "a"))
    index = json.loads((folder / "index.json").read_text())
    index["shards"][1]["count"] = 3
    (folder / "index.json").write_text(json.dumps(index))
    assert "has 1 images, index.json says 3" in refused(folder).message
    index["shards"][1] |= {"count": 1, "bytes": 7}
    (folder / "index.json").write_text(json.dumps(index))
    assert "bytes, index.json says 7" in refused(folder).message
    (folder / "shard-00001.npz").unlink()
    assert refused(folder).code == "D01"


def test_missing_data_say_what_to_write(tmp_path):
    """D01: no folder, an empty one, an empty shard, another array."""
    assert refused(tmp_path / "nosuch").message == "there is no such folder"
    assert refused(tmp_path).message == "holds no .npz file and no index.json"
    np.savez(tmp_path / "a.npz", image=pixels(0, 0), label=np.zeros(0, np.int64))
    assert refused(tmp_path).message == "there is no image"
    assert "has no array 'x'; it has image, label" in refused(tmp_path, images="x").message


SCRIPT = """
import resource, sys
from pathlib import Path
import torch
from advdiff_datasets.shards import NpzShards
from advdiff_core.interfaces.component import Build
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
data = NpzShards(NpzShards.Settings(path=Path(sys.argv[1]), classes=10), Build(path="data"))
data.fingerprint()
spread = torch.linspace(0, data.info.count - 1, 2048, dtype=torch.float64).round().long()
x, y = data.batch(spread)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(data.info.count, float(x.max()), int(y.max()), (after - before) // 1024)
"""


def test_fifty_million_images_are_opened_in_little_memory(tmp_path):
    """154 GB of shards (of holes): opened, checked and read from with less than 600 MB."""
    for number in range(50):
        sparse_shard(tmp_path / f"shard-{number:05}.npz", 1_000_000)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    count, brightest, label, megabytes = done.stdout.split()
    assert (count, brightest, label) == ("50000000", "-1.0", "0")
    assert int(megabytes) < 600


def test_sparse_shards_are_laid_out_like_numpys(tmp_path):
    """The stand-in of the test above has the layout of a real file; only checksums are missing."""
    sparse_shard(tmp_path / "a.npz", 3)
    np.savez(tmp_path / "b.npz", image=np.zeros((3, 32, 32, 3), np.uint8), label=np.zeros(3, int))
    one, other = members(tmp_path / "a.npz"), members(tmp_path / "b.npz")
    for name in ("image", "label"):
        assert (one[name].dtype, one[name].shape) == (other[name].dtype, other[name].shape)
        assert np.array_equal(one[name].map(), other[name].map())
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert archive.namelist() == ["image.npy", "label.npy"]
