"""How many samples go through the networks at once."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Container, Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from advdiff_core.draws import BLOCK
from advdiff_core.engine.sharding import local, release
from advdiff_core.step.plan import Plan
from advdiff_core.step.scene import statistics_frozen
from advdiff_core.step.step import Place, TrainStep

if TYPE_CHECKING:
    from advdiff_core.engine.assemble import Experiment

__all__ = ["available_bytes", "choose_micro_batch", "saved_bytes_per_image"]

#: Share of the free memory that the activations of a micro-batch may take.
SHARE = 0.5
PROBE_IMAGES = 2


def choose_micro_batch(experiment: Experiment, local_batch: int) -> int:
    """Samples per micro-batch on this process: as given, or what half of the free memory holds.

    The need is counted, not tried: the bytes autograd saves for the backward of a 2-image step.
    """
    given = experiment.recipe.run.micro_batch
    if given != "auto":
        return min(int(given), local_batch)
    room = SHARE * available_bytes(experiment.scene.compute.device)
    most = int(room / max(saved_bytes_per_image(experiment), 1))
    if most >= local_batch:
        return local_batch
    return max(most // BLOCK * BLOCK or most, 1)


def available_bytes(device: torch.device) -> int:
    """Free memory of a device; on a CPU what the system could hand out now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 4 * 2**30


def saved_bytes_per_image(experiment: Experiment) -> float:
    """Bytes that autograd keeps per image at most at once in a step, parameters left out.

    An attack's graphs are gone before the losses' are made; those of a player's losses are there
    together until its backward.
    """
    log: list[tuple[int, int]] = []
    count = min(PROBE_IMAGES, experiment.source.info.count)
    batch = experiment.source.batch(torch.arange(count))
    place = experiment.scene.compute.place
    x0, labels = place(batch.x), None if batch.y is None else place(batch.y)
    costs = {name: role.cost for name, role in experiment.scene.roles.items()}
    networks = [role.module for role in experiment.scene.roles.values()]
    counting = torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: _Kept(tensor, log), lambda kept: kept.tensor
    )
    # It is no step of the run: batch norms would remember two images of it.
    with counting, statistics_frozen(networks):
        for player in experiment.players:
            plan: Plan = experiment.fresh_plans.get(player.name, experiment.plan)
            where = Place(index=0, nimg=0, start=0, size=count, total=count)
            step = TrainStep(experiment.scene, plan, x0, labels, where)
            step.enter(player.phase(), [])
            losses = [term.module(step) for term in player.terms]
            del losses
    # What is shared out to processes is whole now, and saved as other parameters are.
    own = {
        local(parameter).untyped_storage().data_ptr()
        for network in networks for parameter in network.parameters()
    }  # fmt: skip
    release([role.module for role in experiment.scene.roles.values() if role.skeleton is not None])
    for name, role in experiment.scene.roles.items():
        role.cost = costs[name]
    return _peak(log, own) / count


class _Kept:
    """A tensor as long as autograd keeps it; notes bytes when that begins, and less when it ends.

    Args:
        tensor: The tensor.
        log: Where it is noted: address of its storage, and bytes.
    """

    __slots__ = ("log", "note", "tensor")

    def __init__(self, tensor: Tensor, log: list[tuple[int, int]]) -> None:
        storage = tensor.untyped_storage()
        self.tensor, self.log, self.note = tensor, log, (storage.data_ptr(), storage.nbytes())
        log.append(self.note)

    def __del__(self) -> None:
        address, size = self.note
        self.log.append((address, -size))


def _peak(log: Iterable[tuple[int, int]], left_out: Container[int]) -> int:
    """Most bytes that were kept at once; a storage that several tensors share counts once."""
    sharers: Counter[int] = Counter()
    now = most = 0
    for address, size in log:
        if not size or address in left_out:
            continue
        sharers[address] += 1 if size > 0 else -1
        if sharers[address] == (size > 0):
            now += size
            most = max(most, now)
    return most
