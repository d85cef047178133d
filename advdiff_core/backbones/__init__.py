"""Networks that ship with the core: `mlp` for points, `unet` for images."""
