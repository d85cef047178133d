"""Corruptions: exact fractions, damage keyed by (seed, index) alone, what each does."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from advdiff_core.datasets import corruptions
from advdiff_core.datasets.corruptions import GaussianNoise, SaltPepper, UniformOutliers
from advdiff_core.errors import RecipeError
from advdiff_core.interfaces.component import Build
from advdiff_core.types import DataInfo, Domain

COUNT = 200
IMAGES = Build(
    path="data.corrupt[0]", data=DataInfo(shape=(2, 8, 8), count=COUNT, domain=Domain(-1.0, 1.0))
)
POINTS = Build(path="data.corrupt[0]", data=DataInfo(shape=(3,), count=COUNT))

MAKE = {
    "gaussian": lambda build=IMAGES, **s: GaussianNoise(
        GaussianNoise.Settings(std=0.4, **s), build
    ),
    "uniform-outliers": lambda build=IMAGES, **s: UniformOutliers(
        UniformOutliers.Settings(**s), build
    ),
    "salt-pepper": lambda build=IMAGES, **s: SaltPepper(
        SaltPepper.Settings(amount=0.2, **s), build
    ),
}

names = st.sampled_from(sorted(MAKE))


def clean(indices, shape=(2, 8, 8)):
    """A sample whose values depend on its index alone, inside [-1, 1]."""
    ramp = torch.linspace(-0.5, 0.5, 8).expand(shape)
    return ramp + indices.reshape(-1, *[1] * len(shape)) / 1000


@given(names, st.floats(0, 1), st.integers(0, 5))
def test_fraction_is_exact(name, fraction, seed):
    """Exactly round(fraction * count) samples are hit, and only those change."""
    corruption = MAKE[name](fraction=fraction, seed=seed)
    every = torch.arange(COUNT)
    hit = corruption.affected(every)
    assert int(hit.sum()) == round(fraction * COUNT)
    x = clean(every)
    changed = (corruption.corrupt(x, every) != x).flatten(1).any(dim=1)
    assert torch.equal(changed, hit)


@given(names, st.lists(st.integers(0, COUNT - 1), min_size=1, max_size=40), st.booleans())
def test_damage_depends_on_seed_and_index_alone(name, indices, keep):
    """Any order, batch and repetition gives each sample the damage it has on its own."""
    corruption = MAKE[name](fraction=0.7, seed=3)
    if not keep:
        corruption._damage._kept = None
    batch = torch.tensor(indices)
    together = corruption.corrupt(clean(batch), batch)
    fresh = MAKE[name](fraction=0.7, seed=3)
    for row, index in zip(together, indices, strict=True):
        one = torch.tensor([index])
        assert torch.equal(fresh.corrupt(clean(one), one)[0], row)


@given(names, st.floats(0, 1), st.floats(0, 1))
def test_larger_fraction_damages_the_same_samples_and_more(name, a, b):
    """The hit samples of a smaller fraction are among those of a larger one."""
    every = torch.arange(COUNT)
    small, large = (MAKE[name](fraction=f).affected(every) for f in sorted((a, b)))
    assert bool((large | ~small).all())


def test_seeds_and_names_choose_other_samples():
    """Two seeds, and two corruptions with one seed, hit different samples."""
    every = torch.arange(COUNT)
    hits = [MAKE["gaussian"](fraction=0.5, seed=seed).affected(every) for seed in (0, 1)]
    hits.append(MAKE["salt-pepper"](fraction=0.5, seed=0).affected(every))
    assert not any(torch.equal(a, b) for i, a in enumerate(hits) for b in hits[:i])


@pytest.mark.parametrize("name", MAKE)
def test_input_is_not_edited(name):
    """The clean batch stays as it was, hit or not, even when the result is edited."""
    every = torch.arange(COUNT)
    for fraction in (0.0, 1.0):
        x = clean(every)
        out = MAKE[name](fraction=fraction).corrupt(x, every)
        out.add_(1)
        assert torch.equal(x, clean(every))


def test_seed_of_the_run_plays_no_part():
    """Runs with other seeds see the same data."""
    every = torch.arange(COUNT)
    results = [
        MAKE["gaussian"](Build(path=path, seed=seed, data=IMAGES.data)).corrupt(clean(every), every)
        for path, seed in (("data.corrupt[0]", 1), ("data.corrupt[4]", 2))
    ]
    assert torch.equal(*results)


def test_gaussian_noise_has_the_stated_moments():
    """Mean 0 and std 0.4 over 25,600 values, unclipped, the same as without a memory."""
    every = torch.arange(COUNT)
    corruption = MAKE["gaussian"]()
    noise = (corruption.corrupt(torch.ones(COUNT, 2, 8, 8), every) - 1).double()
    assert abs(float(noise.mean())) < 5 * 0.4 / 25_600**0.5
    assert abs(float(noise.std()) - 0.4) < 0.01
    assert float(noise.max()) > 1.0
    corruption._damage._kept = None
    again = corruption.corrupt(torch.ones(COUNT, 2, 8, 8), every) - 1
    assert torch.equal(again.double(), noise)


def test_gaussian_noise_acts_along_its_direction_alone():
    """Noise is std times the unit vector, and nothing across it."""
    settings = GaussianNoise.Settings(std=0.1, direction=(1.0, 1.0, -2.0))
    every = torch.arange(COUNT)
    noise = GaussianNoise(settings, POINTS).corrupt(torch.zeros(COUNT, 3), every).double()
    unit = torch.tensor([1.0, 1.0, -2.0], dtype=torch.float64) / 6**0.5
    along = noise @ unit
    torch.testing.assert_close(noise, along[:, None] * unit, rtol=1e-5, atol=1e-6)
    assert abs(float(along.std()) - 0.1) < 0.02


@pytest.mark.parametrize("build", [POINTS, IMAGES])
def test_gaussian_refuses_a_direction_of_another_length(build):
    """One number per coordinate is wanted; images have none."""
    settings = GaussianNoise.Settings(std=0.1, direction=(1.0, 0.0))
    with pytest.raises(RecipeError, match="found 2 numbers, the data have shape") as caught:
        GaussianNoise(settings, build)
    assert caught.value.faults[0].key == "data.corrupt[0].direction"


def test_gaussian_refuses_a_direction_of_zeros():
    """A direction has a length."""
    with pytest.raises(ValueError, match="direction: all numbers are 0"):
        GaussianNoise.Settings(std=0.1, direction=(0.0, 0.0))


def test_large_data_keep_no_draws(monkeypatch):
    """Above the limit nothing is kept, so that memory does not grow with the data."""
    monkeypatch.setattr(corruptions, "KEEP_BYTES", 4 * COUNT * 128 - 1)
    assert MAKE["gaussian"]()._damage._kept is None
    monkeypatch.setattr(corruptions, "KEEP_BYTES", 4 * COUNT * 128)
    assert MAKE["gaussian"]()._damage._kept == {}


def test_uniform_outliers_replace_the_sample_inside_the_box():
    """Nothing of the sample remains, and values fill [-2, 2]."""
    every = torch.arange(COUNT)
    corruption = UniformOutliers(UniformOutliers.Settings(low=-2.0, high=2.0), POINTS)
    out = corruption.corrupt(torch.full((COUNT, 3), 9.0), every)
    assert -2 <= float(out.min()) < -1.9
    assert 1.9 < float(out.max()) <= 2


def test_salt_pepper_sets_whole_pixels_to_the_ends_of_the_range():
    """A fifth of the pixels, half of them low and half high, in both channels together."""
    every = torch.arange(COUNT)
    out = MAKE["salt-pepper"]().corrupt(torch.zeros(COUNT, 2, 8, 8), every)
    assert torch.equal(out[:, 0], out[:, 1])
    for end in (-1.0, 1.0):
        assert abs(float((out == end).double().mean()) - 0.1) < 0.02
    assert set(out.unique().tolist()) == {-1.0, 0.0, 1.0}


def test_salt_pepper_refuses_points():
    """It needs images with a range."""
    with pytest.raises(RecipeError, match='"salt-pepper" needs images with a range of values'):
        MAKE["salt-pepper"](POINTS)


def test_uniform_outliers_refuse_an_empty_box():
    """`low` must be below `high`."""
    with pytest.raises(ValueError, match=r"low: 1.0 must be below high = 1.0"):
        UniformOutliers.Settings(low=1.0, high=1.0)
