"""Adversarial training meets diffusion models: interfaces, engine and command line.

The public surface is resolved on first use, so that `import advdiff_core` loads neither torch nor
a plugin.
"""

from __future__ import annotations

import importlib
from typing import Any

# Not lazily: the submodule of the same name would hide the decorator once anybody had imported it.
from advdiff_core.settings import Spec, setting, settings

__version__ = "0.1.0"

_PUBLIC = {
    "advdiff_core.errors": (
        "AdvdiffError", "ContractError", "DataError", "Fault", "NumericsError", "PluginError",
        "RecipeError", "StorageError", "UsageError",
    ),
    "advdiff_core.draws": ("Draws", "SampleDraws", "SeedDraws"),
    "advdiff_core.types": (
        "Augmented", "Batch", "Budget", "Cost", "DataInfo", "Domain", "Noised", "Prediction",
        "Subspace", "TapInfo", "expand",
    ),
    "advdiff_core.interfaces.alignment_target": ("AlignmentTarget",),
    "advdiff_core.interfaces.attack": ("Attack", "ScalarVictim", "Victim"),
    "advdiff_core.interfaces.augmentation": ("Augmentation",),
    "advdiff_core.interfaces.backbone": ("Backbone", "BackboneOutput"),
    "advdiff_core.interfaces.component": ("Build", "Component", "ModelInfo", "ViewInfo"),
    "advdiff_core.interfaces.dataset": ("Corruption", "Dataset"),
    "advdiff_core.interfaces.discriminator": ("Discriminator",),
    "advdiff_core.interfaces.frozen_network": ("FrozenNetwork",),
    "advdiff_core.interfaces.loss_term": ("LossTerm",),
    "advdiff_core.interfaces.metric": ("Evaluation", "Metric"),
    "advdiff_core.interfaces.noise_schedule": ("NoiseSchedule",),
    "advdiff_core.interfaces.optimizer": ("Optimizer",),
    "advdiff_core.interfaces.perturbation": ("Perturbation", "Probe", "SearchCost"),
    "advdiff_core.interfaces.query": ("Query", "Setup", "Step"),
    "advdiff_core.interfaces.sampler": (
        "Denoise", "ImageDraws", "Sampler", "Samples", "StepCallback",
    ),
    "advdiff_core.interfaces.time_sampler": ("TimeSampler", "Times"),
    "advdiff_core.step.queries": (
        "Delta", "EpsHat", "Features", "Forward", "Logits", "Scores", "Target", "View", "X0Hat",
    ),
}  # fmt: skip
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = ["Spec", "__version__", "setting", "settings", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    """Import a public name from its home on first use (PEP 562)."""
    if name not in _HOME:
        message = f"module 'advdiff_core' has no attribute {name!r}"
        raise AttributeError(message)
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
