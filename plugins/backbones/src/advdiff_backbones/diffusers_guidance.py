"""The strength of guidance as networks of diffusers are told it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from advdiff_backbones.classifier import refusal
from advdiff_backbones.diffusers_kinds import KINDS, Kind
from advdiff_core.interfaces.component import Build
from advdiff_core.layers import zeroed

__all__ = ["add_guidance", "guidance_features"]

#: Features of LCM (Luo et al. 2023), for networks that do not say how many they take.
FEATURES = 256

#: The layer that reads them.
LAYER = "net.time_embedding.cond_proj.weight"


def add_guidance(kind: Kind, net: Any, config: Any, build: Build) -> tuple[bool, tuple[str, ...]]:
    """Give a network what it needs to be told the strength of guidance, if that is asked for.

    The new layer starts at zero: the network computes what it did, whatever it is told.

    Args:
        kind: Class of the network.
        net: The network.
        config: Settings with `guided`.
        build: What the component is told.

    Returns:
        Whether it is told, and the tensors that weights of other networks lack.

    Raises:
        RecipeError: R10 if networks of this class cannot be told.
    """
    has = bool(kind.tells and net.config[kind.tells])
    if not (config.guided or has):
        return False, ()
    if not kind.tells:
        able = ", ".join(one.name for one in KINDS.values() if one.tells)
        message = f"{kind.name} has no input for the strength of guidance"
        raise refusal(build, "guided", message, fix=f"take {able}, or write guided = false")
    if not has:
        embedding = net.time_embedding
        width = embedding.linear_1.in_features
        layer = zeroed(nn.Linear(FEATURES, width, bias=False))
        embedding.cond_proj = layer.to(embedding.linear_1.weight)
        net.register_to_config(**{kind.tells: FEATURES})
    return True, (LAYER,)


def guidance_features(net: Any, w: Tensor) -> Tensor:
    """Sines and cosines of 1000 w [B, D] for strengths `w` [B] (Luo et al. 2023, as in LCM)."""
    from diffusers.models.embeddings import get_timestep_embedding

    features: Tensor = get_timestep_embedding(
        1000.0 * w.float(), net.config[KINDS["UNet2DConditionModel"].tells], downscale_freq_shift=1
    )
    return features.to(net.dtype)
