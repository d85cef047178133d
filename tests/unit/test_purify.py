"""The diffuse-and-denoise defence: what its gradients are, and what keeping them costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advdiff_core import Build, Domain, Prediction, Sampler
from advdiff_core.engine.robust.purify import GRADIENTS, Purified, Purifier, gradient_text
from advdiff_core.math import grids
from advdiff_core.samplers.ancestral import DDIM
from advdiff_core.samplers.multistep import DPMpp2M
from advdiff_core.schedules import VPLinear
from advdiff_core.types import expand

SCHEDULE = VPLinear(VPLinear.Settings(), Build())
#: Variances of data that are Gaussian and independent in each coordinate.
VARIANCES = torch.tensor([2.0, 0.5, 0.05, 0.002], dtype=torch.float64)


class Gaussian(nn.Module):
    """The Bayes denoiser of such data, with a nonlinearity if `bend`; counts its forwards."""

    def __init__(self, bend: float = 0.0) -> None:
        super().__init__()
        self.bend, self.calls = bend, 0

    def forward(self, x_t: Tensor, t: Tensor) -> Prediction:
        """E[x0 | x_t], bent."""
        self.calls += 1
        alpha, sigma = expand(SCHEDULE.alpha(t), x_t), expand(SCHEDULE.sigma(t), x_t)
        x0 = alpha * VARIANCES / (alpha**2 * VARIANCES + sigma**2) * x_t
        return Prediction("x0", x0 + self.bend * torch.tanh(3 * x_t), x_t, alpha, sigma)


def sampler(cls: type[Any] = DDIM, **keys: Any) -> Sampler:
    """A sampler on the schedule."""
    made: Sampler = cls(cls.Settings(**keys), Build(path="sample", schedule=SCHEDULE))
    return made


def purifier(
    gradient: Any, *, steps: int = 4, bend: float = 0.0, made: Sampler | None = None, **keys: Any
) -> Purifier:
    """A purifier from t = 0.3."""
    network = Gaussian(bend)
    grid = grids.sampling_times(SCHEDULE, steps, law="uniform", start=0.3)
    return Purifier(
        network, network, SCHEDULE, made or sampler(), grid=grid, gradient=gradient, **keys
    )


def points(count: int = 3) -> Tensor:
    """Inputs [count, 4], float64."""
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def slope(module: nn.Module, x: Tensor) -> Tensor:
    """Gradient of the summed squares of what comes out [B, 4], with the noise of one seed."""
    leaf = x.clone().requires_grad_()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        (gradient,) = torch.autograd.grad(module(leaf).square().sum(), leaf)
    return gradient


def plain(made: Purifier, x: Tensor) -> Tensor:
    """The same process by plain autograd: every step keeps its graph."""

    class Kept(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            from advdiff_core.engine.robust.purify import _fresh

            draws = _fresh()
            alpha, sigma = made._scales(0, x)
            start = alpha * x + sigma * draws.normal(tuple(x.shape)).to(x)
            steps = tuple(range(made.steps))
            found = made.sampler.sample(
                made.denoise, start, draws, grid=made.grid, grad_steps=steps, checkpoint=False
            )
            return found.x0

    return slope(Kept(), x)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_full_gradient_is_that_of_plain_autograd(eta: float) -> None:
    """Recomputed steps see the noise of the first time; float64, a stochastic sampler too."""
    made = purifier("full", bend=0.2, made=sampler(eta=eta))
    torch.testing.assert_close(slope(made, points()), plain(made, points()), rtol=1e-12, atol=0)


def test_full_gradient_is_that_of_finite_differences() -> None:
    """Also through a multistep sampler, whose steps hand estimates on."""
    made, x = purifier("full", bend=0.2, made=sampler(DPMpp2M)), points()

    def height(at: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(1)
            return made(at).square().sum()

    for one in range(4):
        move = 1e-5 * torch.eye(4, dtype=torch.float64)[one].expand(3, 4)
        found = (height(x + move) - height(x - move)) / 2e-5
        torch.testing.assert_close(slope(made, x)[:, one].sum(), found, rtol=1e-7, atol=0)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_gradients_leave_the_purified_input_as_it_is(gradient: Any) -> None:
    """What is chosen changes what is passed back, not the defence."""
    made, wanted = purifier(gradient, bend=0.2, last=2), purifier("full", bend=0.2)
    for one in (made, wanted):
        torch.manual_seed(3)
        one.found = one(points().requires_grad_()).detach()
    torch.testing.assert_close(made.found, wanted.found, rtol=1e-13, atol=1e-13)


def test_truncated_gradient_is_that_of_the_last_steps_alone() -> None:
    """Linear denoiser: the slope is the product over these steps, times alpha where they begin."""
    made = purifier("truncated", last=2)
    x = points(1).requires_grad_()
    rows = [torch.autograd.grad(made(x)[0, k], x)[0][0, k] for k in range(4)]
    wanted = SCHEDULE.alpha(made.grid[2]) * torch.ones(4, dtype=torch.float64)
    for t, after in zip(made.grid[2:-1], made.grid[3:], strict=True):
        a, b = sampler().linear_step(t, after)
        alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
        gain = alpha * VARIANCES / (alpha**2 * VARIANCES + sigma**2)
        wanted = wanted * (a + b * (1 - alpha * gain) / sigma)
    torch.testing.assert_close(torch.stack(rows), wanted, rtol=1e-10, atol=0)


def test_truncated_gradient_through_every_step_is_the_full_one() -> None:
    """And so it is through more steps than there are."""
    made, wanted = purifier("truncated", bend=0.2, last=9), purifier("full", bend=0.2)
    assert torch.equal(slope(made, points()), slope(wanted, points()))


def moved(made: Purifier, weights: Tensor, radius: float) -> Tensor:
    """Drop of the logit `weights . purified` after one step against its gradient in the L2 ball."""
    x = torch.zeros(1, 4, dtype=torch.float64).requires_grad_()

    def logit(at: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return (made(at) @ weights).sum()

    (gradient,) = torch.autograd.grad(logit(x), x)
    return logit(x) - logit(x.detach() - radius * gradient / gradient.norm())


def test_stand_in_gradients_attack_less_than_the_full_one_where_that_is_provable() -> None:
    """Linear purifier M and logit w: the drop over a ball is largest along M^T w (Cauchy-Schwarz).

    So of classifiers with a margin between the two drops the full gradient breaks each one, and the
    stand-in none: the robust accuracy that it reports is 100 % in place of 0 %.
    """
    weights = torch.tensor([0.2, 0.4, 1.0, 2.0], dtype=torch.float64)
    full = moved(purifier("full"), weights, 0.5)
    for gradient in ("truncated", "surrogate", "identity"):
        assert moved(purifier(gradient, last=1), weights, 0.5) < 0.97 * full, gradient


def kept_bytes(made: Purifier) -> int:
    """Bytes that the graph of one forward keeps."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.zeros(1, 4, dtype=torch.float64).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        made(x)
    return sum(kept.values())


class Wide(nn.Module):
    """A denoiser that keeps a thousand times its input for the backward."""

    def forward(self, x_t: Tensor, t: Tensor) -> Prediction:
        """The input through a wide layer and back."""
        alpha, sigma = expand(SCHEDULE.alpha(t), x_t), expand(SCHEDULE.sigma(t), x_t)
        hidden = torch.tanh(x_t.repeat(1, 1000))
        return Prediction("x0", hidden.unflatten(1, (1000, 4)).mean(1), x_t, alpha, sigma)


def test_full_gradient_keeps_states_and_not_the_insides_of_steps() -> None:
    """Sixteen steps keep less than the inside of one; each more adds no more than its state."""
    inside = 4000 * 8
    made = {}
    for steps in (4, 16):
        made[steps] = purifier("full", steps=steps)
        made[steps].denoise = Wide()
    few, many = kept_bytes(made[4]), kept_bytes(made[16])
    assert many < inside
    assert many - few <= 12 * 20 * 4 * 8


def test_gradients_cost_the_forwards_that_they_say() -> None:
    """Full: each step again in the backward; truncated: its last ones; surrogate: one more."""
    for gradient, wanted in (("full", 8), ("truncated", 5), ("surrogate", 5), ("identity", 4)):
        made = purifier(gradient, last=1)
        slope(made, points())
        assert made.network.calls == wanted, gradient


def test_purifier_draws_fresh_noise_that_the_global_seed_repeats() -> None:
    """One seed, one noise; the next forward another; the rest of the process sees one draw."""
    made, x = purifier("full"), points()
    torch.manual_seed(5)
    first, second = made(x), made(x)
    torch.manual_seed(5)
    assert torch.equal(made(x), first)
    assert not torch.equal(first, second)


def test_streams_of_a_forward_are_apart() -> None:
    """A sampler that asks for a stream of its own leaves the others alone."""
    from advdiff_core.engine.robust.purify import _fresh

    torch.manual_seed(5)
    one, two = _fresh(), _fresh()
    own = one.child("predictor").normal((3,))
    assert torch.equal(own, one.child("predictor").normal((3,)))
    assert not torch.equal(own, one.normal((3,)))
    assert not torch.equal(own, two.child("predictor").normal((3,)))


def test_purified_classifier_is_the_classifier_of_the_purified_input() -> None:
    """Nothing in between."""
    made, head = purifier("full"), nn.Linear(4, 3).double()
    torch.manual_seed(5)
    wanted = head(made(points()))
    torch.manual_seed(5)
    assert torch.equal(Purified(made, head)(points()), wanted)


def test_purifier_of_another_domain_is_the_same_in_its_own() -> None:
    """Inputs in [0, 1] for a denoiser in [-1, 1]: mapped there and back, gradient included."""
    made = purifier("full", bend=0.2, domains=(Domain(0.0, 1.0), Domain(-1.0, 1.0)))
    own, x = purifier("full", bend=0.2), points()
    for one in (made, own):
        torch.manual_seed(2)
        one.found = one(x if one is made else 2 * x - 1)
    torch.testing.assert_close(made.found, (own.found + 1) / 2, rtol=1e-12, atol=1e-12)


def test_gradient_text_says_what_it_is() -> None:
    """With the number of steps."""
    assert gradient_text("full", steps=4, last=1) == "through all 4 steps, recomputed one by one"
    assert gradient_text("truncated", steps=4, last=2).startswith("through the last 2 of 4 steps")
    assert gradient_text("surrogate", steps=4, last=2).startswith(
        "of one denoising at the noisiest"
    )
    assert gradient_text("identity", steps=4, last=2).startswith(
        "of the identity, in place of all 4"
    )


@pytest.mark.parametrize("law", grids.LAWS)
def test_grid_from_a_smaller_time_falls_from_it_to_no_noise(law: str) -> None:
    """Every law; on a discrete schedule the first time may be rounded to a training time."""
    for count in (1, 3, 10):
        grid = grids.sampling_times(SCHEDULE, count, law=law, start=0.1)
        assert len(grid) == count + 1
        assert abs(float(grid[0]) - 0.1) < 1e-9
        assert float(grid[-1]) == SCHEDULE.t_zero
        assert bool((grid.diff() < 0).all())


@pytest.mark.parametrize("start", [0.0, 1.5])
def test_grid_refuses_a_start_outside_of_the_range(start: float) -> None:
    """With the range."""
    with pytest.raises(ValueError, match=rf"a grid from {start:g}; wanted above 0.001, up to 1"):
        grids.sampling_times(SCHEDULE, 3, start=start)
