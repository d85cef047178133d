"""How the classes of diffusers differ: constructor, call, timesteps, conditioning, taps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from attrs import frozen
from torch import Tensor

from advdiff_backbones.hooked_taps import Pick, first_tensor, last_tensor
from advdiff_core.types import DataInfo

__all__ = ["ALIASES", "KINDS", "Conditions", "Kind"]


@frozen(kw_only=True)
class Conditions:
    """What a network is told beside the image.

    Attributes:
        timestep: Time in the network's own units [B].
        labels: Class labels [B], int64, with the number of "no label" for those without.
        prompts: Prompt embeddings [B, N, D], for networks that read text.
        pooled: Pooled prompt embeddings [B, D], for SD3 and SDXL.
        frame: What SDXL is told of the picture's size and crop [B, 6], in pixels.
        guidance: Features of the strength of guidance [B, D], for networks that are told.
    """

    timestep: Tensor
    labels: Tensor
    prompts: Tensor | None = None
    pooled: Tensor | None = None
    frame: Tensor | None = None
    guidance: Tensor | None = None


@frozen(kw_only=True)
class Kind:
    """One class of diffusers.

    Attributes:
        name: The class.
        timesteps: Range of its time input.
        continuous: True if its time input is 1,000 t of straight paths, also where training ends
            short of t = 0 and 1; else the ends of training are the ends of the range.
        defaults: Constructor arguments that follow from the data, given their description and the
            number of classes.
        call: Runs it on `x` [B, C, H, W].
        blocks: Prefixes of the module paths that are taps, and what they show.
        label_key: Key of its config that counts labels; "" if it knows none.
        null_inside: True if the class adds the entry for "no label" itself.
        text: True if it reads prompt embeddings.
        tells: Key of its config that counts the features of the strength of guidance; "" if its
            forward takes none.
    """

    name: str
    timesteps: tuple[float, float]
    defaults: Callable[[DataInfo], dict[str, Any]]
    call: Callable[[Any, Tensor, Conditions], Tensor]
    blocks: Mapping[str, Pick]
    label_key: str = ""
    null_inside: bool = False
    text: bool = False
    tells: str = ""
    continuous: bool = False


def _unet_defaults(data: DataInfo) -> dict[str, Any]:
    channels, *size = data.shape
    return {"in_channels": channels, "out_channels": channels, "sample_size": tuple(size)}


def _transformer_defaults(data: DataInfo) -> dict[str, Any]:
    return {"in_channels": data.shape[0], "sample_size": data.shape[1]}


def _sd3_defaults(data: DataInfo) -> dict[str, Any]:
    return {**_transformer_defaults(data), "out_channels": data.shape[0]}


def _unet(net: Any, x: Tensor, told: Conditions) -> Tensor:
    labels = told.labels if net.config.num_class_embeds else None
    out: Tensor = net(x, told.timestep, class_labels=labels, return_dict=False)[0]
    return out


def _text_unet(net: Any, x: Tensor, told: Conditions) -> Tensor:
    labels = told.labels if net.config.num_class_embeds else None
    framed = told.frame is not None
    out: Tensor = net(
        x, told.timestep, told.prompts, class_labels=labels, timestep_cond=told.guidance,
        added_cond_kwargs={"text_embeds": told.pooled, "time_ids": told.frame} if framed else None,
        return_dict=False,
    )[0]  # fmt: skip
    return out


def _dit(net: Any, x: Tensor, told: Conditions) -> Tensor:
    out: Tensor = net(x, told.timestep, class_labels=told.labels, return_dict=False)[0]
    return out


def _sd3(net: Any, x: Tensor, told: Conditions) -> Tensor:
    out: Tensor = net(
        x, encoder_hidden_states=told.prompts, pooled_projections=told.pooled,
        timestep=told.timestep, return_dict=False,
    )[0]  # fmt: skip
    return out


_UNET_BLOCKS = {"down_blocks.": first_tensor, "mid_block": first_tensor, "up_blocks.": first_tensor}

KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            name="UNet2DModel", timesteps=(0.0, 999.0), defaults=_unet_defaults, call=_unet,
            blocks=_UNET_BLOCKS, label_key="num_class_embeds",
        ),
        Kind(
            name="UNet2DConditionModel", timesteps=(0.0, 999.0), defaults=_unet_defaults,
            call=_text_unet, blocks=_UNET_BLOCKS, text=True, tells="time_cond_proj_dim",
        ),
        Kind(
            name="DiTTransformer2DModel", timesteps=(0.0, 999.0), defaults=_transformer_defaults,
            call=_dit, blocks={"transformer_blocks.": first_tensor},
            label_key="num_embeds_ada_norm", null_inside=True,
        ),
        # A block of SD3 returns the prompt's tokens and the image's.
        Kind(
            name="SD3Transformer2DModel", timesteps=(0.0, 1000.0), defaults=_sd3_defaults,
            call=_sd3, blocks={"transformer_blocks.": last_tensor}, text=True, continuous=True,
        ),
    )
}  # fmt: skip

#: Short names.
ALIASES: Mapping[str, str] = {"DiT": "DiTTransformer2DModel", "SD3": "SD3Transformer2DModel"}
