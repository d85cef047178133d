"""Every component here keeps the laws of its kind."""

from __future__ import annotations

from advdiff_core.testing import laws

EXAMPLES: dict[str, list[object]] = {}

test_components_keep_the_laws = laws("advdiff-dra", examples=EXAMPLES, witnesses=5)
