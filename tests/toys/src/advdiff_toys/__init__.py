"""Tiny components for advdiff's own tests, some of them faulty on purpose."""
