"""The run's log: one line of JSON per log tick, in `metrics.jsonl`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import final

from advdiff_core.hooks.specs import RunInfo, hookimpl

__all__ = ["JsonLines"]


@final
class JsonLines:
    """Appends `{"nimg": ..., "seconds": ..., <metric>: ...}` per log tick.

    The run writes the line and cuts off what a checkpoint does not vouch for, so that after
    resuming every tick is there exactly once. `seconds` counts from the start of this process.
    """

    @hookimpl
    def metrics_logged(self, run: RunInfo, nimg: int, metrics: Mapping[str, float]) -> None:
        """Append one line."""
        seconds = round(time.time() - run.started, 3) if run.started else 0.0
        run.record({"nimg": nimg, "seconds": seconds, **metrics})
