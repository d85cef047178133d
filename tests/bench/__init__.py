"""Benchmarks: ratios of two ways to do the same thing, in one run. Never part of the test suite."""
