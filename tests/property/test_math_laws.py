"""Laws of conversions, norms, weights, schedules and grids over generated inputs."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from advdiff_core.interfaces.component import Build
from advdiff_core.math import grids, norms, weights
from advdiff_core.math.parametrization import convert
from advdiff_core.schedules import EDM, VE, Flow, VPCosine, VPLinear

KINDS = st.sampled_from(["eps", "x0", "v", "flow"])
NORMS = st.sampled_from(["linf", "l2", "l1"])
DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}
NUMBERS = st.floats(-1e4, 1e4, width=32)
VECTORS = st.lists(NUMBERS, min_size=1, max_size=12)
SCALES = st.floats(0.01, 100)
RADII = st.one_of(st.just(0.0), st.floats(2**-20, 1e4, width=32))
DTYPES = st.sampled_from([torch.float32, torch.float64])


@st.composite
def schedules(draw):
    """Any of the core's schedules, with generated settings."""
    kind = draw(st.sampled_from([VPLinear, VPCosine, VE, EDM, Flow]))
    if kind is Flow:
        keys = {"t_min": draw(st.floats(1e-6, 0.1)), "t_max": draw(st.floats(0.9, 0.999999))}
    elif kind in (VE, EDM):
        low = draw(st.floats(1e-3, 0.5))
        keys = {"sigma_min": low, "sigma_max": low * draw(st.floats(2, 1e5))}
    else:
        keys = {"num_steps": draw(st.sampled_from([0, 2, 7, 100, 1000]))}
        if kind is VPLinear:
            keys |= {"beta_min": draw(st.floats(0.01, 5)), "beta_max": draw(st.floats(0.01, 30))}
            keys |= {"beta_end": draw(st.floats(1e-4, 0.1))}
        else:
            keys["s"] = draw(st.floats(0, 0.1))
    return kind(kind.Settings(**keys), Build())


@given(KINDS, KINDS, KINDS, SCALES, SCALES, st.tuples(NUMBERS, NUMBERS))
def test_conversions_round_trip_and_compose(first, second, third, alpha, sigma, values):
    """There and back is the identity, and a detour changes nothing."""
    value, x_t = (torch.tensor([[number]], dtype=torch.float64) for number in values)
    given_scales = {
        "x_t": x_t,
        "alpha": torch.tensor([[alpha]], dtype=torch.float64),
        "sigma": torch.tensor([[sigma]], dtype=torch.float64),
    }
    there = convert(value, source=first, target=second, **given_scales)
    back = convert(there, source=second, target=first, **given_scales)
    assert_close(back, value, rtol=1e-6, atol=1e-3)
    direct = convert(value, source=first, target=third, **given_scales)
    detour = convert(there, source=second, target=third, **given_scales)
    assert_close(detour, direct, rtol=1e-6, atol=1e-3 * (1 + alpha / sigma + sigma / alpha))


@given(VECTORS, NORMS, RADII, DTYPES)
def test_project_stays_inside_and_repeats_itself(vector, kind, radius, dtype):
    """The norm of the result is at most the radius, and projecting again moves nothing."""
    once = norms.project(torch.tensor([vector], dtype=dtype), norm=kind, radius=radius)
    assert (norms.norm(once, kind) <= radius * (1 + 1e-6)).all()
    assert_close(norms.project(once, norm=kind, radius=radius), once, rtol=1e-6, atol=0)


@given(VECTORS, NORMS, DTYPES)
def test_project_changes_no_bit_inside_the_ball(vector, kind, dtype):
    """A point within the radius is returned as it is."""
    x = torch.tensor([vector], dtype=dtype)
    found = norms.project(x, norm=kind, radius=norms.norm(x, kind))
    assert torch.equal(found, x)


@given(VECTORS, NORMS, RADII)
def test_project_is_the_nearest_point(vector, kind, radius):
    """The certificate of the optimum: no point of the ball lies further along x - p than p itself.

    The largest inner product of x - p with a point of the ball is radius times its dual norm.
    """
    x = torch.tensor([vector], dtype=torch.float64)
    p = norms.project(x, norm=kind, radius=radius)
    furthest = radius * norms.norm(x - p, DUAL[kind])
    assert_close(((x - p) * p).sum(1), furthest, rtol=1e-6, atol=1e-6)


@given(VECTORS, NORMS)
def test_steepest_ascent_has_unit_norm_and_gains_the_dual_norm(vector, kind):
    """No unit step gains more: g . step is the dual norm of g."""
    gradient = torch.tensor([vector], dtype=torch.float64)
    step = norms.steepest_ascent(gradient, kind)
    wanted = torch.zeros(1) if not gradient.any() else torch.ones(1)
    assert_close(norms.norm(step, kind), wanted.double())
    assert_close((gradient * step).sum(1), norms.norm(gradient, DUAL[kind]))


@given(st.sampled_from(weights.LAWS), KINDS, KINDS, st.floats(1e-9, 1e9))
def test_loss_weights_convert_between_spaces_as_errors_do(law, first, second, snr):
    """Weight times squared error is one number, in whichever space."""
    ratio = torch.tensor([snr], dtype=torch.float64)
    base = "eps" if law == "uniform" else None
    one = weights.loss_weight(law, ratio, first, base=base)
    other = weights.loss_weight(law, ratio, second, base=base)
    assert_close(one * weights.error_ratio(ratio, first, second), other)


@given(schedules(), st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_schedules_hold_their_contract_at_any_time(schedule, shares):
    """Positive scales, unit variance where promised, and a time found again from its log-SNR."""
    t = torch.tensor(shares, dtype=torch.float64)
    t = schedule.t_min + t * (schedule.t_max - schedule.t_min)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    assert (alpha > 0).all()
    assert (sigma > 0).all()
    if schedule.variance_preserving:
        assert_close(alpha.square() + sigma.square(), torch.ones_like(t))
    assert_close(schedule.time_of_log_snr(schedule.log_snr(t)), t, rtol=1e-6, atol=1e-9)


@given(schedules(), st.floats(0, 1), st.floats(0, 1))
def test_log_snr_falls_with_time(schedule, one, other):
    """Later is noisier."""
    if abs(one - other) < 1e-6:
        return
    t = torch.tensor(sorted([one, other]), dtype=torch.float64)
    first, second = schedule.log_snr(
        schedule.t_min + t * (schedule.t_max - schedule.t_min)
    ).tolist()
    assert second < first


@given(schedules(), st.integers(1, 1000), st.sampled_from(grids.LAWS), st.floats(0.5, 10))
def test_grids_hold_their_laws_for_any_settings(schedule, count, law, rho):
    """Count, ends, order and range."""
    grid = grids.sampling_times(schedule, count, law=law, rho=rho)
    assert len(grid) == count + 1
    assert grid[0] == schedule.t_max
    assert grid[-1] == schedule.t_zero
    assert grid[-2] >= schedule.t_min
    assert (grid.diff() < 0).all()


@given(
    st.integers(1, 1000), st.sampled_from(grids.LAWS), st.floats(1, 100),
    st.floats(1e-5, 0.005), st.floats(0.9, 0.99999),
)  # fmt: skip
def test_shifted_grids_hold_their_laws_for_any_shift(count, law, shift, low, high):
    """Count, ends, order and range, and noisier everywhere between the ends than without."""
    schedule = Flow(Flow.Settings(t_min=low, t_max=high), Build())
    grid = grids.sampling_times(schedule, count, law=law, shift=shift)
    assert len(grid) == count + 1
    assert grid[0] == schedule.t_max
    assert grid[-1] == schedule.t_zero
    assert grid[-2] >= schedule.t_min * (1 - 1e-12)
    assert (grid.diff() < 0).all()
    plain = grids.sampling_times(schedule, count, law=law)
    assert (grid >= plain - 1e-9).all()
