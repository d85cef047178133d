"""Metrics for advdiff: feature distances, precision and recall, memorization, accuracy."""
