"""Features of any network of timm."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from advdiff_core.errors import DataError, nearest
from advdiff_metrics.extractor import Extractor, Resized
from advdiff_metrics.files import file_digest, wanted_file

__all__ = ["TimmExtractor", "unknown_model"]

#: What timm prepares images with where it says nothing else.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class TimmExtractor(Extractor):
    """What the last layer of a timm network reads [B, D]: pooled features or the class token.

    Args:
        model: Its name in timm, with or without a tag.
        weights: A `.safetensors` file with its weights.
        pretrained: Take timm's own weights, from its cache or the network.
        random: Take random weights, always the same ones.
        size: Height and width that images are resized to; 0: the model's own.
        where: Metric that needs it.
    """

    def __init__(  # noqa: PLR0913 - one keyword per key of the recipe.
        self,
        model: str,
        *,
        weights: Path | None = None,
        pretrained: bool = False,
        random: bool = False,
        size: int = 0,
        where: str,
    ) -> None:
        self.model, self.weights, self.where = model, weights, where
        self.pretrained, self.random = pretrained, random
        self.name = re.sub(r"[^A-Za-z0-9]+", "_", model)
        self.prepare = _preparation(model, size)

    def check(self) -> None:
        """See `Extractor.check`."""
        if self.weights is not None:
            fix = f"put the weights of {self.model} there, or mend the path"
            wanted_file(self.weights, where=self.where, fix=fix)
            if self.weights.suffix != ".safetensors":
                message = f"{self.weights} is no .safetensors file; other formats can run code"
                fix = "convert it to safetensors"
                raise DataError(message, code="D02", where=self.where, fix=fix)
        elif not self.pretrained and not self.random:
            message = f"{self.model} has no weights"
            fix = 'write weights = "FILE.safetensors", or pretrained = true to fetch timm\'s'
            raise DataError(message, code="D01", where=self.where, fix=fix)

    def provenance(self) -> Mapping[str, object]:
        """See `Extractor.provenance`."""
        return {
            "features": f"{self.model} of timm, before the last layer",
            "weights": self._weights(),
            **self.prepare.provenance(),
            "dtype": "float32",
        }

    def _weights(self) -> str:
        if self.weights is not None:
            return f"sha256 {file_digest(self.weights)[:16]}"
        if self.random:
            return "RANDOM: the number compares nothing that people see"
        return f"of timm, sha256 of tensors {_tensors_digest(self.net)[:16]}"

    def load(self) -> nn.Module:
        """See `Extractor.load`."""
        import timm
        import torch

        options: dict[str, Any] = {"num_classes": 0}
        known = timm.get_pretrained_cfg(self.model)
        if known is not None and known.fixed_input_size:
            options["img_size"] = self.prepare.size
        if self.weights is not None:
            options["pretrained_cfg_overlay"] = {"file": str(self.weights)}
        torch.manual_seed(0)
        loads = self.pretrained or self.weights is not None
        try:
            net: nn.Module = timm.create_model(self.model, pretrained=loads, **options)
        except Exception as cause:
            raise self._unloadable(cause) from cause
        self._check_names(net)
        return net

    def _check_names(self, net: nn.Module) -> None:
        """Refuse a file that lacks a tensor: timm would leave it random and only log that."""
        if self.weights is None:
            return
        from safetensors import safe_open

        with safe_open(self.weights, framework="pt") as file:
            known = set(file.keys())
        missing = [name for name in net.state_dict() if name not in known]
        if missing:
            message = f"{self.weights} does not fit {self.model}: it lacks {len(missing)} tensors, "
            message += f"first {missing[0]}"
            fix = "name a file with timm's tensor names, of this model"
            raise DataError(message, code="S12", where=self.where, fix=fix)

    def _unloadable(self, cause: Exception) -> DataError:
        text = " ".join(str(cause).split())[:200]
        held = f"{self.weights} does not fit it" if self.weights else "its weights cannot be had"
        message = f"{self.model}: {held}: {type(cause).__name__}: {text}"
        fix = 'write weights = "FILE.safetensors" with the weights of this model'
        return DataError(message, code="D02", where=self.where, fix=fix)

    def extract(self, net: nn.Module, x: Tensor) -> Tensor:
        """Features [B, D] of images `x` [B, 3, H, W]; see `Extractor.extract`."""
        features: Tensor = net(self.prepare(x))
        return features.flatten(1)


def _preparation(model: str, size: int) -> Resized:
    """Resize rule and normalisation that timm states for a model."""
    import timm

    known = timm.get_pretrained_cfg(model)
    if known is None:
        return Resized(size or 224, _MEAN, _STD)
    mode = known.interpolation if known.interpolation in ("bicubic", "bilinear") else "bicubic"
    return Resized(size or known.input_size[-1], tuple(known.mean), tuple(known.std), mode)


def _tensors_digest(net: nn.Module) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def unknown_model(name: str) -> str:
    """Why timm has no model of this name; "" if it has."""
    import timm

    plain, _, tag = name.partition(".")
    known = timm.list_models()
    if plain not in known:
        near = nearest(plain, known)
        hint = f"; did you mean {near!r}?" if near else ""
        return f"timm has no model {plain!r}{hint}"
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{plain}.*")]
    if tag and tag not in tags:
        return f"timm has no weights {tag!r} for {plain!r}; there are {', '.join(tags) or 'none'}"
    return ""
