"""The variance head of a network: handed on by the denoiser, beside the prediction."""

import pytest
import torch

from advdiff_core.interfaces.backbone import BackboneOutput
from advdiff_core.interfaces.component import Build
from advdiff_core.schedules import VPLinear
from advdiff_core.step.denoiser import Wear
from advdiff_core.step.values import detached

SCHEDULE = VPLinear(VPLinear.Settings(), Build())
X, T = torch.ones(2, 3), torch.full((2,), 0.5)


def two_heads(x, c_noise, labels, **_):
    """A network whose mean is 1 and whose variance is 2, in half precision."""
    return BackboneOutput(torch.ones_like(x), {}, torch.full_like(x, 2.0, dtype=torch.bfloat16))


@pytest.mark.parametrize("parametrization", ["eps", "edm"])
def test_variance_reaches_the_prediction_as_the_network_gave_it(parametrization):
    """It is not scaled as the prediction is, and has the type of the sample."""
    wear = Wear(schedule=SCHEDULE, parametrization=parametrization)
    found = wear(two_heads, X, T)
    assert torch.equal(found.variance, torch.full((2, 3), 2.0))
    assert torch.equal(detached(found).variance, found.variance)


def test_networks_without_a_head_have_no_variance():
    """The field is None, for a full forward and for one that stopped early."""
    wear = Wear(schedule=SCHEDULE)
    assert wear(lambda x, *_, **__: BackboneOutput(x, {}), X, T).variance is None
    assert wear(lambda x, *_, **__: BackboneOutput(None, {"tap": x}), X, T).variance is None
