"""Denoisers of latents as teachers: what they see of an image, where they stop, what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_targets import draws, images, made, module, shake
from safetensors.torch import save_file
from torch import Tensor

from advdiff_core.engine.planning import plan_experiment
from advdiff_core.errors import ContractError, RecipeError

pytest.importorskip("diffusers")

LABELS = torch.tensor([0, 3, 9, 1, 1, 7])
#: Digits of 8x8 become latents of 4x4 with three channels.
ENCODER = {"use": "vae-encoder", "config": {
    "in_channels": 1, "out_channels": 1, "latent_channels": 3, "block_out_channels": [4, 8],
    "norm_num_groups": 2, "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"],
    "latents_mean": [0.1, -0.2, 0.3], "latents_std": [0.5, 1.0, 2.0], "scaling_factor": 1.0,
}}  # fmt: skip
#: LightningDiT in small; it counts from noise to data on [0, 1].
LIGHTNING = {
    "use": "dit", "width": 16, "depth": 4, "heads": 2, "patch": 1, "norm": "rms", "mlp": "swiglu",
    "rope": True, "conditional": True, "c_noise_scale": -0.001, "c_noise_shift": 1.0,
}  # fmt: skip
TARGET = {
    "use": "latent-diffusion-features", "kind": "alignment_target", "frozen": True,
    "encoder": ENCODER, "denoiser": LIGHTNING, "tap": "blocks.1", "t": 0.2,
}  # fmt: skip


def latent(**changes: Any) -> Any:
    """The recipe with this target; no weight of its networks is zero."""
    experiment = made(schedule="flow", target={**TARGET, **changes})
    target = module(experiment)
    shake(target.denoiser, "denoiser")
    return experiment


def asked(experiment: Any, y: Tensor | None = LABELS) -> Tensor:
    """Features of six digits."""
    found: Tensor = module(experiment)(images(), y, draws())
    return found


def test_the_denoiser_sees_the_noised_latent_and_the_time_from_noise_to_data() -> None:
    """`(1 - t) z + t n` as it is, and 1 - t, as LightningDiT counts; and the class."""
    target = module(latent())
    calls: list[tuple[Any, ...]] = []
    target.denoiser.register_forward_pre_hook(lambda _, inputs: calls.append(inputs))
    levels: list[Tensor] = []
    target.denoiser.t_embedder.register_forward_pre_hook(lambda _, inputs: levels.append(*inputs))
    target(images(), LABELS, draws())
    ((x_in, _, labels),) = calls
    noise = draws().child("noise").normal((6, 3, 4, 4))
    torch.testing.assert_close(x_in, 0.8 * target.encoded(images()) + 0.2 * noise)
    torch.testing.assert_close(levels[0], torch.full((6,), 0.8), rtol=1e-3, atol=0)
    assert torch.equal(labels, LABELS)


def test_inputs_are_scaled_for_denoisers_that_were_trained_so() -> None:
    """To unit variance for data of unit variance: over `sqrt(0.8^2 + 0.2^2)`."""
    seen: list[Tensor] = []
    for inputs in ("plain", "unit"):
        target = module(latent(inputs=inputs))
        target.denoiser.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        target(images(), LABELS, draws())
    torch.testing.assert_close(seen[1], seen[0] / (0.8**2 + 0.2**2) ** 0.5)


def test_the_latent_is_that_of_the_whole_autoencoder() -> None:
    """Per channel normalised mean of the code of the clean image; no gradient."""
    target = module(latent())
    code = target.encoder.quant_conv(target.encoder.encoder(images())).chunk(2, dim=1)[0]
    mean, std = (torch.tensor(ENCODER["config"][key]) for key in ("latents_mean", "latents_std"))
    wanted = (code - mean[:, None, None]) / std[:, None, None]
    found = target.encoded(images().requires_grad_())
    torch.testing.assert_close(found, wanted.detach())
    assert not found.requires_grad


@pytest.mark.parametrize("pooling", ["mean", "none"])
def test_the_truncated_denoiser_gives_what_the_whole_one_gives(pooling: str) -> None:
    """Bit for bit, and no block after the tap runs."""
    target = module(latent(pooling=pooling))
    ran: list[int] = []
    for number, block in enumerate(target.denoiser.blocks):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    found = target(images(), LABELS, draws())
    assert ran == [0, 1]
    x_t, t = target.reader.levels.noised(target.encoded(images()), draws())
    level = target.build.schedule.c_noise(t)
    whole = target.denoiser(x_t, level, LABELS, taps=("blocks.1",)).features["blocks.1"]
    assert torch.equal(found, whole.mean(1) if pooling == "mean" else whole)


def test_massive_channels_are_zeroed_before_the_next_norm() -> None:
    """`norm(h) (1 + scale) + shift` of the next block, with channels 3 and 9 at zero."""
    zero = {"zero_channels": [3, 9], "pooling": "none"}
    h = asked(latent(**zero))
    target = module(latent(**zero, modulate=True))
    assert torch.equal(h[..., [3, 9]], torch.zeros(6, 16, 2))
    net = target.denoiser
    c = net.t_embedder(torch.full((6,), 1 - 0.2 / target.build.schedule.t_max))
    c = c + net.y_embedder(LABELS)
    shift, scale = net.blocks[2].adaLN_modulation(c).chunk(6, dim=1)[:2]
    norm = h / (h.square().mean(2, keepdim=True) + 1e-6).sqrt() * net.blocks[2].norm1.weight
    wanted = norm * (1 + scale[:, None]) + shift[:, None]
    found = target(images(), LABELS, draws())
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_massive_channels_are_found_on_noise() -> None:
    """Without an image: channel 5, which the first block makes huge."""
    target = module(latent())
    with torch.no_grad():
        target.denoiser.blocks[0].mlp.w3.bias[5] += 900.0
        target.denoiser.blocks[0].adaLN_modulation[1].bias += 1.0
    reader = target.reader
    keys = type(target.settings)(
        **{**{k: TARGET[k] for k in ("tap", "t")}, "massive": 20.0},
        encoder=target.settings.encoder, denoiser=target.settings.denoiser,
    )  # fmt: skip
    again = type(reader)(keys, target.build, reader.network, name="denoiser", shape=reader.shape)
    assert again.scale.eq(0).nonzero().flatten().tolist() == [5]


def test_labels_are_told_unless_they_are_not_wanted() -> None:
    """Without condition the denoiser gets "no label"."""
    swapped = LABELS.flip(0)
    for condition, changes in (("label", True), ("auto", True), ("none", False)):
        experiment = latent(condition=condition)
        assert torch.equal(asked(experiment), asked(experiment, swapped)) != changes


def test_weights_of_the_denoiser_are_loaded_and_checked(tmp_path: Path) -> None:
    """A safetensors file with its names; a file of another network is refused with the key."""
    state = {n: t + 0.01 for n, t in module(latent()).denoiser.state_dict().items()}
    save_file(state, tmp_path / "dit.safetensors")
    experiment = made(
        schedule="flow", target={**TARGET, "weights": str(tmp_path / "dit.safetensors")}
    )
    found = module(experiment).denoiser.state_dict()
    assert all(torch.equal(found[name], state[name]) for name in state)
    save_file({"blocks.0.norm1.weight": torch.ones(3)}, tmp_path / "other.safetensors")
    with pytest.raises(Exception, match=re.escape("models.target.weights")):
        made(schedule="flow", target={**TARGET, "weights": str(tmp_path / "other.safetensors")})


def test_a_classifier_is_trained_with_it_and_nothing_of_it_moves() -> None:
    """The plan counts one forward of the target; its networks have no gradient."""
    experiment = latent()
    plan = plan_experiment(experiment, macs=True)
    assert plan.step.roles["target"].forwards == 1
    assert plan.macs is not None
    assert plan.macs["target"]
    assert not any(p.requires_grad for p in module(experiment).parameters())


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "no such tap": ({"tap": "blocks.4"}, "tap", r"model 'denoiser' has no tap 'blocks\.4'; there"),
    "no such latent": ({"latent": "code"}, "latent", "has no tap 'code'; there are latent"),
    "no map": (
        {"encoder": {"use": "wide-resnet", "depth": 10, "width": 1, "mean": [0.3], "std": [0.4]}},
        "latent", r"the tap 'pooled' of the encoder is no map \[C, h, w\]",
    ),
    "other classes": (
        {"denoiser": {**LIGHTNING, "classes": 7}}, "condition", "knows 7 classes, the data have 10",
    ),
    "labels ignored": (
        {"denoiser": {**LIGHTNING, "conditional": False}, "condition": "label"}, "condition",
        "'denoiser' ignores labels",
    ),
    "no such channel": ({"zero_channels": [16]}, "zero_channels", "16, the tap .* has 16 channels"),
    "another size": (
        {"denoiser": {**LIGHTNING, "patch": 3}}, "denoiser.patch", "3 divides, the data have 4x4",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(name: str) -> None:
    """With the key, and what was found and wanted."""
    changes, key, words = REFUSED[name]
    with pytest.raises(RecipeError) as caught:
        latent(**changes)
    (fault,) = caught.value.faults
    assert fault.key == f"models.target.{key}"
    assert re.search(words, fault.message), fault.message


def test_mixed_labels_are_refused_where_the_denoiser_is_told() -> None:
    """A class embedding takes one class."""
    with pytest.raises(ContractError, match="labels are mixtures"):
        asked(latent(), torch.full((6, 10), 0.1))
