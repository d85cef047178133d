"""Denoisers of the library diffusers: `diffusers:<class>`."""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from advdiff_backbones.classifier import image_shape, refusal
from advdiff_backbones.diffusers_guidance import add_guidance, guidance_features
from advdiff_backbones.diffusers_kinds import ALIASES, KINDS, Conditions, Kind
from advdiff_backbones.diffusers_load import load_net
from advdiff_backbones.hooked_taps import HookedTaps, Pick, Stopped, first_tensor
from advdiff_backbones.prompts import FRAME, Prompts
from advdiff_core.errors import nearest
from advdiff_core.interfaces.backbone import Backbone, BackboneOutput, check_taps
from advdiff_core.interfaces.component import Build
from advdiff_core.math.grids import is_straight
from advdiff_core.settings import setting, settings
from advdiff_core.types import DataInfo, TapInfo

__all__ = ["DiffusersFamily", "Lora"]

#: Pixels of a picture for one of its latents, in the autoencoders of Stable Diffusion.
LATENT = 8

#: A value in `config`, the table of constructor arguments.
Value = bool | int | float | str | tuple[bool | int | float | str, ...]


@settings
class Lora:
    """Low-rank adapters (Hu et al. 2022), by the library peft: they alone are trained."""

    rank: int = setting(8, help="rank of the added matrices", ge=1)
    alpha: int = setting(8, help="their scale is alpha / rank", ge=1)
    targets: tuple[str, ...] = setting(
        ("to_q", "to_k", "to_v", "to_out.0"), help="ends of the names of the layers to adapt"
    )


class DiffusersFamily(Backbone):
    """A denoiser of diffusers: UNet2DModel, UNet2DConditionModel, DiT, SD3.

    The network is diffusers' own, from a folder or hub repository (`path`), or new from the
    arguments of its class (`config`); its tensors are named `net.<diffusers' name>`. Labels become
    class labels; for networks that read text they choose a prompt embedding, learned or from a
    file. The noise level becomes diffusers' timestep: the lowest of the schedule is step 0; for SD3
    on straight paths it is 1,000 t. Taps:
    `down_blocks.<n>`, `mid_block`, `up_blocks.<n>` or `transformer_blocks.<n>`, and any further
    module named in `extra_taps`.

    Attributes:
        supports_double_backward: False unless `attention_kernel = "math"`.
    """

    frame: Tensor | None
    variants: ClassVar[str | None] = "UNet2DModel, UNet2DConditionModel, DiT or SD3"

    @settings
    class Settings:
        """Keys of `use = "diffusers:<class>"`."""

        path: str = setting("", help="folder or hub repository with config.json and weights")
        subfolder: str = setting("", help="folder inside of `path`, for example unet")
        pretrained: bool = setting(True, help="take the weights in `path`; false: its shape alone")
        config: dict[str, Value] = setting(
            factory=dict, help="arguments of the class, for a new network; in place of `path`"
        )
        conditional: bool = setting(False, help="tell the labels; else they are ignored")
        label_dropout: float = setting(
            0.0, help="share of labels replaced by `no label` in training", ge=0, le=1
        )
        prompts: Path | None = setting(
            None, help="safetensors with `prompts` [K + 1, N, D] (and `pooled`); none: learned"
        )
        tokens: int = setting(1, help="tokens of a learned prompt", ge=1)
        frame: tuple[int, ...] = setting(
            (), help="what SDXL is told of every picture: its height and width, top and left of "
            "the crop, height and width wanted; empty: 8 times the latents, uncut", unit="pixels",
        )  # fmt: skip
        guided: bool = setting(
            False, help="tell the strength of guidance, as LCM does; a network that has it anyway "
            "(time_cond_proj_dim) is told",
        )  # fmt: skip
        lora: Lora | None = setting(None, help="adapters that are trained in place of the network")
        extra_taps: tuple[str, ...] = setting((), help="paths of further modules to tap")
        attention_kernel: str = setting(
            "fused", help="fused: torch's fast one; math: allows second derivatives",
            choices=("fused", "math"),
        )  # fmt: skip
        checkpoint_blocks: bool = setting(
            False, help="recompute each block in the backward: less memory, a third more time"
        )

        def __attrs_post_init__(self) -> None:
            """Refuse a frame of another length.

            Raises:
                ValueError: If there are neither none nor six numbers.
            """
            if len(self.frame) not in (0, FRAME):
                raise ValueError(f"frame: found {len(self.frame)} numbers, wanted {FRAME} or none")

        @property
        def brings_weights(self) -> bool:
            """Whether the network is trained already: a recipe is then not warned of it."""
            return bool(self.path) and self.pretrained

    @classmethod
    def settings_type(cls, variant: str | None) -> type[Any]:
        """The settings of one class.

        Raises:
            ValueError: If it is none of the four; the message gives the nearest name.
        """
        name = ALIASES.get(variant or "", variant or "")
        if name not in KINDS:
            near = nearest(variant or "", [*KINDS, *ALIASES])
            hint = f"did you mean {near!r}? " if near else ""
            raise ValueError(f"no class {variant!r}; {hint}there are {', '.join(KINDS)}")
        return _settings_of(variant or "")

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        self.kind = KINDS[ALIASES.get(settings.variant, settings.variant)]
        self._levels = _levels(self.kind, build)
        image_shape(build, f"diffusers:{settings.variant}")
        assert build.data is not None, "image_shape refuses that"
        self._known = build.data.classes if settings.conditional else 0
        self.net = load_net(self.kind, settings, build)
        self._null = _null_label(self.kind, self.net, self._known, build)
        self.classes = self._known
        self.guided, self.added = add_guidance(self.kind, self.net, settings, build)
        self.register_buffer("frame", _frame(self.net, settings, build), persistent=False)
        self.prompts = Prompts(self.kind, self.net, self._known, settings, build)
        if settings.lora is not None:
            _add_lora(self.net, settings.lora, build)
        if settings.checkpoint_blocks:
            self.net.enable_gradient_checkpointing()
        self._catch = HookedTaps()
        picks = _picks(self.kind, self.net, settings.extra_taps, build)
        self._catch.attach(self.net, picks)
        self._taps = self._probe(tuple(picks), build.data)
        self.supports_double_backward = settings.attention_kernel == "math"

    @property
    def draws_random(self) -> bool:
        """True with dropout of features or labels."""
        return self.settings.label_dropout > 0 or super().draws_random

    @property
    def taps(self) -> Mapping[str, TapInfo]:
        """Blocks and `extra_taps`, in forward order."""
        return dict(self._taps)

    def forward(  # noqa: PLR0913 - one forward of a network.
        self,
        x: Tensor,
        c_noise: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        taps: tuple[str, ...] = (),
        stop_at: str | None = None,
        guidance: Tensor | None = None,
    ) -> BackboneOutput:
        """Run the network on images `x` [B, C, H, W]; see `Backbone.forward`. Output in fp32."""
        wanted = taps if stop_at is None else (*taps, stop_at)
        check_taps(wanted, tuple(self._taps), self.build.path)
        told = self._told(x, c_noise, labels, guidance)
        with self._catch.catching(taps, stop_at) as found, self._kernel():
            try:
                out = self.kind.call(self.net, x, told)
            except Stopped:
                return BackboneOutput(None, found)
        out = out.float() if out.dtype.itemsize < 4 else out
        channels = x.shape[1]
        variance = out[:, channels:] if out.shape[1] == 2 * channels else None
        return BackboneOutput(out[:, :channels], found, variance)

    def translate(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Weights under diffusers's own names, any shape, renamed `net.<name>`."""
        own = self.net.state_dict()
        return {f"net.{name}" if name in own else name: t for name, t in state.items()}

    def _told(
        self,
        x: Tensor,
        c_noise: Tensor | None,
        labels: Tensor | None,
        guidance: Tensor | None = None,
    ) -> Conditions:
        low, high = self._levels
        first, last = self.kind.timesteps
        slope = (last - first) / (high - low) if high > low else 0.0
        level = x.new_full((x.shape[0],), low) if c_noise is None else c_noise
        chosen = self._labels(labels, x)
        prompts, pooled = self.prompts(chosen)
        strength = torch.zeros_like(level) if guidance is None else guidance
        return Conditions(
            timestep=first + slope * (level.float() - low), labels=chosen, prompts=prompts,
            pooled=pooled, frame=None if self.frame is None else self.frame.expand(len(x), -1),
            guidance=guidance_features(self.net, strength) if self.guided else None,
        )  # fmt: skip

    def _labels(self, labels: Tensor | None, x: Tensor) -> Tensor:
        count = x.shape[0]
        if labels is None or not self._known:
            return torch.full((count,), self._null, dtype=torch.int64, device=x.device)
        if not self.training or not self.settings.label_dropout:
            return labels
        dropped = torch.rand(count, device=x.device) < self.settings.label_dropout
        return torch.where(dropped, self._null, labels)

    def _kernel(self) -> AbstractContextManager[Any]:
        plain = self.settings.attention_kernel == "math"
        return sdpa_kernel(SDPBackend.MATH) if plain else nullcontext()

    def _probe(self, names: tuple[str, ...], data: DataInfo) -> dict[str, TapInfo]:
        """The taps in forward order with their shapes, found without computing anything.

        Raises:
            RecipeError: R10 if the network cannot take the data.
        """
        self._taps = dict.fromkeys(names, TapInfo(width=1))
        state = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        ghosts = {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}
        x = torch.empty((2, *data.shape), device="meta")
        training = self.training
        try:
            with torch.no_grad():
                found = functional_call(self.eval(), ghosts, (x,), {"taps": names})
        except (RuntimeError, ValueError, AttributeError, TypeError, IndexError) as error:
            text = " ".join(str(error).split())
            raise refusal(
                self.build, "use", f"diffusers:{self.settings.variant} cannot take data of shape "
                f"{list(data.shape)}: {text}", fix="change its config, or the size of the data",
            ) from error  # fmt: skip
        self.train(training)
        return {name: _info(feature) for name, feature in found.features.items()}


def _levels(kind: Kind, build: Build) -> tuple[float, float]:
    """The noise levels that are the ends of the network's range of timesteps."""
    low, high = build.c_noise
    schedule = build.schedule if kind.continuous else None
    by_time = schedule is not None and math.isclose(high, 1000.0)
    if schedule is None or not by_time or not is_straight(schedule):
        return low, high
    # Those of t = 0 and t = 1, between which training may end.
    return 0.0, high / schedule.t_max


@functools.cache
def _settings_of(variant: str) -> type[Any]:
    body = {"variant": variant, "__doc__": f'Keys of `use = "diffusers:{variant}"`.'}
    return attrs.make_class(
        "Settings", {}, bases=(DiffusersFamily.Settings,), frozen=True, kw_only=True,
        class_body=body,
    )  # fmt: skip


def _frame(net: Any, config: Any, build: Build) -> Tensor | None:
    """What the network is told of every picture's frame [1, 6]; None unless it asks, as SDXL does.

    Raises:
        RecipeError: R10 if it is told and does not ask.
    """
    asks = net.config.get("addition_embed_type") == "text_time"
    if config.frame and not asks:
        message = "this network is told nothing of a picture's frame"
        raise refusal(build, "frame", message, fix="remove the key; it is one of SDXL's")
    if not asks:
        return None
    assert build.data is not None, "a backbone is built after the data"
    height, width = (LATENT * side for side in build.data.shape[1:])
    return torch.tensor([config.frame or (height, width, 0, 0, height, width)]).float()


def _null_label(kind: Kind, net: Any, known: int, build: Build) -> int:
    """The number that stands for "no label".

    Raises:
        RecipeError: R10 if the network knows no labels, or fewer than there are.
    """
    if not kind.label_key:
        return known
    entries = net.config[kind.label_key] or 0
    if kind.null_inside:
        entries += 1
    if known and entries < known + 1:
        raise refusal(
            build, "conditional", f"the data have {known} classes, but the network has {entries} "
            "class embeddings, that of no label included",
            fix=f"take a network with {kind.label_key} for {known} classes, or conditional = false",
        )  # fmt: skip
    return max(entries - 1, 0)


def _picks(kind: Kind, net: nn.Module, extra: tuple[str, ...], build: Build) -> dict[str, Pick]:
    paths = [path for path, _ in net.named_modules() if path]
    found = {
        path: pick
        for path in paths
        for prefix, pick in kind.blocks.items()
        if path == prefix or (path.startswith(prefix) and path[len(prefix) :].isdigit())
    }
    for path in extra:
        if path not in paths:
            near = nearest(path, paths)
            raise refusal(
                build, "extra_taps", f"the network has no module {path!r}",
                fix=f"did you mean {near!r}?" if near else f"it has {', '.join(paths[:5])}, ...",
            )  # fmt: skip
        found.setdefault(path, first_tensor)
    return found


def _add_lora(net: nn.Module, config: Lora, build: Build) -> None:
    """Freeze the network and add adapters.

    Raises:
        RecipeError: R10 if there is no layer of those names.
    """
    if importlib.util.find_spec("peft") is None:
        raise refusal(
            build, "lora", "adapters need the library peft, which is not installed",
            fix='pip install "advdiff-backbones[diffusers]"',
        )  # fmt: skip
    from peft import LoraConfig, inject_adapter_in_model

    wanted = LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=list(config.targets))
    try:
        inject_adapter_in_model(wanted, net)
    except ValueError as error:
        raise refusal(
            build, "lora.targets", " ".join(str(error).split()),
            fix="write ends of names of its linear or convolutional layers",
        ) from error  # fmt: skip


def _info(tensor: Tensor) -> TapInfo:
    if tensor.dim() == 4:
        return TapInfo(width=tensor.shape[1], size=(tensor.shape[2], tensor.shape[3]))
    return TapInfo(width=tensor.shape[-1], size=tuple(tensor.shape[1:-1]))
