"""Metrics that ship with the core."""
