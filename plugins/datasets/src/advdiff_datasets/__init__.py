"""Datasets that come inside an installed package, for advdiff."""
