"""Robust classifiers by adversarial training, generated images and diffusion features."""
