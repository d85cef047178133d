"""robust-accuracy: closed forms of linear classifiers, the validation of DM-AT, refusals."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from advdiff_attacks.robust_metric import RobustAccuracy
from advdiff_attacks.steps import PGD
from torch import Tensor, nn

from advdiff_core import (
    Batch,
    Build,
    DataError,
    DataInfo,
    Dataset,
    ModelInfo,
    NumericsError,
    RecipeError,
    Spec,
)
from advdiff_core.math.statistics import wilson
from advdiff_core.types import Domain

INFO = DataInfo(shape=(1, 4, 4), count=60, domain=Domain(-1.0, 1.0), classes=3)
MODELS = {
    "student": ModelInfo(kind="backbone", frozen=False),
    "denoiser": ModelInfo(kind="backbone", frozen=False, parametrization="eps"),
}


class Linear(nn.Module):
    """Two classes by the sign of `w . x + b`, whose distance to the boundary is known."""

    def __init__(self, weight: Tensor, bias: float = 0.0) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def score(self, x: Tensor) -> Tensor:
        """Positive for class 1 [B]."""
        return x.flatten(1) @ self.weight + self.bias

    def forward(self, x: Tensor, c_noise: None, labels: None) -> Any:
        """Logits [B, 2]."""
        score = self.score(x)
        return SimpleNamespace(output=torch.stack([-score, score], 1))


class Curved(nn.Module):
    """A small network with curved boundaries between three classes."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.first = torch.randn(16, 12, generator=generator) / 2
        self.second = torch.randn(12, 3, generator=generator)

    def logits(self, x: Tensor) -> Tensor:
        """Logits [B, 3]."""
        return (x.flatten(1) @ self.first).tanh() @ self.second

    def forward(self, x: Tensor, c_noise: None, labels: None) -> Any:
        """As a backbone returns them."""
        return SimpleNamespace(output=self.logits(x))


def images(count: int = 60, seed: int = 0) -> Tensor:
    """Images [N, 1, 4, 4] well inside [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 1, 4, 4, generator=generator) - 0.5


def pgd(**keys: Any) -> Spec:
    """PGD as a recipe names it."""
    made = {"steps": 5, "start": "none", "loss": "margin", **keys}
    return Spec(kind="attack", use="pgd", settings=PGD.Settings(**made), component=PGD)


def metric(info: DataInfo = INFO, data: Dataset | None = None, **keys: Any) -> RobustAccuracy:
    """The metric as a recipe builds it."""

    def make(spec: Spec) -> Any:
        return data if spec.kind == "dataset" else PGD(spec.settings, Build(path="attack"))

    build = Build(path="validate.metrics.0", data=info, models=MODELS, make=make)
    given = {"data": Spec(kind="dataset", use="held-out", settings=None, component=Dataset)}
    made = {"attack": pgd(), **(given if data is not None else {}), **keys}
    return RobustAccuracy(RobustAccuracy.Settings(**made), build)


def evaluation(x: Tensor, y: Tensor | None, net: nn.Module) -> Any:
    """What a metric may read."""
    return SimpleNamespace(clean=x, labels=y, device=torch.device("cpu"), module=lambda role: net)


class Held(Dataset):
    """Other images, in [0, 1]."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        super().__init__(None, Build())
        self.x, self.y = x, y

    @property
    def info(self) -> DataInfo:
        """Their description."""
        return DataInfo(shape=(1, 4, 4), count=len(self.x), domain=Domain(0.0, 1.0), classes=3)

    def batch(self, indices: Tensor) -> Batch:
        """Some of them."""
        return Batch(self.x[indices], self.y[indices])

    def fingerprint(self) -> str:
        """A name."""
        return "held"


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_linear_classifiers_are_robust_as_far_as_the_boundary_is(norm: str, dual: int) -> None:
    """A sample is robust if its distance to the plane, in the dual norm, exceeds the radius."""
    weight = torch.linspace(-1, 2, 16)
    net, x = Linear(weight, bias=0.2), images()
    y = (net.score(x) > 0).long()
    y[:7] = 1 - y[:7]
    # The radius is on the [0, 1] scale, the domain is twice as wide.
    for eps in (0.005, 0.02, 0.05):
        far = net.score(x).abs() > 2 * eps * weight.norm(dual)
        wanted = int((far[7:]).sum())
        found = metric(norm=norm, eps=eps).compute(evaluation(x, y, net))
        assert found["train_clean_accuracy"] == pytest.approx(53 / 60)
        assert found["train_robust_accuracy"] == pytest.approx(wanted / 60)
        low, high = wilson(wanted, 60, 0.95)
        assert found["train_robust_accuracy_low"] == low
        assert found["train_robust_accuracy_high"] == high
        assert 0 < wanted < 53


def test_held_out_images_are_moved_to_the_range_that_the_classifier_knows() -> None:
    """The same numbers as of the images in that range, under the names without `train_`."""
    net, x = Linear(torch.linspace(-1, 2, 16)), images()
    y = (net.score(x) > 0).long()
    wanted = metric(eps=0.02).compute(evaluation(x, y, net))
    held = Held((x + 1) / 2, y)
    found = metric(data=held, eps=0.02).compute(evaluation(x[:1], None, net))
    assert {f"train_{name}": value for name, value in found.items()} == wanted


def test_number_is_that_of_the_validation_of_dm_at() -> None:
    """A margin cut at 0, sign steps from the clean image, the last point: the same verdicts."""
    net, x = Curved(), images(seed=3)
    y = net.logits(images(seed=3) + 0.3 * images(seed=4)).argmax(1)
    eps, step, steps = 2 * 0.06, 2 * 0.02, 8
    adv = x.clone()
    for _ in range(steps):
        adv.requires_grad_(True)
        logits = net.logits(adv)
        own = logits.gather(1, y[:, None])[:, 0]
        other = logits.scatter(1, y[:, None], -1e9).amax(1)
        loss = -torch.relu(own - other).sum()
        (grad,) = torch.autograd.grad(loss, adv)
        adv = (x + (adv.detach() + step * grad.sign() - x).clamp(-eps, eps)).clamp(-1, 1)
    wanted = float((net.logits(adv).argmax(1) == y).double().mean())
    attack = pgd(steps=steps, step=0.02, keep="best")
    found = metric(attack=attack, eps=0.06).compute(evaluation(x, y, net))
    assert found["train_robust_accuracy"] == pytest.approx(wanted)
    assert 0 < wanted < found["train_clean_accuracy"] < 1


def test_number_depends_on_no_batch_and_no_order_though_the_start_is_drawn() -> None:
    """Each image has numbers of its own, that its content names; another seed has others."""
    net, x = Curved(), images(seed=3)
    y = net.logits(x).argmax(1)
    attack = pgd(steps=1, step=0.01, start="uniform", keep="last")
    keys = {"attack": attack, "eps": 0.1}
    whole = metric(**keys).compute(evaluation(x, y, net))
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    for size in (7, 60):
        found = metric(**keys, batch=size).compute(evaluation(x[order], y[order], net))
        assert found == whole
    others = [metric(**keys, seed=s).compute(evaluation(x, y, net)) for s in range(1, 6)]
    assert any(other != whole for other in others)


def test_first_images_alone_are_measured() -> None:
    """`images` cuts the data, and says so in the protocol."""
    net, x = Linear(torch.linspace(-1, 2, 16)), images()
    y = (net.score(x) > 0).long()
    cut = metric(images=11, eps=0.02)
    assert cut.compute(evaluation(x, y, net)) == metric(eps=0.02).compute(
        evaluation(x[:11], y[:11], net)
    )
    assert cut.protocol()["images"] == 11


def test_protocol_holds_the_attack_with_its_keys() -> None:
    """And that nobody has looked at masked gradients."""
    told = metric(data=Held(images(), torch.zeros(60)), attack=pgd(steps=40)).protocol()
    assert told["attack"]["use"] == "pgd"
    assert told["attack"]["steps"] == 40
    assert (told["data"], told["fingerprint"]) == ("held-out", "held")
    assert "masked gradients" in told["examined"]


def test_attack_that_breaks_by_logits_that_are_not_finite_counts() -> None:
    """A network that overflows next to an image is not robust there."""

    class Overflows(Linear):
        def forward(self, x: Tensor, c_noise: None, labels: None) -> Any:
            found = super().forward(x, c_noise, labels)
            moved, one = (x.flatten(1).amin(1) < -0.51)[:, None], torch.tensor([False, True])
            return SimpleNamespace(output=found.output.masked_fill(moved & one, torch.inf))

    net, x = Overflows(torch.ones(16), bias=100.0), images()
    attack = pgd(steps=1, keep="last")
    found = metric(attack=attack, eps=0.05).compute(evaluation(x, torch.ones(60).long(), net))
    assert found["train_clean_accuracy"] == 1.0
    assert found["train_robust_accuracy"] < 1.0


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"role": "nobody"}, ("metrics.0.role", "'nobody' is no classifier", "parametrization")),
        ({"role": "denoiser"}, ("metrics.0.role", "'denoiser' is no classifier", "backbone")),
        ({"info": DataInfo(shape=(1, 4, 4), count=9)}, ("metrics.0.data", "no labels", "classes")),
        (
            {
                "data": Held(images(), torch.zeros(60)),
                "info": DataInfo(shape=(3, 4, 4), count=9, classes=3),
            },
            ("metrics.0.data", "[1, 4, 4]", "[3, 4, 4]", "same shape"),
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(keys: Any, words: tuple[str, ...]) -> None:
    """In one line that names the key and the mend."""
    with pytest.raises(RecipeError) as caught:
        metric(**keys)
    for word in words:
        assert word in str(caught.value)


def test_norm_that_the_attack_does_not_know_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """With those it knows."""
    monkeypatch.setattr(PGD, "norms", ("linf", "l2"))
    with pytest.raises(RecipeError, match="pgd does not search in l1") as caught:
        metric(norm="l1")
    assert caught.value.faults[0].fix == "choose of linf, l2"


@pytest.mark.parametrize(
    ("net", "y", "error", "words"),
    [
        (
            Linear(torch.ones(16) * torch.nan), torch.ones(60).long(), NumericsError,
            "logits of clean images are not finite",
        ),
        (Linear(torch.ones(16)), torch.full((60,), 2), DataError, "an image has label 2, the"),
        (Linear(torch.ones(16)), None, DataError, "the images have no labels"),
    ],
)  # fmt: skip
def test_what_cannot_be_counted_is_told(
    net: nn.Module, y: Tensor | None, error: type[Exception], words: str
) -> None:
    """Instead of a number that means nothing."""
    with pytest.raises(error, match=words):
        metric().compute(evaluation(images(), y, net))


def test_network_without_logits_is_told() -> None:
    """With the shape that it returned."""

    class Flat(nn.Module):
        def forward(self, x: Tensor, c_noise: None, labels: None) -> Any:
            return SimpleNamespace(output=x)

    with pytest.raises(DataError, match=r"returned \[60, 1, 4, 4\], wanted one logit per class"):
        metric().compute(evaluation(images(), torch.ones(60).long(), Flat()))


def test_attack_that_returns_nothing_finite_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name and where it stands."""
    monkeypatch.setattr(PGD, "search", lambda self, victim, x, *rest: x * torch.nan)
    y = torch.ones(60).long()
    with pytest.raises(NumericsError, match="pgd returned values that are not finite"):
        metric().compute(evaluation(images(), y, Linear(torch.ones(16), bias=9.0)))
