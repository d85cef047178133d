"""The core's samplers."""

from advdiff_core.samplers.ancestral import DDIM, DDPM
from advdiff_core.samplers.multistep import DPMpp2M
from advdiff_core.samplers.ode import Euler, Heun

__all__ = ["DDIM", "DDPM", "DPMpp2M", "Euler", "Heun"]
