"""Text encoders of pipelines of diffusers, run once: Stable Diffusion 1 and 2, XL, and 3."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from advdiff_core.errors import UsageError

__all__ = ["Encoded", "Encoder", "encoder_of"]

#: Tokens that T5 reads, as the pipeline of Stable Diffusion 3 has them.
T5_TOKENS = 256
#: Classes that are read from a pipeline, by the name it gives them.
READ = ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel")
INSTALL = 'pip install "advdiff-backbones[diffusers]"'


class Encoded(NamedTuple):
    """Embeddings of texts, in float32.

    Attributes:
        prompts: Of the tokens [K, N, D].
        pooled: Of the whole texts [K, P], for networks that read them; else None.
    """

    prompts: Tensor
    pooled: Tensor | None = None


#: From texts to their embeddings; the empty text may be one of them.
Encoder = Callable[[list[str]], Encoded]


def encoder_of(model: str, *, t5: bool = True) -> Encoder:
    """The text encoders of a pipeline, as one function.

    Args:
        model: Folder or hub repository of Stable Diffusion 1, 2, XL or 3.
        t5: Of Stable Diffusion 3, run its largest encoder, too; without it its tokens are zeros,
            as the pipeline has them without that encoder.

    Raises:
        UsageError: If a library is missing, or nothing can be read there.
    """
    try:
        import transformers  # noqa: F401 - here to be missed in time.
        from diffusers import DiffusionPipeline
    except ImportError as error:
        message = "this needs the libraries transformers and diffusers"
        raise UsageError(message, where="MODEL", fix=INSTALL) from error
    # A folder of the two parts alone is one of Stable Diffusion 1 or 2.
    local = Path(model)
    bare = local.is_dir() and not (local / "model_index.json").exists()
    index: Mapping[str, Any] = {} if bare else _read(model, DiffusionPipeline.load_config, model)
    parts = _Parts(model, index)
    if _held(index, "text_encoder_3") or _held(index, "tokenizer_3"):
        return _Three(parts, t5=t5)
    return _XL(parts) if _held(index, "text_encoder_2") else _One(parts)


def _held(index: Mapping[str, Any], name: str) -> bool:
    """Whether a pipeline has a part; an absent one is a pair of null."""
    return bool(index.get(name) and index[name][-1])


def _read(model: str, make: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What `make` reads of a pipeline.

    Raises:
        UsageError: If it cannot.
    """
    try:
        return make(*args, **kwargs)
    except (OSError, ValueError) as error:
        text = " ".join(str(error).split())
        message = f"cannot read tokenizer and text_encoder of {model}: {text}"
        fix = "write the folder or hub repository of Stable Diffusion 1, 2, XL or 3"
        raise UsageError(message, where="MODEL", fix=fix) from error


class _Parts:
    """Reads tokenizers and text encoders of a pipeline.

    Args:
        model: Folder or hub repository.
        index: What its `model_index.json` says.
    """

    def __init__(self, model: str, index: Mapping[str, Any]) -> None:
        self.model, self.index = model, index

    def pair(self, end: str) -> tuple[Any, Any]:
        """Tokenizer and encoder whose names end in "", "_2" or "_3".

        Raises:
            UsageError: If they cannot be read, or are of a class that is not known.
        """
        import transformers

        name = (self.index.get(f"text_encoder{end}") or (None, "CLIPTextModel"))[-1]
        if name not in READ:
            message = f"text_encoder{end} of {self.model} is a {name}"
            fix = f"take a pipeline whose text encoders are {', '.join(READ)}"
            raise UsageError(message, where="MODEL", fix=fix)
        words: Any = getattr(transformers, "T5TokenizerFast" if end == "_3" else "CLIPTokenizer")
        encoder: Any = getattr(transformers, name)
        tokenizer = self._part(words.from_pretrained, f"tokenizer{end}")
        net = self._part(encoder.from_pretrained, f"text_encoder{end}", use_safetensors=True)
        return tokenizer, net.eval()

    def _part(self, make: Callable[..., Any], subfolder: str, **how: Any) -> Any:
        return _read(self.model, make, self.model, subfolder=subfolder, **how)


class _Texts(ABC):
    """Encoders of a pipeline.

    Args:
        parts: Its parts.
    """

    def __init__(self, parts: _Parts) -> None:
        self.parts = parts

    @abstractmethod
    def __call__(self, texts: list[str]) -> Encoded:
        """Embeddings of `texts`; what is longer than the encoder reads is cut off."""


class _One(_Texts):
    """CLIP, its last hidden state (Stable Diffusion 1 and 2)."""

    def __init__(self, parts: _Parts) -> None:
        super().__init__(parts)
        self.pair = parts.pair("")

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> Encoded:
        """See `_Texts`."""
        tokenizer, net = self.pair
        return Encoded(net(_tokens(tokenizer, net, texts)).last_hidden_state.float())


class _XL(_Texts):
    """Two CLIPs, their last hidden state but one, and the projection of the second.

    Without a text there are zeros, where the pipeline says so (Stable Diffusion XL).
    """

    def __init__(self, parts: _Parts) -> None:
        super().__init__(parts)
        self.pairs = [parts.pair(""), parts.pair("_2")]
        self.zeros = bool(parts.index.get("force_zeros_for_empty_prompt", False))

    def __call__(self, texts: list[str]) -> Encoded:
        """See `_Texts`."""
        found = [_penultimate(*pair, texts) for pair in self.pairs]
        prompts, pooled = torch.cat([one.prompts for one in found], dim=-1), found[1].pooled
        assert pooled is not None, "the second encoder has a projection"
        if self.zeros:
            told = torch.tensor([float(bool(text)) for text in texts])
            prompts, pooled = prompts * told[:, None, None], pooled * told[:, None]
        return Encoded(prompts, pooled)


class _Three(_Texts):
    """Two CLIPs, padded to the width of T5, and T5 behind them (Stable Diffusion 3).

    Args:
        parts: Its parts.
        t5: Run T5; else its tokens are zeros.
    """

    def __init__(self, parts: _Parts, *, t5: bool) -> None:
        super().__init__(parts)
        self.pairs = [parts.pair(""), parts.pair("_2")]
        self.third = parts.pair("_3") if t5 and _held(parts.index, "text_encoder_3") else None
        self.width = 0 if self.third else self._width()

    def _width(self) -> int:
        """Width of the tokens that its transformer reads."""
        from diffusers import SD3Transformer2DModel

        model = self.parts.model
        found = _read(model, SD3Transformer2DModel.load_config, model, subfolder="transformer")
        return int(found["joint_attention_dim"])

    def __call__(self, texts: list[str]) -> Encoded:
        """See `_Texts`."""
        found = [_penultimate(*pair, texts) for pair in self.pairs]
        prompts = torch.cat([one.prompts for one in found], dim=-1)
        last = self._last(texts)
        padded = F.pad(prompts, (0, last.shape[-1] - prompts.shape[-1]))
        pooled = torch.cat([one.pooled for one in found if one.pooled is not None], dim=-1)
        return Encoded(torch.cat([padded, last], dim=1), pooled)

    @torch.no_grad()
    def _last(self, texts: list[str]) -> Tensor:
        if self.third is None:
            return torch.zeros(len(texts), T5_TOKENS, self.width)
        tokenizer, net = self.third
        tokens = tokenizer(
            texts, padding="max_length", truncation=True, max_length=T5_TOKENS, return_tensors="pt"
        )
        embedded: Tensor = net(tokens.input_ids)[0].float()
        return embedded


@torch.no_grad()
def _penultimate(tokenizer: Any, net: Any, texts: list[str]) -> Encoded:
    """The last hidden state but one, and the projection of the whole where the encoder has one."""
    out = net(_tokens(tokenizer, net, texts), output_hidden_states=True)
    pooled = getattr(out, "text_embeds", None)
    return Encoded(out.hidden_states[-2].float(), None if pooled is None else pooled.float())


def _tokens(tokenizer: Any, net: Any, texts: list[str]) -> Tensor:
    found: Tensor = tokenizer(
        texts, padding="max_length", truncation=True,
        max_length=net.config.max_position_embeddings, return_tensors="pt",
    ).input_ids  # fmt: skip
    return found
