"""Optimizers: `adamw`, `adam`, `lion`, `radam`, `sgd`, and `torch:<Name>` for others of torch."""

from advdiff_core.optimizers.groups import is_matrix
from advdiff_core.optimizers.lion import Lion
from advdiff_core.optimizers.standard import SGD, Adam, AdamW, RAdam
from advdiff_core.optimizers.torch_family import TorchFamily

__all__ = ["SGD", "Adam", "AdamW", "Lion", "RAdam", "TorchFamily", "is_matrix"]
