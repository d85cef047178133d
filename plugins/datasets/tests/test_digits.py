"""The digits: counts, range, labels, parts, and that the shipped recipes are there."""

from importlib.resources import files

import pytest
import tomli
import torch
from advdiff_datasets.digits import Digits
from sklearn.datasets import load_digits

from advdiff_core.interfaces.component import Build
from advdiff_core.types import DataInfo, Domain


def digits(part="all"):
    """One part of the data."""
    return Digits(Digits.Settings(part=part), Build(path="data"))


def test_digits_are_scikit_learns_scaled_to_the_declared_range():
    """Values k of 0..16 become k / 8 - 1; labels are int64."""
    raw = load_digits()
    data = digits()
    every = torch.arange(1797)
    x, y = data.batch(every)
    assert data.info == DataInfo(shape=(1, 8, 8), count=1797, domain=Domain(-1.0, 1.0), classes=10)
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    assert torch.equal((x[:, 0] + 1) * 8, torch.from_numpy(raw.images).float())
    assert y.tolist() == raw.target.tolist()
    assert (float(x.min()), float(x.max())) == (-1.0, 1.0)


def test_batch_is_a_function_of_the_indices():
    """Repeated and reordered indices give the same samples, and a batch may be edited."""
    data = digits()
    x, y = data.batch(torch.tensor([5, 3, 5]))
    again = data.batch(torch.tensor([3]))
    assert torch.equal(x[0], x[2])
    assert torch.equal(x[1], again.x[0])
    assert y[1] == again.y[0]
    x.zero_()
    assert torch.equal(data.batch(torch.tensor([3])).x, again.x)


def test_parts_are_disjoint_and_complete():
    """The parts train and test together are all, in order, and have fingerprints of their own."""
    parts = [digits(part) for part in ("train", "test")]
    assert [part.info.count for part in parts] == [1500, 297]
    joined = torch.cat([part.batch(torch.arange(part.info.count)).x for part in parts])
    assert torch.equal(joined, digits().batch(torch.arange(1797)).x)
    assert len({part.fingerprint() for part in (*parts, digits())}) == 3
    assert digits().fingerprint() == digits().fingerprint()


def test_unknown_part_is_refused():
    """The message lists the parts."""
    with pytest.raises(ValueError, match="'valid' is not one of 'all', 'train', 'test'"):
        Digits.Settings(part="valid")


@pytest.mark.parametrize("name", ["digits", "digits-noisy"])
def test_recipes_ship_with_the_package(name):
    """Each recipe is inside the import package and is TOML for this version."""
    text = files("advdiff_datasets").joinpath("recipes", f"{name}.toml").read_text()
    assert tomli.loads(text)["advdiff"] == 1
