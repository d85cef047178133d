"""The pytest plugin "advdiff": options and fixtures for the tests of plugins.

Loaded with every pytest of an environment that has advdiff-core, so it imports next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["advdiff_broken_laws", "advdiff_stage"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the laws."""
    group = parser.getgroup("advdiff", "laws of advdiff components")
    group.addoption(
        "--advdiff-examples", type=_count, default=None, metavar="N", dest="advdiff_examples",
        help="witnesses tried per law (default: 10)",
    )  # fmt: skip
    group.addoption(
        "--advdiff-slow", action="store_true", default=False, dest="advdiff_slow",
        help="try slow laws too, such as torch.compile",
    )  # fmt: skip


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        message = f"--advdiff-examples: found {text!r}, wanted a number above 0"
        raise pytest.UsageError(message)
    return int(text)


@pytest.fixture(scope="session")
def advdiff_stage() -> Callable[..., Any]:
    """`build_stage`: models, views and schedule of a step, without an engine."""
    from advdiff_core.testing.steps import build_stage

    return build_stage


@pytest.fixture(scope="session")
def advdiff_broken_laws() -> Callable[..., dict[str, str]]:
    """`broken_laws`: the laws that a class breaks, with what is wrong."""
    from advdiff_core.testing.collecting import broken_laws

    return broken_laws
