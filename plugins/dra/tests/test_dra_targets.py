"""Alignment targets: what the teacher sees, where it stops, and what is refused."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from advdiff_dra.features import massive_channels, pooled
from helpers_targets import CLASSIFIER, draws, images, made, module
from torch import Tensor

from advdiff_core.engine.planning import plan_experiment
from advdiff_core.errors import ContractError, RecipeError

LABELS = torch.tensor([0, 3, 9, 1, 1, 7])


def asked(experiment: Any, y: Tensor | None = LABELS, *, x: Tensor | None = None) -> Tensor:
    """Features of six images."""
    found: Tensor = module(experiment)(images() if x is None else x, y, draws())
    return found


def seen(experiment: Any, role: str = "teacher") -> list[tuple[Any, ...]]:
    """Positional inputs of each forward of a role from now on."""
    calls: list[tuple[Any, ...]] = []
    module(experiment, role).register_forward_pre_hook(lambda _, inputs: calls.append(inputs))
    return calls


def refused(**parts: Any) -> tuple[str, str, str]:
    """Key, message and mend of the one fault of a recipe."""
    with pytest.raises(RecipeError) as caught:
        made(**parts)
    (fault,) = caught.value.faults
    return str(fault.key), fault.message, fault.fix


def test_the_teacher_sees_the_image_noised_and_scaled_as_in_edm() -> None:
    """`c_in (x + sigma n)` with `c_in = 1 / sqrt(sigma^2 + 0.25)`, and `ln(sigma) / 4`."""
    experiment = made(target={"sigma": 0.3})
    calls = seen(experiment)
    asked(experiment)
    ((x_in, c_noise, labels),) = calls
    noise = draws().child("noise").normal((6, 1, 8, 8))
    wanted = (images() + 0.3 * noise) / math.sqrt(0.3**2 + 0.5**2)
    torch.testing.assert_close(x_in, wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(c_noise, torch.full((6,), math.log(0.3) / 4))
    assert torch.equal(labels, LABELS)


def test_the_default_level_is_the_labelled_guess() -> None:
    """0.06, as nobody knows the paper's."""
    assert module(made()).levels.t == pytest.approx(0.06, rel=1e-6)


@pytest.mark.parametrize("tap", ["enc.8x8_conv", "enc.4x4_down", "dec.4x4_in1", "dec.8x8_up"])
@pytest.mark.parametrize("pooling", ["mean", "none"])
def test_truncated_and_full_teacher_give_identical_targets(tap: str, pooling: str) -> None:
    """Bit for bit: nothing after the tap changes what was there."""
    experiment = made(target={"tap": tap, "pooling": pooling})
    role = experiment.scene.roles["teacher"]
    x_t, t = module(experiment).levels.noised(images(), draws())
    whole = role.wear(role.module, x_t, t, LABELS, taps=(tap,))
    assert whole.value.numel(), "a full forward has an output"
    feature = whole.features[tap]
    wanted = feature.mean((2, 3)) if pooling == "mean" else feature.flatten(2).transpose(1, 2)
    found = asked(experiment)
    if pooling == "none":
        assert torch.equal(found, wanted)
    else:
        assert torch.equal(found, pooled(feature))
        torch.testing.assert_close(found, wanted)


def test_nothing_after_the_tap_runs() -> None:
    """Blocks of the decoder, from the first skip on, are never called."""
    experiment = made()
    ran: list[str] = []
    teacher = module(experiment, "teacher")
    for part in ("enc", "dec"):
        for name, block in getattr(teacher, part).items():
            label = f"{part}.{name}"
            block.register_forward_hook(lambda *_, label=label: ran.append(label))
    asked(experiment)
    assert ran == [n for n in teacher.taps if n.startswith("enc")] + ["dec.4x4_in0", "dec.4x4_in1"]


def test_the_plan_counts_the_truncated_forward() -> None:
    """One forward of the target, of fewer products than the teacher whole; none of the teacher."""
    plan = plan_experiment(made(), macs=True)
    assert plan.macs is not None
    whole, cut = plan.macs["teacher"], plan.macs["target"]
    assert whole is not None
    assert cut is not None
    assert 0 < cut < 0.6 * whole
    assert (plan.step.roles["target"].forwards, plan.step.roles["teacher"].forwards) == (1, 0)


def test_labels_change_the_target_only_where_the_teacher_is_told() -> None:
    """With `condition = "none"`, and for a teacher that was made without labels, they do not."""
    swapped = LABELS.flip(0)
    for parts, changes in (
        ({}, True),
        ({"target": {"condition": "label"}}, True),
        ({"target": {"condition": "none"}}, False),
        ({"teacher": {"conditional": False}}, False),
    ):
        experiment = made(**parts)
        assert torch.equal(asked(experiment), asked(experiment, swapped)) != changes


def test_mixed_labels_are_refused_where_the_teacher_is_told() -> None:
    """A class embedding takes one class; without condition they do no harm."""
    mixed = torch.full((6, 10), 0.1)
    with pytest.raises(ContractError, match="labels are mixtures") as caught:
        asked(made(), mixed)
    assert caught.value.where == "models.target.condition"
    asked(made(target={"condition": "none"}), mixed)


def test_fixed_noise_makes_a_function_of_the_image() -> None:
    """The same for every image, step and place in the batch; fresh noise is not."""
    fixed, fresh = made(target={"noise": "fixed"}), made()
    for experiment, same in ((fixed, True), (fresh, False)):
        target, other = module(experiment), draws(seed=9)
        again = target(images(), LABELS, other)
        assert torch.equal(asked(experiment), again) == same
        turned = target(images().flip(0), LABELS.flip(0), draws()).flip(0)
        assert torch.allclose(asked(experiment), turned, atol=1e-5) == same


def test_random_levels_follow_the_law_of_edm() -> None:
    """`ln sigma ~ N(-1.2, 1.2^2)`, one for each image, in the schedule's own time."""
    experiment = made(target={"level": "random"})
    many = draws(20_000)
    sigma = module(experiment).levels.times(torch.zeros(20_000, 1), many).double()
    assert sigma.log().mean().item() == pytest.approx(-1.2, abs=0.04)
    assert sigma.log().std().item() == pytest.approx(1.2, abs=0.04)
    noise = module(experiment).levels
    first, second = draws(), draws()
    assert torch.equal(noise.times(images(), first), noise.times(images(), second))


@pytest.mark.parametrize("schedule", ["vp-linear", "vp-cosine", "flow"])
def test_sigma_means_noise_per_signal_on_every_schedule(schedule: str) -> None:
    """The time found for it has that ratio, up to the grid of discrete times."""
    experiment = made(target={"sigma": 0.5}, teacher={"parametrization": "eps"}, schedule=schedule)
    levels = module(experiment).levels
    t = torch.tensor(levels.t, dtype=torch.float64)
    ratio = float(levels.schedule.sigma(t) / levels.schedule.alpha(t))
    assert ratio == pytest.approx(0.5, rel=5e-3)


def test_a_time_is_taken_as_it_is() -> None:
    """In the schedule's own range."""
    experiment = made(target={"t": 0.25}, teacher={"parametrization": "eps"}, schedule="flow")
    assert module(experiment).levels.t == 0.25


def test_images_are_moved_to_the_range_of_the_teacher() -> None:
    """From [-1, 1] to [0, 1]: what the network gets is the noised moved image."""
    experiment = made(target={"domain": [0.0, 1.0], "noise": "fixed"})
    plain = made(target={"noise": "fixed"})
    wanted = asked(plain, x=(images() + 1) / 2)
    torch.testing.assert_close(asked(experiment), wanted, rtol=1e-6, atol=1e-6)


def test_zeroed_channels_are_zero_and_no_other_changes() -> None:
    """Before pooling, which keeps them at zero."""
    plain, cut = asked(made()), asked(made(target={"zero_channels": [3, 0]}))
    assert torch.equal(cut[:, [0, 3]], torch.zeros(6, 2))
    kept = [channel for channel in range(plain.shape[1]) if channel not in (0, 3)]
    assert torch.equal(cut[:, kept], plain[:, kept])


DIT = {
    "use": "dit", "parametrization": "flow", "frozen": True, "width": 16, "depth": 4, "heads": 2,
    "patch": 2, "conditional": True,
}  # fmt: skip


def dit(**target: Any) -> Any:
    """A target that reads the second block of four of a transformer with two massive channels."""
    parts = {"teacher": DIT, "target": {"tap": "blocks.1", "sigma": 0.2, **target}}
    experiment = made(schedule="flow", **parts)
    with torch.no_grad():
        for block in module(experiment, "teacher").blocks[:1]:
            block.mlp.fc2.bias[[5, 11]] += 900.0
            # The gate lets them into the residual stream.
            block.adaLN_modulation[1].bias += 1.0
    return experiment


def test_massive_channels_are_found_by_their_size() -> None:
    """Mean magnitude over images and tokens above the factor times the median."""
    features = torch.ones(2, 3, 8)
    features[..., 2] = -25.0
    features[0, 0, 5] = 60.0
    assert massive_channels(features, 20.0) == (2,)
    assert massive_channels(features, 5.0) == (2, 5)
    assert massive_channels(features.transpose(1, 2)[..., None], 20.0) == (2,)
    assert massive_channels(torch.zeros(2, 3, 8), 20.0) == ()


def test_massive_channels_are_found_on_noise_and_zeroed() -> None:
    """They come out on the teacher alone, without an image, and leave the target."""
    plain = dit(pooling="none")
    found = module(plain)
    assert massive_channels(asked(plain), 20.0) == (5, 11)
    build = found.build
    keys = type(found.settings)(tap="blocks.1", sigma=0.2, massive=20.0, pooling="none")
    cleaned = type(found)(keys, build)
    assert cleaned.reader.scale.eq(0).nonzero().flatten().tolist() == [5, 11]
    features = cleaned(images(), LABELS, draws())
    assert torch.equal(features[..., [5, 11]], torch.zeros(6, 16, 2))


def test_modulation_comes_after_zeroing() -> None:
    """`norm(h) (1 + scale) + shift` of the next block, with the massive channels at zero."""
    zero = {"zero_channels": [5, 11], "pooling": "none"}
    plain, modulated = dit(**zero), dit(**zero, modulate=True)
    target, block = module(modulated), module(modulated, "teacher").blocks[2]
    teacher = module(modulated, "teacher")
    h = asked(plain)
    t = torch.full((6,), target.levels.t)
    c_noise = modulated.scene.roles["teacher"].wear.noise_input(t)
    embedding = teacher.t_embedder(c_noise) + teacher.y_embedder(LABELS)
    shift, scale = block.adaLN_modulation(embedding).chunk(6, dim=1)[:2]
    norm = (h - h.mean(2, keepdim=True)) / (h.var(2, keepdim=True, unbiased=False) + 1e-6).sqrt()
    wanted = norm * (1 + scale[:, None]) + shift[:, None]
    torch.testing.assert_close(asked(modulated), wanted, rtol=1e-4, atol=1e-5)


def test_a_classifier_on_noised_images_is_read_at_the_noised_image() -> None:
    """The failing ablation: the same noise, a network that tells classes."""
    target = {**NOISY, "tap": "pooled", "sigma": 0.4}
    experiment = made(teacher={**CLASSIFIER, "frozen": True}, target=target)
    x_t = images() + 0.4 * draws().child("noise").normal((6, 1, 8, 8))
    with torch.no_grad():
        wanted = module(experiment, "teacher")(x_t, taps=("pooled",)).features["pooled"]
    torch.testing.assert_close(asked(experiment), wanted, rtol=1e-6, atol=1e-6)


def test_an_encoder_is_read_at_the_clean_image() -> None:
    """At any tap, pooled or by position."""
    target = {"use": "encoder-features", "kind": "alignment_target", "frozen": True}
    parts = {"models": {"encoder": {**CLASSIFIER, "frozen": True}}}
    for tap, pooling in (("pooled", "mean"), ("layer.1.block.0", "mean"), ("init_conv", "none")):
        experiment = made(target={**target, "tap": tap, "pooling": pooling}, **parts)
        with torch.no_grad():
            whole = module(experiment, "encoder")(images(), taps=(tap,)).features[tap]
        if pooling == "none":
            whole = whole.flatten(2).transpose(1, 2)
        elif whole.dim() == 4:
            whole = whole.mean((2, 3))
        torch.testing.assert_close(asked(experiment), whole)
        assert module(experiment).width == whole.shape[-1]


NOISY = {"use": "noisy-classifier-features", "kind": "alignment_target", "frozen": True}

REFUSED = {
    "no such tap": (
        {"target": {"tap": "dec.4x4_in2"}}, "models.target.tap",
        r"no tap 'dec\.4x4_in2'; there are enc\.8x8_conv, .*, dec\.4x4_in0, dec\.4x4_in1, .*",
        r"did you mean 'dec\.4x4_in",
    ),
    "a classifier": (
        {"teacher": {**CLASSIFIER, "frozen": True}}, "models.target.teacher",
        "model 'teacher' is a classifier", "noisy-classifier-features",
    ),
    "a denoiser": (
        {"target": {**NOISY, "tap": "pooled"}},
        "models.target.teacher", "model 'teacher' is a denoiser", "take diffusion-features",
    ),
    "labels ignored": (
        {"teacher": {"conditional": False}, "target": {"condition": "label"}},
        "models.target.condition", "model 'teacher' ignores labels", "conditional = true",
    ),
    "other classes": (
        {"teacher": {"classes": 100}}, "models.target.condition",
        "model 'teacher' knows 100 classes, the data have 10", 'condition = "none"',
    ),
    "two levels": (
        {"target": {"sigma": 0.1, "t": 0.1}}, "models.target.t", "0.1 beside sigma = 0.1",
        "one of the two",
    ),
    "sigma too large": (
        {"target": {"sigma": 90.0}}, "models.target.sigma", "levels from 0.002 to 80",
        "in between",
    ),
    "t too large": ({"target": {"t": 90.0}}, "models.target.t", "goes from 0.002 to 80", "between"),
    "no such channel": (
        {"target": {"zero_channels": [3, 16]}}, "models.target.zero_channels",
        r"16, the tap 'dec\.4x4_in1' has 16 channels", "from 0 to 15",
    ),
    "range upside down": (
        {"target": {"domain": [1.0, 0.0]}}, "models.target.domain", r"\[1, 0\]", "write",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_teacher_that_does_not_fit_is_refused_in_one_line(name: str) -> None:
    """With the key, what was found and wanted, and the mend."""
    parts, key, message, fix = REFUSED[name]
    found = refused(**parts)
    assert found[0] == key
    assert re.search(message, found[1]), found[1]
    assert re.search(fix, found[2]), found[2]
