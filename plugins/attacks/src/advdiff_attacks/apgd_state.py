"""What auto-PGD knows of each sample, and when it looks back."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from advdiff_core import expand

__all__ = ["State", "checkpoints"]


@attrs.define(eq=False)
class State:
    """What auto-PGD knows of each sample; all have the sample axis first.

    Attributes:
        x: Clean inputs [N, ...].
        low: Linf: least values inside ball and domain [N, ...]; empty in other norms.
        high: Linf: largest such values.
        radius: Radius of the ball [N].
        target: Class that is aimed at [N]; zero where there is none.
        point: Where the search is.
        old: Where it was before the last step.
        gradient: Of the loss, at `point`.
        best: The point of largest loss so far.
        best_gradient: The gradient there.
        best_loss: The loss there [N].
        loss: The loss at the last point that was measured [N].
        step: Step size [N].
        rises: How often the loss rose since the last checkpoint [N].
        halved: Whether the last checkpoint halved the step [N], bool.
        checked_loss: Best loss at the last checkpoint [N].
        share: L1: share of coordinates that are moved [N].
        count: L1: coordinates moved at the best point of the last checkpoint [N].
        broken: Whether a point broke the sample [N], bool.
        found: The first point that did.
    """

    x: Tensor
    low: Tensor
    high: Tensor
    radius: Tensor
    target: Tensor
    point: Tensor
    old: Tensor
    gradient: Tensor
    best: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    loss: Tensor
    step: Tensor
    rises: Tensor
    halved: Tensor
    checked_loss: Tensor
    share: Tensor
    count: Tensor
    broken: Tensor
    found: Tensor

    @classmethod
    def at(  # noqa: PLR0913 - what a sample is given.
        cls, x: Tensor, low: Tensor, high: Tensor, radius: Tensor, target: Tensor, point: Tensor
    ) -> State:
        """The state before the first measurement, at `point` [N, ...]."""
        number = torch.zeros_like(radius)
        return cls(
            x=x, low=low, high=high, radius=radius, target=target, point=point, old=point.clone(),
            gradient=torch.zeros_like(x), best=point.clone(), best_gradient=torch.zeros_like(x),
            best_loss=number - torch.inf, loss=number.clone(), step=number.clone(),
            rises=number.clone(), halved=torch.ones_like(radius, dtype=torch.bool),
            checked_loss=number.clone(), share=number.clone(), count=number.clone(),
            broken=torch.zeros_like(radius, dtype=torch.bool), found=x.clone(),
        )  # fmt: skip

    def rows(self, chosen: Tensor | slice) -> State:
        """Some samples: views for a slice, copies for places [M]."""
        return State(*(getattr(self, field.name)[chosen] for field in attrs.fields(State)))

    def put(self, where: Tensor, **values: Tensor) -> None:
        """Overwrite rows in place, where `where` [N]."""
        # On a CPU to ask which rows costs nothing, and late in a search they are few.
        places = where.nonzero().squeeze(1) if where.device.type == "cpu" else None
        for name, value in values.items():
            mine: Tensor = getattr(self, name)
            if places is None:
                torch.where(expand(where, mine), value, mine, out=mine)
            elif len(places):
                mine.index_copy_(0, places, value.index_select(0, places))


def checkpoints(steps: int, *, sparse: bool) -> dict[int, int]:
    """Steps after which a search of `steps` steps looks back, and over how many (1-based).

    Croce and Hein (2020, section 3.2): windows of 22 % of the steps, each 3 % shorter than the one
    before, down to 6 %. In L1 all are 4 %.
    """
    least, less = max(int(0.06 * steps), 1), max(int(0.03 * steps), 1)
    window, at, found = max(int(0.22 * steps), 1), 0, {}
    if sparse:
        window = least = max(int(0.04 * steps), 1)
    while at + window <= steps:
        at += window
        found[at] = window
        window = max(window - less, least)
    return found
