"""TRADES, MART and PGD-AT against independent readings of their formulas, in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from advdiff_dra.classifiers import divergence
from advdiff_dra.madry import PgdAT
from advdiff_dra.mart import Mart, boosted_cross_entropy
from advdiff_dra.trades import Trades
from advdiff_toys.networks import ToyNet
from helpers_dra import CLASSES, DATA, SHIFTED, labels, logits_of, points, run, stage
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from advdiff_core import DataInfo, LossTerm, RecipeError
from advdiff_core.terms import CrossEntropy
from advdiff_core.testing.steps import Model, Moved, build_stage
from advdiff_core.types import Cost

TERMS = [Trades, Mart, PgdAT]
EXACT = {"rtol": 0, "atol": 1e-12}


def smoothed(logits: Tensor, y: Tensor, share: float) -> Tensor:
    """Label smoothing as DM-AT writes it: `(1 - ls) nll + ls mean_k(-log p_k)`."""
    logp = logits - logits.exp().sum(1, keepdim=True).log()
    own = torch.stack([-row[k] for row, k in zip(logp, y, strict=True)])
    return (1 - share) * own - share * logp.mean(1)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.4])
def test_trades_is_smoothed_cross_entropy_and_divergence(share: float) -> None:
    """Section 1.2 of DM-AT, with the divergence as torch's own KLDivLoss has it."""
    made = stage()
    term = made.make(Trades, Trades.Settings(beta=5.0, label_smoothing=share))
    clean, adv = logits_of(made)
    kl = F.kl_div(adv.log_softmax(1), clean.softmax(1), reduction="none").sum(1)
    expected = smoothed(clean, labels(), share) + 5.0 * kl
    torch.testing.assert_close(run(made, term).losses["tested"], expected, **EXACT)


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_label_smoothing_is_that_of_the_framework(share: float) -> None:
    """The terms of this plugin, the core's, and torch's function agree."""
    made = stage()
    clean, adv = logits_of(made)
    keys = {"label_smoothing": share}
    trades = run(made, made.make(Trades, Trades.Settings(beta=0.0, **keys))).losses["tested"]
    core = run(made, made.make(CrossEntropy, CrossEntropy.Settings(**keys))).losses["tested"]
    madry = run(made, made.make(PgdAT, PgdAT.Settings(**keys))).losses["tested"]
    torch.testing.assert_close(trades, core, **EXACT)
    torch.testing.assert_close(trades, smoothed(clean, labels(), share), **EXACT)
    torch.testing.assert_close(madry, smoothed(adv, labels(), share), **EXACT)


def test_the_divergence_goes_from_the_clean_prediction() -> None:
    """KL(p || q) with p = (1/2, 1/2) and q = (1/4, 3/4) is log(2) - log(3) / 2, not the reverse."""
    p, q = torch.tensor([[0.5, 0.5]]).double().log(), torch.tensor([[0.25, 0.75]]).double().log()
    forward = math.log(2) - math.log(3) / 2
    assert divergence(p, q).item() == pytest.approx(forward, abs=1e-15)
    reverse = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert divergence(q, p).item() == pytest.approx(reverse, abs=1e-15)
    assert abs(forward - reverse) > 1e-2


@given(scale=st.sampled_from((1e-3, 1.0, 30.0)), seed=st.integers(0, 999))
def test_divergence_is_positive_zero_at_itself_and_free_of_shifts(scale: float, seed: int) -> None:
    """As a divergence of softmax distributions has to be, for small and saturated logits."""
    numbers = torch.Generator().manual_seed(seed)
    p, q = (scale * torch.randn(4, 6, generator=numbers, dtype=torch.float64) for _ in range(2))
    found = divergence(p, q)
    assert bool((found > 0).all())
    torch.testing.assert_close(divergence(p, p), torch.zeros(4, dtype=torch.float64), **EXACT)
    torch.testing.assert_close(divergence(p + 3.0, q - 7.0), found, rtol=1e-9, atol=1e-12)


def read_mart(clean: Tensor, adv: Tensor, y: Tensor, beta: float) -> Tensor:
    """MART sample by sample, from probabilities."""
    rows = []
    for p, q, k in zip(clean.softmax(1), adv.softmax(1), y, strict=True):
        others = [q[j] for j in range(len(q)) if j != int(k)]
        kl = sum(p[j] * (p[j] / q[j]).log() for j in range(len(p)))
        bce = -q[k].log() - (1 - max(others)).log()
        rows.append(bce + beta * kl * (1 - p[k]))
    return torch.stack(rows)


def test_mart_is_its_formula() -> None:
    """Eq. 11 of Wang et al. (2020), read with plain probabilities."""
    made = stage()
    clean, adv = logits_of(made)
    found = run(made, made.make(Mart, Mart.Settings(beta=6.0))).losses["tested"]
    torch.testing.assert_close(found, read_mart(clean, adv, labels(), 6.0), rtol=0, atol=1e-11)


def test_mart_stays_exact_where_a_probability_is_one() -> None:
    """log(1 - p) of a certain network: the released code's constants would cut it at 1e-4."""
    logits = torch.tensor([[0.0, 60.0, -60.0]], dtype=torch.float64, requires_grad=True)
    loss = boosted_cross_entropy(logits, torch.tensor([0]))
    assert loss.item() == pytest.approx(60.0 + 60.0, abs=1e-9)
    (slope,) = torch.autograd.grad(loss.sum(), logits)
    torch.testing.assert_close(slope, torch.tensor([[-2.0, 2.0, 0.0]], dtype=torch.float64))


def test_mart_of_a_mixed_sample_takes_the_larger_part() -> None:
    """Probabilities [B, K] of mixed samples count by their largest entry."""
    made = stage()
    mixed = 0.7 * F.one_hot(labels(), CLASSES).double() + 0.3 / CLASSES
    term = made.make(Mart)
    found = run(made, term, mixed).losses["tested"]
    torch.testing.assert_close(found, run(made, term).losses["tested"], **EXACT)


@pytest.mark.parametrize("component", [Trades, PgdAT])
def test_mixed_labels_are_probabilities(component: type[LossTerm]) -> None:
    """One-hot rows [B, K] give what classes [B] give."""
    made = stage()
    term = made.make(component, component.Settings(label_smoothing=0.1))  # type: ignore[attr-defined]
    hot = F.one_hot(labels(), CLASSES).double()
    found = run(made, term, hot).losses["tested"]
    torch.testing.assert_close(found, run(made, term).losses["tested"], **EXACT)


def test_pgd_at_mixes_in_clean_images() -> None:
    """The share of Goodfellow et al. (2015); without it nothing is run on clean images."""
    made = stage()
    clean, adv = (F.cross_entropy(z, labels(), reduction="none") for z in logits_of(made))
    alone = run(made, made.make(PgdAT))
    mixed = run(made, made.make(PgdAT, PgdAT.Settings(clean_share=0.25)))
    torch.testing.assert_close(alone.losses["tested"], adv, **EXACT)
    torch.testing.assert_close(mixed.losses["tested"], 0.25 * clean + 0.75 * adv, **EXACT)
    assert alone.counted["student"] == Cost(1, 0, 1)
    assert mixed.counted["student"] == Cost(2, 0, 1)


@pytest.mark.parametrize("component", TERMS)
def test_gradients_are_those_of_finite_differences(component: type[LossTerm]) -> None:
    """Of the whole step with the adversarial points fixed: no part of either side is detached."""
    made = stage()
    term = made.make(component)
    grads = run(made, term).grads
    network = made.scene.roles["student"].module
    for name, parameter in network.named_parameters():
        place, size = (0,) * parameter.dim(), 1e-6
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter[place] += sign * size
            ends.append(run(made, term).losses["tested"].sum().item())
            with torch.no_grad():
                parameter[place] -= sign * size
        slope = (ends[0] - ends[1]) / (2 * size) / len(points())
        found = grads[f"models.student.{name}"][place].item()
        assert found == pytest.approx(slope, rel=1e-6, abs=1e-9), name


@pytest.mark.parametrize("side", ["clean", "adversarial"])
@pytest.mark.parametrize("component", [Trades, Mart])
def test_both_predictions_carry_a_gradient(component: Any, side: str) -> None:
    """The divergence alone, towards the logits of one side, is not zero anywhere."""
    made = stage()
    clean, adv = (z.detach().requires_grad_() for z in logits_of(made))
    term = made.make(component)
    step = _Fixed(term, clean, adv)
    (slope,) = torch.autograd.grad(term(step).sum(), clean if side == "clean" else adv)
    assert bool((slope.flatten(1).norm(dim=1) > 1e-6).all())


class _Fixed:
    """A step that answers with fixed logits."""

    def __init__(self, term: Any, clean: Tensor, adv: Tensor) -> None:
        self.values, self.y = {term.natural: clean, term.attacked: adv}, labels()

    def get(self, query: Any) -> Tensor:
        """The logits of that side."""
        return self.values[query]


@pytest.mark.parametrize("component", TERMS)
def test_terms_refuse_what_is_no_classifier(component: type[LossTerm]) -> None:
    """A denoiser has no logits; the message names the key and the mend."""
    made = build_stage(data=DATA, models={"student": Model(ToyNet)}, views={"adv": SHIFTED})
    with pytest.raises(RecipeError) as caught:
        made.make(component)
    text = str(caught.value)
    assert "terms.tested.role" in text
    assert "model 'student' is no classifier" in text
    assert 'give that model parametrization = "none"' in text


@pytest.mark.parametrize("component", TERMS)
def test_terms_refuse_data_without_labels(component: type[LossTerm]) -> None:
    """Nothing to classify: said before the first batch."""
    data = DataInfo(shape=(3,), count=64)
    with pytest.raises(RecipeError, match="the data have no labels"):
        stage(data=data).make(component)


@pytest.mark.parametrize("component", TERMS)
def test_terms_refuse_a_view_of_noised_samples(component: type[LossTerm]) -> None:
    """A classifier looks at images; `from` of the view is what has to change."""
    noised = Moved("clean", SHIFTED.component, SHIFTED.settings)
    with pytest.raises(RecipeError) as caught:
        stage(adv=noised).make(component)
    assert "terms.tested.view" in str(caught.value)
    assert "'adv' is a view of noised samples, not of images" in str(caught.value)
