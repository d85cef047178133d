"""Lion: the formulas of Chen et al. (2023), the library timm, decay, and what a step leaves."""

import pytest
import torch

from advdiff_core.engine.lr import set_momentum
from advdiff_core.interfaces.component import Build
from advdiff_core.optimizers import Lion

BUILD = Build(path="players.student.optimizer")
SHAPES = {"net.weight": (4, 3), "net.bias": (3,), "norm.weight": (3,), "norm.bias": (3,)}


def weights(seed=0):
    """Parameters in float64 by name."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
        for name, shape in SHAPES.items()
    }


def gradients(step):
    """Gradients of a step by name, some of them exactly 0."""
    generator = torch.Generator().manual_seed(100 + step)
    found = {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in SHAPES.items()}
    found["net.bias"][0] = 0.0
    return found


def made(parameters, **settings):
    """The optimizer of these settings."""
    return Lion(Lion.Settings(**settings), BUILD).make(list(parameters.items()))


def run(parameters, optimizer, steps, skip=()):
    """Some steps with given gradients."""
    for step in range(steps):
        for name, grad in gradients(step).items():
            parameters[name].grad = None if name in skip else grad
        optimizer.step()


def by_hand(steps, *, lr, betas, decay):
    """Algorithm 2 of the paper, number by number: where each weight ends."""
    found = {}
    for name, start in weights().items():
        values = start.detach().flatten().tolist()
        momenta = [0.0] * len(values)
        for step in range(steps):
            for place, grad in enumerate(gradients(step)[name].flatten().tolist()):
                c = betas[0] * momenta[place] + (1 - betas[0]) * grad
                sign = (c > 0) - (c < 0)
                values[place] -= lr * (sign + decay * values[place])
                momenta[place] = betas[1] * momenta[place] + (1 - betas[1]) * grad
        found[name] = torch.tensor(values, dtype=torch.float64).view(SHAPES[name])
    return found


@pytest.mark.parametrize("decay", [0.0, 0.5])
@pytest.mark.parametrize("betas", [(0.9, 0.99), (0.5, 0.0), (0.0, 0.9)])
def test_lion_takes_the_steps_of_the_paper(betas, decay):
    """Six steps end where a plain reading of algorithm 2 ends, in float64."""
    parameters = weights()
    run(parameters, made(parameters, lr=0.1, betas=betas, weight_decay=decay, decay="all"), 6)
    for name, wanted in by_hand(6, lr=0.1, betas=betas, decay=decay).items():
        torch.testing.assert_close(parameters[name].detach(), wanted, rtol=1e-12, atol=1e-14)


def test_lion_steps_as_timm_does():
    """An independent implementation ends at the same weights."""
    library = pytest.importorskip("timm.optim.lion")
    ours, theirs = weights(), weights()
    options = {"lr": 0.03, "betas": (0.8, 0.95), "weight_decay": 0.2}
    run(ours, made(ours, **options, decay="all"), 5)
    run(theirs, library.Lion(list(theirs.values()), foreach=False, **options), 5)
    for name, wanted in theirs.items():
        torch.testing.assert_close(ours[name], wanted, rtol=1e-12, atol=1e-14)


def test_lion_moves_every_weight_by_the_rate():
    """Whatever the size of a gradient, a step is as long as the learning rate; 0 stays."""
    parameters = weights()
    before = {name: value.detach().clone() for name, value in parameters.items()}
    run(parameters, made(parameters, lr=0.01), 1)
    moved = torch.cat([(parameters[n] - before[n]).detach().flatten() for n in SHAPES])
    still = moved == 0
    assert int(still.sum()) == 1
    torch.testing.assert_close(moved[~still].abs(), torch.full_like(moved[~still], 0.01))


def test_lion_decays_what_the_rule_says():
    """Without gradients of their own, matrices shrink by lr * weight_decay and norms do not."""
    parameters = weights()
    before = {name: value.detach().clone() for name, value in parameters.items()}
    optimizer = made(parameters, lr=0.1, weight_decay=0.5, decay="but-norms")
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, start in before.items():
        wanted = start if name.startswith("norm") else start * 0.95
        torch.testing.assert_close(parameters[name].detach(), wanted)


def test_lion_passes_over_what_has_no_gradient():
    """A parameter without gradient keeps its value, decay or not, and gets no state."""
    parameters = weights()
    before = parameters["net.weight"].detach().clone()
    optimizer = made(parameters, lr=0.1, weight_decay=0.5)
    run(parameters, optimizer, 2, skip=("net.weight",))
    assert torch.equal(parameters["net.weight"], before)
    assert parameters["net.weight"] not in optimizer.state


def test_lion_follows_a_cycled_momentum():
    """`lr_schedule.momentum` reaches the first beta, which the next step uses."""
    parameters = weights()
    optimizer = made(parameters, lr=0.1)
    for group in optimizer.param_groups:
        set_momentum(group, 0.5)
    run(parameters, optimizer, 4)
    for name, wanted in by_hand(4, lr=0.1, betas=(0.5, 0.99), decay=0.0).items():
        torch.testing.assert_close(parameters[name].detach(), wanted, rtol=1e-12, atol=1e-14)


def test_lion_computes_the_loss_of_a_closure():
    """As other torch optimizers do, with gradients switched on."""
    parameters = weights()
    optimizer = made(parameters, lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = parameters["net.bias"].square().sum()
        loss.backward()
        return loss

    first, second = optimizer.step(closure), optimizer.step(closure)
    assert second.detach() < first.detach()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lr": 0.0}, "lr: 0.0 must be above 0"),
        ({"betas": (0.9,)}, "betas: found 1 numbers, wanted 2"),
        ({"betas": (1.0, 0.9)}, "betas: 1.0 must be below 1"),
        ({"weight_decay": -1.0}, "weight_decay: -1.0 must be at least 0"),
        ({"decay": "some"}, "'some' is not one of"),
    ],
)
def test_lion_refuses_values_out_of_bounds(settings, words):
    """Before anything runs."""
    with pytest.raises(ValueError, match=words):
        Lion.Settings(**settings)
