"""Every component here keeps the laws of its kind, on small files in the published formats."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from advdiff_core.testing import laws

sys.path.insert(0, str(Path(__file__).parent))
import encoded_files as encoded
import packed_files as make


def cifar10(folder: Path) -> dict[str, Any]:
    """Fifteen images as pickles."""
    make.cifar10_pickles(folder)
    return {"path": str(folder)}


def cifar10_archive(folder: Path) -> dict[str, Any]:
    """The three images of the test part in the packed binary version."""
    make.cifar10_binary(folder)
    make.packed(folder, "cifar-10-binary.tar.gz")
    return {"path": str(folder), "split": "test"}


def cifar100(folder: Path) -> dict[str, Any]:
    """Four images."""
    make.cifar100(folder, binary=True)
    return {"path": str(folder)}


def mnist(folder: Path) -> dict[str, Any]:
    """Five images with a border."""
    make.mnist(folder, gz=True)
    return {"path": str(folder), "pad": 2}


def npz_shards(folder: Path) -> dict[str, Any]:
    """Two shards of five and four images."""
    draws = np.random.default_rng(0)
    for name, count in (("a", 5), ("b", 4)):
        image = draws.integers(0, 256, (count, 6, 5, 3), dtype=np.uint8)
        np.savez(folder / f"{name}.npz", image=image, label=np.arange(count) % 3)
    return {"path": str(folder)}


def mixture(folder: Path) -> dict[str, Any]:
    """Nine images beside themselves."""
    shards = {"use": "npz-shards", **npz_shards(folder)}
    return {"real": shards, "synthetic": shards, "fraction": 0.3}


def permuted(folder: Path) -> dict[str, Any]:
    """The same by other rules."""
    other = {"synthetic_draws": "without", "restart": "epoch", "shuffle": False, "fraction": 0.5}
    return {**mixture(folder), **other}


def subset(folder: Path) -> dict[str, Any]:
    """Five of nine images, drawn."""
    return {"of": {"use": "npz-shards", **npz_shards(folder)}, "count": 5}


def spread(folder: Path) -> dict[str, Any]:
    """Four of nine, evenly."""
    return {**subset(folder), "count": 4, "choose": "even"}


def held_out(folder: Path) -> dict[str, Any]:
    """All but the first three of nine."""
    return {"of": {"use": "npz-shards", **npz_shards(folder)}, "skip": 3, "choose": "first"}


def smaller(folder: Path) -> dict[str, Any]:
    """Five images, averaged down to a size that does not divide the border's."""
    return {**mnist(folder), "size": 13}


def celeba(folder: Path) -> dict[str, Any]:
    """Two pictures with labels."""
    encoded.celeba(folder)
    return {"path": str(folder), "attribute": "Smiling", "resolution": 6}


def imagenet(folder: Path) -> dict[str, Any]:
    """Four pictures of two classes."""
    encoded.imagenet(folder)
    return {"path": str(folder)}


def captioned(folder: Path) -> dict[str, Any]:
    """Four pictures with three captions."""
    encoded.imagenet(folder)
    for number, file in enumerate(sorted(folder.rglob("*.*"))):
        file.with_suffix(".txt").write_text(f"caption {number % 3}")
    return {"path": str(folder)}


def lsun(folder: Path) -> dict[str, Any]:
    """Five pictures in a database."""
    encoded.lmdb(folder)
    return {"path": str(folder), "threads": 2}


def webdataset(folder: Path) -> dict[str, Any]:
    """Four pictures in two shards."""
    encoded.shards(folder)
    return {"path": str(folder), "labels": "cls"}


def hugging_face(folder: Path) -> dict[str, Any]:
    """Four pictures of `save_to_disk`."""
    encoded.hugging_face(folder / "hub")
    return {"path": str(folder / "hub")}


EXAMPLES = {
    "dataset:captioned-folder": [captioned],
    "dataset:celeba": [celeba],
    "augmentation:crop": [{}, {"pad": 1, "fill": "edge"}, {"fill": "reflect"}],
    "augmentation:flip": [{}, {"axis": "vertical", "chance": 0.2}],
    "augmentation:rotate": [{}, {"interpolation": "bilinear", "degrees": 90.0}],
    "augmentation:edm-augment": [{}, {"chance": 1.0}],
    "dataset:cifar10": [cifar10, cifar10_archive],
    "dataset:cifar100": [cifar100],
    "dataset:digits": [{}, {"part": "test"}],
    "dataset:fashion-mnist": [mnist],
    "dataset:mixture": [mixture, permuted],
    "dataset:npz-shards": [npz_shards],
    "dataset:hf:owner/name": [hugging_face],
    "dataset:imagenet-folder": [imagenet],
    "dataset:lsun": [lsun],
    "dataset:mnist": [mnist, smaller],
    "dataset:subset": [subset, spread, held_out],
    "dataset:webdataset": [webdataset],
}

test_laws = laws("advdiff-datasets", examples=EXAMPLES, witnesses=5)
