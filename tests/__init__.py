"""Tests of the tree; a package, so that a distribution's own `tests` never stands in for it."""
