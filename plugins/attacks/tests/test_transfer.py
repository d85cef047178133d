"""Adversarial examples of a surrogate, tried on the victim."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from advdiff_attacks.steps import PGD
from advdiff_attacks.transfer import Transfer
from safetensors.torch import save_file

from advdiff_core import Budget, Build, DataInfo, Spec
from advdiff_core.backbones.mlp import MLP
from advdiff_core.engine.initial import load_init
from advdiff_core.errors import ContractError, DataError

sys.path.insert(0, str(Path(__file__).parent))
from attack_cases import UNIT, FunctionVictim, draws, spec

DATA = DataInfo(shape=(4,), count=64, classes=3, domain=UNIT)
BALL = Budget("linf", 0.3, "image")


def network(seed: int) -> MLP:
    """A small classifier of three classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = MLP(MLP.Settings(width=32, outputs=3), Build(data=DATA))
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.normal_(std=0.6)
    return made.eval().requires_grad_(False)


def transfer(weights: Path, outputs: int = 3) -> Transfer:
    """PGD on the network stored at `weights`."""
    model = Spec(
        kind="backbone", use="mlp", settings=MLP.Settings(width=32, outputs=outputs), component=MLP
    )
    build = Build(
        path="attack", data=DATA, make=lambda one: one.component(one.settings, Build(data=DATA)),
        load=lambda net, role, path, key: load_init(net, role, path, DATA, key=key),
    )  # fmt: skip
    keys = {"attack": spec(PGD, "pgd", steps=20), "model": model, "weights": weights}
    return Transfer(Transfer.Settings(**keys), build)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """Weights of network 0."""
    save_file(dict(network(0).state_dict()), tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


def points() -> torch.Tensor:
    """Inputs [60, 4] in [0, 1]."""
    return torch.rand(60, 4, generator=torch.Generator().manual_seed(1))


def test_what_breaks_the_surrogate_breaks_the_same_network(stored: Path) -> None:
    """Transferred to itself the attack is the attack; the victim is asked twice, for no slope."""
    x, net = points(), network(0)
    y = net(x).output.argmax(1)
    victim = FunctionVictim(lambda at: net(at).output, y)
    found = transfer(stored).run(victim, x, BALL, domain=UNIT, rng=draws(60))
    assert victim.calls == 2
    plain = PGD(PGD.Settings(steps=20), Build())
    direct = plain.run(victim, x, BALL, domain=UNIT, rng=draws(60))
    ours, theirs = (victim.broken(victim.outputs(at)) for at in (found, direct))
    assert torch.equal(ours, theirs)
    assert int(ours.sum()) > 10


def test_on_another_network_transfer_is_weaker_and_never_helps(stored: Path) -> None:
    """A network near the surrogate is broken on fewer samples, and no sample is better off."""
    x, other = points(), network(0)
    with torch.no_grad():
        for number, parameter in enumerate(other.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter.add_(0.2 * noise)
    y = other(x).output.argmax(1)
    victim = FunctionVictim(lambda at: other(at).output, y)
    found = transfer(stored).run(victim, x, BALL, domain=UNIT, rng=draws(60))
    before, after = (victim.loss(victim.outputs(at)) for at in (x, found))
    assert (after >= before - 1e-6).all()
    direct = PGD(PGD.Settings(steps=20), Build()).run(victim, x, BALL, domain=UNIT, rng=draws(60))
    transferred, white = (int(victim.broken(victim.outputs(at)).sum()) for at in (found, direct))
    assert 0 < transferred <= white


def test_missing_weights_are_refused_naming_the_key(tmp_path: Path) -> None:
    """In one line, with the path."""
    with pytest.raises(DataError) as caught:
        transfer(tmp_path / "nothing.safetensors")
    assert "nothing" in str(caught.value)


def test_weights_of_another_shape_are_refused_naming_the_key(stored: Path) -> None:
    """As `init` refuses them for a role."""
    with pytest.raises(DataError, match=r"attack\.weights"):
        transfer(stored, outputs=5)


def test_a_surrogate_of_fewer_classes_is_refused(stored: Path) -> None:
    """Its logits say nothing of the labels."""
    x = points()
    victim = FunctionVictim(lambda at: at, torch.full((60,), 3))
    with pytest.raises(ContractError, match="the surrogate has 3 classes, the labels go to 3"):
        transfer(stored).run(victim, x, BALL, domain=UNIT, rng=draws(60))
