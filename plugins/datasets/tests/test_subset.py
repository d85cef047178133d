"""subset: which samples are chosen, and that they stay what they were."""

import pytest
import torch
from advdiff_datasets.subset import Subset
from hypothesis import given
from hypothesis import strategies as st

from advdiff_core.errors import RecipeError
from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.dataset import Dataset
from advdiff_core.settings import Spec
from advdiff_core.types import Batch, DataInfo, Domain


class Numbers(Dataset):
    """Sample k is k, of class k mod 3, shown as its double."""

    def __init__(self, count=20):
        super().__init__(None, Build())
        self.info = DataInfo(shape=(1,), count=count, domain=Domain(0.0, 20.0), classes=3)

    info = None
    pictures = DataInfo(shape=(1, 1, 1), count=20)

    def batch(self, indices):
        """The numbers themselves."""
        return Batch(indices.float()[:, None], indices % 3)

    def fingerprint(self):
        """A name."""
        return "numbers"

    def originals(self, indices):
        """Doubled."""
        return 2 * self.batch(indices).x

    def decode(self, x):
        """Doubled."""
        return 2 * x


def subset(**keys):
    """A part of the numbers 0 to 19."""
    spec = Spec(kind="dataset", use="numbers", settings=None, component=Numbers)
    build = Build(path="data", make=lambda spec: Numbers())
    return Subset(Subset.Settings(of=spec, **keys), build)


def chosen(data):
    """Its numbers."""
    return data.batch(torch.arange(data.info.count)).x.flatten().int().tolist()


def test_subset_takes_the_first_or_spreads_evenly():
    """0 to 4, or every fourth."""
    assert chosen(subset(count=5, choose="first")) == [0, 1, 2, 3, 4]
    assert chosen(subset(count=5, choose="even")) == [0, 4, 8, 12, 16]


@given(count=st.integers(1, 20), fewer=st.integers(1, 20), seed=st.integers(0, 50))
def test_random_subsets_of_a_seed_are_nested_and_without_repeats(count, fewer, seed):
    """A smaller count keeps the first samples of a larger one."""
    fewer = min(fewer, count)
    found = chosen(subset(count=count, seed=seed))
    assert len(set(found)) == count
    assert chosen(subset(count=fewer, seed=seed)) == found[:fewer]


def test_labels_description_and_pictures_go_with_the_samples():
    """Everything but the count is the whole's; pictures are those of the chosen samples."""
    data, rows = subset(count=4, choose="even"), torch.tensor([3, 1])
    assert data.batch(rows).y.tolist() == [15 % 3, 5 % 3]
    assert data.info == DataInfo(shape=(1,), count=4, domain=Domain(0.0, 20.0), classes=3)
    assert data.pictures.count == 4
    assert data.originals(rows).flatten().tolist() == [30, 10]
    assert data.decode(torch.ones(1, 1)).item() == 2


def test_fingerprints_tell_subsets_apart():
    """The same choice has the same one, another seed or count has another."""
    base = subset(count=5).fingerprint()
    assert base == subset(count=5).fingerprint()
    assert len({base, subset(count=5, seed=1).fingerprint(), subset(count=6).fingerprint()}) == 3


def test_more_samples_than_there_are_are_refused():
    """R10 at the key, with the largest count."""
    with pytest.raises(RecipeError, match="21 samples are wanted, there are 20") as caught:
        subset(count=21)
    assert (caught.value.faults[0].key, caught.value.faults[0].fix) == (
        "data.count", "write at most 20",
    )  # fmt: skip
