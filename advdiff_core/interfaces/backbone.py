"""The raw network."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

from advdiff_core.errors import ContractError, nearest
from advdiff_core.interfaces.module import ModuleComponent
from advdiff_core.types import TapInfo

__all__ = ["Backbone", "BackboneOutput", "check_taps"]


class BackboneOutput(NamedTuple):
    """What a forward returns.

    Attributes:
        output: Network output [B, ...]; None when the forward stopped early at a tap.
        features: Tapped tensors [B, C, H, W], [B, N, D] or [B, D] by tap name.
        variance: Raw output of a variance head, like `output`; None for networks without one.
    """

    output: Tensor | None
    features: dict[str, Tensor]
    variance: Tensor | None = None


class Backbone(ModuleComponent):
    """A network with named taps.

    As a denoiser it maps `x` [B, ...] and a noise level to an output of the same shape as `x`; what
    the output means (eps, x0, v, EDM's F) is the model's `parametrization` in the recipe, applied
    by the core. As a classifier it ignores `c_noise` and returns logits [B, K].

    Contract: the output of sample i depends on sample i alone in eval mode; `forward` draws no
    random numbers except dropout in train mode and never edits its inputs; with `stop_at` the
    features asked for equal those of the full forward and no later layer runs.
    """

    #: Length of the vector `c_augment` [B, A] that `forward` takes by that keyword: what
    #: augmentations did to each sample, zeros or None for nothing. 0 for networks not told.
    augment_dim: int = 0
    #: Classes whose labels change the output; 0 for networks that ignore them. Without labels such
    #: a network is unconditional (classifier-free guidance, Ho & Salimans 2022).
    classes: int = 0
    #: True if `forward` takes `guidance` [B] by that keyword: the strength w of classifier-free
    #: guidance that its output is to have inside, `cond + w (cond - uncond)`; None is w = 0.
    guided: bool = False
    #: True if `forward` gives a `variance`, too.
    learns_sigma: bool = False
    #: Tensors that initial weights may lack: parts added to a network that was trained without
    #: them, which start at values that change nothing.
    added: tuple[str, ...] = ()
    #: True if gradients of gradients work in every layer (fused attention breaks them).
    supports_double_backward: bool = True

    @property
    @abstractmethod
    def taps(self) -> Mapping[str, TapInfo]:
        """Named places whose tensors can be asked for, in forward order."""

    @abstractmethod
    def forward(
        self,
        x: Tensor,
        c_noise: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        taps: tuple[str, ...] = (),
        stop_at: str | None = None,
    ) -> BackboneOutput:
        """Run the network.

        Args:
            x: Input [B, ...], scaled by `c_in`.
            c_noise: Noise-level input [B]; its range is `build.c_noise`. None for classifiers.
            labels: Class labels [B], int64; None for unconditional.
            taps: Names of the features to return.
            stop_at: Return right after this tap; `output` is None then.

        Returns:
            Output [B, ...] and the tapped features.
        """

    def modulated(
        self, tap: str, features: Tensor, c_noise: Tensor | None, labels: Tensor | None
    ) -> Tensor:
        """Features at a tap as the layer after it reads them, where an adaptive norm comes first.

        Transformers of the DiT kind scale and shift normalised features by what they know of noise
        level and label before each block. Override it for such a network.

        Args:
            tap: Name of the tap.
            features: What `forward` returned for it [B, ...], or that with changes.
            c_noise: Noise-level input [B].
            labels: Class labels [B], or None.

        Raises:
            ContractError: R10 if no adaptive norm reads this tap.
        """
        del features, c_noise, labels
        raise ContractError(
            f"no adaptive norm reads the tap {tap!r}", code="R10", where=self.build.path,
            fix="ask for the features as they are",
        )  # fmt: skip

    def translate(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Weights of other programs under this network's names; `advdiff import` asks for it.

        The default leaves them as they are. Override it where a well-known program names or
        joins the same weights otherwise; leave alone what is not recognised. Prefixes that wrappers
        add are gone already. Called with tensors without numbers (device "meta") too.

        Args:
            state: Tensors by foreign name, any shape.
        """
        return state


def check_taps(names: Iterable[str], known: tuple[str, ...], where: str) -> None:
    """Refuse tap names a backbone does not have.

    Raises:
        ContractError: Naming the tap, the nearest one and all that there are.
    """
    for name in names:
        if name not in known:
            near = nearest(name, known)
            raise ContractError(
                f"no tap {name!r}; there are {', '.join(known)}",
                where=where,
                fix=f"did you mean {near!r}?" if near else "choose one of these",
            )
