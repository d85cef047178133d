"""Any classifier of timm, with taps: `timm:<name>`."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from advdiff_backbones.classifier import Normalize, image_shape, refusal
from advdiff_backbones.timm_weights import check_whole
from advdiff_core.errors import DataError, RecipeError, nearest
from advdiff_core.interfaces.backbone import Backbone, BackboneOutput, check_taps
from advdiff_core.interfaces.component import Build
from advdiff_core.settings import setting, settings
from advdiff_core.types import TapInfo

__all__ = ["TimmFamily"]

#: Layers of timm that draw in train mode and are no dropout layers of torch.
DRAWING = ("DropPath", "PatchDropout", "PatchDropoutWithIndices", "DropBlock2d")


class TimmFamily(Backbone):
    """Any classifier of timm by name, for example `timm:vit_base_patch16_dinov3.lvd1689m`.

    The network is timm's own; its tensors are named `net.<timm's name>`. Taps: `block.<n>`, the
    intermediates that timm itself gives (tokens [B, N, D] of a transformer without its class and
    register tokens, stages [B, C, H, W] of a convolutional network), `features`, the output of
    timm's `forward_features` with all tokens, and `pooled` [B, D], what the last layer reads.

    Attributes:
        supports_double_backward: False where an attention layer uses torch's fused kernel.
    """

    variants: ClassVar[str | None] = (
        "name of a model in timm, for example timm:convnext_base or timm:vit_base_patch16_224"
    )

    @settings
    class Settings:
        """Keys of `use = "timm:<name>"`."""

        pretrained: bool = setting(False, help="take timm's weights, from its cache or the network")
        weights: Path | None = setting(
            None, help="a .safetensors file with weights of this model, in place of the network's"
        )
        image_size: int = setting(
            0, help="size the model works at; images are resized to it; 0: that of the data", ge=0,
            unit="pixels",
        )  # fmt: skip
        patch_size: int = setting(
            0, help="size of a transformer's patches; 0: the model's own", ge=0, unit="pixels"
        )
        dropout: float = setting(0.0, help="share of features dropped before the head", ge=0, lt=1)
        drop_path: float = setting(
            0.0, help="share of residual branches dropped (stochastic depth)", ge=0, lt=1
        )
        attention_kernel: str = setting(
            "fused", help="fused: torch's fast one; math: allows second derivatives",
            choices=("fused", "math"),
        )  # fmt: skip
        checkpoint_blocks: bool = setting(
            False, help="recompute each block in the backward: less memory, a third more time"
        )
        mean: tuple[float, ...] = setting(
            (), help="subtracted from the image, on the [0, 1] scale; empty: the model's own"
        )
        std: tuple[float, ...] = setting(
            (), help="divides the image, on the [0, 1] scale; empty: the model's own", gt=0
        )
        outputs: int = setting(
            0, help="logits; 0: as many as the data have classes, else the model's own", ge=0
        )

        @property
        def brings_weights(self) -> bool:
            """True unless it starts from random weights."""
            return self.pretrained or self.weights is not None

    @classmethod
    def settings_type(cls, variant: str | None) -> type[Any]:
        """The settings of one model.

        Raises:
            ValueError: If timm has no such model; the message gives the nearest name.
        """
        complaint = _unknown(variant or "")
        if complaint:
            raise ValueError(complaint)
        return _settings_of(variant or "")

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        channels, *size = image_shape(build, f"timm:{settings.variant}")
        self._data_size = (size[0], size[1])
        wanted = settings.image_size
        self._size = (wanted, wanted) if wanted else self._data_size
        self.net = _make(settings, build, channels, self._size)
        config = self.net.pretrained_cfg
        mean = settings.mean or _numbers(config["mean"], channels)
        std = settings.std or _numbers(config["std"], channels)
        self.normalize = Normalize(build, mean, std, channels)
        _choose_kernel(self.net, settings.attention_kernel)
        if settings.checkpoint_blocks:
            self.net.set_grad_checkpointing(True)
        try:
            self._layout, self._taps = _probe(self.net, (1, channels, *self._size))
        except (AssertionError, RuntimeError) as error:
            raise _refused(settings, build, error) from error
        self._blocks = tuple(name for name in self._taps if name.startswith("block."))
        fused = any(getattr(part, "fused_attn", False) for part in self.net.modules())
        self.supports_double_backward = not fused

    @property
    def draws_random(self) -> bool:
        """True if dropout, in any of timm's forms, drops anything in train mode."""
        drawing = any(type(part).__name__ in DRAWING for part in self.net.modules())
        return drawing or bool(getattr(self.net, "drop_rate", 0.0)) or super().draws_random

    @property
    def taps(self) -> Mapping[str, TapInfo]:
        """Blocks or stages, the last features, and what the last layer reads."""
        return dict(self._taps)

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        taps: tuple[str, ...] = (),
        stop_at: str | None = None,
    ) -> BackboneOutput:
        """Logits [B, K] of images `x` [B, C, H, W]; see `Backbone.forward`. Output in fp32."""
        del c_noise, labels
        wanted = taps if stop_at is None else (*taps, stop_at)
        check_taps(wanted, tuple(self._taps), self.build.path)
        found: dict[str, Tensor] = {}
        out: Tensor | None = None
        for name, value in self._parts(self._entering(x), wanted, stop_at):
            if name == "logits":
                out = value.float() if value.dtype.itemsize < 4 else value
            elif name in taps:
                found[name] = value
        return BackboneOutput(out, found)

    def translate(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Weights under timm's own names, any shape, as this network names them: `net.<name>`."""
        own = self.net.state_dict()
        return {f"net.{name}" if name in own else name: t for name, t in state.items()}

    def _entering(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] of the model's size, normalised."""
        if self._size != self._data_size:
            x = F.interpolate(
                x, self._size, mode="bilinear", align_corners=False, antialias=True
            )  # fmt: skip
        normal: Tensor = self.normalize(x)
        return normal

    def _parts(
        self, x: Tensor, wanted: tuple[str, ...], stop_at: str | None
    ) -> Iterator[tuple[str, Tensor]]:
        """Tensors by name, in forward order, no further than `stop_at`."""
        numbers = [n for n, name in enumerate(self._blocks) if name in wanted]
        if stop_at in self._blocks:
            numbers = [n for n in numbers if n <= self._blocks.index(stop_at)]
            found = self.net.forward_intermediates(
                x, indices=numbers, output_fmt=self._layout, stop_early=True,
                intermediates_only=True,
            )  # fmt: skip
            yield from zip((self._blocks[n] for n in numbers), found, strict=True)
            return
        if numbers:
            last, found = self.net.forward_intermediates(
                x, indices=numbers, output_fmt=self._layout
            )
            yield from zip((self._blocks[n] for n in numbers), found, strict=True)
        else:
            last = self.net.forward_features(x)
        if "features" in wanted:
            yield "features", _channels_first(self.net, last)
        if stop_at == "features":
            return
        if "pooled" in wanted:
            yield "pooled", self.net.forward_head(last, pre_logits=True)
        if stop_at != "pooled":
            # Not the last layer applied to the pooled features: some models add a second head.
            yield "logits", self.net.forward_head(last)


def _unknown(variant: str) -> str:
    """Why timm has no model of this name; "" if it has."""
    import timm

    name, _, tag = variant.partition(".")
    known = timm.list_models()
    if name not in known:
        near = nearest(name, known)
        hint = f"; did you mean {near!r}?" if near else ""
        return f"timm has no model {name!r}{hint}"
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")]
    if tag and tag not in tags:
        near = nearest(tag, tags) or ", ".join(tags) or "none"
        return f"timm has no weights {tag!r} for {name!r}; there are {near}"
    return ""


@functools.cache
def _settings_of(variant: str) -> type[Any]:
    body = {"variant": variant, "__doc__": f'Keys of `use = "timm:{variant}"`.'}
    return attrs.make_class(
        "Settings", {}, bases=(TimmFamily.Settings,), frozen=True, kw_only=True, class_body=body
    )


def _make(config: Any, build: Build, channels: int, size: tuple[int, int]) -> Any:
    """The model as timm makes it.

    Raises:
        DataError: D01 if its weights cannot be had.
        RecipeError: R10 if timm refuses a setting.
    """
    import timm

    options = _options(config, build, channels, size)
    if config.weights is not None:
        options["pretrained_cfg_overlay"] = {"file": str(_weights_file(config, build))}
    try:
        net = timm.create_model(
            config.variant, pretrained=config.pretrained or config.weights is not None, **options
        )
    except (TypeError, AssertionError, ValueError) as error:
        raise _refused(config, build, error) from error
    except Exception as error:
        raise _no_weights(config, build, error) from error
    if config.weights is not None:
        check_whole(net, config.weights, f"{build.path}.weights")
    return net


def _options(config: Any, build: Build, channels: int, size: tuple[int, int]) -> dict[str, Any]:
    import timm

    known = timm.get_pretrained_cfg(config.variant)
    options: dict[str, Any] = {"in_chans": channels}
    outputs = config.outputs or (build.data.classes if build.data is not None else 0)
    if outputs:
        options["num_classes"] = outputs
    if known is not None and known.fixed_input_size:
        options["img_size"] = size
    given = {
        "patch_size": config.patch_size,
        "drop_rate": config.dropout,
        "drop_path_rate": config.drop_path,
    }
    return options | {name: value for name, value in given.items() if value}


def _weights_file(config: Any, build: Build) -> Path:
    path: Path = config.weights
    where = f"{build.path}.weights"
    if path.suffix != ".safetensors":
        message = f"{path.name} is no .safetensors file; other formats can run code when read"
        raise DataError(message, code="D01", where=where, fix="convert it to safetensors")
    if not path.is_file():
        fix = f"put the weights of timm:{config.variant} there, or mend the path"
        raise DataError(f"there is no file {path}", code="D01", where=where, fix=fix)
    return path


def _refused(config: Any, build: Build, error: Exception) -> RecipeError:
    text = " ".join(str(error).split())
    return refusal(
        build, "use", f"timm:{config.variant} cannot be built so: {text}",
        fix="leave out the key it names, or set image_size and patch_size to what it takes",
    )  # fmt: skip


def _no_weights(config: Any, build: Build, error: Exception) -> DataError:
    import timm

    known = timm.get_pretrained_cfg(config.variant)
    source = (known.hf_hub_id or known.url) if known is not None else None
    held = f" (held by {source})" if source else ""
    text = " ".join(str(error).split())
    fix = (
        f"put the file of timm:{config.variant}{held} on this machine and write weights = "
        '"FILE.safetensors", or connect to the network'
    )
    message = f"no weights for timm:{config.variant}: {type(error).__name__}: {text}"
    return DataError(message, code="D01", where=build.path, fix=fix)


def _numbers(known: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """A constant of the model for images of that many channels: the average for other numbers."""
    return tuple(known) if len(known) == channels else (sum(known) / len(known),)


def _choose_kernel(net: nn.Module, kernel: str) -> None:
    for part in net.modules():
        if kernel == "math" and getattr(part, "fused_attn", False):
            part.fused_attn = False  # type: ignore[assignment]


class _Reader(nn.Module):
    """Every tap of a model by name, for a look at the shapes."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> tuple[str, dict[str, Tensor]]:
        """Layout of the intermediates, and all taps [B, ...], for images `x` [B, C, H, W]."""
        layout, found = self._intermediates(x)
        last = self.net.forward_features(x)
        if isinstance(last, Tensor):
            found["features"] = _channels_first(self.net, last)
        pooled = self.net.forward_head(last, pre_logits=True)
        if isinstance(pooled, Tensor) and pooled.dim() == 2:
            found["pooled"] = pooled
        return layout, found

    def _intermediates(self, x: Tensor) -> tuple[str, dict[str, Tensor]]:
        read = getattr(self.net, "forward_intermediates", None)
        if read is None:
            return "", {}
        try:
            layout, found = "NLC", read(x, output_fmt="NLC", intermediates_only=True)
        except AssertionError:
            # Convolutional networks know images alone.
            layout, found = "NCHW", read(x, output_fmt="NCHW", intermediates_only=True)
        return layout, {f"block.{n}": value for n, value in enumerate(found)}


def _probe(net: nn.Module, shape: tuple[int, ...]) -> tuple[str, dict[str, TapInfo]]:
    """Layout of the intermediates and the taps of a model, found without computing anything."""
    training = net.training
    reader = _Reader(net).eval()
    state = {**dict(reader.named_parameters()), **dict(reader.named_buffers())}
    ghosts = {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}
    with torch.no_grad():
        layout, found = functional_call(reader, ghosts, (torch.empty(shape, device="meta"),))
    net.train(training)
    return layout, {name: _info(tensor) for name, tensor in found.items()}


def _info(tensor: Tensor) -> TapInfo:
    if tensor.dim() == 4:
        return TapInfo(width=tensor.shape[1], size=(tensor.shape[2], tensor.shape[3]))
    return TapInfo(width=tensor.shape[-1], size=tuple(tensor.shape[1:-1]))


def _channels_first(net: Any, features: Tensor) -> Tensor:
    """Features [B, C, H, W] of the few models that give [B, H, W, C]; others as they are."""
    last = features.dim() == 4 and getattr(net, "output_fmt", "NCHW") == "NHWC"
    return features.permute(0, 3, 1, 2) if last else features
