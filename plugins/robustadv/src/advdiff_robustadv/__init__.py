"""Equivariant adversarial training of diffusion models (Robust_adv), for advdiff."""
