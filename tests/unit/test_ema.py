"""Averages of weights: closed forms of the three rules."""

import pytest
import torch
from torch import nn

from advdiff_core.engine.ema import Ema, EmaRule, power_exponent


def test_constant_rate_equals_its_closed_form_after_the_warm_up():
    """Once the warm-up passes the rate, the average is the textbook recursion."""
    module = nn.Linear(1, 1, bias=False)
    ema = Ema(module, EmaRule(rate=0.5))
    expected = module.weight.detach().clone()
    for update in range(6):
        with torch.no_grad():
            module.weight.fill_(float(update))
        ema.update(nimg=update + 1, batch=1)
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * float(update)
    torch.testing.assert_close(ema.shadow["weight"], expected)


def test_power_function_average_forgets_its_start_and_weighs_by_power():
    """With the power profile the value at nimg n weighs like n^gamma (EDM2, equation 1)."""
    rule, total = EmaRule(power=0.1), 400
    gamma = power_exponent(0.1)
    module = nn.Linear(1, 1, bias=False)
    ema = Ema(module, rule)
    for n in range(1, total + 1):
        with torch.no_grad():
            module.weight.fill_(n / total)
        ema.update(nimg=n, batch=1)
    # The mean of t under the density (gamma + 1) t^gamma on [0, 1].
    expected = (gamma + 1) / (gamma + 2)
    assert ema.shadow["weight"].item() == pytest.approx(expected, abs=3e-3)


@pytest.mark.parametrize("width", [0.01, 0.05, 0.1, 0.25])
def test_power_exponent_gives_the_relative_width_asked_for(width):
    """The exponent solves sigma_rel = (g+1)^(1/2) (g+2)^-1 (g+3)^-(1/2)."""
    gamma = power_exponent(width)
    found = (gamma + 1) ** 0.5 / ((gamma + 2) * (gamma + 3) ** 0.5)
    assert found == pytest.approx(width, rel=1e-9)


def test_published_exponent_of_ten_percent_is_reproduced():
    """EDM2 states that widths 0.05 and 0.10 correspond to gamma 16.97 and 6.94."""
    assert power_exponent(0.05) == pytest.approx(16.97, abs=5e-3)
    assert power_exponent(0.10) == pytest.approx(6.94, abs=5e-3)


def test_halflife_halves_the_weight_of_the_start():
    """After one half-life of images the start weighs one half."""
    module = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        module.weight.fill_(1.0)
    ema = Ema(module, EmaRule(halflife=64.0))
    with torch.no_grad():
        module.weight.fill_(0.0)
    for n in range(8, 65, 8):
        ema.update(nimg=n, batch=8)
    assert ema.shadow["weight"].item() == pytest.approx(0.5, rel=1e-6)


def test_average_of_bfloat16_weights_is_kept_in_float32():
    """Small updates of low-precision weights are not lost in the average."""
    module = nn.Linear(2, 2).bfloat16()
    ema = Ema(module, EmaRule(rate=0.9))
    assert {v.dtype for v in ema.shadow.values()} == {torch.float32}
    ema.update(nimg=1, batch=1)
    assert module.weight.dtype == torch.bfloat16


def test_buffers_are_copied_not_averaged():
    """Batch statistics follow the module."""
    module = nn.BatchNorm1d(2)
    ema = Ema(module, EmaRule(rate=0.999))
    module.running_mean.fill_(5.0)
    module.num_batches_tracked.fill_(7)
    ema.update(nimg=1, batch=1)
    assert ema.shadow["running_mean"].tolist() == [5.0, 5.0]
    assert ema.shadow["num_batches_tracked"].item() == 7


def test_an_average_that_begins_later_is_the_weights_until_then():
    """The warm-up of DM-AT: raw weights for so many images, then min(rate, (1 + d) / (10 + d))."""
    module = nn.Linear(1, 1, bias=False)
    ema = Ema(module, EmaRule(rate=0.995, after=30))
    expected = 0.0
    for step in range(12):
        with torch.no_grad():
            module.weight.fill_(float(step + 1))
        ema.update(nimg=10 * (step + 1), batch=10)
        since = step - 3
        decay = min(0.995, (1 + since) / (10 + since)) if since >= 0 else 0.0
        expected = decay * expected + (1 - decay) * (step + 1)
        assert ema.shadow["weight"].item() == pytest.approx(expected, rel=1e-6)
        assert ema.updates == max(since + 1, 0)


def test_the_rate_of_dm_at_is_reached_after_1790_updates():
    """(1 + d) / (10 + d) passes 0.995 there."""
    rule = EmaRule(rate=0.995)
    decays = [rule.decay(updates=d, nimg=d + 1, batch=1) for d in (1789, 1790)]
    assert decays[0] < 0.995
    assert decays[1] == 0.995


def test_a_power_average_that_begins_later_takes_its_first_value_whole():
    """Its profile is that of the images since then."""
    rule = EmaRule(power=0.1, after=50)
    assert rule.decay(updates=0, nimg=60, batch=10) == 0.0
    later, fresh = rule.decay(updates=1, nimg=90, batch=10), EmaRule(power=0.1)
    assert later == fresh.decay(updates=3, nimg=40, batch=10)
