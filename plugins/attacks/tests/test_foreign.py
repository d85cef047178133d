"""Attacks of other packages: found by name, fed in their units, and kept from changing anything."""

from __future__ import annotations

import importlib.util
import random
import sys
import warnings

import numpy as np
import pytest
import torch
from advdiff_attacks import foreign, foreign_settings
from advdiff_attacks.deepfool import DeepFool
from advdiff_attacks.foreign import Foolbox, PyAutoAttack, TorchAttacks
from advdiff_attacks.foreign_base import Foreign
from advdiff_attacks.foreign_guard import ForeignNet, contained
from helpers_boundary import UNIT, NetVictim, draws, make, trained
from torch import nn

from advdiff_core import Budget, Build, ContractError
from advdiff_core.errors import AdvdiffError, NumericsError
from advdiff_core.math import norms
from advdiff_core.testing.state import digest, module_state, world_state
from advdiff_core.types import Domain

torchattacks = pytest.importorskip("torchattacks")
foolbox = pytest.importorskip("foolbox")
autoattack = pytest.importorskip("pyautoattack")

FREE = float("inf")
PATH = "evaluate.attack"


def _made(cls, variant=None, **keys):
    kind = cls.settings_type(variant) if variant else cls.Settings
    return cls(kind(**keys), Build(path=PATH))


def _run(attack, victim, x, *, norm="linf", radius=0.1, domain=UNIT, seed=0):
    budget = Budget(norm, radius, "image")
    return attack.run(victim, x, budget, domain=domain, rng=draws(len(x), seed))


class _Signed(nn.Module):
    """Values in [-1, 1] brought to [0, 1]."""

    def forward(self, x):
        """Images [B, ...] in [0, 1]."""
        return (x + 1) / 2


@pytest.mark.parametrize("domain", [UNIT, Domain(-1.0, 1.0)])
def test_a_torchattacks_attack_finds_what_it_finds_alone(domain):
    """Whatever the domain of the victim, points are those of the package in [0, 1]."""
    net, x, y = trained()
    alone = torchattacks.PGD(net, eps=0.1, alpha=0.02, steps=5, random_start=False)(x, y)
    victim, inputs = NetVictim(net, y), x
    if domain.low < 0:
        victim, inputs = NetVictim(nn.Sequential(_Signed(), net), y), 2 * x - 1
    attack = _made(TorchAttacks, "PGD", alpha=0.02, steps=5, random_start=False)
    found = _run(attack, victim, inputs, radius=0.1 * domain.span, domain=domain)
    torch.testing.assert_close((found - domain.low) / domain.span, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_foolbox_attack_finds_what_it_finds_alone(norm):
    """A radius of the budget is the package's epsilon."""
    net, x, y = trained()
    model = foolbox.PyTorchModel(net.eval(), bounds=(0, 1), device="cpu")
    name = {"linf": "LinfBasicIterativeAttack", "l2": "L2BasicIterativeAttack"}[norm]
    alone = getattr(foolbox.attacks, name)(steps=5)(model, x.clone(), y, epsilons=0.2)[0]
    found = _run(_made(Foolbox, name, steps=5), NetVictim(net, y), x, norm=norm, radius=0.2)
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-6)


def test_minimal_attacks_of_foolbox_give_whole_curves():
    """No radius is told: what is farther than the budget comes back as it was."""
    net, x, y = trained()
    attack = _made(Foolbox, "L2DeepFoolAttack", steps=30)
    assert attack.minimal_norm
    assert attack.norms == ("l2",)
    victim = NetVictim(net, y)
    free = _run(attack, victim, x, norm="l2", radius=FREE)
    native = _run(make(DeepFool, steps=30), victim, x, norm="l2", radius=FREE)
    torch.testing.assert_close(free, native, rtol=0, atol=1e-3)
    lengths = norms.norm(free - x, "l2")
    radius = float(lengths.median())
    found = _run(attack, victim, x, norm="l2", radius=radius)
    assert torch.equal(found[lengths > radius], x[lengths > radius])
    assert bool(victim.broken(net(found))[lengths < radius].all())


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_pyautoattack_runs_its_whole_ensemble(norm):
    """In every norm it breaks what a generous radius allows, and its counters are put back."""
    net, x, y = trained()
    checks = importlib.import_module("pyautoattack.checks")
    before = dict(checks.funcs)
    radius = {"linf": 0.3, "l2": 2.0, "l1": 20.0}[norm]
    attack = _made(PyAutoAttack, attacks=("apgd-ce", "fab-t"), steps=4, targets=2)
    found = _run(attack, NetVictim(net, y), x, norm=norm, radius=radius)
    assert int(net(found).argmax(1).ne(y).sum()) > len(x) // 2
    assert checks.funcs == before


def test_keys_are_the_arguments_of_the_attack():
    """With its defaults; what the budget, the victim and the run decide is no key."""
    keys = TorchAttacks.settings_type("APGD")
    assert {one.name for one in keys.__attrs_attrs__} == {
        "steps", "n_restarts", "loss", "eot_iter", "rho",
    }  # fmt: skip
    assert (keys().steps, keys().loss, keys().rho) == (10, "ce", 0.75)
    pgd = Foolbox.settings_type("LinfPGD")
    kinds = {one.name: one.type for one in pgd.__attrs_attrs__}
    assert kinds == {
        "rel_stepsize": float, "abs_stepsize": float | None, "steps": int, "random_start": bool,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("cls", "variant", "message"),
    [
        (TorchAttacks, "PDG", "torchattacks has no attack 'PDG'; did you mean 'PGD'?"),
        (TorchAttacks, "JSMA", "torchattacks.JSMA cannot be used: it changes a few pixels"),
        (TorchAttacks, None, "torchattacks has no attack None; there are APGD"),
        (Foolbox, "LinfPDG", "foolbox has no attack 'LinfPDG'; did you mean 'LinfPGD'?"),
        (Foolbox, "SpatialAttack", "foolbox.SpatialAttack cannot be used: it turns and shifts"),
    ],
)
def test_an_unknown_attack_is_refused_with_the_nearest(cls, variant, message):
    """So is one that no budget describes, with the reason."""
    with pytest.raises(ValueError, match=message.replace(".", r"\.").replace("?", r"\?")):
        cls.settings_type(variant)


@pytest.mark.parametrize("cls", [TorchAttacks, Foolbox])
def test_every_attack_has_keys_and_norms(cls):
    """Settings can be made of each signature, with a default for all but required arguments."""
    known = {TorchAttacks: foreign._torchattacks, Foolbox: foreign._foolbox}[cls]()
    assert len(known) > 25
    for name in known:
        keys = cls.settings_type(name)
        required = {"steps": 3} if name == "VirtualAdversarialAttack" else {}
        attack = cls(keys(**required), Build(path=PATH))
        assert attack.norms, name
        assert set(attack.norms) <= {"linf", "l2", "l1"}


@pytest.mark.parametrize("cls", [TorchAttacks, Foolbox, PyAutoAttack])
def test_a_missing_package_is_told_in_one_line_with_what_to_install(cls, monkeypatch):
    """Families say so when their settings are asked for, pyautoattack when it is built."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    wanted = rf'{cls.package} is not installed: pip install "advdiff-attacks\[{cls.package}\]"'
    assert foreign_settings.absence(cls.package)
    if cls is PyAutoAttack:
        with pytest.raises(ContractError) as caught:
            _made(cls)
        assert caught.value.message == "pyautoattack is not installed"
        assert caught.value.fix == 'pip install "advdiff-attacks[pyautoattack]"'
    else:
        with pytest.raises(ValueError, match=wanted):
            cls.settings_type("PGD")


class _Unlabelled(NetVictim):
    """A victim without true classes."""

    labels = None


@pytest.mark.parametrize(
    ("victim", "domain", "message"),
    [
        (_Unlabelled, UNIT, "torchattacks:FGSM attacks classifiers, and this victim has no true"),
        (NetVictim, None, r"torchattacks:FGSM knows pixels in \[0, 1\], and these inputs have no"),
    ],
)
def test_victims_it_cannot_attack_are_refused(victim, domain, message):
    """Without labels or without a range of values, naming what to take."""
    net, x, y = trained()
    with pytest.raises(ContractError, match=message) as caught:
        _run(_made(TorchAttacks, "FGSM"), victim(net, y), x, domain=domain)
    assert caught.value.where == PATH
    assert "native attack, such as pgd or apgd-ce" in caught.value.fix


def test_several_radii_are_run_apart_or_refused():
    """Foreign code knows one radius; samples of radius zero come back bit for bit."""
    net, x, y = trained()
    radius = torch.tensor([0.0, 0.05, 0.1]).repeat(8)
    attack = _made(TorchAttacks, "FGSM")
    found = _run(attack, NetVictim(net, y), x, radius=radius)
    each = [_run(attack, NetVictim(net, y), x, radius=r) for r in (0.05, 0.1)]
    assert torch.equal(found[::3], x[::3])
    torch.testing.assert_close(found[1::3], each[0][1::3])
    torch.testing.assert_close(found[2::3], each[1][2::3])
    message = "torchattacks:FGSM knows one radius, and these samples have 2"
    with pytest.raises(ContractError, match=message):
        _run(attack, NetVictim(net, y, apart=False), x, radius=radius)


def test_noise_follows_the_generator_of_the_run_and_the_samples():
    """The same numbers give the same noise, others do not, whatever the global generators hold."""
    net, x, y = trained()
    attack = _made(TorchAttacks, "PGD", steps=1)
    first = _run(attack, NetVictim(net, y), x)
    torch.manual_seed(77)
    assert torch.equal(_run(attack, NetVictim(net, y), x), first)
    assert not torch.equal(_run(attack, NetVictim(net, y), x, seed=1), first)


class _Vandal(Foreign):
    """Foreign code that disturbs whatever it can reach, and raises if told to."""

    package = "vandal"

    def __init__(self, error=None):
        super().__init__(self.Settings(), Build(path=PATH))
        self.error = error

    def call(self, call):
        """Disturb everything, and return the inputs moved."""
        net = call.net
        net.train()
        net.requires_grad_(requires_grad=True)
        net(call.x.requires_grad_()).sum().backward()
        net.zero_grad()
        for _ in net.buffers():
            raise AssertionError
        for parameter in net.parameters():
            parameter.data.add_(1)
        torch.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002 - what foreign code does.
        random.seed(1)
        torch.set_grad_enabled(mode=False)
        torch.set_default_dtype(torch.float64)
        torch.backends.cudnn.deterministic = not torch.backends.cudnn.deterministic
        sys.settrace(None)
        warnings.simplefilter("ignore")
        if self.error is not None:
            raise self.error
        return call.x.detach() + 0.05


def _everything(net):
    numpy = np.random.get_state()  # noqa: NPY002 - the state that is guarded.
    return {
        **module_state(net), **world_state(), "trace": sys.gettrace(),
        "numpy": digest(torch.from_numpy(numpy[1].astype(np.int64))), "place": numpy[2:],
        "cudnn": torch.backends.cudnn.deterministic, "filters": list(warnings.filters),
    }  # fmt: skip


def _trace(*_):
    return None


@pytest.mark.parametrize("error", [None, RuntimeError("no luck"), KeyboardInterrupt()])
def test_nothing_foreign_code_does_outlasts_it(error):
    """Model, gradients, modes, generators, trace and switches are as before, if it raises, too."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(108, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)).eval()
    net[1].weight.grad = torch.ones_like(net[1].weight)
    x = trained()[1][:4]
    victim = NetVictim(net, torch.tensor([0, 1, 2, 3]))
    attack, tracing = _Vandal(error), sys.gettrace()
    random.random()
    sys.settrace(_trace)
    try:
        before = _everything(net)
        if error is None:
            _run(attack, victim, x)
        elif isinstance(error, Exception):
            with pytest.raises(ContractError, match="vandal failed: RuntimeError: no luck"):
                _run(attack, victim, x)
        else:
            with pytest.raises(KeyboardInterrupt):
                _run(attack, victim, x)
        after = _everything(net)
    finally:
        sys.settrace(tracing)
    assert after == before


@pytest.mark.parametrize(
    "attack",
    [
        lambda: _made(TorchAttacks, "Square", n_queries=5),
        lambda: _made(TorchAttacks, "CW", steps=3),
        lambda: _made(Foolbox, "LinfPGD", steps=2),
        lambda: _made(PyAutoAttack, steps=2, queries=3, targets=1),
    ],
)
def test_real_packages_leave_everything_alone(attack):
    """The same with the packages themselves, on a network whose parameters want gradients."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(108, 6), nn.BatchNorm1d(6)).eval()
    x = trained()[1][:6]
    with torch.no_grad():
        y = net(x).argmax(1)
    made = attack()
    before = _everything(net)
    _run(made, NetVictim(net, y), x, norm=made.norms[0])
    after = _everything(net)
    # A trace is asked for and given back by identity.
    assert after == before


def test_prints_of_foreign_code_go_to_stderr(capsys):
    """Results own stdout."""
    with contained(0):
        print("chatter")
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "chatter\n"


def test_an_error_of_ours_inside_foreign_code_stays_itself():
    """What the victim raises is not blamed on the package."""
    net, x, y = trained()
    with pytest.raises(NumericsError, match="logits are NaN"):
        _run(_Vandal(NumericsError("logits are NaN")), NetVictim(net, y), x)


def test_a_missing_part_of_a_package_is_named():
    """An optional module that the attack imports is what has to be installed."""
    net, x, y = trained()
    error = ModuleNotFoundError("No module named 'numba'", name="numba")
    with pytest.raises(AdvdiffError) as caught:
        _run(_Vandal(error), NetVictim(net, y), x)
    assert caught.value.fix == "pip install numba"


class _Wrong(Foreign):
    """Foreign code that returns what it should not."""

    package = "wrong"

    def __init__(self, made):
        super().__init__(self.Settings(), Build(path=PATH))
        self.made = made

    def call(self, call):
        """Whatever was planned."""
        return self.made(call.x)


def test_a_wrong_shape_is_refused():
    """With the shapes found and wanted."""
    net, x, y = trained()
    with pytest.raises(ContractError, match=r"wrong returned shape \[3, 3, 6, 6\], wanted \[24,"):
        _run(_Wrong(lambda at: at[:3]), NetVictim(net, y), x)


def test_nan_is_not_hidden():
    """A checker downstream has to see it."""
    net, x, y = trained()
    found = _run(_Wrong(lambda at: at * float("nan")), NetVictim(net, y), x)
    assert bool(found.isnan().all())


def test_the_module_shown_has_the_gradient_of_the_victim_and_no_other():
    """Towards the pixels it is exact; parameters get none though they want one."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double()
    x = torch.rand(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    victim = NetVictim(net, torch.tensor([0, 1]))
    shown = ForeignNet(victim, x, Domain(-1.0, 1.0))
    pixels = x.clone().requires_grad_()
    logits = shown(pixels)
    torch.testing.assert_close(logits, net(2 * x - 1))
    logits[:, 1].sum().backward()
    torch.testing.assert_close(pixels.grad, 2 * net[1].weight[1].expand(2, 4))
    assert all(parameter.grad is None for parameter in net.parameters())
    assert list(shown.modules()) == [shown]
    assert not shown(x).requires_grad
