"""How a planted mistake is written down: a class, the law that must notice it, and its words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from attrs import field, frozen

from advdiff_core.testing import Example

T = TypeVar("T", bound=type)


@frozen
class Planted:
    """A mistake in a component.

    Attributes:
        component: The faulty class.
        law: The law that must notice.
        words: Words of the message that name the mistake.
        example: How it is built, where the defaults do not show it.
    """

    component: type[Any]
    law: str
    words: tuple[str, ...]
    example: Example = field(factory=Example)


#: Every planted mistake, in the order of the modules.
PLANTED: list[Planted] = []


def planted(law: str, *words: str, **example: Any) -> Callable[[T], T]:
    """Note the decorated class as a mistake that `law` must notice in `words`."""

    def note(component: T) -> T:
        PLANTED.append(Planted(component, law, words, Example(**example)))
        return component

    return note
