"""The components keep the laws of their kinds."""

from advdiff_core.testing import laws

test_laws = laws(
    "advdiff-spectral",
    examples={
        "perturbation:spectral-fgsm": [
            {"low": 0.5, "strength": 0.2},
            {"steps": 0, "high": 0.5},
            {"steps": 2, "step_scale": 0.5},
        ]
    },
)
