"""Every component here keeps the laws of its kind."""

from __future__ import annotations

from typing import Any

from advdiff_atdiff.consistency_grid import ConsistencyGrid
from advdiff_atdiff.latent_grid import LatentGrid

from advdiff_core.backbones.mlp import MLP
from advdiff_core.testing import Drawn, Example, Model, laws
from advdiff_core.testing.parts import BenchNet

QUALITY = {"metric": {"use": "frechet"}}

TARGET = {"target": Model(BenchNet, follows="student")}
GRID = Drawn(
    ConsistencyGrid, ConsistencyGrid.Settings(curriculum="constant", levels=6, sigma_data=1.0)
)
ICT = {"target": "student", "distance": "pseudo-huber", "weighting": "inverse-gap"}

#: A small network with a variance head, for images and points.
LEARNS: dict[str, Any] = {
    "student": Model(MLP, settings=MLP.Settings(width=8, blocks=1, learn_sigma=True))
}

LABELS: Any = {"width": 8, "blocks": 1, "conditional": True}
GUIDED = {
    "student": Model(MLP, MLP.Settings(guided=True, **LABELS)),
    "target": Model(MLP, MLP.Settings(guided=True, **LABELS), frozen=True, follows="student"),
    "teacher": Model(MLP, MLP.Settings(**LABELS), frozen=True),
}
LCM = Drawn(LatentGrid)

EXAMPLES: dict[str, Any] = {
    "loss_term:latent-consistency": [
        Example(models=GUIDED, times=LCM),
        Example(
            settings={"view": "adv", "moves": "target", "distance": "pseudo-huber"},
            models=GUIDED,
            times=LCM,
        ),
        Example(settings={"view": "adv", "moves": "both"}, models=GUIDED, times=LCM),
    ],
    "time_sampler:latent-grid": [{}, {"skip": 7}],
    "loss_term:consistency-training": [
        Example(models=TARGET, times=GRID),
        Example(settings={"view": "adv", "moves": "both"}, models=TARGET, times=GRID),
        Example(settings=ICT, times=GRID),
    ],
    "loss_term:consistency-distillation": [
        Example(models=TARGET, times=GRID),
        Example(
            settings={"view": "adv", "moves": "target", "solver": "euler", "distance": "l1"},
            models=TARGET,
            times=GRID,
        ),
    ],
    "sampler:consistency": [{}, {"steps": 3, "function": "lcm"}, {"steps": 2, "grid": "uniform"}],
    "time_sampler:consistency-grid": [
        {},
        {"curriculum": "doubling", "index": "log-normal"},
        {"curriculum": "constant", "levels": 2, "grid": "log-snr"},
    ],
    "time_sampler:loss-second-moment": [{}, {"history": 1, "uniform": 0.5}],
    "metric:distribution-gap": [
        {"projections": 8},
        {"sampler": {"use": "heun"}, "steps": 3, "num": 10, "batch": 5, "projections": 4},
    ],
    "metric:noise-robustness": [
        {**QUALITY, "levels": [0.1]},
        {**QUALITY, "levels": [0.2], "every": False, "places": [0.0, 0.5], "steps": 2},
    ],
    "perturbation:free": [
        {},
        {"norm": "linf", "target": "fixed"},
        {"norm": "l1", "top": 2, "ascent": "frozen"},
        {"radius": "neighbours", "steps_apart": 7, "rho": 0.5},
    ],
    "perturbation:pgd": [
        {"alpha": 0.01},
        {"norm": "linf", "start": "uniform", "start_scale": 0.5, "steps": 2},
        {"norm": "l1", "target": "fixed", "radius": "neighbours", "alpha": 0.01},
        {"term": {"use": "denoise", "space": "x0"}, "ascent": "frozen", "steps": 1, "alpha": 0.01},
    ],
    "loss_term:hybrid": [
        Example(models=LEARNS),
        Example(settings={"space": "x0", "levels": 17, "vb_weight": 0.01}, models=LEARNS),
    ],
    "sampler:time-shift": [
        {"sampler": {"use": "ddim"}, "window": 0.0},
        {"sampler": {"use": "ddpm"}, "window": 0.01, "cutoff": 0.6, "data_variance": 0.2},
    ],
    # Any other factor leaves the path of a denoiser that is right, as it should.
    "sampler:epsilon-scaling": [
        {"sampler": {"use": "ddim"}, "scale": 1.0},
        {"sampler": {"use": "ddpm"}, "scale": 1.0000001, "slope": 1e-9},
    ],
}

test_atdiff_keeps_the_laws = laws("advdiff-atdiff", examples=EXAMPLES, witnesses=5)
