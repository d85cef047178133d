"""Prompt embeddings for networks that read text: one per class."""

from __future__ import annotations

from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from advdiff_backbones.diffusers_kinds import Kind
from advdiff_core.errors import DataError
from advdiff_core.interfaces.component import Build

__all__ = ["FRAME", "Prompts", "pooled_width"]

#: Numbers that SDXL is told of a picture's frame.
FRAME = 6


def pooled_width(config: Any) -> int:
    """Width of the pooled prompt embedding that a network reads beside the tokens; 0 for none.

    SDXL reads it together with six numbers about the frame (Podell et al. 2023, section 2.2).
    """
    if "pooled_projection_dim" in config:
        return int(config["pooled_projection_dim"])
    if config.get("addition_embed_type") == "text_time":
        whole, each = config["projection_class_embeddings_input_dim"], FRAME
        return int(whole - each * config["addition_time_embed_dim"])
    return 0


class Prompts(nn.Module):
    """A table from label to prompt embedding; its last row is that of no label.

    Learned from small random numbers, or fixed from a file that some text encoder made: text itself
    never enters a run. Empty for networks that read none.

    Args:
        kind: Class of the network.
        net: The network; gives the widths.
        known: Number of classes K.
        config: Settings with `prompts` and `tokens`.
        build: What the component is told.

    Raises:
        DataError: D01 if the file cannot be read or holds other shapes.
    """

    def __init__(self, kind: Kind, net: Any, known: int, config: Any, build: Build) -> None:
        super().__init__()
        self.register_parameter("prompts", None)
        self.register_parameter("pooled", None)
        if not kind.text:
            return
        shapes = _shapes(net, known, config.tokens)
        if config.prompts is not None:
            for name, tensor in _read(config, build, shapes).items():
                # Fixed, and part of the state: a checkpoint needs no second file.
                delattr(self, name)
                self.register_buffer(name, tensor)
            return
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(0.02 * torch.randn(shape)))

    prompts: Tensor | None
    pooled: Tensor | None

    def forward(self, labels: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Prompts [B, N, D] and pooled prompts [B, D] of `labels` [B], or None."""
        chosen = [None if t is None else t[labels] for t in (self.prompts, self.pooled)]
        return chosen[0], chosen[1]


def _shapes(net: Any, known: int, tokens: int) -> dict[str, tuple[int, ...]]:
    config = net.config
    width = config.get("joint_attention_dim") or config["cross_attention_dim"]
    pooled = pooled_width(config)
    shapes: dict[str, tuple[int, ...]] = {"prompts": (known + 1, tokens, width)}
    return {**shapes, "pooled": (known + 1, pooled)} if pooled else shapes


def _read(config: Any, build: Build, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    path, where = config.prompts, f"{build.path}.prompts"
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        text = " ".join(str(error).split())
        raise DataError(
            f"cannot read {path}: {text}", code="D01", where=where,
            fix="write the path of a safetensors file with the tensor `prompts`",
        ) from error  # fmt: skip
    for name, shape in shapes.items():
        _check(name, found.get(name), shape, f"{where} ({path})")
    return {name: found[name].float() for name in shapes}


def _check(name: str, tensor: Tensor | None, shape: tuple[int, ...], where: str) -> None:
    """Require the shape, whatever the number of tokens.

    Raises:
        DataError: D01 with what was found and wanted.
    """
    words = f"{name} [{shape[0]}, N, {shape[-1]}]" if len(shape) == 3 else f"{name} {list(shape)}"
    found = None if tensor is None else tuple(tensor.shape)
    if found is None or len(found) != len(shape) or (found[0], found[-1]) != (shape[0], shape[-1]):
        message = f"wanted {words}, found {'none' if found is None else list(found)}"
        fix = "embed one prompt per class (python -m advdiff_backbones.embed_prompts), and the "
        fix += "empty prompt as the last row"
        raise DataError(message, code="D01", where=where, fix=fix)
