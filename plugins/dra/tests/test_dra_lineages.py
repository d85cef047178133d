"""Both lineages of TRADES on the wide resnet: attack, loss, gradients and buffers read by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from advdiff_dra.mart import Mart
from advdiff_dra.trades import Trades
from helpers_dra import entered
from torch import Tensor, nn

from advdiff_core import Cost, DataInfo, Domain, Logits, Spec, View
from advdiff_core.perturbations import AttackPerturbation
from advdiff_core.testing.steps import Model, Moved, Stage, Turn, build_stage, run_step

torchattacks = pytest.importorskip("torchattacks")
steps = pytest.importorskip("advdiff_attacks.steps")
wide_resnet = pytest.importorskip("advdiff_backbones.wide_resnet")

EPS, STEP, STEPS, BETA, SMOOTHING, MOMENTUM = 8 / 255, 2 / 255, 10, 5.0, 0.1, 0.01
DATA = DataInfo(shape=(3, 16, 16), count=8, domain=Domain(0.0, 1.0), classes=10)
#: Keys of the attack and of the perturbation, by lineage.
ORIGINAL = {"start": "gaussian", "start_std": 0.001}, {"mode": "eval"}
GOWAL = {"start": "uniform"}, {"mode": "train"}
LINEAGES = {"original": ORIGINAL, "gowal": GOWAL}


def images() -> Tensor:
    """Images [6, 3, 16, 16] in float64, with pixels at both ends of the range."""
    numbers = torch.Generator().manual_seed(0)
    return (torch.rand(6, 3, 16, 16, generator=numbers, dtype=torch.float64) * 1.2 - 0.1).clamp(
        0, 1
    )


LABELS = torch.arange(6)


def stage(lineage: str, **keys: Any) -> Stage:
    """A small wide resnet whose running statistics are not those of the batch, and its attack."""
    attack, view = LINEAGES[lineage]
    attack = keys.pop("attack", attack)
    settings = steps.PGD.Settings(**{"steps": STEPS, "step": STEP, "keep": "last", **attack})
    if keys.pop("l2", False):
        scale = 2 / STEPS
        settings = steps.PGD.Settings(steps=STEPS, step_scale=scale, keep="last", **attack)
        keys |= {"norm": "l2", "radius": 0.5}
    spec = Spec(kind="attack", use="pgd", settings=settings, component=steps.PGD)
    perturb = AttackPerturbation.Settings(attack=spec, **{"objective": "kl", **view, **keys})
    net = wide_resnet.WideResNet.Settings(depth=10, width=1)
    model = Model(wide_resnet.WideResNet, net, parametrization="none", train=True)
    adv = Moved("image", AttackPerturbation, perturb)
    made = build_stage(data=DATA, models={"student": model}, views={"adv": adv})
    network(made).double()
    numbers = torch.Generator().manual_seed(1)
    for norm in norms_of(network(made)):
        norm.running_mean += 0.1 * torch.randn(norm.running_mean.shape, generator=numbers)
        norm.running_var *= 1.5
    return made


def network(made: Stage) -> nn.Module:
    """The student."""
    return made.scene.roles["student"].module


def norms_of(net: nn.Module) -> list[Any]:
    """Its batch norms."""
    return [part for part in net.modules() if isinstance(part, nn.BatchNorm2d)]


def attacked(made: Stage) -> Tensor:
    """The adversarial images of the view."""
    return entered(made, images(), LABELS, View("adv")).get(View("adv")).x_t


def start_of(made: Stage) -> Any:
    """The stream that the attack's start is drawn from."""
    step = entered(made, images(), LABELS, View("adv"))
    return step.rng("view/adv").child("restart", 0)


class LogitsOf(nn.Module):
    """A network that returns logits alone."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, K]."""
        return self.net(x).output


def test_the_original_attack_is_that_of_torchattacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """TPGD in evaluation mode from the same start finds the same images."""
    made = stage("original")
    noise = start_of(made).normal(images().shape)
    monkeypatch.setattr(torch, "randn_like", lambda _: noise.double())
    peer = torchattacks.TPGD(LogitsOf(copy.deepcopy(network(made))), EPS, STEP, STEPS)
    found = attacked(made)
    assert (found - images()).abs().max() > 0.9 * EPS
    torch.testing.assert_close(found, peer(images(), LABELS), rtol=0, atol=1e-6)


def read_kl_attack(net: nn.Module, x: Tensor, start: Tensor, *, norm: str) -> Tensor:
    """The attack of DM-AT by hand: batch statistics, buffers frozen, one clean prediction."""
    net = copy.deepcopy(net).train()
    for part in norms_of(net):
        part.track_running_stats = False
    clean = net(x).output.softmax(1).detach()
    adv = start
    for _ in range(STEPS):
        adv = adv.detach().requires_grad_()
        loss = F.kl_div(net(adv).output.log_softmax(1), clean, reduction="batchmean")
        (slope,) = torch.autograd.grad(loss, adv)
        if norm == "linf":
            delta = (adv.detach() + STEP * slope.sign() - x).clamp(-EPS, EPS)
        else:
            unit = slope / slope.flatten(1).norm(dim=1)[:, None, None, None]
            delta = adv.detach() + 2 * 0.5 / STEPS * unit - x
            size = delta.flatten(1).norm(dim=1)[:, None, None, None]
            delta = delta * (0.5 / size).clamp(max=1)
        adv = (x + delta).clamp(0, 1)
    return adv.detach()


def test_the_attack_of_dm_at_starts_in_the_box_and_sees_the_batch() -> None:
    """U(-eps, eps) and ten signed steps, in train mode with frozen buffers."""
    made = stage("gowal")
    start = (images() + EPS * (2 * start_of(made).uniform(images().shape) - 1)).clamp(0, 1)
    expected = read_kl_attack(network(made), images(), start, norm="linf")
    torch.testing.assert_close(attacked(made), expected, rtol=0, atol=1e-6)


def test_the_l2_variant_steps_along_unit_gradients() -> None:
    """0.001 N(0, 1), steps of 2 eps / steps, each projected; section 1.2 of DM-AT."""
    attack = {"start": "gaussian", "start_std": 0.001}
    made = stage("gowal", attack=attack, l2=True)
    noise = start_of(made).normal(images().shape)
    start = (images() + 0.001 * noise).clamp(0, 1)
    expected = read_kl_attack(network(made), images(), start, norm="l2")
    found = attacked(made)
    assert float((found - images()).flatten(1).norm(dim=1).max()) <= 0.5 + 1e-6
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("lineage", LINEAGES)
def test_the_attack_leaves_the_network_byte_identical(lineage: str) -> None:
    """Parameters, buffers, gradients and modes; batch statistics only where the mode has them."""
    made, shared = stage(lineage), Logits("student", "image")
    step = entered(made, images(), LABELS, View("adv"), shared)
    if lineage == "gowal":
        # Training's own clean forward, which moves them; what follows is the attack.
        step.get(shared)
    before = {k: v.clone() for k, v in network(made).state_dict().items()}
    adv = step.get(View("adv")).x_t
    after = network(made).state_dict()
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    assert all(p.grad is None and p.requires_grad for p in network(made).parameters())
    assert all(part.training for part in network(made).modules())
    alone = attacked_alone(lineage)
    depends = not torch.allclose(adv[:1], alone, rtol=0, atol=1e-9)
    assert depends == (lineage == "gowal")


def attacked_alone(lineage: str) -> Tensor:
    """The first image, attacked in a batch of its own at the same place."""
    made = stage(lineage)
    step = entered(made, images()[:1], LABELS[:1], View("adv"), total=6)
    return step.get(View("adv")).x_t


@pytest.mark.parametrize("lineage", LINEAGES)
def test_a_step_is_the_reference_s_loss_gradients_and_buffers(lineage: str) -> None:
    """Two train-mode forwards, clean then adversarial, both in the gradient and in the buffers."""
    made = stage(lineage)
    net, adv = copy.deepcopy(network(made)).train(), attacked(stage(lineage))
    clean, moved = net(images()).output, net(adv).output
    kl = F.kl_div(moved.log_softmax(1), clean.softmax(1), reduction="batchmean")
    loss = F.cross_entropy(clean, LABELS, label_smoothing=SMOOTHING) + BETA * kl
    loss.backward()
    term = made.make(Trades, Trades.Settings(beta=BETA, label_smoothing=SMOOTHING))
    result = run_step(made, [Turn("student", {"trades": term})], images(), LABELS)
    torch.testing.assert_close(result.losses["trades"].mean(), loss.detach(), rtol=0, atol=1e-10)
    for name, p in net.named_parameters():
        found = result.grads[f"models.student.{name}"]
        torch.testing.assert_close(found, p.grad, rtol=1e-8, atol=1e-10)
    for name, value in network(made).named_buffers():
        torch.testing.assert_close(value, net.get_buffer(name), rtol=0, atol=1e-12)


@pytest.mark.parametrize("lineage", LINEAGES)
def test_buffers_follow_both_batches_in_closed_form(lineage: str) -> None:
    """(1 - m)^2 old + m (1 - m) clean + m adversarial; variances with Bessel's correction."""
    made = stage(lineage)
    first, seen = norms_of(network(made))[0], []
    mean, var = first.running_mean.clone(), first.running_var.clone()
    hook = first.register_forward_hook(lambda _, x, __: seen.append(x[0].detach()))
    term = made.make(Trades)
    run_step(made, [Turn("student", {"trades": term})], images(), LABELS)
    hook.remove()
    # The original attacks first; DM-AT runs the clean images, attacks, and runs what it found.
    clean, adv = seen[0 if lineage == "gowal" else -2], seen[-1]
    for old, found, of in ((mean, first.running_mean, "mean"), (var, first.running_var, "var")):
        parts = [getattr(x, of)((0, 2, 3)) for x in (clean, adv)]
        m = MOMENTUM
        expected = (1 - m) ** 2 * old + m * (1 - m) * parts[0] + m * parts[1]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert int(first.num_batches_tracked) == 2


@pytest.mark.parametrize(
    ("lineage", "forwards"), [("gowal", STEPS + 2), ("original", STEPS + 1 + 2)]
)
def test_a_step_costs_what_was_counted(lineage: str, forwards: int) -> None:
    """The clean prediction is shared with training where the modes agree, else made once."""
    made = stage(lineage)
    result = run_step(made, [Turn("student", {"t": made.make(Trades)})], images(), LABELS)
    assert result.counted["student"] == Cost(forwards, STEPS, 1)
    assert result.counted == result.planned


def test_mart_attacks_the_cross_entropy_in_evaluation_mode() -> None:
    """Its released code: the same start as TRADES, another objective, no clean forward for it."""
    made = stage("original", objective="cross-entropy")
    result = run_step(made, [Turn("student", {"t": made.make(Mart)})], images(), LABELS)
    assert result.counted["student"] == Cost(STEPS + 2, STEPS, 1)


def test_no_gradient_reaches_training_through_the_attack() -> None:
    """The adversarial images are constants, the clean reference of the attack as well."""
    made = stage("gowal")
    step = entered(made, images(), LABELS, View("adv"), Logits("student", "image"))
    assert not step.get(View("adv")).x_t.requires_grad
