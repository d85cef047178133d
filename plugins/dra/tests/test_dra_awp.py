"""Adversarial weight perturbation: its move, its step, and what the engine promises around it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from advdiff_dra.awp import AWP
from torch import Tensor, nn

from advdiff_core import Build, Cost, RecipeError, Spec, View
from advdiff_core.engine.assemble import assemble
from advdiff_core.engine.displaced import Displacement
from advdiff_core.engine.distributed import World
from advdiff_core.engine.planning import step_cost
from advdiff_core.engine.signals import StopFlag
from advdiff_core.engine.trainer import Trainer
from advdiff_core.errors import ContractError
from advdiff_core.optimizers import SGD
from advdiff_core.recipe import recipe_from_dict
from advdiff_core.settings import setting, settings

INNER = {"use": "sgd", "lr": 0.3, "momentum": 0.0}
ATTACK = {"use": "attack", "attack": {"use": "toy-fgsm"}, "radius": 0.1, "unit": "image"}


def trainer_of(optimizer: dict[str, Any], **run: Any) -> Trainer:
    """Adversarial training of a small classifier of points, before its first step."""
    net = {"use": "toy-net", "parametrization": "none", "outputs": 2, "batch_norm": True}
    net |= run.pop("net", {})
    recipe = recipe_from_dict({
        "advdiff": 1,
        "run": {"images": 640, "batch": 16, "seed": 3, "precision": "fp32", **run},
        "data": {"use": "two-moons", "count": 90},
        "models": {"student": net},
        "views": {"adv": {"from": "image", "perturb": ATTACK}},
        "terms": {"at": {"use": "pgd-at"}},
        "players": {"student": {"terms": ["at"], "optimizer": optimizer}},
    })  # fmt: skip
    ticks: Any = None
    return Trainer(assemble(recipe), world=World(), ticks=ticks, stop=StopFlag())


def awp(**keys: Any) -> dict[str, Any]:
    """The optimizer's table."""
    return {"use": "awp", "optimizer": INNER, **keys}


def network(trainer: Trainer) -> Any:
    """The student."""
    return trainer.scene.roles["student"].module


def same(one: nn.Module, other: nn.Module) -> bool:
    """Whether two networks are equal bit for bit, buffers included."""
    states = one.state_dict(), other.state_dict()
    return all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_step_is_that_of_the_paper() -> None:
    """Read by hand: v from the first gradient, the second at w + v, the step from w."""
    trainer = trainer_of(awp(gamma=0.1))
    (step,) = trainer._new_steps(trainer.experiment.plan, trainer.feed)
    adv, y = step.get(View("adv")).x_t, step.y
    assert y is not None
    net = copy.deepcopy(network(trainer))
    read_awp(net, adv, y.long(), gamma=0.1, lr=0.3)
    trainer.train_step()
    for name, value in network(trainer).state_dict().items():
        wanted = net.state_dict()[name]
        torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-6, msg=name)


def read_awp(net: Any, x: Tensor, y: Tensor, *, gamma: float, lr: float) -> None:
    """One step as the paper has it; batch norms learn from the second pass alone."""
    before = copy.deepcopy(net.state_dict())
    F.cross_entropy(net(x).output, y).backward()
    net.load_state_dict(before)
    with torch.no_grad():
        for p in net.parameters():
            if p.dim() > 1:
                p += gamma * p.norm() * p.grad / p.grad.norm()
    net.zero_grad()
    F.cross_entropy(net(x).output, y).backward()
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.copy_(before[name] - lr * p.grad)


def test_batch_norms_see_each_view_once() -> None:
    """The first pass leaves buffers and counters alone, as the released code's proxy does."""
    trainer = trainer_of(awp())
    trainer.train_step()
    # Two layers share the norm.
    assert int(network(trainer).norm.num_batches_tracked) == 2


@pytest.mark.parametrize("micro", [4, 16])
def test_the_plan_foretells_the_second_pass_and_one_search(micro: int) -> None:
    """One forward and one backward more; the attack is made once."""
    trainer = trainer_of(awp(), micro_batch=micro)
    trainer.train_step()
    planned = step_cost(trainer.experiment, share=micro == 16).roles["student"]
    assert planned == Cost(1 + 2, 1, 2)
    counted, parts = trainer.scene.roles["student"].cost, 16 // micro
    assert counted == Cost(3 * parts, parts, 2 * parts)


def test_micro_batches_move_weights_by_the_gradient_of_the_whole_batch() -> None:
    """Both passes gather first: four micro-batches end where the whole batch ends."""
    ends = []
    for micro in (4, 16):
        trainer = trainer_of(awp(gamma=0.1), micro_batch=micro, net={"batch_norm": False})
        for _ in range(3):
            trainer.train_step()
        ends.append(network(trainer).state_dict())
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("keys", [{"gamma": 0.0}, {"after": 10_000}])
def test_without_a_radius_and_before_its_time_it_is_the_plain_optimizer(
    keys: dict[str, Any],
) -> None:
    """Bit for bit, and at no cost."""
    plain, other = trainer_of(INNER), trainer_of(awp(**keys))
    for _ in range(3):
        plain.train_step()
        other.train_step()
    assert same(network(plain), network(other))
    assert plain.scene.roles["student"].cost == other.scene.roles["student"].cost


def test_it_begins_after_as_many_images() -> None:
    """Equal up to step 2, which begins at 32 images, and not after it."""
    plain, other = trainer_of(INNER), trainer_of(awp(after=32, gamma=0.1))
    equal = []
    for _ in range(3):
        plain.train_step()
        other.train_step()
        equal.append(same(network(plain), network(other)))
    assert equal == [True, True, False]


def component(**keys: Any) -> AWP:
    """The component, outside of a recipe."""
    inner = Spec(kind="optimizer", use="sgd", settings=SGD.Settings(lr=0.3), component=SGD)

    def make(spec: Spec) -> Any:
        return spec.component(spec.settings, Build())

    return AWP(AWP.Settings(optimizer=inner, **keys), Build(make=make))


def named() -> list[tuple[str, nn.Parameter]]:
    """A matrix, a bias, a head and a matrix without gradient."""
    numbers = torch.Generator().manual_seed(0)
    shapes = {
        "models.net.weight": (4, 3), "models.net.bias": (4,), "terms.head.weight": (2, 2),
        "models.net.unused": (2, 3),
    }  # fmt: skip
    made = [
        (name, nn.Parameter(torch.randn(shape, generator=numbers, dtype=torch.float64)))
        for name, shape in shapes.items()
    ]
    for name, p in made[:3]:
        p.grad = torch.full_like(p, 0.5) if name else None
    return made


def test_layers_of_networks_move_by_a_share_of_their_norm() -> None:
    """Exactly gamma |w| along the gradient; biases, heads and what has no gradient stay."""
    parameters = named()
    before = [p.detach().clone() for _, p in parameters]
    with torch.no_grad():
        component(gamma=0.01).displace(parameters)
    moves = [p.detach() - old for (_, p), old in zip(parameters, before, strict=True)]
    expected = 0.01 * before[0].norm() * torch.full((4, 3), 12**-0.5, dtype=torch.float64)
    torch.testing.assert_close(moves[0], expected, rtol=0, atol=1e-14)
    assert not any(bool(move.any()) for move in moves[1:])


@pytest.mark.parametrize("slope", [0.0, 1e-30])
def test_a_vanishing_gradient_moves_nothing_to_infinity(slope: float) -> None:
    """The direction of zero is none."""
    parameters = named()[:1]
    parameters[0][1].grad = torch.full((4, 3), slope, dtype=torch.float64)
    with torch.no_grad():
        component(gamma=0.01).displace(parameters)
    assert bool(parameters[0][1].isfinite().all())


def test_weights_come_back_bit_for_bit_also_after_a_failure() -> None:
    """And the gradients gathered before stay, for the passes of a batch add up."""
    parameters = named()
    before = [p.detach().clone() for _, p in parameters]
    gathered = [p.grad for _, p in parameters]
    away = Displacement(component=component(gamma=0.1), parameters=parameters)

    def first_pass() -> None:
        assert all(p.grad is None for _, p in parameters)
        for _, p in parameters:
            p.grad = torch.ones_like(p)

    def moved_and_failing() -> None:
        with away.moved(first_pass):
            assert not torch.equal(parameters[0][1], before[0])
            assert all(p.grad is g for (_, p), g in zip(parameters, gathered, strict=True))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        moved_and_failing()
    assert all(torch.equal(p, old) for (_, p), old in zip(parameters, before, strict=True))


def test_the_learning_rate_is_that_of_what_steps() -> None:
    """Schedules act on the inner optimizer's groups, and the state is its own."""
    made = component()
    optimizer = made.make(named())
    assert made.settings.lr == 0.3
    assert [group["lr"] for group in optimizer.param_groups] == [0.3]
    assert type(optimizer) is torch.optim.SGD


class Careless(SGD):
    """Announces a move and makes none."""

    displaced_from = 0

    @settings
    class Settings(SGD.Settings):
        """Keys of a plugin's optimizer."""

        flavour: int = setting(0, help="nothing")


def test_an_optimizer_without_a_move_is_told_to_the_user() -> None:
    """A plugin's mistake, in one line."""
    away = Displacement(component=Careless(Careless.Settings(), Build()), parameters=named())
    with pytest.raises(ContractError) as caught, away.moved(lambda: None):
        pass
    assert "Careless displaces no weights" in str(caught.value)
    assert "implement `displace`, or leave `displaced_from` at None" in str(caught.value)


def test_what_steps_has_to_be_named() -> None:
    """`optimizer` has no default: weight decay and momentum are a choice."""
    with pytest.raises(RecipeError, match="optimizer"):
        trainer_of({"use": "awp"})
