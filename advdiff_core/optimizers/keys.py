"""Keys that optimizers share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from advdiff_core.settings import setting

__all__ = [
    "DECAY_HELP",
    "DECAY_RULES",
    "betas",
    "decay_rule",
    "eps",
    "learning_rate",
    "length",
    "nesterov",
    "two_numbers",
    "weight_decay",
]

DECAY_RULES = ("matrices", "but-norms", "all")
DECAY_HELP = (
    "what weight decay acts on: matrices and kernels (no biases, norms, embeddings); all but norms;"
    " or all"
)


def length(count: int) -> Callable[[Any, attrs.Attribute[Any], tuple[float, ...]], None]:
    """A validator of the number of entries."""

    def check(_: Any, attribute: attrs.Attribute[Any], value: tuple[float, ...]) -> None:
        if len(value) != count:
            message = f"{attribute.name}: found {len(value)} numbers, wanted {count}"
            raise ValueError(message)

    return check


def learning_rate(default: float) -> Any:
    """The key `lr`."""
    return setting(default, help="learning rate at its peak", gt=0)


def two_numbers(default: tuple[float, float], help: str) -> Any:
    """A key of two shares, in [0, 1)."""
    field = setting(default, help=help, ge=0, lt=1)
    field.validator(length(2))
    return field


def betas() -> Any:
    """The key `betas` of Adam and its relatives."""
    return two_numbers((0.9, 0.999), "decay of first and second moment per step")


def eps() -> Any:
    """The key `eps` of Adam and its relatives."""
    return setting(1e-8, help="added to the root of the second moment", gt=0)


def weight_decay(default: float, help: str) -> Any:
    """The key `weight_decay`."""
    return setting(default, help=help, ge=0)


def nesterov() -> Any:
    """The key `nesterov`, which wants a momentum."""

    def check(instance: Any, _: attrs.Attribute[Any], value: bool) -> None:
        if value and not instance.momentum:
            message = "nesterov: true, but momentum is 0"
            raise ValueError(message)

    field = setting(False, help="Nesterov momentum")
    field.validator(check)
    return field


def decay_rule() -> Any:
    """The key `decay`: what weight decay acts on."""
    return setting("matrices", help=DECAY_HELP, choices=DECAY_RULES)
