"""Small parts of the engine: learning rates, statistics, gradients, the data order."""

import math

import pytest
import torch
from torch import nn

from advdiff_core.engine.distributed import World
from advdiff_core.engine.feed import Feed
from advdiff_core.engine.gradients import clip_gradients
from advdiff_core.engine.lr import LearningRate, check_momentum, set_momentum
from advdiff_core.engine.source import BadSamples, Source
from advdiff_core.engine.stats import Stats
from advdiff_core.errors import DataError, RecipeError, UsageError
from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.dataset import Dataset
from advdiff_core.types import Batch, DataInfo, Domain


def test_learning_rate_warms_up_linearly_then_follows_its_law():
    """Warm-up, cosine to the final factor, and the inverse square root of EDM2."""
    cosine = LearningRate(law="cosine", warmup=100, images=1100, final=0.1)
    assert cosine.factor(49) == pytest.approx(0.5, abs=0.01)
    assert cosine.factor(600) == pytest.approx(0.1 + 0.9 * 0.5)
    assert cosine.factor(1100) == pytest.approx(0.1)
    root = LearningRate(law="inverse-sqrt", images=10_000, reference=100)
    assert root.factor(50) == 1.0
    assert root.factor(400) == pytest.approx(0.5)
    linear = LearningRate(law="linear", images=100)
    assert linear.factor(25) == pytest.approx(0.75)
    assert LearningRate().factor(10**9) == 1.0


@pytest.mark.parametrize(("steps", "peak"), [(400, 0.025), (20, 0.3), (10, 0.5)])
@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_one_cycle_is_that_of_torch_with_its_momentum(steps, peak, optimizer):
    """Rates and momenta of OneCycleLR, stepped once an epoch, as DM-AT steps it."""
    weight = [nn.Parameter(torch.zeros(1))]
    peer = getattr(torch.optim, optimizer)(weight, lr=0.2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        peer, max_lr=0.2, total_steps=steps, pct_start=peak
    )
    lr = LearningRate(
        law="one-cycle", images=50 * steps, first=1 / 25, final=1 / 25e4, peak=peak, stairs=steps,
        momentum=(0.85, 0.95),
    )  # fmt: skip
    group = {"momentum": 0.9} if optimizer == "SGD" else {"betas": (0.9, 0.999)}
    check_momentum(lr, [group], "student")
    for epoch in range(steps):
        theirs = peer.param_groups[0]
        for nimg in (50 * epoch, 50 * epoch + 49):
            assert 0.2 * lr.factor(nimg) == pytest.approx(theirs["lr"], rel=1e-9)
            set_momentum(group, lr.momentum_at(nimg))
        for key, value in group.items():
            assert value == pytest.approx(theirs[key], rel=1e-9)
        peer.step()
        if epoch + 1 < steps:
            schedule.step()


def test_a_smooth_cycle_peaks_at_its_share_and_ends_at_its_end():
    """Without stairs it moves with every image."""
    lr = LearningRate(law="one-cycle", images=1000, first=0.1, final=0.0, peak=0.25)
    found = [lr.factor(nimg) for nimg in (0, 125, 250, 625, 1000, 2000)]
    assert found == pytest.approx([0.1, 0.55, 1.0, 0.5, 0.0, 0.0], abs=1e-12)
    assert lr.momentum_at(125) is None


def test_momentum_of_an_optimizer_without_any_cannot_cycle():
    """Said before the first step, with the place and the mend."""
    lr = LearningRate(law="one-cycle", momentum=(0.85, 0.95))
    with pytest.raises(RecipeError) as caught:
        check_momentum(lr, [{"lr": 0.1}], "student")
    text = str(caught.value)
    assert "players.student.lr_schedule.momentum" in text
    assert "the optimizer has neither momentum nor betas" in text
    assert "leave it out" in text


def test_stats_average_every_element_since_the_last_tick():
    """Means are over elements, and a tick starts anew."""
    stats = Stats(torch.device("cpu"))
    stats.add("loss/a", torch.tensor([1.0, 2.0]))
    stats.add("loss/a", torch.tensor([6.0]))
    assert stats.means(World()) == {"loss/a": 3.0}
    assert stats.means(World()) == {}


def test_stats_state_survives_a_checkpoint():
    """Sums between two ticks go through a checkpoint."""
    stats, other = Stats(torch.device("cpu")), Stats(torch.device("cpu"))
    stats.add("x", torch.tensor([1.0, 3.0]))
    other.load(stats.state())
    assert other.means(World()) == {"x": 2.0}


def test_clipping_scales_to_the_limit_and_reports_the_norm_before():
    """A gradient of norm 5 clipped to 1 keeps its direction."""
    p = nn.Parameter(torch.zeros(2))
    p.grad = torch.tensor([3.0, 4.0])
    assert clip_gradients([p], 1.0).item() == pytest.approx(5.0)
    torch.testing.assert_close(p.grad, torch.tensor([0.6, 0.8]))
    assert clip_gradients([p], 10.0).item() == pytest.approx(1.0)
    torch.testing.assert_close(p.grad, torch.tensor([0.6, 0.8]))


def test_clipping_leaves_gradients_that_are_not_finite_alone():
    """An infinite entry must not turn into NaN before the caller decides."""
    p = nn.Parameter(torch.zeros(2))
    p.grad = torch.tensor([math.inf, 4.0])
    assert not math.isfinite(clip_gradients([p], 1.0).item())
    assert p.grad.tolist() == [math.inf, 4.0]


def test_world_shares_a_batch_without_gap_or_overlap():
    """Rows of all processes cover the batch once."""
    rows = [World(rank=r, size=3).share(10) for r in range(3)]
    covered = [row for start, size in rows for row in range(start, start + size)]
    assert covered == list(range(10))


def test_world_refuses_a_batch_smaller_than_the_number_of_processes():
    """Fewer samples than processes is a usage error that names the key."""
    with pytest.raises(UsageError, match="batch of 2 cannot be shared by 3"):
        World(size=3).share(2)


class Counting(Dataset):
    """Sample i is the number i; some cannot be read."""

    def __init__(self, count=10, bad=(), low=-1.0, value=None, labels=None):
        super().__init__(self.Settings(), Build())
        self.count, self.bad, self.low, self.value, self.labels = (
            count,
            set(bad),
            low,
            value,
            labels,
        )

    @property
    def info(self):
        """Three classes."""
        return DataInfo(shape=(1,), count=self.count, domain=Domain(self.low, 1.0), classes=3)

    def batch(self, indices):
        """The numbers themselves, over the count."""
        for index in indices.tolist():
            if index in self.bad:
                raise DataError(f"sample {index} is broken", code="D02", where="data")
        x = (
            indices.float()[:, None] / self.count
            if self.value is None
            else self.value.expand(len(indices), 1)
        )
        return Batch(x, indices % 3 if self.labels is None else self.labels.expand(len(indices)))

    def fingerprint(self):
        """A name."""
        return "counting"


def feed_of(source, seed=1):
    """A feed on the CPU."""
    return Feed(source, seed=seed, place=lambda x: x)


def test_feed_shows_each_sample_once_an_epoch_in_a_keyed_order():
    """Two epochs read in batches of 4: each is a permutation, and they differ."""
    feed = feed_of(Source(Counting(10)))
    order = torch.cat([feed.indices(p, 4) for p in range(0, 20, 4)]).tolist()
    assert sorted(order[:10]) == list(range(10))
    assert sorted(order[10:]) == list(range(10))
    assert order[:10] != order[10:]
    assert feed_of(Source(Counting(10)), seed=2).indices(0, 10).tolist() != order[:10]


def test_feed_gives_the_same_samples_for_any_split_of_the_positions():
    """The sample at a position does not depend on how positions are asked for."""
    whole = feed_of(Source(Counting(10))).indices(3, 12).tolist()
    parts = feed_of(Source(Counting(10)))
    assert parts.indices(3, 5).tolist() + parts.indices(8, 7).tolist() == whole


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_feed_reads_ahead_what_it_would_read_anyway(monkeypatch, workers):
    """D06: reading in the background with any number of workers changes nothing."""
    monkeypatch.setattr("advdiff_core.engine.feed.CACHE_BYTES", 0)
    ahead = Feed(Source(Counting(10)), seed=1, place=lambda x: x, workers=workers)
    plain = feed_of(Source(Counting(10)))
    for position in range(0, 24, 4):
        got = ahead.batch(position, 4, ahead=position + 4)
        torch.testing.assert_close(got.x, plain.batch(position, 4).x, rtol=0, atol=0)
    ahead.close()


def test_source_converts_to_the_domain_of_the_run():
    """Pixels of [0, 1] data become [-1, 1]."""
    source = Source(Counting(4, low=0.0), domain=Domain(-1.0, 1.0))
    assert source.batch(torch.tensor([0, 2])).x.flatten().tolist() == [-1.0, 0.0]
    assert source.info.domain == Domain(-1.0, 1.0)


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        (Counting(value=torch.tensor(math.nan)), "sample 0 has values that are not finite"),
        (Counting(value=torch.tensor(200.0)), r"outside the declared \[-1, 1\]"),
        (Counting(labels=torch.tensor(7)), r"label outside 0\.\.2"),
    ],
)
def test_source_refuses_samples_that_break_their_description(dataset, words):
    """D03: NaN, 0-255 pixels and labels out of range are found before training, with the index."""
    with pytest.raises(DataError, match=words) as caught:
        Source(dataset).check(torch.arange(4))
    assert caught.value.code == "D03"


def test_source_skips_and_counts_unreadable_samples_when_told_to():
    """D02: a skipped sample is replaced by the next readable one, and counted."""
    source = Source(Counting(10, bad=[2, 3]), bad=BadSamples(on_bad="skip", limit=2))
    batch = source.batch(torch.tensor([1, 2, 5]))
    assert [round(10 * value) for value in batch.x.flatten().tolist()] == [1, 4, 5]
    assert source.skipped == {2, 3}


def test_source_stops_when_too_many_samples_are_unreadable():
    """D02: beyond the limit the run stops with the count and the last cause."""
    source = Source(Counting(10, bad=[2, 3]), bad=BadSamples(on_bad="skip", limit=1))
    with pytest.raises(DataError, match=r"2 samples cannot be read.*sample 3 is broken"):
        source.batch(torch.tensor([2]))


def test_source_stops_at_the_first_unreadable_sample_by_default():
    """D02: without `skip` the dataset's own error is shown."""
    with pytest.raises(DataError, match="sample 2 is broken"):
        Source(Counting(10, bad=[2])).batch(torch.tensor([2]))
