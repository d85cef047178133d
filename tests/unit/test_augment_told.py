"""EDM's augmentation and EDM's network in one recipe: the network is told, and learns from it."""

from __future__ import annotations

from typing import Any

import torch

from advdiff_core.engine.assemble import assemble
from advdiff_core.engine.distributed import World
from advdiff_core.engine.signals import StopFlag
from advdiff_core.engine.trainer import Trainer
from advdiff_core.recipe import recipe_from_dict

RECIPE: dict[str, Any] = {
    "advdiff": 1,
    "run": {"images": 16, "batch": 8, "device": "cpu", "precision": "fp32"},
    "data": {"use": "digits", "augment": [{"use": "edm-augment", "chance": 0.9}]},
    "schedule": {"use": "edm"},
    "models": {
        "student": {
            "use": "ddpmpp-unet", "parametrization": "edm", "augment_dim": 9, "channels": 16,
            "channel_mult": [1, 2], "blocks": 1, "attention": [4],
        },
    },
    "terms": {"denoise": {"use": "denoise"}},
}  # fmt: skip


def test_the_network_of_edm_learns_what_it_is_told() -> None:
    """The weights that read `c_augment` move, and the loss depends on it."""
    made = assemble(recipe_from_dict(RECIPE))
    module = made.scene.roles["student"].module
    weights = {n: p.detach().clone() for n, p in module.named_parameters() if "augment" in n}
    assert weights
    trainer = Trainer(made, world=World(), ticks=None, stop=StopFlag())  # type: ignore[arg-type]
    for _ in range(2):
        trainer.train_step()
    after = dict(module.named_parameters())
    assert all(not torch.equal(after[name], before) for name, before in weights.items())
