"""Faulty data (RELIABILITY D01-D03, D12): each is refused with its code, its file and a mend."""

import io
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from advdiff_core.datasets.files import ImageFolder, TensorFile
from advdiff_core.errors import DataError
from advdiff_core.interfaces.component import Build

BUILD = Build(path="data")


def _tensor_file(path, **settings):
    return TensorFile(TensorFile.Settings(path=path, **settings), BUILD)


def _image_folder(path, **settings):
    return ImageFolder(ImageFolder.Settings(path=path, **settings), BUILD)


def _refused(caught, code, where):
    """The error has its code and exit status, names the place and fits on one line."""
    error = caught.value
    assert error.code == code
    assert error.exit_code == 4
    assert str(where) in error.where
    assert len(error.lines()) == 1


def _png(pixels=None, **save):
    pixels = (
        np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        if pixels is None
        else pixels
    )
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, **{"format": "PNG", **save})
    return stream.getvalue()


def _animated(kind):
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "green", "blue")]
    stream = io.BytesIO()
    frames[0].save(stream, format=kind, save_all=True, append_images=frames[1:])
    return stream.getvalue()


def _saved(image, kind, **save):
    stream = io.BytesIO()
    image.save(stream, format=kind, **save)
    return stream.getvalue()


def _claims(width, height):
    """A PNG whose header claims another size."""
    data = bytearray(_png())
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zipfile.crc32(data[12:29]))
    return bytes(data)


def _deep_rgb_png():
    """A PNG of 16 bits per channel, which Pillow would cut to 8 without a word."""
    data = bytearray(_png())
    data[24] = 16
    data[29:33] = struct.pack(">I", zipfile.crc32(data[12:29]))
    return bytes(data)


# --- D01: nothing to read -------------------------------------------------------------------------


def test_image_folder_names_a_missing_root(tmp_path):
    """D01: no such folder."""
    with pytest.raises(DataError, match="there is no such folder") as caught:
        _image_folder(tmp_path / "nowhere")
    _refused(caught, "D01", tmp_path / "nowhere")


def test_image_folder_refuses_a_file_as_root(tmp_path):
    """D01: a file is not a folder."""
    (tmp_path / "a.png").write_bytes(_png())
    with pytest.raises(DataError, match="is not a folder") as caught:
        _image_folder(tmp_path / "a.png")
    _refused(caught, "D01", tmp_path / "a.png")


def test_image_folder_refuses_a_folder_without_images(tmp_path):
    """D01: other files do not count."""
    (tmp_path / "readme.txt").write_text("no images")
    with pytest.raises(DataError, match="holds no PNG, JPEG or WebP files") as caught:
        _image_folder(tmp_path)
    _refused(caught, "D01", tmp_path)


def test_image_folder_names_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    """D01: the subfolder without permission is named."""
    (tmp_path / "a").mkdir()

    def scandir(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", scandir)
    with pytest.raises(DataError, match="cannot be listed: Permission denied") as caught:
        _image_folder(tmp_path)
    _refused(caught, "D01", tmp_path)


def test_image_folder_refuses_a_single_class(tmp_path):
    """D01: labels from folders need two of them."""
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "a.png").write_bytes(_png())
    with pytest.raises(DataError, match="has one class only: 'cats'") as caught:
        _image_folder(tmp_path, labels="folders")
    _refused(caught, "D01", tmp_path)
    assert 'labels = "none"' in caught.value.fix


def test_image_folder_refuses_an_image_without_a_class(tmp_path):
    """D01: an image beside the class folders is named."""
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "a.png").write_bytes(_png())
    (tmp_path / "stray.png").write_bytes(_png())
    with pytest.raises(DataError, match=r"'stray\.png' is in no subfolder") as caught:
        _image_folder(tmp_path, labels="folders")
    _refused(caught, "D01", tmp_path)


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("a.npz", None, "there is no such file"),
        ("a.npz", "folder", "is not a regular file"),
        ("a.csv", "file", r"found a file of kind \.csv, wanted \.npz or \.safetensors"),
        ("a", "file", r"found a file of kind \(none\)"),
    ],
)
def test_tensor_file_names_what_cannot_be_a_file_of_arrays(tmp_path, name, make, words):
    """D01: missing, a folder, another kind."""
    path = tmp_path / name
    if make == "folder":
        path.mkdir()
    elif make == "file":
        path.write_text("1,2,3")
    with pytest.raises(DataError, match=words) as caught:
        _tensor_file(path)
    _refused(caught, "D01", path)


@pytest.mark.parametrize(
    ("settings", "words", "fix"),
    [
        ({"images": "imags"}, "has no array 'imags'; it has images, y", 'images = "images"'),
        ({"labels": "yy"}, "has more than one array; it has images, y", 'images = "<name>"'),
        ({"images": "images", "labels": "yy"}, "has no array 'yy'; it has images, y", "labels = "),
        ({}, "has more than one array; it has images, y", 'images = "<name>"'),
    ],
)
def test_tensor_file_lists_the_arrays_there_are(tmp_path, settings, words, fix):
    """D01: a wrong name is answered with the names and the nearest."""
    path = tmp_path / "a.npz"
    np.savez(path, images=np.zeros((2, 4, 4), np.uint8), y=np.zeros(2, np.int64))
    with pytest.raises(DataError, match=words) as caught:
        _tensor_file(path, **settings)
    _refused(caught, "D01", path)
    assert fix in caught.value.fix


def test_tensor_file_refuses_an_empty_array(tmp_path):
    """D01: no samples."""
    np.savez(tmp_path / "a.npz", x=np.zeros((0, 8, 8), np.uint8))
    with pytest.raises(DataError, match=r"holds no samples: shape \[0, 8, 8\]") as caught:
        _tensor_file(tmp_path / "a.npz")
    _refused(caught, "D01", tmp_path)


# --- D02: damaged or unfit files ------------------------------------------------------------------

BAD_IMAGES = {
    "empty.png": (b"", r"is empty \(0 bytes\)"),
    "text.png": (b"this is text", r"is no PNG, JPEG or WebP file"),
    "png.jpg": (_png(), r"is a PNG file, but is named \.jpg"),
    "gif.png": (_saved(Image.new("P", (32, 32)), "GIF"), r"is no PNG, JPEG or WebP file"),
    "truncated.png": (_png()[:1500], "cannot be decoded: "),
    "truncated.jpg": (_png(format="JPEG")[:600], "cannot be decoded: "),
    "truncated.webp": (_png(format="WEBP")[:200], "cannot be decoded: "),
    "header.png": (_png()[:20], "cannot be decoded: "),
    "corrupt.png": (_png()[:100] + bytes(400) + _png()[500:], "cannot be decoded: "),
    "animated.png": (_animated("PNG"), r"is animated \(3 frames\)"),
    "animated.webp": (_animated("WEBP"), r"is animated \(3 frames\)"),
    "cmyk.jpg": (_saved(Image.new("CMYK", (32, 32)), "JPEG"), "has CMYK colours"),
    "grey16.png": (_saved(Image.new("I;16", (32, 32)), "PNG"), "has more than 8 bits per channel"),
    "rgb16.png": (_deep_rgb_png(), "has more than 8 bits per channel"),
    "clear.png": (
        _saved(Image.new("RGBA", (32, 32), (9, 9, 9, 99)), "PNG"),
        "has transparent pixels",
    ),
    "key.png": (
        _png(np.zeros((32, 32, 3), np.uint8), transparency=(0, 0, 0)),
        "has transparent pixels",
    ),
    "tiny.png": (_png(np.zeros((1, 1, 3), np.uint8)), "is 1 x 1, smaller than resolution = 16"),
    "line.png": (
        _png(np.zeros((1, 60_000), np.uint8)),
        "is 60000 x 1, smaller than resolution = 16",
    ),
    "bomb.png": (
        _claims(60_000, 60_000),
        "has 60000 x 60000 pixels, more than max_pixels = 67108864",
    ),
    "large.png": (_claims(10_000, 10_000), "has 10000 x 10000 pixels, more than max_pixels"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_image_folder_names_each_bad_file(tmp_path, name):
    """D02: the file and what is wrong with it; its good neighbours can still be read."""
    content, words = BAD_IMAGES[name]
    (tmp_path / "0.png").write_bytes(_png())
    (tmp_path / name).write_bytes(content)
    (tmp_path / "z.png").write_bytes(_png())
    data = _image_folder(tmp_path, resolution=16)
    assert data.info.count == 3
    assert data.batch(torch.tensor([0, 2])).x.shape == (2, 3, 16, 16)
    with pytest.raises(DataError, match=words) as caught:
        data.batch(torch.tensor([0, 1, 2]))
    _refused(caught, "D02", tmp_path / name)


def test_image_folder_names_the_first_image_when_it_fixes_the_size(tmp_path):
    """D02: without a resolution a bad first image is found before training."""
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match="is empty") as caught:
        _image_folder(tmp_path)
    _refused(caught, "D02", tmp_path / "a.png")


def _no_permission(*_, **__):
    raise PermissionError(13, "Permission denied")


def test_image_folder_names_a_file_without_permission(tmp_path, monkeypatch):
    """D02: a file that may not be read is named."""
    (tmp_path / "a.png").write_bytes(_png())
    data = _image_folder(tmp_path)
    monkeypatch.setattr("pathlib.Path.open", _no_permission)
    with pytest.raises(DataError, match="cannot be read: no permission") as caught:
        data.batch(torch.tensor([0]))
    _refused(caught, "D02", tmp_path / "a.png")


def test_tensor_file_names_a_file_without_permission(tmp_path, monkeypatch):
    """D01: a file that may not be read is named."""
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 3)))
    monkeypatch.setattr("zipfile.ZipFile", _no_permission)
    with pytest.raises(DataError, match="cannot be read: no permission") as caught:
        _tensor_file(tmp_path / "a.npz")
    _refused(caught, "D01", tmp_path / "a.npz")


def test_image_folder_refuses_a_second_size_without_a_resolution(tmp_path):
    """D02: sizes must agree, or `resolution` brings them together."""
    (tmp_path / "a.png").write_bytes(_png())
    (tmp_path / "b.png").write_bytes(_png(np.zeros((20, 10), np.uint8)))
    with pytest.raises(DataError, match="is 10 x 20, the first image is 32 x 32") as caught:
        _image_folder(tmp_path).batch(torch.tensor([1]))
    _refused(caught, "D02", tmp_path / "b.png")
    assert "set resolution" in caught.value.fix


def test_image_folder_names_a_file_that_went_away(tmp_path):
    """D02: a file removed after the start is named."""
    (tmp_path / "a.png").write_bytes(_png())
    (tmp_path / "b.png").write_bytes(_png())
    data = _image_folder(tmp_path)
    (tmp_path / "b.png").unlink()
    with pytest.raises(DataError, match="is gone since the folder was listed") as caught:
        data.batch(torch.tensor([1]))
    _refused(caught, "D02", tmp_path / "b.png")


def test_every_truncation_of_an_image_is_named_or_harmless(tmp_path):
    """D02: cut at any byte, an image is refused, or (its end marker missing) reads as before."""
    (tmp_path / "a.png").write_bytes(_png())
    data = _image_folder(tmp_path)
    wanted = data.batch(torch.tensor([0])).x
    whole, refusals = _png(), 0
    for length in range(0, len(whole), 7):
        (tmp_path / "a.png").write_bytes(whole[:length])
        try:
            found = data.batch(torch.tensor([0])).x
        except DataError:
            refusals += 1
        else:
            assert torch.equal(found, wanted)
    assert refusals > 0.95 * len(whole) / 7


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_every_damage_of_an_npz_is_named_or_harmless(tmp_path, save):
    """D02: any flipped bit or cut gives the same arrays or a refusal, never other numbers."""
    path = tmp_path / "a.npz"
    save(path, x=np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4))
    wanted = _tensor_file(path, range=(0.0, 23.0)).batch(torch.arange(2)).x
    whole = path.read_bytes()
    damaged = [whole[:length] for length in range(len(whole))]
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << (place % 8)
        damaged.append(bytes(flipped))
    refusals = 0
    for content in damaged:
        path.write_bytes(content)
        try:
            found = _tensor_file(path, range=(0.0, 23.0)).batch(torch.arange(2)).x
        except DataError:
            refusals += 1
        else:
            assert torch.equal(found, wanted)
    assert refusals > len(whole)


def test_every_truncation_of_safetensors_is_named(tmp_path):
    """D02: cut at any byte."""
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4)}, path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="is damaged") as caught:
            _tensor_file(path)
        _refused(caught, "D02", path)


def test_npz_with_a_header_that_claims_more_is_refused_without_making_it(tmp_path):
    """D02: a claim of 2^60 numbers costs no memory."""
    stream = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (2**58, 4, 4)}
    np.lib.format.write_array_header_1_0(stream, header)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", stream.getvalue() + bytes(64))
    with pytest.raises(DataError, match="array 'x' has 64 bytes, not ") as caught:
        _tensor_file(tmp_path / "a.npz")
    _refused(caught, "D02", tmp_path)


# --- D03: values and labels -----------------------------------------------------------------------


def _save(tmp_path, x, **more):
    path = tmp_path / "a.npz"
    np.savez(path, x=np.asarray(x), **more)
    return path


GOOD = np.full((3, 8, 8), 0.5, np.float32)


def _with(value):
    x = GOOD.copy()
    x[1, 2, 3] = value
    return x


@pytest.mark.parametrize(
    ("x", "settings", "words"),
    [
        (_with(np.nan), {"range": (0.0, 1.0)}, r"sample 1 has values that are not finite \(1 such"),
        (_with(np.inf), {"range": (0.0, 1.0)}, "sample 1 has values that are not finite"),
        (_with(np.nan)[:, 2], {}, "sample 1 has values that are not finite"),
        (
            _with(255.0),
            {"range": (0.0, 1.0)},
            r"sample 1 has values outside range = \[0, 1\]: 0.5 to 255",
        ),
        (_with(-0.1), {"range": (0.0, 1.0)}, "sample 1 has values outside range"),
        (GOOD, {}, r"pixels are torch.float32 in \[0.5, 0.5\]: their range must be declared"),
        (GOOD.astype(np.int32), {}, "pixels are torch.int64 .* range must be declared"),
        (GOOD[:, 0], {"range": (0.0, 1.0)}, "has points, and range is for images"),
        (np.zeros((2, 3, 3, 3), np.uint8), {}, r"shape \[2, 3, 3, 3\], whose layout is not clear"),
        (np.zeros((2, 9, 9, 9), np.uint8), {}, "whose layout is not clear"),
        (np.zeros((2, 2, 2, 2, 2), np.uint8), {}, "whose layout is not clear"),
        (np.zeros((2, 9, 9, 3), np.uint8), {"layout": "NCHW"}, "read as NCHW has 9 channels"),
        (np.zeros((2, 3, 9, 9), np.uint8), {"layout": "NHWC"}, "read as NHWC has 9 channels"),
        (np.zeros((2, 9, 9), np.uint8), {"layout": "NCHW"}, "layout 'NCHW' has 4 axes"),
        (np.zeros((2, 9, 9), np.complex64), {}, "array 'x' holds complex64, wanted numbers"),
        (np.array([["a", "b"]]), {}, "array 'x' holds <U1, wanted numbers"),
    ],
)
def test_tensor_file_refuses_wrong_values(tmp_path, x, settings, words):
    """D03: the first bad sample, what it holds and what is wanted."""
    path = _save(tmp_path, x)
    with pytest.raises(DataError, match=words) as caught:
        _tensor_file(path, **settings)
    _refused(caught, "D03", path)


@pytest.mark.parametrize(
    ("labels", "settings", "words"),
    [
        (np.array([0, 1, -1]), {}, "label -1 of sample 2 is outside 0..1"),
        (np.array([0, 7, 1]), {"classes": 5}, "label 7 of sample 1 is outside 0..4"),
        (np.array([0.0, 1.0, 2.0]), {}, "labels 'y' are fractions, wanted whole numbers"),
        (np.array([0, 1]), {}, r"labels have shape \[2\], wanted \[3\]"),
        (np.array([[0], [1], [2]]), {}, r"labels have shape \[3, 1\], wanted \[3\]"),
    ],
)
def test_tensor_file_refuses_wrong_labels(tmp_path, labels, settings, words):
    """D03: label, sample and range."""
    path = _save(tmp_path, GOOD, y=labels)
    with pytest.raises(DataError, match=words) as caught:
        _tensor_file(path, images="x", labels="y", range=(0.0, 1.0), **settings)
    _refused(caught, "D03", path)


# --- D12: pickles ---------------------------------------------------------------------------------


class _Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return open, (self.target, "w")


def _object_npz(path, payload):
    np.savez(path, x=np.array([payload], dtype=object), y=np.zeros(1))


def _structured_npz(path, payload):
    array = np.zeros(1, dtype=[("a", "f4"), ("b", object)])
    array["b"][0] = payload
    np.savez(path, x=array)


def _pickle_as_member(path, payload):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", pickle.dumps(payload))


def _raw_pickle(path, payload):
    path.write_bytes(pickle.dumps(payload))


def _torch_file(path, payload):
    torch.save({"x": payload}, path)


@pytest.mark.parametrize(
    ("write", "name", "code"),
    [
        (_object_npz, "a.npz", "D12"),
        (_structured_npz, "a.npz", "D12"),
        (_pickle_as_member, "a.npz", "D02"),
        (_raw_pickle, "a.npz", "D02"),
        (_torch_file, "a.npz", "D01"),
        (_raw_pickle, "a.safetensors", "D02"),
        (_torch_file, "a.safetensors", "D02"),
        (_raw_pickle, "a.pkl", "D12"),
        (_raw_pickle, "a.npy", "D12"),
        (_torch_file, "a.pt", "D12"),
        (_torch_file, "a.ckpt", "D12"),
    ],
)
def test_pickled_payloads_are_refused_and_not_run(tmp_path, write, name, code):
    """D12: whatever the file is called, no pickle is loaded."""
    target = tmp_path / "ran"
    path = tmp_path / name
    write(path, _Payload(target))
    with pytest.raises(DataError) as caught:
        _tensor_file(path, images="x")
    _refused(caught, code, path)
    assert not target.exists()


def test_the_payload_would_run_if_it_were_loaded(tmp_path):
    """The test above can fail: loading the same file with pickles allowed runs the payload."""
    target = tmp_path / "ran"
    _object_npz(tmp_path / "a.npz", _Payload(target))
    np.load(tmp_path / "a.npz", allow_pickle=True)["x"][0].close()
    assert target.exists()
