"""Peers that may not be installed: `pip install --no-deps -r tests/bench/peers.txt`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType, SimpleNamespace

__all__ = ["denoising_diffusion", "k_diffusion"]


def denoising_diffusion() -> ModuleType | None:
    """denoising-diffusion-pytorch, or None where it is not installed."""
    if importlib.util.find_spec("denoising_diffusion_pytorch") is None:
        return None
    return importlib.import_module("denoising_diffusion_pytorch")


def k_diffusion() -> SimpleNamespace | None:
    """The samplers of k-diffusion, or None where it is not installed.

    The package itself imports CLIP and trackers, which its samplers do not need: they are imported
    without it.
    """
    if "k_diffusion" not in sys.modules:
        spec = importlib.util.find_spec("k_diffusion")
        if spec is None or spec.submodule_search_locations is None:
            return None
        package = ModuleType("k_diffusion")
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules["k_diffusion"] = package
    return SimpleNamespace(sampling=importlib.import_module("k_diffusion.sampling"))
