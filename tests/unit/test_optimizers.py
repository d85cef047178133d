"""Optimizers: equal to torch's own, decay rules, the family `torch:<Name>` and what it refuses."""

import copy
from collections.abc import Iterator

import attrs
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from advdiff_core.errors import RecipeError
from advdiff_core.interfaces.component import Build
from advdiff_core.optimizers import SGD, Adam, AdamW, RAdam, TorchFamily, is_matrix

BUILD = Build(path="players.student.optimizer")


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 4)
        self.norm = torch.nn.LayerNorm(4)
        self.label_embedding = torch.nn.Embedding(5, 4)

    def forward(self, x, y):
        """Output [B, 4]."""
        return self.norm(self.linear(x) + self.label_embedding(y))


def make_net():
    """A network with a matrix, biases, a norm and an embedding."""
    torch.manual_seed(0)
    return Net()


def steps(net, optimizer, count=3):
    """Train a little; gives the parameters."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        x = torch.randn(8, 3, generator=generator)
        y = torch.randint(5, (8,), generator=generator)
        optimizer.zero_grad()
        net(x, y).pow(4).mean().backward()
        optimizer.step()
    return [parameter.detach().clone() for parameter in net.parameters()]


@pytest.mark.parametrize(
    ("component", "settings", "reference", "arguments"),
    [
        (Adam, {"lr": 0.01}, torch.optim.Adam, {"lr": 0.01}),
        (
            Adam,
            {"lr": 0.01, "weight_decay": 0.1},
            torch.optim.Adam,
            {"lr": 0.01, "weight_decay": 0.1},
        ),
        (
            AdamW,
            {"lr": 0.01, "betas": (0.5, 0.9)},
            torch.optim.AdamW,
            {"lr": 0.01, "betas": (0.5, 0.9)},
        ),
        (RAdam, {"lr": 0.01}, torch.optim.RAdam, {"lr": 0.01}),
        (
            SGD,
            {"lr": 0.1, "momentum": 0.5, "nesterov": True},
            torch.optim.SGD,
            {"lr": 0.1, "momentum": 0.5, "nesterov": True},
        ),
    ],
)
def test_optimizers_step_like_torch(component, settings, reference, arguments):
    """With decay on everything, steps equal torch's plain loop."""
    net, twin = make_net(), make_net()
    made = component(component.Settings(decay="all", **settings), BUILD).make(
        list(net.named_parameters())
    )
    plain = reference(twin.parameters(), foreach=False, **arguments)
    for ours, theirs in zip(steps(net, made), steps(twin, plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_decay_but_norms_spares_scales_and_shifts_of_norms_alone():
    """As DM-AT decays: biases of linear layers and embeddings are decayed, norms are not."""
    net = make_net()
    settings = SGD.Settings(weight_decay=0.1, decay="but-norms")
    decayed, spared = SGD(settings, BUILD).make(list(net.named_parameters())).param_groups
    wanted = [net.linear.weight, net.linear.bias, net.label_embedding.weight]
    assert [id(p) for p in decayed["params"]] == [id(p) for p in wanted]
    assert [id(p) for p in spared["params"]] == [id(net.norm.weight), id(net.norm.bias)]
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)


def test_decay_matrices_spares_biases_norms_and_embeddings():
    """The group with decay holds the one matrix; the other group's decay is 0."""
    net = make_net()
    made = AdamW(AdamW.Settings(weight_decay=0.1), BUILD).make(list(net.named_parameters()))
    decayed, spared = made.param_groups
    assert [id(p) for p in decayed["params"]] == [id(net.linear.weight)]
    assert decayed["weight_decay"] == 0.1
    assert spared["weight_decay"] == 0.0
    assert len(spared["params"]) == 4


def test_decay_all_keeps_one_group_in_order():
    """With `all` the parameters stay in their order, in one group."""
    net = make_net()
    made = AdamW(AdamW.Settings(decay="all"), BUILD).make(list(net.named_parameters()))
    assert [[id(p) for p in g["params"]] for g in made.param_groups] == [
        [id(p) for p in net.parameters()]
    ]


def test_is_matrix_looks_at_axes_and_names():
    """Kernels count; vectors and anything named an embedding do not."""
    matrix, vector = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    assert is_matrix("conv.weight", matrix)
    assert is_matrix("noise_embedding.0.weight", matrix)
    assert not is_matrix("conv.bias", vector)
    assert not is_matrix("label_embedding.weight", matrix)
    assert not is_matrix("pos_embedding", matrix)


def test_learning_rate_is_read_at_every_step():
    """A rate of 0 written to the groups stops the parameters."""
    for component in (Adam, AdamW, RAdam, SGD):
        net = make_net()
        made = component(component.Settings(), BUILD).make(list(net.named_parameters()))
        before = steps(net, made)
        for group in made.param_groups:
            group["lr"] = 0.0
        assert all(torch.equal(a, b) for a, b in zip(before, steps(net, made), strict=True))


@pytest.mark.parametrize("component", [Adam, AdamW, RAdam, SGD])
def test_state_holds_tensors_and_plain_values(component):
    """A loaded state continues bit for bit, and nothing in it needs pickle."""
    net = make_net()
    named = list(net.named_parameters())
    made = component(component.Settings(), BUILD).make(named)
    steps(net, made)
    saved, weights = copy.deepcopy(made.state_dict()), copy.deepcopy(net.state_dict())
    wanted = steps(net, made)
    twin = make_net()
    twin.load_state_dict(weights)
    again = component(component.Settings(), BUILD).make(list(twin.named_parameters()))
    again.load_state_dict(saved)
    assert all(torch.equal(a, b) for a, b in zip(wanted, steps(twin, again), strict=True))
    leaves = [value for state in saved["state"].values() for value in state.values()]
    leaves += [v for group in saved["param_groups"] for k, v in group.items() if k != "params"]
    assert all(
        isinstance(leaf, torch.Tensor | bool | int | float | tuple | None) for leaf in leaves
    )


@pytest.mark.parametrize(
    "name", ["NAdam", "RMSprop", "Adagrad", "Adadelta", "Adafactor", "ASGD", "Rprop"]
)
def test_family_steps_like_torch(name):
    """`torch:<Name>` with defaults is that optimizer with its defaults."""
    net, twin = make_net(), make_net()
    component = TorchFamily(TorchFamily.settings_type(name)(), BUILD)
    made = component.make(list(net.named_parameters()))
    plain = getattr(torch.optim, name)(twin.parameters(), foreach=False)
    for ours, theirs in zip(steps(net, made), steps(twin, plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_family_settings_follow_the_signature():
    """Numbers, switches and tuples become keys with torch's defaults; kernel flags do not."""
    fields = attrs.fields_dict(TorchFamily.settings_type("AdamW"))
    kinds = {name: field.type for name, field in fields.items()}
    assert kinds == {
        "lr": float,
        "betas": tuple[float, ...],
        "eps": float,
        "weight_decay": float,
        "amsgrad": bool,
        "decay": str,
    }
    assert fields["weight_decay"].default == 0.01
    assert all(field.metadata["help"] for field in fields.values())
    assert attrs.fields_dict(TorchFamily.settings_type("Muon"))["ns_steps"].type is int


def test_family_settings_are_one_class_per_variant():
    """Asking twice gives the same class, so that settings compare."""
    assert TorchFamily.settings_type("NAdam") is TorchFamily.settings_type("NAdam")
    assert TorchFamily.settings_type("NAdam") is not TorchFamily.settings_type("RAdam")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("adamw", r"no optimizer 'adamw'; did you mean 'AdamW'\?"),
        ("NAdm", r"no optimizer 'NAdm'; did you mean 'NAdam'\?"),
        (None, "no optimizer None; there are ASGD, Adadelta"),
        ("zzz", "no optimizer 'zzz'; there are ASGD"),
        ("LBFGS", "cannot be used: it calls the loss several times per step"),
        ("SparseAdam", "cannot be used: it takes sparse gradients only"),
        ("Optimizer", "cannot be used: it is the base class"),
        ("lr_scheduler", "no optimizer 'lr_scheduler'"),
    ],
)
def test_family_refuses_with_the_reason(name, words):
    """Unknown and unusable names are refused, near names are offered."""
    with pytest.raises(ValueError, match=words):
        TorchFamily.settings_type(name)


def test_what_torch_refuses_is_a_fault_of_the_recipe():
    """Muon takes matrices only; the message says so with the place in the recipe."""
    component = TorchFamily(TorchFamily.settings_type("Muon")(), BUILD)
    with pytest.raises(RecipeError, match=r"torch.optim.Muon refuses this: .*2D") as caught:
        component.make(list(make_net().named_parameters()))
    assert caught.value.faults[0].key == BUILD.path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Adam.Settings(betas=(0.9,)), "betas: found 1 numbers, wanted 2"),
        (lambda: AdamW.Settings(lr=0.0), "lr: 0.0 must be above 0"),
        (lambda: AdamW.Settings(betas=(0.9, 1.0)), "betas: 1.0 must be below 1"),
        (lambda: SGD.Settings(momentum=0.0, nesterov=True), "nesterov: true, but momentum is 0"),
        (lambda: SGD.Settings(decay="some"), "'some' is not one of 'matrices', 'but-norms', 'all'"),
        (lambda: TorchFamily.settings_type("NAdam")(betas=(0.9,)), "found 1 numbers, wanted 2"),
        (lambda: TorchFamily.settings_type("NAdam")(lr=float("nan")), "not a finite number"),
    ],
)
def test_settings_refuse_values_out_of_bounds(make, words):
    """Each bound has its message."""
    with pytest.raises(ValueError, match=words):
        make()


@pytest.fixture(scope="module")
def mesh() -> Iterator[DeviceMesh]:
    """One process that weights are shared out to: they are DTensors all the same."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


def shared_out(value: torch.Tensor, mesh: DeviceMesh) -> torch.Tensor:
    """A tensor [N, M] by rows."""
    return DTensor.from_local(value.clone(), mesh, [Shard(0)])


@pytest.mark.parametrize("name", TorchFamily.variant_names())
def test_family_steps_weights_that_are_shared_out_or_refuses_them(name, mesh):
    """Torch fuses the steps of DTensors for Adam alone; two optimizers cannot step them at all."""
    value = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    plain, rows = nn.Parameter(value.clone()), nn.Parameter(shared_out(value, mesh))
    component = TorchFamily(TorchFamily.settings_type(name)(), BUILD)
    if name in ("Adafactor", "Rprop"):
        with pytest.raises(RecipeError, match=f"{name} cannot step weights that are shared out"):
            component.make([("w", rows)])
        return
    for parameter, gradient in ((plain, value.cos()), (rows, shared_out(value.cos(), mesh))):
        made = component.make([("w", parameter)])
        for _ in range(3):
            parameter.grad = gradient.clone()
            made.step()
    assert torch.equal(rows.full_tensor(), plain)
    assert not torch.equal(plain, value)
