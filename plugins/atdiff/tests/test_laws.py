"""Every component here keeps the laws of its kind."""

from __future__ import annotations

from typing import Any

from advdiff_core.testing import laws

QUALITY = {"metric": {"use": "frechet"}}

EXAMPLES: dict[str, Any] = {
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
    # Any other factor leaves the path of a denoiser that is right, as it should.
    "sampler:epsilon-scaling": [
        {"sampler": {"use": "ddim"}, "scale": 1.0},
        {"sampler": {"use": "ddpm"}, "scale": 1.0000001, "slope": 1e-9},
    ],
}

test_atdiff_keeps_the_laws = laws("advdiff-atdiff", examples=EXAMPLES, witnesses=5)
