"""The core's noise schedules."""

from advdiff_core.schedules.flow import Flow
from advdiff_core.schedules.variance_exploding import EDM, VE
from advdiff_core.schedules.variance_preserving import VPCosine, VPLinear

__all__ = ["EDM", "VE", "Flow", "VPCosine", "VPLinear"]
