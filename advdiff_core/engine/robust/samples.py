"""Which samples a network is attacked on, and what must be known of them."""

from __future__ import annotations

from typing import Any, cast

import attrs
import torch
from attrs import field, frozen

from advdiff_core.engine.assemble import Experiment
from advdiff_core.engine.evaluation import MAX_REFERENCE
from advdiff_core.engine.robust.job import AttackJob
from advdiff_core.engine.source import Source
from advdiff_core.errors import DataError, UsageError
from advdiff_core.interfaces.dataset import Dataset
from advdiff_core.math.copies import Seen
from advdiff_core.recipe.named import named_component
from advdiff_core.recipe.recipe import plain
from advdiff_core.settings import Spec
from advdiff_core.types import Batch

__all__ = ["HELD_OUT", "Chosen", "choose_samples"]

#: Parts of data sets that are held out, in the order they are looked for.
HELD_OUT = ("test", "val", "validation")


@frozen(kw_only=True, eq=False)
class Chosen:
    """The samples of an evaluation.

    Attributes:
        source: The data, in the run's domain.
        ids: Positions of the samples.
        facts: What identifies them, for the record.
        trained_on: True if they are the run's training data.
        notes: What whoever reads the numbers has to know.
    """

    source: Source
    ids: tuple[int, ...]
    facts: dict[str, Any]
    trained_on: bool
    notes: list[str] = field(factory=list)

    def batch(self, ids: list[int]) -> Batch:
        """Samples [B, ...] and labels [B], on the CPU.

        Raises:
            UsageError: E10 if a value is not finite or outside the domain.
        """
        batch = self.source.clean(torch.tensor(ids, dtype=torch.int64))
        x, domain = batch.x.float(), self.source.info.domain
        flat = x.flatten(1)
        bad = ~flat.isfinite().all(1)
        if domain is not None:
            room = 1e-6 * domain.span
            bad |= (flat.amin(1) < domain.low - room) | (flat.amax(1) > domain.high + room)
        if bool(bad.any()):
            row = int(bad.nonzero()[0, 0])
            reach = f"[{float(flat[row].min()):.4g}, {float(flat[row].max()):.4g}]"
            wanted = "finite values" if domain is None else f"[{domain.low:g}, {domain.high:g}]"
            message = f"sample {ids[row]} lies in {reach}, wanted {wanted}"
            fix = "give raw images; normalisation belongs into the network"
            raise UsageError(message, code="E10", where="data", fix=fix)
        # What rounding put outside by a hair would be moved by a search of radius 0.
        return batch._replace(x=x if domain is None else x.clamp(domain.low, domain.high))


def choose_samples(job: AttackJob, experiment: Experiment, *, labelled: bool) -> Chosen:
    """The samples that a job names.

    Args:
        job: The job.
        experiment: The run.
        labelled: Whether labels are needed.

    Raises:
        RecipeError: If the dataset's table is wrong.
        UsageError: If the samples do not fit the run.
    """
    own = experiment.recipe.data.spec
    spec = _spec(job, own)
    source = experiment.source if spec is None else _source(spec, experiment)
    _check(source, experiment, labelled=labelled)
    named = own if spec is None else spec
    facts = {
        "use": named.use, "split": getattr(named.settings, "split", None),
        "fingerprint": source.fingerprint, "count": source.info.count,
    }  # fmt: skip
    trained_on = source.fingerprint == experiment.source.fingerprint
    chosen = Chosen(
        source=source, ids=_ids(job, source.info.count), facts=facts, trained_on=trained_on
    )
    chosen.notes.extend(_notes(chosen, experiment))
    return chosen


def _spec(job: AttackJob, own: Spec) -> Spec | None:
    """The dataset that is meant; None for the run's own as it is."""
    if job.data is not None and job.split is not None:
        fix = "write split = ... inside --data"
        raise UsageError("--data names the part itself", where="--split", fix=fix)
    if job.data is not None:
        path = ("evaluate", "data")
        return named_component("dataset", job.data, path=path, option="--data")
    known = attrs.fields_dict(type(own.settings)).get("split")
    if known is None:
        if job.split is None:
            return None
        message = f"the run's data, {own.use!r}, have no parts"
        fix = "name the held-out data by --data '{use = ...}'"
        raise UsageError(message, where="--split", fix=fix)
    choices = known.metadata.get("choices") or ()
    split = job.split or next((one for one in HELD_OUT if one in choices), None)
    if split is None or split == own.settings.split:
        return None
    table = {**plain(own), "split": split}
    return named_component("dataset", table, path=("data",), option="--split")


def _source(spec: Spec, experiment: Experiment) -> Source:
    dataset = cast("Dataset", experiment.make(spec))
    return Source(dataset, domain=experiment.source.info.domain)


def _check(source: Source, experiment: Experiment, *, labelled: bool) -> None:
    info, wanted = source.info, experiment.source.info
    if info.shape != wanted.shape:
        message = f"the samples are {list(info.shape)}, the network's are {list(wanted.shape)}"
        raise UsageError(message, where="data", fix="name data of the same shape")
    if labelled and not info.classes:
        fix = "name labelled data by --data '{use = ...}'"
        raise UsageError("the data have no labels", where="data", fix=fix)
    if labelled and info.is_image and info.domain is None:
        message = "the images have no domain, so that no radius and no range has a meaning"
        fix = "take a dataset of raw images, for example in [0, 1]; normalise in the network"
        raise UsageError(message, code="E10", where="data", fix=fix)


def _ids(job: AttackJob, count: int) -> tuple[int, ...]:
    if count < 1:
        raise DataError("there is no sample", code="D01", where="data", fix="look at its settings")
    num = count if job.num is None else job.num
    if num > count:
        message = f"{num:,} samples were asked for, the data have {count:,}"
        raise UsageError(message, where="--num", fix=f"ask for at most {count}")
    if job.pick == "first":
        return tuple(range(num))
    return tuple(place * count // num for place in range(num))


def _notes(chosen: Chosen, experiment: Experiment) -> list[str]:
    """Whether the network saw these samples in training, and how many classes they have."""
    count = len(chosen.ids)
    if chosen.trained_on:
        return [f"the {count:,} samples are training data of the run: not held out"]
    source = experiment.source
    reference = torch.arange(min(source.info.count, MAX_REFERENCE))
    seen = Seen(source.clean(reference).x.float(), source.info.domain)
    hits = 0
    for start in range(0, count, 256):
        hits += seen.among(chosen.batch(list(chosen.ids[start : start + 256])).x)
    return [
        f"{hits:,} of the {count:,} samples are among the {seen.count:,} training samples they "
        "were compared with"
    ]
