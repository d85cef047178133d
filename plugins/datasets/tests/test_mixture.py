"""mixture: the exact share in each batch, the rules of drawing, and the same order however cut."""

import math

import pytest
import torch
from advdiff_datasets.mixture import Mixture
from hypothesis import given
from hypothesis import strategies as st

from advdiff_core.engine.api import train
from advdiff_core.engine.augment import Pipeline
from advdiff_core.engine.feed import Feed
from advdiff_core.engine.source import Source
from advdiff_core.errors import RecipeError
from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.dataset import Dataset
from advdiff_core.recipe import recipe_from_dict
from advdiff_core.settings import Spec
from advdiff_core.types import Batch, DataInfo, Domain


class Numbers(Dataset):
    """Sample k is k / 1000 in its domain, of class k mod 2; `offset` tells two sets apart."""

    def __init__(self, count, offset=0.0, domain=(0.0, 1.0), classes=2, shape=(1,)):
        super().__init__(None, Build())
        self.offset = offset
        self.told = DataInfo(
            shape=shape, count=count, domain=Domain(*domain) if domain else None, classes=classes
        )

    @property
    def info(self):
        """Description."""
        return self.told

    def batch(self, indices):
        """Scaled to the domain."""
        low, span = (self.told.domain.low, self.told.domain.span) if self.told.domain else (0, 1)
        x = low + (indices.float()[:, None] / 1000 + self.offset) * span
        return Batch(x, indices % 2 if self.told.classes else None)

    def fingerprint(self):
        """A name."""
        return f"numbers {self.told.count} {self.offset}"


def mixture(real=None, synthetic=None, **keys):
    """A mixture of 40 real and 900 synthetic numbers, unless told otherwise."""
    parts = {"real": real or Numbers(40), "synthetic": synthetic or Numbers(900)}
    specs = {
        name: Spec(kind="dataset", use=name, settings=None, component=Numbers) for name in parts
    }
    build = Build(path="data", make=lambda spec: parts[spec.use])
    return Mixture(Mixture.Settings(**specs, **keys), build)


def steps(data, batch, count, key=("key",)):
    """The samples of the first steps [count, batch]."""
    return data.order(0, count * batch, batch=batch, key=key).reshape(count, batch)


@pytest.mark.parametrize(
    ("batch", "fraction", "synthetic"),
    [(512, 0.7, 358), (1024, 0.7, 716), (2048, 0.7, 1433), (2048, 0.8, 1638), (100, 0.29, 29),
     (7, 0.0, 0), (7, 1.0, 7), (3, 0.3, 0)],
)  # fmt: skip
def test_each_batch_has_the_share_of_the_paper(batch, fraction, synthetic):
    """int(fraction * B), as decimals, in every step: batches of Wang et al. (2023), and edges."""
    data = mixture(fraction=fraction)
    found = (steps(data, batch, 6) >= 40).sum(1)
    assert found.tolist() == [synthetic] * 6


def test_real_samples_come_once_before_any_comes_again():
    """Over the border of batches and epochs; each epoch has an order of its own."""
    found = steps(mixture(fraction=0.7, shuffle=False), 10, 60)
    epochs = found[:, :3].flatten()[:160].reshape(4, 40)
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(40))
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 4


def test_real_samples_may_be_shuffled_anew_each_epoch():
    """As in the code of Wang et al.: after ceil(40 / 10) steps, whoever has not come yet."""
    data = mixture(fraction=0.7, restart="epoch")
    found = steps(data, 10, 400)
    for epoch in range(0, 400, 4):
        real = found[epoch : epoch + 4]
        real = real[real < 40]
        assert len(real) == 12
        assert len(real.unique()) == 12
    every = torch.bincount(found[found < 40], minlength=40)
    # 1,200 draws over 40 samples.
    assert int(every.min()) > 0
    assert float(((every - 30.0) ** 2 / 30).sum()) < 90
    repeated = torch.bincount(found[:8][found[:8] < 40], minlength=40).max()
    assert int(repeated) == 2


def test_synthetic_samples_are_drawn_from_all_each_time():
    """With replacement: uniform by chi-square, and some come twice in 900 draws."""
    data = mixture(fraction=0.5)
    found = steps(data, 60, 300)
    synthetic = found[found >= 40] - 40
    counts = torch.bincount(synthetic, minlength=900).double()
    assert float(((counts - 10) ** 2 / 10).sum()) < 900 + 4 * math.sqrt(1800)
    assert len(synthetic[:900].unique()) < 700


def test_both_rules_can_be_turned_round():
    """Synthetic ones without, real ones with replacement."""
    data = mixture(fraction=0.5, synthetic_draws="without", real_draws="with")
    found = steps(data, 60, 30)
    synthetic, real = found[found >= 40], found[found < 40]
    assert sorted(synthetic.tolist()) == list(range(40, 940))
    assert torch.bincount(real[:40], minlength=40).max() > 1


def test_batches_are_shuffled_unless_told_otherwise():
    """Without shuffling the real samples come first, the same ones."""
    mixed, sorted_ = (steps(mixture(fraction=0.5, shuffle=flag), 20, 9) for flag in (True, False))
    assert (sorted_[:, :10] < 40).all()
    assert (sorted_[:, 10:] >= 40).all()
    assert not torch.equal(mixed, sorted_)
    assert torch.equal(mixed.sort(1).values, sorted_.sort(1).values)
    first = (mixed[:, 0] < 40).tolist()
    assert len(set(first)) == 2


def test_streams_and_seeds_have_orders_of_their_own():
    """A fresh player and another run see other batches."""
    data = mixture()
    found = {
        tuple(steps(data, 8, 2, key=key).flatten().tolist()) for key in [(1, ""), (2, ""), (1, "d")]
    }
    assert len(found) == 3


@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.sampled_from(["", "epoch"]))
def test_order_is_the_same_however_it_is_cut(sizes, restart):
    """Micro-batches, processes and a resume ask for other positions, and see the same samples."""
    keys = {"restart": restart} if restart else {"synthetic_draws": "without"}
    whole = mixture(**keys).order(0, sum(sizes), batch=13, key=("key",))
    data, position, parts = mixture(**keys), 0, []
    for size in sizes:
        parts.append(data.order(position, size, batch=13, key=("key",)))
        position += size
    assert torch.equal(torch.cat(parts), whole)
    # A resumed run asks for the end alone.
    assert torch.equal(mixture(**keys).order(position - 1, 1, batch=13, key=("key",)), whole[-1:])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_share_the_batch_and_the_share_is_exact(monkeypatch, workers, processes):
    """The parts of all processes together are the batch of one, in its order."""
    monkeypatch.setattr("advdiff_core.engine.feed.CACHE_BYTES", 0)
    batch = 24

    def feed(workers=0):
        source = Source(mixture(fraction=0.7, synthetic=Numbers(900, offset=10.0)))
        pipeline = Pipeline(seed=3, batch=batch)
        return Feed(source, seed=3, place=lambda x: x, augment=pipeline, workers=workers)

    share, made = batch // processes, feed(workers)
    for step in range(4):
        whole = feed().batch(step * batch, batch)
        assert int((whole.x > 5).sum()) == int(0.7 * batch)
        parts = [
            made.batch(step * batch + rank * share, share, ahead=(step + 1) * batch)
            for rank in range(processes)
        ]
        assert torch.equal(torch.cat([part.x for part in parts]), whole.x)
        assert torch.equal(torch.cat([part.y for part in parts]), whole.y)
    made.close()


def test_samples_are_those_of_the_parts_in_the_domain_of_the_real_ones():
    """Index n and above is synthetic; values are moved to the domain of the real samples."""
    data = mixture(synthetic=Numbers(900, domain=(-1.0, 1.0)))
    assert data.info == DataInfo(shape=(1,), count=940, domain=Domain(0.0, 1.0), classes=2)
    x, y = data.batch(torch.tensor([41, 3, 939, 0]))
    torch.testing.assert_close(x[:, 0], torch.tensor([0.001, 0.003, 0.899, 0.0]), rtol=0, atol=1e-6)
    assert y.tolist() == [1, 1, 1, 0]
    unlabelled = mixture(Numbers(40, classes=0), Numbers(900, classes=0))
    assert unlabelled.batch(torch.tensor([5, 50])).y is None


def test_fingerprint_depends_on_both_parts():
    """Another real or synthetic set is another mixture."""
    found = [
        mixture(), mixture(), mixture(real=Numbers(41)), mixture(synthetic=Numbers(901)),
    ]  # fmt: skip
    assert len({data.fingerprint() for data in found}) == 3


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (Numbers(9, shape=(2,)), "the shape is [2], that of the real samples [1]"),
        (Numbers(9, classes=3), "the number of classes is 3, that of the real samples 2"),
        (Numbers(9, domain=None), "the range is unbounded, that of the real samples bounded"),
    ],
)
def test_parts_that_do_not_fit_are_refused(other, words):
    """R10 at the synthetic part."""
    with pytest.raises(RecipeError) as caught:
        mixture(synthetic=other)
    (fault,) = caught.value.faults
    assert (fault.code, fault.key, fault.message) == ("R10", "data.synthetic", words)


def test_recipes_train_on_a_mixture(tmp_path):
    """Nested datasets in TOML; a run in micro-batches gets the same losses."""

    def recipe(**run):
        return recipe_from_dict({
            "advdiff": 1,
            "run": {"images": 40, "batch": 20, "device": "cpu", "precision": "fp32", **run},
            "data": {
                "use": "mixture", "fraction": 0.75,
                "real": {"use": "digits", "part": "train"},
                "synthetic": {"use": "digits", "part": "test"},
            },
            "models": {"student": {"use": "mlp", "width": 8}},
            "terms": {"denoise": {"use": "denoise"}},
        })  # fmt: skip

    whole, parts = (
        train(recipe(**run), out=tmp_path / str(len(run))) for run in ({}, {"micro_batch": 7})
    )
    assert whole.metrics["loss/denoise"] == pytest.approx(parts.metrics["loss/denoise"], rel=1e-5)
