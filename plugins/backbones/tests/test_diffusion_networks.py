"""What the three diffusion networks promise alike: conditions, taps, memory, derivatives."""

import pytest
import torch
from advdiff_backbones.adm_unet import ADMUNet
from advdiff_backbones.ddpmpp_unet import DDPMppUNet
from advdiff_backbones.dit import DiT
from torch.utils.checkpoint import checkpoint

from advdiff_core.errors import ContractError, RecipeError
from advdiff_core.interfaces.component import Build
from advdiff_core.types import DataInfo, Domain

PATH = "models.student"
UNET = {"channels": 8, "channel_mult": (1, 2), "blocks": 1, "attention": (4,)}
NETWORKS = {
    "adm-unet": (ADMUNet, {**UNET, "head_channels": 4}),
    "ddpmpp-unet": (DDPMppUNet, UNET),
    "dit": (DiT, {"width": 16, "depth": 2, "heads": 2}),
}


def build_of(classes=3, shape=(3, 8, 8), **more):
    """A `Build` with images."""
    data = DataInfo(shape=shape, count=10, domain=Domain(-1.0, 1.0), classes=classes)
    return Build(path=PATH, data=data, **more)


@pytest.fixture(params=NETWORKS)
def make(request):
    """Makes one network after the other, in eval mode, of which no weight is zero."""
    cls, small = NETWORKS[request.param]

    def made(build=None, **settings):
        torch.manual_seed(0)
        net = cls(cls.Settings(**(small | settings)), build or build_of()).eval()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        return net

    return made


def inputs(count=4):
    """Images, noise levels, labels."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(count, 3, 8, 8, generator=generator)
    return x, 1000 * torch.rand(count, generator=generator), torch.arange(count) % 3


def test_labels_matter_where_conditional_and_nowhere_else(make):
    """Another label, another output; without `conditional` labels are ignored."""
    x, level, labels = inputs()
    net, plain = make(conditional=True), make()
    assert not torch.allclose(net(x, level, labels).output, net(x, level, 2 - labels).output)
    assert torch.equal(plain(x, level, labels).output, plain(x, level).output)


def test_no_label_is_the_class_after_the_last(make):
    """Missing labels and label K are the same, and unlike every class."""
    x, level, labels = inputs()
    net = make(conditional=True)
    missing = net(x, level).output
    assert torch.equal(missing, net(x, level, torch.full((4,), 3)).output)
    assert all(
        not torch.allclose(missing, net(x, level, torch.full((4,), k)).output) for k in range(3)
    )
    assert torch.equal(net(x, level, torch.where(labels == 0, 3, labels)).output[0], missing[0])


def test_label_dropout_replaces_labels_in_training_alone(make):
    """With every label dropped training gives the unlabelled output, evaluation the labelled."""
    x, level, labels = inputs()
    net = make(conditional=True, label_dropout=1.0)
    labelled, missing = net(x, level, labels).output, net(x, level).output
    assert not torch.allclose(labelled, missing)
    assert torch.equal(net.train()(x, level, labels).output, missing)


def test_label_dropout_drops_its_share(make):
    """Of 400 samples with one half dropped, 150 to 250 have the unlabelled output."""
    net = make(conditional=True, label_dropout=0.5).train()
    x, level, _ = inputs(1)
    many = (x.expand(400, -1, -1, -1), level.expand(400), torch.full((400,), 1))
    missing = net.eval()(*many[:2]).output
    torch.manual_seed(0)
    with torch.no_grad():
        found = net.train()(*many).output
    dropped = (found - missing).flatten(1).abs().amax(1) < 1e-5
    assert 150 < dropped.sum() < 250


@pytest.mark.parametrize(
    ("settings", "draws"),
    [
        ({}, False),
        ({"dropout": 0.1}, True),
        ({"label_dropout": 0.1}, False),
        ({"conditional": True, "label_dropout": 0.1}, True),
    ],
)
def test_draws_random_says_when_a_forward_draws(make, settings, draws):
    """It is True exactly where a forward in train mode moves the global generator."""
    net = make(**settings).train()
    before = torch.get_rng_state()
    net(*inputs())
    assert net.draws_random is draws
    assert torch.equal(before, torch.get_rng_state()) is not draws


def test_conditional_is_refused_without_labels(make):
    """Data without labels: the key and the mend."""
    with pytest.raises(RecipeError, match="true, but the data have no labels") as caught:
        make(build_of(classes=0), conditional=True)
    assert caught.value.faults[0].key == f"{PATH}.conditional"


def test_points_are_refused(make):
    """They are sent to the MLP."""
    with pytest.raises(RecipeError, match=r"needs images \(C, H, W\)") as caught:
        make(Build(path=PATH, data=DataInfo(shape=(2,), count=4)))
    assert caught.value.faults[0].fix == 'write use = "mlp" for points'


def test_unknown_taps_are_refused(make):
    """The message names the tap and those there are."""
    net = make()
    with pytest.raises(ContractError, match=r"no tap 'nowhere'; there are "):
        net(*inputs(), taps=("nowhere",))


def test_noise_level_is_scaled_and_shifted(make):
    """`c_noise_scale` and `c_noise_shift` read another convention of time."""
    x, level, _ = inputs()
    plain, other = make(), make(c_noise_scale=-0.001, c_noise_shift=1.0)
    other.load_state_dict(plain.state_dict())
    wanted = plain(x, 1 - level / 1000).output
    torch.testing.assert_close(other(x, level).output, wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain(x, level).output, wanted)


def test_a_missing_noise_level_is_the_lowest(make):
    """As if the lowest of the range were given."""
    net = make(build_of(c_noise=(7.0, 900.0)))
    x, level, _ = inputs()
    assert torch.equal(net(x).output, net(x, torch.full_like(level, 7.0)).output)


@pytest.mark.parametrize("whole", [False, True])
def test_recomputing_changes_no_number(make, whole):
    """Block by block, or the whole forward as the core does: the same gradients, with dropout."""
    results = []
    for recompute in (False, True):
        net = make(dropout=0.3, conditional=True, checkpoint_blocks=recompute and not whole)
        net.train()
        torch.manual_seed(3)
        x, level, labels = inputs()
        if recompute and whole:
            out = checkpoint(net, x, level, labels, use_reentrant=False)
        else:
            out = net(x, level, labels)
        out.output.square().sum().backward()
        results.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    assert len(results[0]) == len(results[1]) > 0
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def saved_numbers(net):
    """Numbers that a forward keeps for its backward."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.numel()) or tensor, lambda tensor: tensor
    ):
        net(*inputs())
    return sum(kept)


def test_recomputing_block_by_block_keeps_less(make):
    """A forward that recomputes its blocks holds less than half of the numbers."""
    assert saved_numbers(make(checkpoint_blocks=True)) < 0.5 * saved_numbers(make())


@pytest.mark.parametrize(("kernel", "double"), [("math", True), ("fused", False), ("auto", False)])
def test_second_derivatives_are_promised_where_they_work(make, kernel, double):
    """With plain products gradients of gradients are right; fused attention has none."""
    net = make(attention_kernel=kernel).double()
    assert net.supports_double_backward is double
    x, level, _ = inputs(1)
    x = x.double().requires_grad_()
    (slope,) = torch.autograd.grad(net(x, level).output.square().sum(), x, create_graph=True)
    if kernel == "fused":
        with pytest.raises(RuntimeError, match="derivative"):
            slope.square().sum().backward()
    elif double:
        step = 1e-5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(4)).double()
        (second,) = torch.autograd.grad(slope.square().sum(), x)

        def penalty(moved):
            moved = moved.detach().requires_grad_()
            value = net(moved, level).output.square().sum()
            return torch.autograd.grad(value, moved)[0].square().sum()

        wanted = penalty(x + step) - penalty(x - step)
        torch.testing.assert_close(2 * (second * step).sum(), wanted, rtol=1e-5, atol=1e-12)


def test_networks_compile_to_one_graph(make):
    """No graph break, in both modes, with taps and for an early stop."""
    net = make(conditional=True, label_dropout=0.1)
    x, level, labels = inputs()
    names = tuple(net.taps)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    out = compiled(x, level, labels, taps=names[:1])
    torch.testing.assert_close(out.output, net(x, level, labels).output)
    assert list(compiled(x, level, labels, stop_at=names[1], taps=names[:2]).features) == [
        *names[:2]
    ]
    net.train()
    assert torch.isfinite(compiled(x, level, labels).output).all()


def test_a_few_steps_lower_the_loss(make):
    """Adam on one noised batch of two classes, with labels and dropout, halves the error."""
    net = make(conditional=True, dropout=0.1, label_dropout=0.1).train()
    x, level, labels = inputs()
    target = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    torch.manual_seed(6)
    losses = []
    for _ in range(40):
        loss = (net(x, level, labels).output - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
