"""Pictures with captions: a folder as img2dataset writes it."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from advdiff_core.images import SUFFIXES
from advdiff_core.settings import setting, settings
from advdiff_datasets.encoded import EncodedImages, ImageSettings, Listing
from advdiff_datasets.folders import digest_of, read_file
from advdiff_datasets.packed import fault

__all__ = ["CaptionedFolder"]


class CaptionedFolder(EncodedImages):
    """Pictures of a folder and its subfolders, each with its caption in a text file beside it.

    `a/0001.jpg` has the caption `a/0001.txt`, as LAION's pictures have once img2dataset has fetched
    them (`output_format = "files"`). The label of a picture is the number of its caption among all
    distinct ones in order of text, white space at the ends left out: row by row what
    `python -m advdiff_backbones.embed_prompts` makes of the same folder. Text itself never enters a
    run. Pictures without a caption and captions without a picture, which would shift these numbers,
    are refused, each by name.
    """

    @settings
    class Settings(ImageSettings):
        """Keys of `use = "captioned-folder"`."""

        path: Path = setting(help="folder with pictures and text files of the same names")

    def open(self) -> Listing:
        """See `EncodedImages.open`."""
        self._files = _pictures(self.settings.path)
        _check_texts(self.settings.path, self._files)
        texts = [_caption(file) for file in self._files]
        places = {text: place for place, text in enumerate(sorted(set(texts)))}
        self._labels = torch.tensor([places[text] for text in texts], dtype=torch.int64)
        return Listing(len(self._files), self._labels, len(places))

    def encoded(self, index: int) -> tuple[bytes, str]:
        """See `EncodedImages.encoded`."""
        path = self._files[index]
        return read_file(path), str(path)

    def fingerprint(self) -> str:
        """Digest of names, sizes and labels, and of the beginning of 64 files."""
        return digest_of(self._files, self.settings.path, self._labels)


def _pictures(root: Path) -> list[Path]:
    """Picture files below a folder, hidden ones left out, in order of path.

    Raises:
        DataError: D01 if there are none.
    """
    found: list[Path] = []
    for folder, inner, names in os.walk(root):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        found += [
            Path(folder, name)
            for name in names
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
        ]
    if not found:
        what = "holds no PNG, JPEG or WebP files" if root.is_dir() else "there is no such folder"
        raise fault(root, what, code="D01", fix="write the folder that img2dataset made")
    return sorted(found)


def _check_texts(root: Path, pictures: list[Path]) -> None:
    """Refuse a text without picture: a table of embeddings of the folder would have a row more.

    Raises:
        DataError: D02 naming the first.
    """
    known = {picture.with_suffix(".txt") for picture in pictures}
    stray = sorted(path for path in root.rglob("*.txt") if path not in known)
    if stray:
        fix = "move it away, or the picture of that name back"
        raise fault(stray[0], "is a caption without a picture", code="D02", fix=fix)


def _caption(picture: Path) -> str:
    """The caption of a picture.

    Raises:
        DataError: D02 if it has none, or one that is no text.
    """
    path = picture.with_suffix(".txt")
    try:
        text = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError as cause:
        fix = "write its caption into a text file of that name, or move the picture away"
        raise fault(path, "there is no caption", code="D02", fix=fix) from cause
    except (OSError, UnicodeDecodeError) as cause:
        raise fault(path, f"cannot be read: {cause}", code="D02", fix="write UTF-8") from cause
    return text
