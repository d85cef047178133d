"""Tests for the authors of plugins: laws, strategies, equivariance, and steps without an engine.

    from advdiff_core.testing import laws

    test_laws = laws("advdiff_mine")

Names are resolved on first use: importing this package loads neither torch nor Hypothesis.
"""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "advdiff_core.testing.collecting": ("broken_laws", "laws"),
    "advdiff_core.testing.equivariance": (
        "denoiser_of",
        "Witness", "assert_equivariant", "assert_invariant", "equivariance_error",
    ),
    "advdiff_core.testing.example": ("Example",),
    "advdiff_core.testing.facts": (
        "assert_explained", "assert_gap_flat_at_zero", "assert_off_is_plain",
        "assert_radius_grows", "assert_silent_where_exact", "point_denoiser",
    ),
    "advdiff_core.testing.findings": ("LawBroken",),
    "advdiff_core.testing.groups": ("GROUPS", "assert_group_equivariant", "group_error"),
    "advdiff_core.testing.steps": ("Drawn", "Model", "Moved", "Turn", "build_stage", "run_step"),
    "advdiff_core.testing.strategies": ("budgets", "deltas", "images", "noise_levels", "times"),
}  # fmt: skip
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import a public name from its home on first use (PEP 562)."""
    if name not in _HOME:
        message = f"module 'advdiff_core.testing' has no attribute {name!r}"
        raise AttributeError(message)
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
