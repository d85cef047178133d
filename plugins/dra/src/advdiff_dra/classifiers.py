"""What the terms of classifiers check of a recipe, and the numbers they share."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.requirements import refuse

__all__ = ["check_classifier", "classes", "divergence", "refuse", "targets"]


def check_classifier(build: Build, role: str, views: Mapping[str, str]) -> None:
    """Refuse data without labels, a role that is no classifier, and views that are no images.

    Args:
        build: What the term was built with.
        role: The model that has to be a classifier.
        views: The term's views, by the key that names them.

    Raises:
        RecipeError: R10.
    """
    model = build.models.get(role)
    if model is not None and (model.kind != "backbone" or model.parametrization != "none"):
        message = f"model {role!r} is no classifier"
        refuse(build, "role", message, 'give that model parametrization = "none"')
    if build.data is not None and build.data.classes == 0:
        refuse(build, "use", "the data have no labels", "use a dataset with classes")
    for key, name in views.items():
        view = build.views.get(name)
        if view is not None and view.root != "image":
            message = f"{name!r} is a view of noised samples, not of images"
            refuse(build, key, message, "name the view image, or one made from it")


def targets(y: Tensor | None) -> Tensor:
    """Labels for `F.cross_entropy`: classes [B], or probabilities [B, K] of mixed samples."""
    assert y is not None, "checked against the dataset's description"
    return y if y.dim() == 2 else y.to(torch.int64)


def classes(y: Tensor | None) -> Tensor:
    """True classes [B]; of a mixed sample that of the larger part."""
    found = targets(y)
    return found.argmax(dim=1) if found.dim() == 2 else found


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) [B] of two softmax distributions, given as logits [B, K]."""
    before, after = p.log_softmax(1), q.log_softmax(1)
    return (before.exp() * (before - after)).sum(1)
