"""Ours against peers that do the same: the same outputs first, then turns, then the ratios.

All sides run in one process; in every round each takes its turn, forwards in one round and
backwards in the next, so that drift and neighbours hit all. A ratio is the median over the rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import attrs

__all__ = ["Agreement", "clocked", "duel", "largest_gap", "rounds_of"]


@attrs.frozen
class Agreement:
    """How far the outputs of a side lie from ours, and how far they may.

    Attributes:
        gap: Largest difference found.
        most: Largest difference that is rounding.
    """

    gap: float
    most: float

    @property
    def holds(self) -> bool:
        """Whether both sides did the same."""
        return self.gap <= self.most


def largest_gap(ours: object, peer: object, most: float) -> Agreement:
    """Largest difference of two tensors."""
    import torch

    assert isinstance(ours, torch.Tensor)
    assert isinstance(peer, torch.Tensor)
    return Agreement((ours - peer).abs().max().item(), most)


def rounds_of(
    sides: Mapping[str, Callable[[], object]], *, rounds: int, warm_up: int
) -> dict[str, list[float]]:
    """Seconds of each side, round by round."""
    return clocked(sides, rounds=rounds, warm_up=warm_up)[0]


def clocked(
    sides: Mapping[str, Callable[[], object]], *, rounds: int, warm_up: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Wall and processor seconds of each side, round by round."""
    times: dict[str, list[float]] = {side: [] for side in sides}
    busy: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(warm_up + rounds):
        for side in list(sides)[:: 1 if number % 2 else -1]:
            began, before = time.perf_counter(), time.process_time()
            sides[side]()
            if number >= warm_up:
                times[side].append(time.perf_counter() - began)
                busy[side].append(time.process_time() - before)
    return times, busy


def duel(
    name: str,
    times: Mapping[str, list[float]],
    agreements: Mapping[str, Agreement],
    *,
    ours: str = "ours",
    target: float | Mapping[str, float] = 1.0,
) -> list[dict[str, object]]:
    """One entry per peer, `ratio` being our seconds over its own.

    Args:
        name: What is done.
        times: Seconds of each side, round by round.
        agreements: How far each peer's outputs lie from ours.
        ours: Our side.
        target: Most that a ratio may be, for all peers or for each.
    """
    entries: list[dict[str, object]] = []
    for peer, agreement in agreements.items():
        found = sorted(a / b for a, b in zip(times[ours], times[peer], strict=True))
        ratio = statistics.median(found)
        most = target if isinstance(target, float) else target[peer]
        entries.append(
            {
                "name": f"{name}: {ours} against {peer}",
                "ours": statistics.median(times[ours]),
                "peer": statistics.median(times[peer]),
                "ratio": ratio,
                "spread": [found[len(found) // 4], found[3 * len(found) // 4]],
                "target": most,
                "largest difference": agreement.gap,
                "difference allowed": agreement.most,
                "ok": agreement.holds and ratio <= most,
            }
        )
    return entries
