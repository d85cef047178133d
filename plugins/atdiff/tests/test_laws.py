"""Every component here keeps the laws of its kind."""

from __future__ import annotations

from typing import Any

from advdiff_core.testing import laws

EXAMPLES: dict[str, Any] = {
    "perturbation:free": [
        {},
        {"norm": "linf", "target": "fixed"},
        {"norm": "l1", "top": 2, "ascent": "frozen"},
    ],
}

test_atdiff_keeps_the_laws = laws("advdiff-atdiff", examples=EXAMPLES, witnesses=5)
