"""Pictures with captions beside them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from advdiff_datasets.captions import CaptionedFolder
from PIL import Image

from advdiff_core.errors import DataError
from advdiff_core.interfaces.component import Build

CAPTIONS = {"00000/a": "a red house\n", "00000/b": "a blue dog", "00001/c": " a red house"}


@pytest.fixture
def folder(tmp_path):
    """Three pictures, two captions."""
    for number, (name, text) in enumerate(CAPTIONS.items()):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((6, 4, 3), 40 * number, dtype=np.uint8)).save(path)
        path.with_suffix(".txt").write_text(text)
        path.with_suffix(".json").write_text("{}")
    return tmp_path


def made(folder):
    """The dataset."""
    return CaptionedFolder(CaptionedFolder.Settings(path=folder, resolution=4), Build(path="data"))


def test_labels_number_the_captions_in_order_of_text(folder):
    """Equal captions are one class, white space at the ends aside; other files are passed over."""
    data = made(folder)
    assert (data.info.count, data.info.classes, data.info.shape) == (3, 2, (3, 4, 4))
    x, y = data.batch(torch.arange(3))
    assert y.tolist() == [1, 0, 1]
    assert x[:, 0, 0, 0].tolist() == pytest.approx([40 * n / 127.5 - 1 for n in range(3)])


def test_the_fingerprint_knows_captions(folder):
    """Another caption, other data."""
    before = made(folder).fingerprint()
    (folder / "00000" / "b.txt").write_text("a red house")
    assert made(folder).fingerprint() != before


@pytest.mark.parametrize(
    ("spoil", "code", "words"),
    [
        (lambda f: (f / "00000/b.txt").unlink(), "D02", "there is no caption"),
        (lambda f: (f / "00000/b.txt").write_bytes(b"\xff\xfe"), "D02", "cannot be read: 'utf-8'"),
        (lambda f: (f / "00000/b.png").unlink(), "D02", "is a caption without a picture"),
        (lambda f: (f / "notes.txt").write_text("x"), "D02", "is a caption without a picture"),
        (
            lambda f: [p.unlink() for p in f.glob("*/*.png")], "D01",
            "holds no PNG, JPEG or WebP files",
        ),
    ],
)  # fmt: skip
def test_folders_that_say_too_little_are_refused(folder, spoil, code, words):
    """A picture without caption, one that is no text, a caption alone, no pictures."""
    spoil(folder)
    with pytest.raises(DataError, match=words) as caught:
        made(folder)
    assert caught.value.code == code
    assert caught.value.fix


def test_a_missing_folder_is_refused(tmp_path):
    """D01, naming it."""
    with pytest.raises(DataError, match="there is no such folder") as caught:
        made(tmp_path / "none")
    assert caught.value.code == "D01"
