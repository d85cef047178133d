"""Tuning of diffusion models through their own sampling path (ADT), for advdiff."""
