"""Laws of datasets."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from advdiff_core.interfaces.dataset import Dataset
from advdiff_core.testing.bench import plain_worlds, seeds
from advdiff_core.testing.compare import finite, same_bits
from advdiff_core.testing.findings import NotApplicable, shown, wrong
from advdiff_core.testing.kinds.rigs import rig
from advdiff_core.testing.law import Laws
from advdiff_core.testing.state import leaves
from advdiff_core.testing.subject import Subject, worlds_or_skip

__all__ = ["LAWS"]

LAWS = Laws("dataset")
law = LAWS.law

#: Samples per step, where a dataset composes batches.
ORDER_BATCH = 10


def built(subject: Subject, seed: int = 0) -> Dataset:
    """A fresh copy of the dataset, under a run seed and a disturbed global generator."""
    worlds_or_skip(rig(subject).fit(subject)[0])
    found: Dataset = rig(subject).build(subject, plain_worlds()[0], seed)
    return found


def made(subject: Subject) -> Dataset:
    """The dataset, built once."""
    found: Dataset = subject.memo("dataset", lambda: built(subject))
    return found


def indices(subject: Subject) -> SearchStrategy[list[int]]:
    """Indices of a batch, first and last one included."""
    last = made(subject).info.count - 1
    one = st.one_of(st.integers(0, last), st.sampled_from((0, last)))
    return st.lists(one, min_size=1, max_size=5)


def chosen(data: Dataset, which: list[int]) -> tuple[Tensor, Tensor | None]:
    """Samples and labels at indices."""
    batch = data.batch(torch.tensor(which, dtype=torch.int64))
    return batch.x, batch.y


@law("batches-as-described", which=indices)
def batches_as_described(subject: Subject, which: list[int]) -> None:
    """Samples are float32, finite, of the shape and in the domain that `info` says; labels fit."""
    data = made(subject)
    info, (x, y) = data.info, chosen(data, which)
    if info.count < 1:
        raise wrong(
            f"count = {info.count}", wanted="samples", mend="refuse empty data with a DataError"
        )
    if x.dtype != torch.float32:
        raise wrong(f"samples in {x.dtype}", wanted="float32", mend="write .float()")
    if tuple(x.shape) != (len(which), *info.shape):
        raise wrong(
            f"samples of shape {list(x.shape)} for {len(which)} indices",
            wanted=[len(which), *info.shape],
            mend="return one row per index, as info.shape says",
        )
    finite(x, what="samples", mend="refuse such data with a DataError")
    if info.domain is not None and (
        float(x.min()) < info.domain.low - 1e-6 or float(x.max()) > info.domain.high + 1e-6
    ):
        raise wrong(
            f"values from {shown(float(x.min()))} to {shown(float(x.max()))}",
            wanted=f"inside the domain [{info.domain.low}, {info.domain.high}]",
            mend="scale the values, or declare the domain they are in",
        )
    _labels(y, info.classes, len(which))


def _labels(y: Tensor | None, classes: int, count: int) -> None:
    if y is None:
        if classes:
            raise wrong(
                f"no labels, with classes = {classes}", wanted="labels [B]", mend="return them"
            )
        return
    if y.dtype != torch.int64 or tuple(y.shape) != (count,):
        raise wrong(
            f"labels in {y.dtype} of shape {list(y.shape)}",
            wanted=f"int64 [{count}]",
            mend="write .long(), one label per sample",
        )
    if not classes or int(y.min()) < 0 or int(y.max()) >= classes:
        raise wrong(
            f"labels from {int(y.min())} to {int(y.max())}",
            wanted=f"inside [0, classes = {classes})",
            mend="count classes from 0, and declare their number",
        )


@law("pure-function-of-indices", which=indices, before=indices, seed=seeds())
def pure_function_of_indices(
    subject: Subject, which: list[int], before: list[int], seed: int
) -> None:
    """A sample is the same in any order, batch and copy, whatever was read before."""
    data = made(subject)
    x, y = chosen(data, which)
    chosen(data, before)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 17)
        other = built(subject)
        for name, (again, labels) in {
            "read again": chosen(data, which),
            "read in reverse": tuple(
                None if t is None else t.flip(0) for t in chosen(data, which[::-1])
            ),
            "read from another copy": chosen(other, which),
        }.items():
            assert again is not None
            same_bits(
                again,
                x,
                what=f"samples {name}",
                mend="depend on the index alone: draw from a generator keyed by it",
            )
            if y is not None and labels is not None:
                same_bits(labels, y, what=f"labels {name}", mend="depend on the index alone")
        for row, index in enumerate(which):
            same_bits(
                chosen(data, [index])[0][0],
                x[row],
                what=f"sample {index} alone against in a batch",
                mend="no statistics over the batch",
            )


@law("hands-out-copies", which=indices)
def hands_out_copies(subject: Subject, which: list[int]) -> None:
    """Editing a batch does not change what is read next."""
    data = made(subject)
    x, _ = chosen(data, which)
    before = x.clone()
    x.add_(1.0)
    same_bits(
        chosen(data, which)[0],
        before,
        what="samples read after a batch was edited",
        mend="return copies, not views of what is stored",
    )


@law("leaves-everything-alone", which=indices)
def leaves_everything_alone(subject: Subject, which: list[int]) -> None:
    """Reading edits no index and draws from no global generator."""
    data, asked = made(subject), torch.tensor(which, dtype=torch.int64)
    with leaves("reading a batch", inputs={"indices": asked}):
        data.batch(asked)


@law("fingerprint-is-stable", seed=seeds())
def fingerprint_is_stable(subject: Subject, seed: int) -> None:
    """The fingerprint is a text that depends on the data alone, not on when it is asked for."""
    data = made(subject)
    first = data.fingerprint()
    if not isinstance(first, str) or not first:
        raise wrong(f"the fingerprint {first!r}", wanted="a text", mend="return a hex digest")
    chosen(data, [0])
    for name, again in {
        "asked again": data.fingerprint(),
        "of another copy": built(subject).fingerprint(),
    }.items():
        if again != first:
            raise wrong(
                f"another fingerprint {name}",
                wanted="the same: resuming a run compares it",
                mend="hash names, sizes and contents; no times, ids or hash()",
            )
    del seed


@law("orders-as-asked", first=st.integers(0, 200), size=st.integers(1, 40), cut=st.integers(0, 40))
def orders_as_asked(subject: Subject, first: int, size: int, cut: int) -> None:
    """If it orders samples itself: whole numbers in range, the same however positions are cut."""
    data, key = made(subject), ("law", 0)
    whole = data.order(first, size, batch=ORDER_BATCH, key=key)
    if whole is None:
        message = "it leaves the order to the core"
        raise NotApplicable(message)
    count = data.info.count
    if whole.dtype != torch.int64 or tuple(whole.shape) != (size,):
        raise wrong(
            f"an order in {whole.dtype} of shape {list(whole.shape)}",
            wanted=f"int64 [{size}]",
            mend="return one index per position",
        )
    if int(whole.min()) < 0 or int(whole.max()) >= count:
        raise wrong(
            f"indices from {int(whole.min())} to {int(whole.max())}",
            wanted=f"inside [0, count = {count})",
            mend="return indices of samples",
        )
    cut = min(cut, size - 1)
    edges = [(first, cut), (first + cut, size - cut)] if cut else [(first, size)]
    parts = [built(subject).order(low, n, batch=ORDER_BATCH, key=key) for low, n in edges]
    same_bits(
        torch.cat([part for part in parts if part is not None]),
        whole,
        what="an order asked for in two parts",
        mend="derive every index from its position and the key",
    )
