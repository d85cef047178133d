"""Augmentations: what each does to pixels and labels, how often, and in which recipes."""

import math

import pytest
import torch
from advdiff_datasets.augment import Crop, CutMix, Flip, Rotate
from advdiff_datasets.augment_edm import LOWPASS, EDMAugment, Motion, _coarser, _finer, moved
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from advdiff_core.draws import BLOCK, Draws, keyed_generator
from advdiff_core.engine.api import train
from advdiff_core.engine.assemble import assemble
from advdiff_core.errors import RecipeError
from advdiff_core.interfaces.component import Build
from advdiff_core.recipe import recipe_from_dict
from advdiff_core.types import Augmented, DataInfo, Domain

SHAPE = (3, 12, 10)
INFO = DataInfo(shape=SHAPE, count=64, domain=Domain(-1.0, 1.0), classes=4)


def build(info=INFO):
    """What a recipe tells an augmentation."""
    return Build(path="data.augment.0", data=info)


def made(kind, info=INFO, **keys):
    """An augmentation with these settings."""
    return kind(kind.Settings(**keys), build(info))


def images(count=BLOCK, shape=SHAPE):
    """Random images in the domain, with labels."""
    x = 2 * torch.rand(count, *shape, generator=keyed_generator("images")) - 1
    return Augmented(x, torch.arange(count) % 4)


def draws(size=BLOCK, seed=0):
    """Numbers of a batch."""
    return Draws(("test", seed), start=0, size=size, total=size, device="cpu")


@pytest.mark.parametrize(
    ("fill", "mode"), [("black", "constant"), ("edge", "edge"), ("reflect", "reflect")]
)
def test_crop_is_torchvisions_crop_of_the_padded_image(fill, mode):
    """The window at the drawn place, pixel for pixel."""
    batch, places = images(), draws().integers((BLOCK, 2), 0, 7)
    found = made(Crop, pad=3, fill=fill).augment(batch, draws())
    for row, (top, left) in enumerate(places.tolist()):
        padded = tv.pad(batch.x[row], [3] * 4, fill=-1.0, padding_mode=mode)
        assert torch.equal(found.x[row], tv.crop(padded, top, left, *SHAPE[1:]))
    assert torch.equal(found.y, batch.y)


def test_crop_chooses_each_place_equally_often():
    """9 x 9 places of the default padding: chi-square of 8,100 crops below its 99.99 % point."""
    x = torch.arange(120.0).reshape(1, 1, 12, 10) / 60 - 0.99
    found = made(Crop, info=DataInfo(shape=(1, 12, 10), count=9, domain=Domain(-1.0, 1.0))).augment(
        Augmented(x.expand(8100, -1, -1, -1)), draws(8100)
    )
    _, counts = found.x.flatten(1).unique(dim=0, return_counts=True)
    assert len(counts) == 81
    assert float(((counts - 100.0) ** 2 / 100).sum()) < 135


@pytest.mark.parametrize(("axis", "mirror"), [("horizontal", tv.hflip), ("vertical", tv.vflip)])
def test_flip_mirrors_as_often_as_asked(axis, mirror):
    """Each image is as it was or mirrored; the share is within four standard deviations."""
    batch = images(2000)
    x = made(Flip, chance=0.3, axis=axis).augment(batch, draws(2000)).x
    same, flipped = ((x == other).flatten(1).all(1) for other in (batch.x, mirror(batch.x)))
    assert bool((same ^ flipped).all())
    assert abs(float(flipped.float().mean()) - 0.3) < 4 * math.sqrt(0.21 / 2000)
    assert torch.equal(made(Flip, chance=0.0).augment(batch, draws(2000)).x, batch.x)
    assert torch.equal(made(Flip, chance=1.0).augment(batch, draws(2000)).x, tv.hflip(batch.x))


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_rotation_is_torchvisions(mode):
    """By the drawn angles, counter-clockwise, black in the corners; also off the square."""
    batch, part = images(), made(Rotate, degrees=40.0, interpolation=mode)
    limit = math.radians(40)
    angles = draws().uniform((BLOCK,), -limit, limit)
    found = part.augment(batch, draws()).x
    assert float(angles.abs().max()) > 0.8 * limit
    wrong = 0
    for row, angle in enumerate(angles.tolist()):
        expected = tv.rotate(
            batch.x[row], math.degrees(angle), v2.InterpolationMode(mode), fill=[-1.0]
        )
        if mode == "bilinear":
            # Torchvision fills by a mask; only whole pixels of it can be compared.
            inside = tv.rotate(torch.ones(1, *SHAPE[1:]), math.degrees(angle),
                               v2.InterpolationMode.BILINEAR)[0] > 0.999  # fmt: skip
            torch.testing.assert_close(
                found[row][:, inside], expected[:, inside], rtol=0, atol=2e-5
            )
        wrong += int((found[row] != expected).any(0).sum()) if mode == "nearest" else 0
    # Pixels half way between two neighbours may round either way.
    assert wrong <= 0.001 * BLOCK * SHAPE[1] * SHAPE[2]


def test_cutmix_mixes_labels_by_the_pixels_that_it_pastes():
    """Labels are shares of pixels: exact for images that are their own number."""
    ids = torch.arange(BLOCK).float()
    batch = Augmented(ids[:, None, None, None].expand(-1, *SHAPE).clone(), torch.arange(BLOCK) % 4)
    mates = draws().partners()
    found = made(CutMix, chance=1.0).augment(batch, draws())
    pasted = (found.x == mates[:, None, None, None]).float().mean((1, 2, 3))
    kept = (found.x == ids[:, None, None, None]).float().mean((1, 2, 3))
    torch.testing.assert_close(pasted + kept, torch.ones(BLOCK))
    one_hot = torch.nn.functional.one_hot(batch.y, 4).float()
    expected = kept[:, None] * one_hot + pasted[:, None] * one_hot[mates]
    torch.testing.assert_close(found.y, expected)
    assert 0.05 < float(pasted.mean()) < 0.6


def test_cutmix_leaves_the_others_alone():
    """With chance 0 images stay, and labels become whole probabilities; twice is fine."""
    batch, part = images(), made(CutMix, chance=0.0)
    once = part.augment(batch, draws())
    assert torch.equal(once.x, batch.x)
    assert once.y.argmax(1).tolist() == batch.y.tolist()
    assert torch.equal(part.augment(once, draws()).y, once.y)


def test_cutmix_pastes_the_area_it_draws():
    """Sides are sqrt(1 - lambda) of the image's (Yun et al., 2019), less what lies beyond it."""
    info = DataInfo(shape=(1, 64, 64), count=9, domain=Domain(0.0, 1.0), classes=2)
    part = made(CutMix, info=info, chance=1.0)
    numbers = torch.rand(4000, 4, generator=keyed_generator("cutmix"))
    area = part._rectangles(numbers, (64, 64)).float().mean((1, 2))
    # A side of s about a uniform centre keeps s - s^2 / 4 of the length on average.
    sides = torch.linspace(0, 1, 100001, dtype=torch.float64).sqrt()
    expected = float((sides - sides.square() / 4).square().mean())
    assert abs(float(area.mean()) - expected) < 0.02


def test_lowpass_is_the_wavelet_sym6():
    """Sums to one, is orthogonal to its even shifts, and has six vanishing moments."""
    taps = torch.tensor(LOWPASS, dtype=torch.float64)
    assert abs(float(taps.sum()) - 1) < 1e-12
    for shift in range(1, 6):
        assert abs(float((taps[2 * shift :] * taps[: -2 * shift]).sum())) < 1e-12
    assert abs(float(taps.square().sum()) - 0.5) < 1e-12
    signs = torch.tensor([(-1.0) ** k for k in range(12)], dtype=torch.float64)
    places = torch.arange(12, dtype=torch.float64) / 12
    for moment in range(6):
        assert abs(float((signs * taps * places**moment).sum())) < 1e-11


def test_making_finer_and_coarser_again_changes_nothing():
    """The filters are the two halves of an orthogonal transform, away from the edges."""
    x = torch.rand(2, 3, 16, 14, generator=keyed_generator("x"), dtype=torch.float64)
    fine = _finer(_finer(x, 2), 3)
    assert fine.shape == (2, 3, 32, 28)
    padded = torch.nn.functional.pad(fine, (5, 5, 5, 5), mode="reflect")
    back = _coarser(_coarser(padded, 3), 2)
    torch.testing.assert_close(back[..., 3:-3, 3:-3], x[..., 3:-3, 3:-3], rtol=0, atol=1e-11)


SIZE = (40, 36)


def blob(down, right):
    """A smooth, lop-sided picture as a function of places relative to the centre, in pixels."""
    return torch.exp(-((down - 4).square() / 30 + (right + 2).square() / 18)) - 0.5 * torch.exp(
        -((down + 5).square() + (right - 6).square()) / 20
    )


def motion(**parts):
    """The same motion for one image; left out parts do nothing."""
    zero = torch.zeros(1, dtype=torch.float64)
    names = ("x_flip", "y_flip", "scale", "angle", "stretch", "direction")
    given = {name: torch.tensor([parts.get(name, 0.0)], dtype=torch.float64) for name in names}
    shift = torch.tensor([parts["shift"]], dtype=torch.float64) if "shift" in parts else None
    return Motion(**given, shift=torch.stack([zero, zero], 1) if shift is None else shift)


def origin(parts, down, right):
    """Where the pixel at a place comes from: the motion undone, last part first."""
    across, along = parts.get("shift", (0.0, 0.0))
    right, down = right - across * SIZE[1] / 8, down - along * SIZE[0] / 8
    turn, stretch = parts.get("direction", 0.0), 2 ** (0.2 * parts.get("stretch", 0.0))
    along_axis = math.cos(turn) * right + math.sin(turn) * down
    across_axis = -math.sin(turn) * right + math.cos(turn) * down
    along_axis, across_axis = along_axis / stretch, across_axis * stretch
    right = math.cos(turn) * along_axis - math.sin(turn) * across_axis
    down = math.sin(turn) * along_axis + math.cos(turn) * across_axis
    angle, scale = parts.get("angle", 0.0), 2 ** (0.2 * parts.get("scale", 0.0))
    right, down = (
        (math.cos(angle) * right + math.sin(angle) * down) / scale,
        (-math.sin(angle) * right + math.cos(angle) * down) / scale,
    )
    return (-down if parts.get("y_flip") else down), (-right if parts.get("x_flip") else right)


@pytest.mark.parametrize(
    "parts",
    [
        {"x_flip": 1.0},
        {"y_flip": 1.0},
        {"scale": 1.5},
        {"angle": 0.7},
        {"stretch": -1.2, "direction": 0.4},
        {"shift": (0.5, -0.8)},
        {"x_flip": 1.0, "y_flip": 1.0, "scale": -0.6, "angle": -2.0, "stretch": 1.0,
         "direction": 2.5, "shift": (-0.4, 0.3)},
    ],
)  # fmt: skip
def test_motions_move_a_smooth_picture_where_they_say(parts):
    """Against the picture's formula at the places that each pixel comes from."""
    down = (torch.arange(SIZE[0], dtype=torch.float64) - (SIZE[0] - 1) / 2)[:, None]
    right = (torch.arange(SIZE[1], dtype=torch.float64) - (SIZE[1] - 1) / 2)[None, :]
    x = blob(down, right)[None, None]
    found = moved(x, motion(**parts))[0, 0]
    from_down, from_right = origin(parts, down, right)
    expected = blob(from_down, from_right)
    # Beyond the image its mirror image comes in, which the formula knows nothing of; the filter
    # reaches three pixels.
    inside = (from_down.abs() < SIZE[0] / 2 - 4) & (from_right.abs() < SIZE[1] / 2 - 4)
    assert float(inside.double().mean()) > 0.4
    # Linear interpolation between fine pixels flattens the top of a hill by half a percent.
    assert float((found - expected)[inside].abs().max()) < 0.008
    assert float((x[0, 0] - expected)[inside].abs().max()) > 0.2


def test_edm_tells_the_numbers_of_the_paper():
    """Table 6 of Karras et al. (2022): nine numbers, all zero where nothing was done."""
    told = motion(x_flip=1.0, scale=0.5, angle=0.3, stretch=2.0, direction=1.0, shift=(0.1, -0.2))
    expected = [
        1,
        0,
        0.5,
        math.cos(0.3) - 1,
        math.sin(0.3),
        2 * math.cos(1),
        2 * math.sin(1),
        0.1,
        -0.2,
    ]
    assert told.told()[0].tolist() == pytest.approx(expected)
    assert not motion(direction=1.0).told().any()


def test_edm_makes_each_change_as_often_as_the_paper():
    """Half are mirrored; 6 % turned over; 12 % scaled, rotated, stretched, shifted each."""
    part = made(EDMAugment, info=DataInfo(shape=(1, 4, 4), count=9, domain=Domain(-1.0, 1.0)))
    count = 20_000
    batch = images(count, (1, 4, 4))
    found = part.augment(batch, draws(count))
    told = found.c_augment
    shares = (told != 0).double().mean(0)[[0, 1, 2, 4, 5, 7]].tolist()
    for share, wanted in zip(shares, [0.5, 0.06, 0.12, 0.12, 0.12, 0.12], strict=True):
        assert abs(share - wanted) < 4.5 * math.sqrt(wanted * (1 - wanted) / count)
    still = ~(told != 0).any(1)
    assert torch.equal(found.x[still], batch.x[still])
    scales = told[:, 2][told[:, 2] != 0]
    assert abs(float(scales.std()) - 1) < 0.06


def test_edm_does_only_what_it_is_asked():
    """Parts that are off leave their numbers zero; flips alone are exact."""
    keys = {"y_flip": False, "scale": 0.0, "rotate": False, "stretch": 0.0, "shift": 0.0}
    batch = images()
    found = made(EDMAugment, chance=1.0, **keys).augment(batch, draws())
    assert not found.c_augment[:, 1:].any()
    flipped = found.c_augment[:, 0] == 1
    assert torch.equal(found.x[flipped], batch.x[flipped].flip(3))
    assert torch.equal(found.x[~flipped], batch.x[~flipped])


REFUSED = [
    (Crop, {}, DataInfo(shape=(2,), count=3), "data.augment.0.use", "'crop' needs images"),
    (Flip, {}, DataInfo(shape=(2,), count=3), "data.augment.0.use", "'flip' needs images"),
    (Rotate, {}, DataInfo(shape=(2,), count=3), "data.augment.0.use", "'rotate' needs images"),
    (
        Crop, {"pad": 10, "fill": "reflect"}, INFO, "data.augment.0.pad",
        "found 10, and images of 12x10 pixels have less to mirror",
    ),
    (
        CutMix, {}, DataInfo(shape=SHAPE, count=3, domain=Domain(0.0, 1.0)), "data.augment.0.use",
        "'cutmix' mixes labels, and the data have none",
    ),
    (
        EDMAugment, {}, DataInfo(shape=(1, 3, 8), count=3), "data.augment.0.use",
        "'edm-augment' needs more than 3 pixels a side, found 3x8",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "keys", "info", "key", "words"), REFUSED)
def test_data_that_do_not_fit_are_refused(kind, keys, info, key, words):
    """R10 with the key, what was found, and the mend."""
    with pytest.raises(RecipeError) as caught:
        made(kind, info=info, **keys)
    (fault,) = caught.value.faults
    assert (fault.code, fault.key) == ("R10", key)
    assert words in fault.message
    assert fault.fix


def recipe(augment, *, classifier=True, **run):
    """A small network on the digits."""
    model = {"use": "mlp", "width": 16}
    model |= {"outputs": 10, "parametrization": "none"} if classifier else {}
    term = {"use": "cross-entropy"} if classifier else {"use": "denoise"}
    return recipe_from_dict({
        "advdiff": 1,
        "run": {"images": 96, "batch": 48, "device": "cpu", "precision": "fp32", **run},
        "data": {"use": "digits", "augment": augment},
        "models": {"student": model},
        "terms": {"loss": term},
    })  # fmt: skip


AUGMENT = [{"use": "crop", "pad": 1}, {"use": "flip"}, {"use": "cutmix", "chance": 1.0}]


def test_recipes_train_on_augmented_samples(tmp_path):
    """Whole batches and micro-batches see the same samples; without augmentation others."""
    whole = train(recipe(AUGMENT), out=tmp_path / "a")
    parts = train(recipe(AUGMENT, micro_batch=20), out=tmp_path / "b")
    plain = train(recipe([]), out=tmp_path / "c")
    assert whole.metrics["loss/loss"] == pytest.approx(parts.metrics["loss/loss"], rel=1e-6)
    assert abs(whole.metrics["loss/loss"] - plain.metrics["loss/loss"]) > 1e-5


def test_recipes_that_would_leak_or_mix_wrongly_are_refused():
    """R10 names the entry of `data.augment`."""
    with pytest.raises(RecipeError, match="'student' is not told what was done"):
        assemble(recipe([{"use": "flip"}, {"use": "edm-augment"}], classifier=False))
    with pytest.raises(RecipeError, match="the denoiser 'student' takes whole ones"):
        assemble(recipe([{"use": "cutmix"}], classifier=False))
