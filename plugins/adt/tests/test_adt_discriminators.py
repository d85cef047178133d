"""What discriminators compute, and what follows their updates."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from advdiff_adt.frozen_features import spread_taps
from advdiff_adt.heads import as_map
from advdiff_adt.labels import LabelMap
from advdiff_adt.losses import LOSSES, discriminator_loss, generator_loss
from advdiff_adt.pixels import Conditional, Patch
from advdiff_adt.projected import Projected
from advdiff_adt.siamese import Siamese
from advdiff_toys.networks import ToyNet
from helpers_adt_players import DATA, Eyes, images, made_of
from hypothesis import given, settings
from torch import Tensor

from advdiff_core import Backbone, ContractError, DataInfo, RecipeError, TapInfo
from advdiff_core.testing import Model, build_stage

SMALL = {"width": 5, "hidden": 7}


def moved(judge: torch.nn.Module, seed: int) -> None:
    """Weights after an optimizer's step of some kind, and what follows it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in judge.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(0.1 * noise)
        judge.updated()


def weights(module: torch.nn.Module) -> list[Tensor]:
    """Copies of its parameters."""
    return [parameter.detach().clone() for parameter in module.parameters()]


def test_siamese_score_is_its_formula() -> None:
    """Mean over taps and positions of cos(g(h_i(F_i(I))), h'_i(F_i(R))), by hand."""
    judge, image, reference = made_of(keys=SMALL), images(3, 1), images(3, 2)
    moved(judge, 0)
    eyes: Any = judge.features.network.role.module
    cosines = []
    with torch.no_grad():
        ours = eyes(image, taps=("map", "tokens")).features
        theirs = eyes(reference, taps=("map", "tokens")).features
        for number, tap in enumerate(("map", "tokens")):
            a = judge.predictor(judge.heads[number](as_map(ours[tap])))
            b = judge.twins[number](as_map(theirs[tap]))
            dot = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
            cosines.append(dot.mean((1, 2)))
        found = judge(image, reference=reference)
    torch.testing.assert_close(found, sum(cosines) / 2, rtol=1e-10, atol=1e-12)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=st.integers(0, 99), scale=st.sampled_from([1e-3, 1.0, 100.0]))
def test_siamese_scores_are_cosines(seed: int, scale: float) -> None:
    """From -1 to 1, for any image and any weights."""
    judge = made_of(keys=SMALL)
    moved(judge, seed)
    found = judge(scale * images(3, seed), reference=images(3, seed + 1)).detach()
    assert found.shape == (3,)
    assert bool((found.abs() <= 1 + 1e-12).all())


def test_cosines_are_taken_in_full_precision_under_autocast() -> None:
    """Heads run in bfloat16; a score is float32 and near the one without."""
    judge = made_of(keys=SMALL).float()
    for role in (judge, judge.features.network.role.module):
        role.float()
    x, reference = images(2, 1).float(), images(2, 2).float()
    wanted = judge(x, reference=reference)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = judge(x, reference=reference)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=0.0, atol=0.03)


def test_an_image_without_reference_is_compared_with_itself() -> None:
    """The score a real image can have."""
    judge, x = made_of(keys=SMALL), images(2)
    assert torch.equal(judge(x), judge(x, reference=x))


def test_no_gradient_passes_the_reference_branch() -> None:
    """Neither to the reference, nor to the twins; the judged image, heads and predictor get one."""
    judge = made_of(keys=SMALL)
    x, reference = images(2, 1).requires_grad_(), images(2, 2).requires_grad_()
    judge(x, reference=reference).sum().backward()
    assert reference.grad is None
    assert all(parameter.grad is None for parameter in judge.twins.parameters())
    assert x.grad is not None
    assert all(
        p.grad is not None for p in (*judge.heads.parameters(), *judge.predictor.parameters())
    )
    eyes = judge.features.network.role.module
    assert all(parameter.grad is None for parameter in eyes.parameters())


@pytest.mark.parametrize("tau", [0.0, 0.7, 0.99])
def test_twins_equal_their_closed_form(tau: float) -> None:
    """`tau^n phi_0 + (1 - tau) sum tau^(n - k) phi_k` after n updates; the online heads move on."""
    judge = made_of(keys={**SMALL, "tau": tau})
    first = weights(judge.heads)
    assert all(map(torch.equal, first, weights(judge.twins)))
    history = []
    for seed in range(4):
        moved(judge, seed)
        history.append(weights(judge.heads))
    for place, twin in enumerate(weights(judge.twins)):
        wanted = tau**4 * first[place]
        for k, heads in enumerate(history):
            wanted = wanted + (1 - tau) * tau ** (3 - k) * heads[place]
        torch.testing.assert_close(twin, wanted, rtol=1e-12, atol=1e-13)
    assert not any(parameter.requires_grad for parameter in judge.twins.parameters())


def test_an_update_iterates_the_norms_of_heads_and_twins() -> None:
    """Their vectors are buffers: a forward leaves them, an update moves each on its own weights."""
    judge, x = made_of(keys=SMALL).train(), images(2)
    before = {name: buffer.clone() for name, buffer in judge.named_buffers()}
    judge(x)
    assert all(torch.equal(b, before[name]) for name, b in judge.named_buffers())
    moved(judge, 0)
    changed = {
        name.split(".")[0] for name, b in judge.named_buffers() if not torch.equal(b, before[name])
    }
    assert changed == {"heads", "twins", "predictor"}
    assert not list(made_of(keys={**SMALL, "spectral_norm": False}).buffers())


@pytest.mark.parametrize(("judge", "keys"), [(Siamese, SMALL), (Projected, {"width": 5})])
def test_a_discriminator_keeps_no_copy_of_the_frozen_network(judge: Any, keys: Any) -> None:
    """Its weights are the role's own: checkpoints hold them once."""
    names = {name.split(".")[0] for name, _ in made_of(judge, keys).named_parameters()}
    assert names <= {"heads", "twins", "predictor", "labels"}


def test_projected_logits_are_one_for_each_position_of_each_tap() -> None:
    """64 of a map, 16 of tokens; each sees its own tap."""
    judge = made_of(Projected, {"width": 5, "taps": ("tokens", "map")})
    assert judge.features.taps == ("map", "tokens")
    assert judge(images(3)).shape == (3, 64 + 16)
    one = made_of(Projected, {"width": 5, "depths": 1})
    assert one.features.taps == ("tokens",)
    pooled = made_of(Projected, {"width": 5, "taps": ("pooled",)})
    assert pooled(images(3)).shape == (3, 1)


@pytest.mark.parametrize(
    ("judge", "keys", "eyes"),
    [(Projected, {"width": 5, "conditional": True}, True), (Conditional, {"channels": 4}, False)],
)
def test_labels_change_the_score_by_their_embedding(judge: Any, keys: Any, eyes: bool) -> None:
    """Probabilities of one class are that class; without label only what all share judges."""
    made, x = made_of(judge, keys, eyes=eyes), images(3)
    labels = torch.tensor([0, 1, 2])
    scores = made(x, labels=labels)
    torch.testing.assert_close(made(x, labels=F.one_hot(labels, 3).double()), scores)
    with torch.no_grad():
        made.labels.embedding.weight[1] = 0.0
    torch.testing.assert_close(made(x)[1], made(x, labels=labels)[1])
    assert not torch.allclose(made(x)[0], scores[0])


def test_a_projection_is_its_formula() -> None:
    """Inner product with the shared and the label's embedding, over the root of the width."""
    made = LabelMap(3, 4).double()
    features = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = made(features, torch.tensor([2, 0]))
    for row, label in ((0, 2), (1, 0)):
        vector = (made.shared + made.embedding.weight[label]) / 2
        torch.testing.assert_close(found[row], vector @ features[row])
    with pytest.raises(ContractError, match="labels of 2 classes for an embedding of 3") as caught:
        made(features, torch.full((2, 2), 0.5))
    assert caught.value.fix == "set classes = 2"


def test_patches_are_judged_on_their_own() -> None:
    """A change in one corner leaves the logit of the other alone; each layer halves the size."""
    judge = made_of(Patch, {"channels": 4, "layers": 1, "spectral_norm": False}, eyes=False)
    x = images(1)
    other = x.clone()
    other[:, :, 0, 0] += 1.0
    assert judge(x).shape == (1, 16)
    same = judge(x) == judge(other)
    assert bool(same[0, -1])
    assert not bool(same[0, 0])


def test_tokens_lie_row_by_row() -> None:
    """A square of them is a map, others are one row, a vector is one position."""
    tokens = torch.arange(2 * 6 * 3).reshape(2, 6, 3)
    assert torch.equal(as_map(tokens[:, :4])[1, 2], tokens[1, :4, 2].reshape(2, 2))
    assert torch.equal(as_map(tokens)[1, 2], tokens[1, :, 2].reshape(1, 6))
    assert as_map(tokens[:, 0]).shape == (2, 3, 1, 1)


@pytest.mark.parametrize(
    ("count", "wanted"), [(4, [2, 5, 8, 11]), (1, [11]), (5, [1, 3, 6, 8, 11]), (99, range(12))]
)
def test_taps_are_spread_over_the_blocks(count: int, wanted: Any) -> None:
    """Blocks 2, 5, 8 and 11 of twelve, as in StyleGAN-T; the head's tensors are left out."""
    taps = {f"block.{n}": TapInfo(width=3, size=(16,)) for n in range(12)}
    taps |= {"features": TapInfo(width=3, size=(17,)), "pooled": TapInfo(width=3)}
    assert list(spread_taps(taps, count)) == [f"block.{n}" for n in wanted]
    assert spread_taps({"a": TapInfo(width=1), "b": TapInfo(width=1)}, 1) == ("b",)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 999), scale=st.floats(0.5, 20.0))
def test_losses_are_their_formulas(seed: int, scale: float) -> None:
    """And hinge on cosines is linear plus 2, for both players with the same gradient."""
    generator = torch.Generator().manual_seed(seed)
    real, fake = (torch.rand(2, 3, 5, generator=generator, dtype=torch.float64) * 2 - 1).unbind()
    made = {form: discriminator_loss(form, real, fake, scale=scale) for form in LOSSES}
    torch.testing.assert_close(made["hinge"], made["linear"] + 2)
    torch.testing.assert_close(made["linear"], fake.mean(1) - real.mean(1))
    terms = (1 + (-scale * real).exp()).log() + (1 + (scale * fake).exp()).log()
    torch.testing.assert_close(made["logistic"], terms.mean(1))
    far = discriminator_loss("hinge", real + 5, fake - 5)
    assert not far.any()
    assert torch.equal(generator_loss("hinge", fake), generator_loss("linear", fake))
    against = generator_loss("logistic", fake, scale=scale)
    torch.testing.assert_close(against, (1 + (-scale * fake).exp()).log().mean(1))


def refused(judge: Any, keys: Any, models: dict[str, Model], data: DataInfo = DATA) -> Any:
    """The one fault of a discriminator that does not fit."""
    told = {**models, "discriminator": Model(judge, judge.Settings(**keys), kind="discriminator")}
    with pytest.raises(RecipeError) as caught:
        build_stage(data=data, models=told)
    (fault,) = caught.value.faults
    assert fault.code == "R10"
    return fault


def test_what_does_not_fit_is_refused_with_the_mend() -> None:
    """A trained network, a denoiser, a tap that is not there, no labels, too small an image."""
    eyes = {"encoder": Model(Eyes, parametrization="none", frozen=True)}
    trained = refused(Siamese, {}, {"encoder": Model(Eyes, parametrization="none")})
    assert trained.key == "models.discriminator.backbone"
    assert "frozen = true in models.encoder" in trained.fix
    denoiser = refused(Projected, {}, {"encoder": Model(ToyNet, frozen=True)})
    assert "'encoder' is a denoiser" in denoiser.message
    tap = refused(Siamese, {"taps": ("token",)}, eyes)
    assert "no tap 'token'; it has map, tokens, pooled" in tap.message
    assert tap.fix == "did you mean 'tokens'?"
    points = DataInfo(shape=(1, 8, 8), count=9)
    assert "no labels" in refused(Conditional, {}, {}, points).message
    small = refused(Patch, {"layers": 4}, {})
    assert (small.message, small.fix) == (
        "4 layers cannot halve images of 8x8", "write 3 or fewer"
    )  # fmt: skip
    bare = {"encoder": Model(_Bare, parametrization="none", frozen=True)}
    assert "has no taps" in refused(Siamese, {}, bare).message


class _Bare(Backbone):
    """A network that shows nothing of its inside."""

    @property
    def taps(self) -> dict[str, TapInfo]:
        """None."""
        return {}

    def forward(self, x: Tensor, *_: object, **__: object) -> Any:
        """Never run."""
        raise NotImplementedError


class _Once(_Bare):
    """A network whose gradient has no gradient."""

    supports_double_backward = False

    @property
    def taps(self) -> dict[str, TapInfo]:
        """One."""
        return {"map": TapInfo(width=4, size=(8, 8))}


def test_second_derivatives_are_those_of_the_frozen_network() -> None:
    """A penalty on the gradient is refused or not by what the features allow."""
    for judge in (Siamese, Projected):
        for eyes, wanted in ((Eyes, True), (_Once, False)):
            models = {
                "encoder": Model(eyes, parametrization="none", frozen=True),
                "discriminator": Model(judge, kind="discriminator"),
            }
            made = build_stage(data=DATA, models=models)
            assert made.build.models["discriminator"].double_backward is wanted
