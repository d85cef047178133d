"""Every sampler of the core goes on from a state that a callback returns."""

import pytest
import torch

from advdiff_core.draws import SeedDraws
from advdiff_core.interfaces.component import Build
from advdiff_core.samplers import DDIM, DDPM, DPMpp2M, Euler, Heun
from advdiff_core.schedules import VPLinear
from advdiff_core.testing.known import Known

SCHEDULE = VPLinear(VPLinear.Settings(), Build(path="schedule"))


@pytest.mark.parametrize("sampler", [DDIM, DDPM, DPMpp2M, Euler, Heun])
def test_a_replaced_state_is_the_one_that_is_stepped_from(sampler):
    """Moved after the first of two steps, the second asks the denoiser at the moved state."""
    made = sampler(sampler.Settings(steps=2), Build(path="sample", schedule=SCHEDULE))
    asked = []
    known = Known(SCHEDULE)

    def denoise(x_t, t):
        asked.append(x_t.clone())
        return known(x_t, t)

    def moved(index, x, prediction):
        return x + 7.0 if index == 0 else None

    x = torch.zeros(1, 2, dtype=torch.float64)
    states = []
    made.sample(denoise, x, SeedDraws([0]), callback=lambda i, s, p: states.append(s))
    asked.clear()
    made.sample(denoise, x, SeedDraws([0]), callback=moved)
    assert torch.equal(asked[-1], states[0] + 7.0)
