"""Decoding of one image, from a file or from bytes, with every fault named after its place."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import IO, Final

import numpy as np
from attrs import frozen
from PIL import Image, ImageFile, ImageOps, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from advdiff_core.errors import DataError

__all__ = ["RESAMPLING", "SUFFIXES", "ImageRule", "decode", "decode_bytes"]

#: Format of each extension that is read.
SUFFIXES: Final = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WebP"}

# The classes are called by what the first bytes say: no other decoder of Pillow can be reached, and
# its limit on pixels, which prints a warning where we want an error, is replaced by ours.
_DECODERS: Final[dict[str, type[ImageFile.ImageFile]]] = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
}

_REFUSED_MODES: Final = {
    "CMYK": "has CMYK colours, which have no agreed RGB values",
    "YCCK": "has CMYK colours, which have no agreed RGB values",
    "I": "has more than 8 bits per channel",
    "F": "has more than 8 bits per channel",
    "LAB": "has LAB colours",
}

RESAMPLING: Final = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
}


@frozen(kw_only=True)
class ImageRule:
    """What is accepted, and how it is brought to one size.

    The picture is turned as its EXIF data say, converted to grey (ITU-R 601 luma) or RGB, cut to
    the central square and resized to `resolution` with anti-aliasing.

    Attributes:
        channels: 1 for grey, 3 for RGB.
        resolution: Side of the result; None keeps the size, which must then be `size`.
        size: Height and width wanted without `resolution`; None accepts any.
        resize: Filter: "lanczos", "bicubic" or "box".
        max_pixels: Largest picture that is decoded.
    """

    channels: int
    resolution: int | None = None
    size: tuple[int, int] | None = None
    resize: str = "lanczos"
    max_pixels: int = 2**26


def decode(path: Path, rule: ImageRule) -> np.ndarray:
    """Pixels of an image file, uint8 [C, H, W].

    Raises:
        DataError: D02 naming the file if it is empty, truncated, corrupt, animated, transparent,
            CMYK, deeper than 8 bits, too large, too small, or not what its extension says.
    """
    try:
        with path.open("rb") as file:
            kind = _kind_of(file, str(path), os.fstat(file.fileno()).st_size)
            _check_suffix(kind, path)
            return _decoded(file, kind, str(path), rule)
    except FileNotFoundError as cause:
        raise _fault(path, "is gone since the folder was listed") from cause
    except PermissionError as cause:
        raise _fault(path, "cannot be read: no permission") from cause
    except OSError as cause:
        raise _fault(path, f"cannot be read: {cause.strerror or cause}") from cause


def decode_bytes(raw: bytes, where: str, rule: ImageRule) -> np.ndarray:
    """Pixels of a PNG, JPEG or WebP image in memory, uint8 [C, H, W].

    Args:
        raw: The encoded image.
        where: What messages call it, for example a shard and the name of a member.
        rule: What is accepted, and how it is brought to one size.

    Raises:
        DataError: D02 as `decode`.
    """
    file = io.BytesIO(raw)
    return _decoded(file, _kind_of(file, where, len(raw)), where, rule)


def _decoded(file: IO[bytes], kind: str, where: str, rule: ImageRule) -> np.ndarray:
    try:
        with _DECODERS[kind](file) as image:
            _check_header(image, where, rule)
            picture = _opaque(ImageOps.exif_transpose(image), where)
            picture = picture.convert("L" if rule.channels == 1 else "RGB")
        pixels = np.array(_fit(picture, where, rule))
    except DataError:
        raise
    except Exception as cause:  # Decoders raise whatever they meet on corrupt input.
        text = f"cannot be decoded: {type(cause).__name__}: {cause}"
        raise _fault(where, text, "replace or remove it") from cause
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _kind_of(file: IO[bytes], where: str, size: int) -> str:
    """The format, from the first bytes; the file is left at its start."""
    head = file.read(32)
    file.seek(0)
    if size == 0:
        raise _fault(where, "is empty (0 bytes)", "replace or remove it")
    kind = ""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        kind = "PNG"
    elif head.startswith(b"\xff\xd8\xff"):
        kind = "JPEG"
    elif head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        kind = "WebP"
    if not kind:
        raise _fault(where, "is no PNG, JPEG or WebP file", "replace or remove it")
    # Pillow cuts 16-bit RGB to 8 bits without a word; byte 24 of a PNG is its depth.
    if kind == "PNG" and len(head) > 24 and head[24] > 8:
        raise _fault(where, "has more than 8 bits per channel", "convert it to 8 bits")
    return kind


def _check_suffix(kind: str, path: Path) -> None:
    if kind != SUFFIXES[path.suffix.lower()]:
        text = f"is a {kind} file, but is named {path.suffix}"
        raise _fault(path, text, f"rename it to .{kind.lower()}")


def _check_header(image: ImageFile.ImageFile, where: str, rule: ImageRule) -> None:
    width, height = image.size
    if width * height > rule.max_pixels:
        text = f"has {width} x {height} pixels, more than max_pixels = {rule.max_pixels}"
        raise _fault(where, text, "shrink it or raise max_pixels")
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise _fault(where, f"is animated ({frames} frames)", "save one frame")
    refused = _REFUSED_MODES.get(image.mode.split(";")[0])
    if refused:
        raise _fault(where, refused, "convert it to 8-bit grey or RGB")


def _opaque(image: Image.Image, where: str) -> Image.Image:
    """The picture without its alpha channel, which must not hide anything."""
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    lowest, _ = image.getchannel("A").getextrema()
    if lowest != 255:
        raise _fault(where, "has transparent pixels", "put it on a background")
    return image


def _fit(image: Image.Image, where: str, rule: ImageRule) -> Image.Image:
    width, height = image.size
    if rule.resolution is None:
        if rule.size is not None and rule.size != (height, width):
            text = f"is {width} x {height}, the first image is {rule.size[1]} x {rule.size[0]}"
            raise _fault(where, text, "set resolution, to bring all images to one size")
        return image
    side = min(width, height)
    if side < rule.resolution:
        text = f"is {width} x {height}, smaller than resolution = {rule.resolution}"
        raise _fault(where, text, "remove it or lower the resolution")
    left, top = (width - side) // 2, (height - side) // 2
    # Cut first: `resize(box=...)` lets pixels outside of the box into the filter.
    square = image.crop((left, top, left + side, top + side))
    if side == rule.resolution:
        return square
    return square.resize((rule.resolution,) * 2, RESAMPLING[rule.resize])


def _fault(where: Path | str, message: str, fix: str = "") -> DataError:
    return DataError(message, code="D02", where=str(where), fix=fix)
