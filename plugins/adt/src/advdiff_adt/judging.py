"""What the terms of both players share: who judges, how images are augmented, form of the loss."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from advdiff_adt.augment import POLICIES, DiffAugmented
from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.query import Query
from advdiff_core.interfaces.requirements import refuse
from advdiff_core.settings import setting, settings
from advdiff_core.step.queries import Scores
from advdiff_core.types import Domain

__all__ = ["JudgeSettings", "judged", "scores_of"]


@settings
class JudgeSettings:
    """Keys of a term that has images judged."""

    judge: str = setting("discriminator", ref="role", help="discriminator that scores the images")
    loss: Literal["hinge", "logistic", "linear"] = setting(
        "hinge", help="form of both players' loss; the paper does not say which (ours: hinge)"
    )
    scale: float = setting(
        1.0, gt=0.0, help="factor of the scores before the logistic form",
        applies=("loss", ("logistic",)),
    )  # fmt: skip
    augment: tuple[str, ...] = setting(
        POLICIES, choices=POLICIES,
        help="what is done at random to all that the discriminator sees; [] for nothing",
    )  # fmt: skip


def scores_of(
    settings: JudgeSettings,
    build: Build,
    of: Query[Tensor],
    reference: Query[Tensor],
    *,
    domain: Domain | None,
) -> Scores:
    """The scores of images, the same query wherever the same is asked for.

    Args:
        settings: Who judges, and how images are augmented.
        build: What the asking term is told.
        of: Images that are judged [B, C, H, W].
        reference: Real images that siamese kinds compare them with, augmented on their own.
        domain: Range of the images; None for data that are no images.

    Raises:
        RecipeError: R10 if the judge is no discriminator, or if what is no image is augmented.
    """
    found = judged(settings, build, of, "judged", domain=domain)
    against = judged(settings, build, reference, "reference", domain=domain)
    return Scores(settings.judge, found, against)


def judged(
    settings: JudgeSettings, build: Build, of: Query[Tensor], stream: str, *, domain: Domain | None
) -> Query[Tensor]:
    """Images as the discriminator sees them: augmented, unless nothing is to be done.

    Args:
        settings: Who judges, and how images are augmented.
        build: What the asking term is told.
        of: The images [B, C, H, W].
        stream: Stream of the random numbers.
        domain: Range of the images; None for data that are no images.

    Raises:
        RecipeError: R10 if the judge is no discriminator, or if what is no image is augmented.
    """
    kind = build.models[settings.judge].kind
    if kind != "discriminator":
        fix = f'write kind = "discriminator" in models.{settings.judge}, or name another role'
        refuse(build, "judge", f"model {settings.judge!r} is a {kind}", fix)
    if not settings.augment:
        return of
    if domain is None:
        refuse(build, "augment", "the data are no images with a range", "write augment = []")
    assert domain is not None
    return DiffAugmented(of, settings.augment, domain, stream)
