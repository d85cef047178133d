"""`tensor-file` and `image-folder`: what good files give."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from advdiff_core.datasets.files import ImageFolder, TensorFile
from advdiff_core.interfaces.component import Build
from advdiff_core.types import DataInfo, Domain

BUILD = Build(path="data")


def _tensor_file(path, **settings):
    return TensorFile(TensorFile.Settings(path=path, **settings), BUILD)


def _image_folder(path, **settings):
    return ImageFolder(ImageFolder.Settings(path=path, **settings), BUILD)


def _pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def _all(data):
    return data.batch(torch.arange(data.info.count))


@pytest.mark.parametrize(
    ("shape", "layout", "axes"),
    [
        ((5, 9, 7, 3), "auto", (0, 3, 1, 2)),
        ((5, 9, 7, 3), "NHWC", (0, 3, 1, 2)),
        ((5, 1, 9, 7), "auto", (0, 1, 2, 3)),
        ((5, 3, 9, 3), "NCHW", (0, 1, 2, 3)),
        ((5, 3, 9, 3), "NHWC", (0, 3, 1, 2)),
    ],
)
def test_tensor_file_brings_images_to_channels_first(tmp_path, shape, layout, axes):
    """uint8 pixels 0..255 of either layout become [N, C, H, W] in [-1, 1]."""
    raw = _pixels(*shape)
    np.savez(tmp_path / "a.npz", images=raw)
    data = _tensor_file(tmp_path / "a.npz", layout=layout)
    x, y = _all(data)
    wanted = torch.from_numpy(raw.transpose(axes).astype(np.float32)) / 127.5 - 1
    torch.testing.assert_close(x, wanted, rtol=0, atol=1e-6)
    assert y is None
    assert data.info == DataInfo(shape=wanted.shape[1:], count=5, domain=Domain(-1.0, 1.0))


def test_tensor_file_reads_grey_images_without_a_channel_axis(tmp_path):
    """[N, H, W] gets one channel; labels give the classes."""
    labels = np.array([2, 0, 1, 2], dtype=np.uint8)
    np.savez_compressed(tmp_path / "a.npz", x_train=_pixels(4, 6, 5), y_train=labels)
    data = _tensor_file(tmp_path / "a.npz", images="x_train", labels="y_train")
    x, y = data.batch(torch.tensor([3, 0]))
    assert x.shape == (2, 1, 6, 5)
    assert y.dtype == torch.int64
    assert y.tolist() == [2, 2]
    assert data.info.classes == 3
    declared = _tensor_file(tmp_path / "a.npz", images="x_train", labels="y_train", classes=10)
    assert declared.info.classes == 10


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_tensor_file_maps_the_declared_range(tmp_path, dtype):
    """Floats in [0, 1] come out in [-1, 1], whatever their width and byte order."""
    raw = np.array([[[0.0, 1.0], [0.5, 0.25]]], dtype=dtype)
    np.savez(tmp_path / "a.npz", images=raw)
    x, _ = _all(_tensor_file(tmp_path / "a.npz", range=(0.0, 1.0)))
    assert x.dtype == torch.float32
    assert x.flatten().tolist() == [-1.0, 1.0, 0.0, -0.5]


def test_tensor_file_maps_16_bit_pixels(tmp_path):
    """Wider integers work once their range is declared."""
    raw = np.array([[[0, 65535]]], dtype=np.uint16)
    np.savez(tmp_path / "a.npz", images=raw)
    x, _ = _all(_tensor_file(tmp_path / "a.npz", range=(0.0, 65535.0)))
    assert x.flatten().tolist() == [-1.0, 1.0]


def test_tensor_file_leaves_points_as_they_are(tmp_path):
    """[N, D] are points without a domain, also in Fortran order."""
    raw = np.asfortranarray(np.random.default_rng(0).normal(size=(7, 3)))
    np.savez(tmp_path / "a.npz", p=raw)
    data = _tensor_file(tmp_path / "a.npz")
    assert data.info == DataInfo(shape=(3,), count=7)
    assert torch.equal(_all(data).x, torch.from_numpy(raw).float())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16, torch.int32])
def test_tensor_file_reads_safetensors(tmp_path, dtype):
    """The same images from a .safetensors file."""
    raw = torch.from_numpy(_pixels(4, 3, 8, 8)).to(dtype)
    save_file({"x": raw, "y": torch.arange(4)}, tmp_path / "a.safetensors")
    data = _tensor_file(tmp_path / "a.safetensors", images="x", labels="y", range=(0.0, 256.0))
    x, y = _all(data)
    torch.testing.assert_close(x, raw.float() / 128 - 1, rtol=0, atol=1e-6)
    assert y.tolist() == [0, 1, 2, 3]


def test_tensor_file_keeps_its_values_when_the_file_changes(tmp_path):
    """What was read stays, although safetensors maps files into memory."""
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.zeros(4, 1, 8, 8, dtype=torch.uint8)}, path)
    data = _tensor_file(path)
    content = bytearray(path.read_bytes())
    content[-256:] = b"\xff" * 256
    with path.open("r+b") as file:
        file.write(content)
    assert bool((_all(data).x == -1).all())


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_tensor_file_fingerprint_changes_with_any_value(tmp_path, suffix):
    """One pixel or one label changes it; saving again does not."""

    def save(name, x, y):
        path = tmp_path / f"{name}.{suffix}"
        if suffix == "npz":
            np.savez(path, x=x, y=y)
        else:
            save_file({"x": torch.from_numpy(x), "y": torch.from_numpy(y)}, path)
        return _tensor_file(path, images="x", labels="y").fingerprint()

    x, y = _pixels(4, 8, 8), np.arange(4)
    other = x.copy()
    other[2, 3, 4] ^= 1
    prints = [save("a", x, y), save("b", other, y), save("c", x, y[::-1].copy()), save("d", x, y)]
    assert len(set(prints[:3])) == 3
    assert prints[3] == prints[0]


def test_tensor_file_refuses_an_empty_range():
    """`range` is two numbers in order."""
    for wrong in ((1.0, 0.0), (0.0,), (0.0, 1.0, 2.0)):
        with pytest.raises(ValueError, match=r"range: found .*, wanted \[low, high\]"):
            TensorFile.Settings(path="a.npz", range=wrong)


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_image_folder_reads_lossless_pixels(tmp_path, suffix):
    """Pixels of PNG and lossless WebP arrive unchanged, in the order of their paths."""
    raw = {name: _pixels(6, 5, 3, seed=k) for k, name in enumerate("cab")}
    for name, pixels in raw.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.{suffix}", lossless=True)
    data = _image_folder(tmp_path)
    x, y = _all(data)
    wanted = np.stack([raw[name] for name in "abc"]).transpose(0, 3, 1, 2)
    assert torch.equal(x, torch.from_numpy(wanted).float() / 127.5 - 1)
    assert y is None
    assert data.info == DataInfo(shape=(3, 6, 5), count=3, domain=Domain(-1.0, 1.0))


def test_image_folder_is_a_function_of_the_indices(tmp_path):
    """Order, repetition and number of threads do not matter."""
    for k in range(9):
        Image.fromarray(_pixels(8, 8, 3, seed=k)).save(tmp_path / f"{k}.png")
    one, many = _image_folder(tmp_path, threads=1), _image_folder(tmp_path, threads=4)
    indices = torch.tensor([8, 0, 3, 3, 5])
    assert torch.equal(one.batch(indices).x, _all(many).x[indices])


def test_image_folder_takes_classes_from_subfolders(tmp_path):
    """The first folder below the root is the class; hidden and other files do not count."""
    for name in ("dogs/x/1.png", "cats/1.png", "cats/2.PNG", ".hidden/3.png", "cats/.4.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(_pixels(4, 4)).save(path)
    (tmp_path / "notes.txt").write_text("not an image")
    data = _image_folder(tmp_path, labels="folders")
    assert data.info.classes == 2
    assert _all(data).y.tolist() == [0, 0, 1]


@pytest.mark.parametrize(("channels", "shape"), [(1, (1, 4, 4)), (3, (3, 4, 4))])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_image_folder_converts_8_bit_modes(tmp_path, mode, channels, shape):
    """Black-and-white, grey, palette, colour and opaque alpha all give the wanted channels."""
    white = Image.new("L", (4, 4), 255).convert(mode)
    white.save(tmp_path / "a.png")
    x, _ = _all(_image_folder(tmp_path, channels=channels))
    assert torch.equal(x[0], torch.ones(shape))


def test_image_folder_cuts_the_centre_and_resizes(tmp_path):
    """The central square of an oblong picture is kept; constant parts keep their value."""
    pixels = np.zeros((8, 16, 3), dtype=np.uint8)
    pixels[:, 4:12] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for resize in ("lanczos", "bicubic", "box"):
        x, _ = _all(_image_folder(tmp_path, resolution=4, resize=resize))
        assert torch.equal(x, torch.ones(1, 3, 4, 4))
    x, _ = _all(_image_folder(tmp_path, resolution=8))
    assert torch.equal(x, torch.ones(1, 3, 8, 8))


def test_image_folder_box_resize_is_the_mean_of_blocks(tmp_path):
    """Halving with the box filter averages 2x2 blocks, to rounding along each axis."""
    raw = _pixels(8, 8)
    Image.fromarray(raw).save(tmp_path / "a.png")
    x, _ = _all(_image_folder(tmp_path, resolution=4, resize="box", channels=1))
    wanted = raw.reshape(4, 2, 4, 2).mean(axis=(1, 3))
    assert np.abs((x[0, 0].numpy() + 1) * 127.5 - wanted).max() <= 1.0


def test_image_folder_turns_pictures_as_exif_says(tmp_path):
    """Orientation 6 is turned upright before the size is taken."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 4)).save(tmp_path / "a.jpg", exif=exif)
    assert _image_folder(tmp_path).info.shape == (3, 6, 4)


def test_image_folder_fingerprint_follows_names_sizes_and_contents(tmp_path):
    """Adding, renaming and editing a file change it; reading does not."""
    for k in range(3):
        Image.fromarray(_pixels(8, 8, seed=k)).save(tmp_path / f"{k}.png")
    prints = [_image_folder(tmp_path).fingerprint() for _ in range(2)]
    (tmp_path / "2.png").rename(tmp_path / "3.png")
    prints.append(_image_folder(tmp_path).fingerprint())
    Image.fromarray(_pixels(8, 8, seed=9)).save(tmp_path / "4.png")
    prints.append(_image_folder(tmp_path).fingerprint())
    content = bytearray((tmp_path / "4.png").read_bytes())
    content[-20] ^= 1
    (tmp_path / "4.png").write_bytes(content)
    prints.append(_image_folder(tmp_path).fingerprint())
    # Past the sampled bytes only the size tells.
    (tmp_path / "4.png").write_bytes(content + bytes(2**16))
    prints.append(_image_folder(tmp_path).fingerprint())
    (tmp_path / "4.png").write_bytes(content + bytes(2**16 + 1))
    prints.append(_image_folder(tmp_path).fingerprint())
    assert prints[0] == prints[1]
    assert len(set(prints)) == 6
