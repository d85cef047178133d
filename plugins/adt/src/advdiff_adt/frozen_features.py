"""Features of a frozen role at several taps, as discriminators read them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from advdiff_adt.heads import as_map
from advdiff_core.errors import nearest
from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.requirements import refuse
from advdiff_core.settings import setting, settings
from advdiff_core.types import TapInfo

__all__ = ["BackboneSettings", "FrozenFeatures", "spread_taps"]


@settings
class BackboneSettings:
    """Keys of a discriminator on frozen features."""

    backbone: str = setting(
        "encoder", ref="role",
        help="frozen network whose features are judged; in the paper DINOv2 ViT-S",
    )  # fmt: skip
    taps: tuple[str, ...] = setting(
        (), help="places in it; empty: as many as `depths`, evenly spread, the last one included"
    )
    depths: int = setting(
        4, ge=1, help="places where none are named; the paper does not say which (ours: 4)"
    )


class FrozenFeatures:
    """Reads a frozen network at its taps; gradients pass to the image.

    Args:
        settings: Which network, and where.
        build: What the discriminator is told.

    Attributes:
        taps: Places that are read, in forward order.
        widths: Channels of each.

    Raises:
        RecipeError: R10 if the network is trained or a denoiser, or has no such places.
    """

    def __init__(self, settings: BackboneSettings, build: Build) -> None:
        self.network = build.network(settings.backbone, key="backbone")
        info, role = self.network.info, settings.backbone
        if info.parametrization != "none":
            fix = f'write parametrization = "none" in models.{role}, or name another network'
            refuse(build, "backbone", f"model {role!r} is a denoiser", fix)
        if not info.taps:
            refuse(build, "backbone", f"model {role!r} has no taps", "name another network")
        for tap in settings.taps:
            if tap not in info.taps:
                near = nearest(tap, info.taps)
                fix = f"did you mean {near!r}?" if near else "choose some of these"
                message = f"model {role!r} has no tap {tap!r}; it has {', '.join(info.taps)}"
                refuse(build, "taps", message, fix)
        chosen = settings.taps or spread_taps(info.taps, settings.depths)
        self.taps = tuple(tap for tap in info.taps if tap in chosen)
        self.widths = tuple(info.taps[tap].width for tap in self.taps)

    @property
    def supports_double_backward(self) -> bool:
        """That of the network."""
        return self.network.info.double_backward

    def __call__(self, x: Tensor) -> list[Tensor]:
        """Maps [B, C, H, W], one a tap, of images `x` [B, ...]."""
        found = self.network.classify(x, taps=self.taps, stop_at=self.taps[-1], through=True)
        return [as_map(found.features[tap]) for tap in self.taps]


def spread_taps(taps: Mapping[str, TapInfo], count: int) -> tuple[str, ...]:
    """Taps evenly spread over the depth of a network, its last one included.

    Places with positions are preferred to vectors. Of 12 blocks and `count` 4 these are the third,
    sixth, ninth and twelfth, as in StyleGAN-T (there beside the patches themselves).

    Args:
        taps: Taps of the network in forward order.
        count: How many, at most.
    """
    blocks = [name for name in taps if name.startswith("block.")]
    spatial = [name for name, info in taps.items() if info.size]
    names = blocks or spatial or list(taps)
    count = min(count, len(names))
    return tuple(names[(place + 1) * len(names) // count - 1] for place in range(count))
