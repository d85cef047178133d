"""The diffusion transformer DiT (Peebles & Xie, 2023), with the options of LightningDiT.

Modules and tensors are called as in the checkpoints of both, which load by name. Written from the
papers; DiT's own code has a licence that forbids commercial use and is not used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from advdiff_backbones.dit_blocks import (
    Block,
    FinalLayer,
    LabelEmbedder,
    PatchEmbedder,
    RotaryEmbedding,
    TimeEmbedder,
    position_code,
)
from advdiff_backbones.layers import (
    DiffusionSettings,
    Trail,
    divides,
    drop_labels,
    noise_levels,
    refused,
    run_block,
)
from advdiff_core.interfaces.backbone import Backbone, BackboneOutput, check_taps
from advdiff_core.interfaces.component import Build
from advdiff_core.layers import at_least_fp32, image_shape, num_labels
from advdiff_core.settings import setting, settings
from advdiff_core.types import TapInfo

__all__ = ["DiT"]


class DiT(Backbone):
    """Diffusion transformer: patches, attention, adaLN-Zero; DiT-S/2 with the default settings.

    DiT-XL/2 is `width = 1152, depth = 28, heads = 16`. LightningDiT-XL/1 (Yao et al., 2025) is that
    with `patch = 1, norm = "rms", mlp = "swiglu", rope = true`. Taps: `blocks.<n>`, tokens
    [B, N, D], row by row.

    Attributes:
        supports_double_backward: True with the attention kernel "math".
    """

    @settings
    class Settings(DiffusionSettings):
        """Keys of `use = "dit"`."""

        patch: int = setting(2, help="height and width of a patch", ge=1, unit="pixels")
        width: int = setting(384, help="features of a token; a multiple of 4", ge=4, le=65536)
        depth: int = setting(12, help="blocks", ge=1, le=512)
        heads: int = setting(6, help="attention heads; a divisor of `width`", ge=1)
        mlp_ratio: float = setting(4.0, help="hidden width of a block's MLP, times `width`", gt=0)
        mlp: str = setting("gelu", help="feed-forward network", choices=("gelu", "swiglu"))
        norm: str = setting(
            "layer", help="layer: LayerNorm without weights; rms: RMSNorm", choices=("layer", "rms")
        )
        rope: bool = setting(False, help="rotate queries and keys by their position, too")
        qk_norm: bool = setting(False, help="normalise queries and keys")
        learn_sigma: bool = setting(
            False, help="as many channels again, for the variance of a reverse step"
        )

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        colours, height, width = image_shape(build, "dit")
        divides(build, (height, width), settings.patch, "patch", "dit")
        self._check(settings, build)
        self.classes = num_labels(build, conditional=settings.conditional, classes=settings.classes)
        self._grid = (height // settings.patch, width // settings.patch)
        self.learns_sigma = settings.learn_sigma
        self._outputs = colours * (1 + settings.learn_sigma)
        self.x_embedder = PatchEmbedder(colours, settings.patch, settings.width)
        self.t_embedder = TimeEmbedder(settings.width)
        self.y_embedder = LabelEmbedder(self.classes, settings.width) if self.classes else None
        self.register_buffer("pos_embed", position_code(self._grid, settings.width))
        each = settings.width // settings.heads
        self.feat_rope = RotaryEmbedding(self._grid, each) if settings.rope else None
        self._names = tuple(f"blocks.{n}" for n in range(settings.depth))
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.depth))
        self.final_layer = FinalLayer(settings, settings.patch**2 * self._outputs)
        self._initialise()
        self.supports_double_backward = settings.attention_kernel == "math"

    pos_embed: Tensor

    @staticmethod
    def _check(config: Any, build: Build) -> None:
        if config.width % 4:
            message = f"{config.width} is no multiple of 4, as positions need"
            raise refused(build, "width", message, "choose a multiple of 4")
        if config.width % config.heads:
            message = f"{config.heads} does not divide width = {config.width}"
            raise refused(build, "heads", message, "choose a divisor of width")
        if config.rope and config.width // config.heads % 4:
            message = f"width / heads is {config.width // config.heads}, rope needs a multiple of 4"
            raise refused(build, "heads", message, "change heads, or set rope = false")

    def _initialise(self) -> None:
        """Glorot-uniform layers, small embeddings; what starts at zero starts at zero."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and "adaLN" not in name:
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        patches: Any = self.x_embedder.proj
        nn.init.xavier_uniform_(patches.weight.view(self.settings.width, -1))
        nn.init.zeros_(patches.bias)
        first, _, last = self.t_embedder.mlp
        small: list[Any] = [first.weight, last.weight]
        if self.y_embedder is not None:
            small.append(self.y_embedder.embedding_table.weight)
        for weight in small:
            nn.init.normal_(weight, std=0.02)
        nn.init.zeros_(self.final_layer.linear.weight)

    @property
    def draws_random(self) -> bool:
        """True with dropout of features or labels."""
        return self.settings.dropout > 0 or (self.classes > 0 and self.settings.label_dropout > 0)

    @property
    def taps(self) -> Mapping[str, TapInfo]:
        """Output of every block, in forward order."""
        tokens = TapInfo(width=self.settings.width, size=(self._grid[0] * self._grid[1],))
        return dict.fromkeys(self._names, tokens)

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        taps: tuple[str, ...] = (),
        stop_at: str | None = None,
    ) -> BackboneOutput:
        """Run the network on images `x` [B, C, H, W]; see `Backbone.forward`. Output in fp32."""
        wanted = taps if stop_at is None else (*taps, stop_at)
        check_taps(wanted, self._names, self.build.path)
        embedding = self._embedding(x, c_noise, labels)
        trail = Trail(taps, stop_at)
        h = self.x_embedder(x) + self.pos_embed
        recompute = self.settings.checkpoint_blocks
        for n, block in enumerate(self.blocks):
            h = run_block(block, h, embedding, self.feat_rope, recompute=recompute)
            if trail.ends(f"blocks.{n}", h):
                return BackboneOutput(None, trail.features)
        return self._output(self.final_layer(h, embedding), trail.features)

    def modulated(
        self, tap: str, features: Tensor, c_noise: Tensor | None, labels: Tensor | None
    ) -> Tensor:
        """Tokens [B, N, D] at a tap as attention of the next block, or the last layer, reads them.

        See `Backbone.modulated`.
        """
        check_taps((tap,), self._names, self.build.path)
        embedding = self._embedding(features, c_noise, labels)
        later: tuple[Any, ...] = (*self.blocks, self.final_layer)
        found: Tensor = later[self._names.index(tap) + 1].modulated(features, embedding)
        return found

    def _embedding(self, x: Tensor, c_noise: Tensor | None, labels: Tensor | None) -> Tensor:
        h: Tensor = self.t_embedder(noise_levels(self.settings, self.build, c_noise, x))
        if self.y_embedder is None:
            return h
        share = self.settings.label_dropout if self.training else 0.0
        found = drop_labels(labels, x, classes=self.classes, share=share)
        return h + self.y_embedder(found)

    def _output(self, values: Tensor, features: dict[str, Tensor]) -> BackboneOutput:
        """Patches [B, N, P P C] side by side; the channels of a pixel are neighbours in them."""
        patch, (rows, columns) = self.settings.patch, self._grid
        grid = at_least_fp32(values).reshape(-1, rows, columns, patch, patch, self._outputs)
        images = grid.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
        if not self.settings.learn_sigma:
            return BackboneOutput(images, features)
        mean, variance = images.chunk(2, dim=1)
        return BackboneOutput(mean, features, variance)
