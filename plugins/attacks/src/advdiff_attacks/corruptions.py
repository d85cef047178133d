"""Common corruptions as lasting damage of data, and the accuracy of a classifier under them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor

from advdiff_attacks.common_corruptions import CORRUPTIONS, corrupt_image
from advdiff_attacks.faults import refusal
from advdiff_core import Build
from advdiff_core.draws import keyed_generator, permutation
from advdiff_core.interfaces.dataset import Corruption
from advdiff_core.settings import setting, settings

__all__ = ["CommonCorruption", "damaged"]


@settings
class _Keys:
    """Keys of every kind."""

    severity: int = setting(3, ge=1, le=5, help="1 (hardly seen) to 5")
    fraction: float = setting(1.0, ge=0, le=1, help="share of the samples that are damaged")
    seed: int = setting(0, ge=0, help="chooses the samples and their damage; the run's does not")


@functools.cache
def _settings_of(variant: str) -> type[Any]:
    body = {"variant": variant, "__doc__": f'Keys of `use = "common:{variant}"`.'}
    return attrs.make_class(
        "Settings", {}, bases=(_Keys,), frozen=True, kw_only=True, class_body=body
    )


class CommonCorruption(Corruption):
    """Noise, blur, weather and digital damage of images (Hendrycks and Dietterich 2019, section 3).

    `common:gaussian-noise`, `common:jpeg` and so on, with the constants of CIFAR-10-C; computed
    here, so near that benchmark's files and not the same.
    """

    variants: ClassVar[str | None] = "kind of damage, for example common:gaussian-noise"
    images_only: ClassVar[bool] = True

    @classmethod
    def variant_names(cls) -> tuple[str, ...]:
        """Every kind."""
        return tuple(CORRUPTIONS)

    @classmethod
    def settings_type(cls, variant: str | None) -> type[Any]:
        """The keys of a kind.

        Raises:
            ValueError: If there is no such kind.
        """
        if variant not in CORRUPTIONS:
            message = f"there is no common corruption {variant!r}; there are "
            raise ValueError(message + ", ".join(CORRUPTIONS))
        return _settings_of(variant)

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        data, kind = build.data, CORRUPTIONS[settings.variant]
        assert data is not None, "a corruption is built after its dataset"
        name = f"common:{settings.variant}"
        if not data.is_image or data.domain is None:
            message = f'"{name}" needs images with a range of values'
            raise refusal(build, "use", message, "use it on images")
        if kind.channels and data.shape[0] not in kind.channels:
            wanted = " or ".join(map(str, kind.channels))
            message = f'"{name}" needs {wanted} channels, the images have {data.shape[0]}'
            raise refusal(build, "use", message, "use another corruption")
        self._domain = data.domain
        self._hit = torch.zeros(data.count, dtype=torch.bool)
        order = permutation(data.count, name, settings.seed, "which")
        self._hit[order[: round(settings.fraction * data.count)]] = True

    def corrupt(self, x: Tensor, indices: Tensor) -> Tensor:
        """Damaged copies; see `Corruption.corrupt`."""
        mask = self.affected(indices)
        out = x.clone()
        if bool(mask.any()):
            unit = (x[mask] - self._domain.low) / self._domain.span
            made = damaged(
                unit, self.settings.variant, self.settings.severity,
                ids=indices[mask].tolist(), seed=self.settings.seed,
            )  # fmt: skip
            out[mask] = (self._domain.low + self._domain.span * made).to(x.dtype)
        return out

    def affected(self, indices: Tensor) -> Tensor:
        """See `Corruption.affected`."""
        return self._hit[indices.cpu()].to(indices.device)


def damaged(x: Tensor, name: str, severity: int, *, ids: Sequence[object], seed: int) -> Tensor:
    """Images [B, C, H, W] in [0, 1], each damaged by numbers keyed by its identity.

    Args:
        x: Images [B, C, H, W], values in [0, 1].
        name: Kind of damage.
        severity: 1 to 5; the random numbers are the same for all.
        ids: Identity of each image: its index, or a hash.
        seed: Chooses the numbers.
    """
    made = [
        corrupt_image(one, name, severity, keyed_generator("common", name, seed, number))
        for one, number in zip(x.detach().float().cpu(), ids, strict=True)
    ]
    return torch.stack(made).to(x.device)
