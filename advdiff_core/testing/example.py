"""How a component is built for the laws, where its defaults are not enough. Free of torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

if TYPE_CHECKING:
    from advdiff_core.testing.declared import Drawn, Model, Moved
    from advdiff_core.types import DataInfo

__all__ = ["Example", "MadeExample"]


@frozen(kw_only=True)
class Example:
    """One way to build a component.

    Attributes:
        settings: Its keys, as a recipe writes them.
        data: Description of the data it is built for; the laws' own images and points if None.
        models: Roles that its queries name, where the laws' own networks do not do.
        views: Views that its queries name, where the laws' own do not do.
        times: What draws the training times, for terms that ask it.
        terms: Other terms of the recipe as it writes them, for terms that look at their settings.
        order: Samplers only: the order of convergence that it claims.
        best: Metrics only: values of its numbers if samples, clean and training data are the same.
        symmetric: Metrics only: names of numbers that stay where samples and data change places.
    """

    settings: Mapping[str, Any] = field(factory=dict)
    data: DataInfo | None = None
    models: Mapping[str, Model] = field(factory=dict)
    views: Mapping[str, Moved] = field(factory=dict)
    times: Drawn | None = None
    terms: Mapping[str, Mapping[str, Any]] = field(factory=dict)
    best: Mapping[str, float] = field(factory=dict)
    symmetric: tuple[str, ...] = ()
    order: int | None = None


#: An example, its settings alone, or what makes either in a folder of its own (for files).
MadeExample = Example | Mapping[str, Any] | Callable[[Path], Example | Mapping[str, Any]]
