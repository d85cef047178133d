"""Loss weights."""

import itertools

import pytest
import torch
from torch.testing import assert_close

from advdiff_core.math.weights import LAWS, error_ratio, loss_weight

SPACES = ("eps", "x0", "v", "flow")
SNR = torch.tensor([1e-3, 0.2, 1.0, 4.0, 30.0, 1e4], dtype=torch.float64)


@pytest.mark.parametrize(
    ("law", "space", "expected"),
    [
        ("uniform", "v", torch.ones_like(SNR)),
        ("min-snr", "x0", SNR.clamp(max=5)),
        ("min-snr", "eps", SNR.clamp(max=5) / SNR),
        ("min-snr", "v", SNR.clamp(max=5) / (SNR + 1)),
        ("soft-min-snr", "x0", 1 / (1 / SNR + 1 / 4)),
        ("edm", "x0", (1 / SNR + 0.25) / (0.25 / SNR)),
        ("p2", "eps", 1 / (1 + SNR)),
        ("p2", "x0", SNR / (1 + SNR)),
    ],
)
def test_loss_weight_is_that_of_its_paper(law, space, expected):
    """Formulas as published, in the spaces in which they are published."""
    assert_close(loss_weight(law, SNR, space), expected)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("first", "second"), [*itertools.permutations(SPACES, 2)])
def test_weighted_error_is_the_same_in_every_space(law, first, second):
    """The same wrong prediction costs the same, whichever space the loss is taken in."""
    alpha = (SNR / (1 + SNR)).sqrt()
    sigma = (1 / (1 + SNR)).sqrt()
    wrong_by = 0.1  # in eps; the input is known, so x0 is wrong by -sigma / alpha of it
    errors = {
        "eps": wrong_by,
        "x0": -sigma / alpha * wrong_by,
        "v": alpha * wrong_by + sigma**2 / alpha * wrong_by,
        "flow": wrong_by + sigma / alpha * wrong_by,
    }
    cost = {
        space: loss_weight(law, SNR, space, base="eps" if law == "uniform" else None)
        * errors[space] ** 2
        for space in (first, second)
    }
    assert_close(cost[first], cost[second])


def test_uniform_with_a_base_weighs_as_that_space_does():
    """The DDPM loss of an x0 network is weighted by the SNR."""
    assert_close(loss_weight("uniform", SNR, "x0", base="eps"), SNR)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("space", SPACES)
def test_loss_weight_is_finite_and_positive_at_both_ends(law, space):
    """Zero and infinite signal-to-noise ratio, in float32 and from bfloat16."""
    for dtype in (torch.float32, torch.bfloat16):
        weight = loss_weight(law, torch.tensor([0.0, float("inf")], dtype=dtype), space)
        assert weight.dtype == torch.float32
        assert weight.isfinite().all()
        assert (weight >= 0).all()


def test_loss_weight_takes_the_parameters_of_its_law():
    """gamma, k and sigma_data reach their formulas."""
    assert_close(loss_weight("min-snr", SNR, "x0", gamma=2.0), SNR.clamp(max=2))
    assert_close(loss_weight("p2", SNR, "eps", gamma=0.5, k=3.0), (3 + SNR) ** -0.5)
    assert_close(loss_weight("edm", SNR, "x0", sigma_data=1.0), SNR + 1)


def test_unknown_law_and_space_are_named():
    """The message lists what may be written."""
    with pytest.raises(
        ValueError, match="unknown loss weight 'min'; wanted one of uniform, min-snr"
    ):
        loss_weight("min", SNR, "eps")
    with pytest.raises(
        ValueError, match="unknown loss space 'raw'; wanted one of eps, x0, v, flow"
    ):
        error_ratio(SNR, "raw", "raw")
