"""Optimizer state by parameter name."""

import copy

import pytest
import torch
from torch import nn

from advdiff_core.engine.optimizer_state import load_optimizer_state, optimizer_state
from advdiff_core.engine.state_codec import Encoder, decode
from advdiff_core.errors import ContractError, DataError

MAKERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "radam": lambda p: torch.optim.RAdam(p, lr=1e-2),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-2, momentum=0.9, centered=True),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-2),
    "adamax": lambda p: torch.optim.Adamax(p, lr=1e-2),
    "rprop": lambda p: torch.optim.Rprop(p, lr=1e-2),
    "asgd": lambda p: torch.optim.ASGD(p, lr=1e-2),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=1e-2, max_iter=2),
}


def make_model(seed=0):
    """A small network with its own weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 2))


def advance(model, optimizer, first, steps):
    """Train some steps on keyed data."""
    for index in range(first, first + steps):
        generator = torch.Generator().manual_seed(index)
        x = torch.randn(4, 2, 4, 4, generator=generator)

        def closure(x=x):
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)


def through_codec(state):
    """What a checkpoint gives back."""
    encoder = Encoder()
    tree = encoder.encode(state)
    tensors = {name: tensor.clone() for name, tensor in encoder.tensors.items()}
    return decode(tree, tensors, where="state.json")


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_optimizer_goes_on_to_the_bit_from_its_state(name):
    """K01: 3 steps, save, load into a new optimizer, 3 steps: equal to 6 steps, every bit."""
    whole = make_model()
    optimizer = MAKERS[name](whole.parameters())
    advance(whole, optimizer, 0, 3)
    part = copy.deepcopy(whole)
    state = through_codec(optimizer_state(optimizer, whole.named_parameters()))
    advance(whole, optimizer, 3, 3)

    resumed = MAKERS[name](part.parameters())
    load_optimizer_state(resumed, part.named_parameters(), state, where="x")
    advance(part, resumed, 3, 3)
    for expected, found in zip(whole.parameters(), part.parameters(), strict=True):
        assert torch.equal(expected, found)


def test_state_is_keyed_by_name_and_keeps_the_step_tensor():
    """Adam's 0-d `step` and both moments stand under the parameter's name."""
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters())
    advance(model, optimizer, 0, 2)
    state = optimizer_state(optimizer, model.named_parameters())["state"]
    assert sorted(state) == ["0.bias", "0.weight", "2.bias", "2.weight"]
    assert state["2.weight"]["step"].shape == ()
    assert float(state["2.weight"]["step"]) == 2.0
    assert state["0.weight"]["exp_avg"].shape == (3, 2, 3, 3)


def test_state_follows_names_when_groups_reorder_parameters():
    """One group per decay rule is another order than the model's; names still fit."""
    model = make_model()
    named = dict(model.named_parameters())
    groups = [
        {"params": [named["2.bias"], named["0.bias"]], "weight_decay": 0.0},
        {"params": [named["2.weight"], named["0.weight"]], "weight_decay": 0.1},
    ]
    optimizer = torch.optim.AdamW(groups)
    advance(model, optimizer, 0, 1)
    state = optimizer_state(optimizer, named.items())
    assert [group["names"] for group in state["groups"]] == [
        ["2.bias", "0.bias"],
        ["2.weight", "0.weight"],
    ]
    for name, parameter in named.items():
        assert torch.equal(state["state"][name]["exp_avg"], optimizer.state[parameter]["exp_avg"])


def test_moments_keep_their_own_dtype():
    """float32 moments of bfloat16 weights stay float32; torch itself would round them."""
    parameter = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = torch.optim.Adam([parameter])
    moment = torch.tensor([1.0, 2.0, 3.0]) / 3
    optimizer.state[parameter] = {
        "step": torch.tensor(1.0), "exp_avg": moment, "exp_avg_sq": moment.double()
    }  # fmt: skip
    state = through_codec(optimizer_state(optimizer, [("w", parameter)]))
    other = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    resumed = torch.optim.Adam([other])
    load_optimizer_state(resumed, [("w", other)], state, where="x")
    found = resumed.state[other]
    assert torch.equal(found["exp_avg"], moment)
    assert found["exp_avg"].dtype == torch.float32
    assert torch.equal(found["exp_avg_sq"], moment.double())
    assert found["exp_avg_sq"].dtype == torch.float64


def test_options_come_from_the_state_but_flags_of_the_machine_do_not():
    """Learning rate and betas resume; fused and foreach are this machine's choice."""
    model = make_model()
    first = torch.optim.Adam(model.parameters(), lr=0.5, betas=(0.8, 0.9), foreach=True)
    state = through_codec(optimizer_state(first, model.named_parameters()))
    second = torch.optim.Adam(model.parameters(), lr=0.1, foreach=False)
    load_optimizer_state(second, model.named_parameters(), state, where="x")
    group = second.param_groups[0]
    assert (group["lr"], group["betas"], group["foreach"]) == (0.5, (0.8, 0.9), False)


def test_extra_keys_of_the_state_dict_are_kept():
    """An optimizer with a counter of its own gets it back."""

    class Counting(torch.optim.SGD):
        count = 0

        def state_dict(self):
            return {**super().state_dict(), "count": self.count}

        def load_state_dict(self, state):
            self.count = state.pop("count")
            super().load_state_dict(state)

    parameter = nn.Parameter(torch.ones(1))
    first, second = Counting([parameter], lr=0.1), Counting([parameter], lr=0.1)
    first.count = 7
    state = through_codec(optimizer_state(first, [("w", parameter)]))
    load_optimizer_state(second, [("w", parameter)], state, where="x")
    assert second.count == 7


def test_an_unnamed_parameter_breaks_the_contract():
    """A parameter of its own, which no model has, could not be resumed."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    with pytest.raises(ContractError, match="a parameter that no model of its player has") as e:
        optimizer_state(optimizer, [])
    assert (e.value.code, e.value.where) == ("K01", "SGD")


def saved(named, **options):
    """A state to be changed."""
    return through_codec(optimizer_state(torch.optim.Adam([p for _, p in named], **options), named))


def test_load_names_what_differs():
    """S12: number and names of parameters, shapes and options, each with found and wanted."""
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    cases = [
        (
            [("a", a), ("b", b)],
            [("a", a)],
            "has groups of 1 parameters and the checkpoint groups of 2",
        ),
        ([("a", a), ("b", b)], [("a", a)], "first different: b"),
        ([("a", a)], [("c", a)], "first different: c here, a there"),
        ([("a", a)], [("a", b)], r"a has shape \[3\] here and \[2\] in the checkpoint"),
    ]
    for before, after, message in cases:
        optimizer = torch.optim.Adam([p for _, p in after])
        with pytest.raises(DataError, match=message) as caught:
            load_optimizer_state(optimizer, after, saved(before), where="ckpt/10: optimizers.p")
        assert (caught.value.code, caught.value.where) == ("S12", "ckpt/10: optimizers.p")


def test_load_refuses_groups_cut_elsewhere():
    """S12: the same names in other groups are other options for some of them."""
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([{"params": [a]}, {"params": [b]}])
    with pytest.raises(DataError, match="the border between groups"):
        load_optimizer_state(
            optimizer, [("a", a), ("b", b)], saved([("a", a), ("b", b)]), where="x"
        )


def test_load_refuses_an_option_the_optimizer_does_not_have():
    """S12: the state of another kind of optimizer is not poured in."""
    a = nn.Parameter(torch.ones(2))
    sgd = torch.optim.SGD([a], lr=0.1)
    with pytest.raises(DataError, match=r"has no option .*amsgrad.*, which the checkpoint sets"):
        load_optimizer_state(sgd, [("a", a)], saved([("a", a)]), where="x")


def test_load_refuses_what_is_no_optimizer_state():
    """S12: a checkpoint of another layout is named, not a KeyError."""
    a = nn.Parameter(torch.ones(2))
    with pytest.raises(DataError, match="is not the state of an optimizer"):
        load_optimizer_state(torch.optim.SGD([a], lr=0.1), [("a", a)], {"state": {}}, where="x")
