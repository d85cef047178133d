"""Networks that are shared out to the processes, put together for what is not training."""

from __future__ import annotations

from copy import copy, deepcopy

import torch
from attrs import evolve
from torch import nn

from advdiff_core.engine.assemble import Experiment
from advdiff_core.engine.ema import Ema
from advdiff_core.engine.players import Player
from advdiff_core.engine.sharding import put, whole
from advdiff_core.step.scene import Role

__all__ = ["whole_experiment"]


def whole_experiment(experiment: Experiment) -> Experiment:
    """The experiment with every network and average whole, to be sampled and measured.

    Copies of those that are shared out, which every process then holds; the very experiment if
    there are none. All processes call it.

    Args:
        experiment: The run.
    """
    scene = experiment.scene
    shared = {name: role for name, role in scene.roles.items() if role.skeleton is not None}
    if not shared:
        return experiment
    roles = {
        **scene.roles,
        **{name: _whole(role, scene.compute.device) for name, role in shared.items()},
    }
    players = tuple(_with_averages(player) for player in experiment.players)
    return evolve(experiment, scene=evolve(scene, roles=roles), players=players)


@torch.no_grad()
def _whole(role: Role, device: torch.device) -> Role:
    module: nn.Module = deepcopy(role.skeleton).to_empty(device=device)  # type: ignore[union-attr]
    found = {**dict(role.module.named_parameters()), **dict(role.module.named_buffers())}
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        put(tensor, whole(found[name]))
    module.requires_grad_(False)
    return evolve(role, module=module, run=None, skeleton=None)


def _with_averages(player: Player) -> Player:
    twin = copy(player)
    twin.emas = {role: [_whole_average(ema) for ema in emas] for role, emas in player.emas.items()}
    return twin


def _whole_average(ema: Ema) -> Ema:
    twin = copy(ema)
    twin.shadow = {name: whole(tensor) for name, tensor in ema.shadow.items()}
    return twin
