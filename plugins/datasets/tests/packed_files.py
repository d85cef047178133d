"""Makers of small files in the formats the data sets' authors publish."""

import gzip
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np


def pixels(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    """Random bytes [count, *shape]."""
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def python2(stored: dict[str, object]) -> bytes:
    """A pickle as Python 2 writes it: keys are byte strings, for which Python 3 has no writer."""
    raw = pickle.dumps(stored, protocol=2)
    for key in stored:
        text = key.encode()
        now = b"X" + len(text).to_bytes(4, "little") + text
        assert raw.count(now) == 1
        raw = raw.replace(now, b"U" + len(text).to_bytes(1, "little") + text)
    return raw


def cifar10_pickles(folder: Path, count: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Five train batches and a test batch as Python 2 pickles them; returns the train part."""
    where = folder / "cifar-10-batches-py"
    where.mkdir(parents=True)
    names = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
    x = pixels(count * 6, 3072)
    y = np.arange(count * 6) % 10
    for place, name in enumerate(names):
        part = slice(place * count, (place + 1) * count)
        stored = {"data": x[part], "labels": y[part].tolist(), "batch_label": b"batch of 5"}
        (where / name).write_bytes(python2(stored))
    return x[: 5 * count], y[: 5 * count]


def cifar10_binary(folder: Path, count: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """The same content as `cifar10_pickles` in the binary version."""
    where = folder / "cifar-10-batches-bin"
    where.mkdir(parents=True)
    names = [*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"]
    x = pixels(count * 6, 3072)
    y = (np.arange(count * 6) % 10).astype(np.uint8)
    for place, name in enumerate(names):
        part = slice(place * count, (place + 1) * count)
        (where / name).write_bytes(np.hstack([y[part, None], x[part]]).tobytes())
    return x[: 5 * count], y[: 5 * count]


def packed(folder: Path, archive: str) -> None:
    """Put the only folder below `folder` into an archive and remove it."""
    (inner,) = folder.iterdir()
    with tarfile.open(folder / archive, "w:gz") as tar:
        for path in sorted(inner.iterdir()):
            member = tarfile.TarInfo(f"{inner.name}/{path.name}")
            member.size = path.stat().st_size
            tar.addfile(member, io.BytesIO(path.read_bytes()))
    for path in inner.iterdir():
        path.unlink()
    inner.rmdir()


def cifar100(folder: Path, *, binary: bool, count: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Train and test files of CIFAR-100; returns the test part and its fine labels."""
    x, y = pixels(count, 3072), np.arange(count, dtype=np.uint8) + 90
    where = folder / ("cifar-100-binary" if binary else "cifar-100-python")
    where.mkdir(parents=True)
    for split in ("train", "test"):
        if binary:
            rows = np.hstack([y[:, None] % 20, y[:, None], x])
            (where / f"{split}.bin").write_bytes(rows.tobytes())
            continue
        stored = {"data": x, "fine_labels": y.tolist(), "coarse_labels": (y % 20).tolist()}
        (where / split).write_bytes(python2(stored))
    return x, y


def idx(array: np.ndarray) -> bytes:
    """An idx file of bytes."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes((0, 0, 8, array.ndim)) + sizes + array.astype(np.uint8).tobytes()


def mnist(folder: Path, *, gz: bool = False, count: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """The four idx files; returns images and labels, the same for both splits."""
    folder.mkdir(parents=True, exist_ok=True)
    x, y = pixels(count, 28, 28), np.arange(count) % 10
    for split in ("train", "t10k"):
        for name, array in (("images-idx3", x), ("labels-idx1", y)):
            raw, end = (gzip.compress(idx(array)), ".gz") if gz else (idx(array), "")
            (folder / f"{split}-{name}-ubyte{end}").write_bytes(raw)
    return x, y
