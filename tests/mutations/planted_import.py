"""A mistake in a module: what it does when it is imported."""

from __future__ import annotations

import os

import torch
from planted import planted
from planted_optimizers import Healthy

torch.manual_seed(0)
os.environ["PLANTED_BY_AN_IMPORT"] = "1"


@planted("import-is-clean", "importing", "torch's global generator", "side effects")
class SeedsOnImport(Healthy):
    """Healthy in a module that is not."""
