"""Perturbations of chosen spatial frequencies, for advdiff."""
