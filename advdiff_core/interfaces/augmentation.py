"""Augmentations: random changes of training samples, other ones each time a sample is read."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from advdiff_core.draws import Draws
from advdiff_core.interfaces.component import Component
from advdiff_core.types import Augmented

__all__ = ["Augmentation"]


class Augmentation(Component):
    """Changes samples at random while they are trained on; `data.augment` in a recipe.

    Contract: what happens to a sample depends on the sample and its rows of `rng` alone, so that
    micro-batches, workers and processes change nothing; values stay in the domain of the data;
    inputs are not edited. Evaluation and `advdiff sample` never see an augmentation.

    Attributes:
        mixes: True if it mixes each sample with another one. It is then given whole blocks of
            `advdiff_core.draws.BLOCK` samples, finds the other one by `rng.partners()`, and returns
            labels as probabilities [B, K].
        condition_dim: How many numbers tell a denoiser what was done to a sample, so that it does
            not learn to do it itself (Karras et al., 2022, appendix F.2); 0 for none.
    """

    mixes: ClassVar[bool] = False
    condition_dim: ClassVar[int] = 0

    @abstractmethod
    def augment(self, batch: Augmented, rng: Draws) -> Augmented:
        """Changed copies.

        Args:
            batch: Samples [B, ...] in the run's domain, with labels.
            rng: Random numbers of these samples.

        Returns:
            Samples of the same shape and type; labels, changed only if it `mixes`; and
            `c_augment` [B, condition_dim], zero where nothing was done, if it has any.
        """
