"""Networks for advdiff: diffusion models, classifiers, and those of timm and diffusers."""
