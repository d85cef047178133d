"""Every component here keeps the laws of its kind, on small files in the published formats."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from advdiff_core.testing import laws

sys.path.insert(0, str(Path(__file__).parent))
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


EXAMPLES = {
    "dataset:cifar10": [cifar10, cifar10_archive],
    "dataset:cifar100": [cifar100],
    "dataset:digits": [{}, {"part": "test"}],
    "dataset:fashion-mnist": [mnist],
    "dataset:mnist": [mnist],
}

test_laws = laws("advdiff-datasets", examples=EXAMPLES, witnesses=5)
