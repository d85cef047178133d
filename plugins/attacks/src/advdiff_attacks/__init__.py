"""Adversarial attacks on classifiers, denoisers and samplers, for advdiff."""
