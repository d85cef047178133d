"""A recipe with a small frozen teacher on digits, a target that reads it, and a student."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from advdiff_core import Draws
from advdiff_core.engine.assemble import Experiment, assemble
from advdiff_core.recipe import recipe_from_dict

TEACHER = {
    "use": "ddpmpp-unet", "parametrization": "edm", "frozen": True, "channels": 8,
    "channel_mult": [1, 2], "blocks": 1, "attention": [4], "conditional": True,
}  # fmt: skip
CLASSIFIER = {
    "use": "wide-resnet", "parametrization": "none", "depth": 10, "width": 1, "mean": [0.3],
    "std": [0.4],
}  # fmt: skip
TARGET = {
    "use": "diffusion-features", "kind": "alignment_target", "frozen": True, "tap": "dec.4x4_in1"
}  # fmt: skip


def tables(
    *,
    target: Mapping[str, Any] | None = None,
    teacher: Mapping[str, Any] | None = None,
    term: Mapping[str, Any] | None = None,
    models: Mapping[str, Any] | None = None,
    schedule: str = "edm",
) -> dict[str, Any]:
    """TRADES of a small classifier of digits with the alignment; keys of each part are merged.

    A part that changes `use` stands alone.
    """
    return {
        "run": {"images": 64, "batch": 16, "seed": 3, "precision": "fp32", "device": "cpu"},
        "data": {"use": "digits"},
        "schedule": {"use": schedule},
        "models": {
            "student": CLASSIFIER,
            "teacher": _merged(TEACHER, teacher),
            "target": _merged(TARGET, target),
            **(models or {}),
        },
        "views": {"adv": {"from": "image", "perturb": {
            "use": "attack", "objective": "kl", "attack": {"use": "pgd", "steps": 2},
        }}},
        "terms": {
            "trades": {"use": "trades"},
            "align": {"use": "feature-alignment", "hidden": 16, **(term or {})},
        },
        "players": {"student": {
            "terms": ["trades", "align"], "ema": [],
            "optimizer": {"use": "sgd", "lr": 0.05, "momentum": 0.9},
        }},
        "evaluate": {"metrics": []},
    }  # fmt: skip


def _merged(usual: Mapping[str, Any], given: Mapping[str, Any] | None) -> dict[str, Any]:
    if given and given.get("use", usual["use"]) != usual["use"]:
        return dict(given)
    return {**usual, **(given or {})}


def made(**parts: Any) -> Experiment:
    """The objects of `tables`; no weight of a network is zero."""
    experiment = assemble(recipe_from_dict(tables(**parts)))
    for name, role in experiment.scene.roles.items():
        if role.info.kind == "backbone":
            shake(role.module, name)
    return experiment


def shake(module: nn.Module, name: str) -> None:
    """Move weights from where they begin: layers that begin at zero hide everything."""
    generator = torch.Generator().manual_seed(len(name))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def module(experiment: Experiment, role: str = "target") -> Any:
    """The network of a role."""
    return experiment.scene.roles[role].module


def images(size: int = 6, seed: int = 0) -> Tensor:
    """Images [size, 1, 8, 8] in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(size, 1, 8, 8, generator=generator) * 2 - 1


def draws(size: int = 6, seed: int = 0) -> Draws:
    """The numbers that a step hands to a target."""
    return Draws((seed, 0, "target"), start=0, size=size, total=size, device="cpu")
