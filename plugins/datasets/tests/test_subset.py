"""subset: which samples are chosen, and that they stay what they were."""

import hashlib

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


@given(st.integers(1, 19), st.sampled_from(["first", "random"]), st.integers(0, 5))
def test_held_out_part_and_the_rest_share_nothing_and_have_all(held, choose, seed):
    """`count = n` and `skip = n` of one order are the two parts of a split."""
    keys = {"choose": choose, **({"seed": seed} if choose == "random" else {})}
    out, rest = subset(count=held, **keys), subset(skip=held, **keys)
    assert (out.info.count, rest.info.count) == (held, 20 - held)
    assert sorted([*chosen(out), *chosen(rest)]) == list(range(20))
    assert chosen(subset(**keys)) == [*chosen(out), *chosen(rest)]


def test_subset_skips_and_counts():
    """Samples 3 to 6; labels and pictures go with them."""
    data = subset(skip=3, count=4, choose="first")
    assert chosen(data) == [3, 4, 5, 6]
    assert data.batch(torch.tensor([2])).y.tolist() == [5 % 3]
    assert data.originals(torch.tensor([0])).item() == 6


def test_first_samples_of_a_large_dataset_take_no_memory(monkeypatch):
    """No list of indices is kept where they can be counted."""
    monkeypatch.setattr(Numbers.__init__, "__defaults__", (10**12,))
    data = subset(skip=1024, choose="first")
    assert data.info.count == 10**12 - 1024
    assert data.whole.info.count == 10**12
    monkeypatch.setattr(Numbers, "batch", lambda self, indices: indices.tolist())
    assert data.batch(torch.tensor([0, 10**11])) == [1024, 10**11 + 1024]


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


@pytest.mark.parametrize(
    ("keys", "key", "words", "fix"),
    [
        ({"skip": 20}, "data.skip", "20 samples are left out, there are 20", "write at most 19"),
        (
            {"skip": 15, "count": 6},
            "data.count",
            "6 samples are wanted, there are 5 after the first 15",
            "write at most 5",
        ),
    ],
)
def test_leaving_out_too_much_is_refused(keys, key, words, fix):
    """R10 at the key, with what there is."""
    with pytest.raises(RecipeError, match=words) as caught:
        subset(choose="first", **keys)
    assert (caught.value.faults[0].key, caught.value.faults[0].fix) == (key, fix)


def test_fingerprint_of_chunks_is_that_of_all_indices(monkeypatch):
    """However many are made at once; and it is the digest of the indices that were chosen."""
    data = subset(count=7, skip=2, choose="first")
    whole = data.fingerprint()
    monkeypatch.setattr("advdiff_datasets.subset.CHUNK", 3)
    assert data.fingerprint() == whole
    digest = hashlib.sha256(b"subset numbers")
    digest.update(torch.arange(2, 9).numpy().tobytes())
    assert whole == digest.hexdigest()
