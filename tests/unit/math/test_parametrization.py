"""Conversions between predictions, and EDM preconditioning."""

import itertools

import pytest
import torch

from advdiff_core.math import parametrization as par

KINDS = ("eps", "x0", "v", "flow")


def truth(kind, x0, eps, alpha, sigma):
    """What a perfect prediction of a kind is."""
    return {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0, "flow": eps - x0}[kind]


@pytest.mark.parametrize("scales", [(0.6, 0.8), (1.0, 50.0), (0.7, 0.3), (2.0, 0.01)])
@pytest.mark.parametrize(("source", "target"), [*itertools.product(KINDS, KINDS)])
def test_convert_finds_the_true_value_for_any_scales(source, target, scales):
    """A perfect prediction of one kind becomes the perfect prediction of another, VP or not."""
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    alpha, sigma = (torch.full((3, 1), scale, dtype=torch.float64) for scale in scales)
    found = par.convert(
        truth(source, x0, eps, alpha, sigma),
        source=source, target=target, x_t=alpha * x0 + sigma * eps, alpha=alpha, sigma=sigma,
    )  # fmt: skip
    torch.testing.assert_close(found, truth(target, x0, eps, alpha, sigma), rtol=1e-9, atol=1e-9)


def test_convert_returns_the_value_itself_when_kinds_agree():
    """Nothing is computed when nothing is to be converted."""
    value = torch.ones(2, 3)
    assert par.convert(value, source="v", target="v", x_t=value, alpha=value, sigma=value) is value


@pytest.mark.parametrize(("source", "alpha", "sigma"), [("eps", 0.0, 1.0), ("x0", 1.0, 0.0)])
def test_convert_stays_finite_where_the_source_says_nothing(source, alpha, sigma):
    """At alpha = 0 eps holds nothing of x0, at sigma = 0 x0 nothing of eps: large but finite."""
    value = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    for target in KINDS:
        found = par.convert(
            value, source=source, target=target, x_t=value + 0.1,
            alpha=torch.full((4, 1), alpha), sigma=torch.full((4, 1), sigma),
        )  # fmt: skip
        assert found.isfinite().all()


@pytest.mark.parametrize("kind", ["v", "flow"])
def test_v_and_flow_have_both_parts_where_alpha_vanishes(kind):
    """At pure noise v and flow still give x0 and eps exactly."""
    x0, eps = torch.tensor([[0.5]]), torch.tensor([[-2.0]])
    alpha, sigma = torch.zeros(1, 1), torch.ones(1, 1)
    value = truth(kind, x0, eps, alpha, sigma)
    for target in ("x0", "eps"):
        found = par.convert(value, source=kind, target=target, x_t=eps, alpha=alpha, sigma=sigma)
        torch.testing.assert_close(found, truth(target, x0, eps, alpha, sigma))


def test_conversion_computes_coefficients_of_bf16_scales_in_float32():
    """Quotients of scales keep their digits under low precision."""
    alpha = torch.tensor([0.1], dtype=torch.bfloat16)
    a, b = par.conversion("eps", "x0", alpha=alpha, sigma=alpha)
    assert a.dtype == b.dtype == torch.float32
    torch.testing.assert_close(a, torch.tensor([-1.0]))


def test_score_is_the_gradient_of_the_log_density():
    """Of a Gaussian, whose score is known: -(x - alpha m) / (alpha^2 s^2 + sigma^2)."""
    x_t = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    alpha, sigma = torch.full((2, 5, 1), 0.6, dtype=torch.float64)
    mean, std = 0.3, 0.5
    variance = alpha**2 * std**2 + sigma**2
    x0_hat = mean + alpha * std**2 / variance * (x_t - alpha * mean)
    found = par.score(x0_hat, source="x0", x_t=x_t, alpha=alpha, sigma=sigma)
    torch.testing.assert_close(found, -(x_t - alpha * mean) / variance)


def test_convert_names_an_unknown_kind():
    """The message lists what may be written."""
    one = torch.ones(1, 1)
    with pytest.raises(
        ValueError, match="unknown kind of prediction 'z'; wanted eps, x0, v or flow"
    ):
        par.convert(one, source="z", target="eps", x_t=one, alpha=one, sigma=one)


def test_edm_coefficients_are_those_of_the_paper():
    """Table 1 of Karras et al. (2022), evaluated by hand."""
    sigma, data = torch.tensor([0.002, 0.5, 80.0], dtype=torch.float64), 0.5
    c = par.edm_coefficients(sigma, data)
    torch.testing.assert_close(c.c_skip, data**2 / (sigma**2 + data**2))
    torch.testing.assert_close(c.c_out, sigma * data / (sigma**2 + data**2).sqrt())
    torch.testing.assert_close(c.c_in, 1 / (sigma**2 + data**2).sqrt())
    torch.testing.assert_close(c.c_noise, sigma.log() / 4)


def test_edm_scales_equal_the_coefficients_on_the_rescaled_input():
    """c_skip x_t and c_in x_t are those of x_t / alpha; c_out does not change."""
    alpha, sigma = (
        torch.tensor([0.6], dtype=torch.float64),
        torch.tensor([0.8], dtype=torch.float64),
    )
    own, plain = par.edm_scales(alpha, sigma, 0.5), par.edm_coefficients(sigma / alpha, 0.5)
    torch.testing.assert_close(own.c_skip, plain.c_skip / alpha)
    torch.testing.assert_close(own.c_in, plain.c_in / alpha)
    torch.testing.assert_close(own.c_out, plain.c_out)
    torch.testing.assert_close(own.c_noise, plain.c_noise)


@pytest.mark.parametrize(("alpha", "sigma"), [(0.0, 1.0), (1.0, 0.0)])
def test_edm_scales_are_finite_at_both_ends(alpha, sigma):
    """Pure noise and no noise give numbers."""
    found = par.edm_scales(torch.tensor([alpha]), torch.tensor([sigma]), 0.5)
    assert torch.stack(found).isfinite().all()


def test_edm_target_gives_back_the_clean_sample():
    """A network that outputs the target makes a perfect denoiser."""
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    alpha, sigma = torch.full((2, 3, 1), 0.8, dtype=torch.float64)
    x_t = alpha * x0 + sigma * eps
    target = par.edm_target(x0, x_t, alpha, sigma, 0.5)
    c = par.edm_scales(alpha, sigma, 0.5)
    torch.testing.assert_close(c.c_skip * x_t + c.c_out * target, x0)


def test_edm_target_and_input_have_unit_variance():
    """The purpose of the preconditioning, on data of standard deviation sigma_data."""
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 1, 200_000, generator=generator, dtype=torch.float64)
    for ratio in (0.01, 1.0, 30.0):
        alpha, sigma = (
            torch.full((2, 1, 1), 0.6, dtype=torch.float64)
            * torch.tensor([1, ratio])[:, None, None]
        )
        x_t = alpha * 0.5 * x0 + sigma * eps
        target = par.edm_target(0.5 * x0, x_t, alpha, sigma, 0.5)
        assert target.var().item() == pytest.approx(1, abs=0.02)
        assert (par.edm_scales(alpha, sigma, 0.5).c_in * x_t).var().item() == pytest.approx(
            1, abs=0.02
        )
