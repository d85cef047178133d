"""Rules of the tables that measure: `[evaluate]` and `[validate]`."""

from __future__ import annotations

from collections.abc import Iterator

from advdiff_core.recipe.draft import Draft
from advdiff_core.recipe.problems import Problem

__all__ = ["check_measuring"]


def check_measuring(draft: Draft) -> Iterator[Problem]:
    """Metrics of samples have a denoiser, and validation has something to measure by."""
    yield from _measured(draft)
    yield from _validated(draft)


def _measured(draft: Draft) -> Iterator[Problem]:
    """Metrics of samples need a denoiser."""
    known = draft.models.keys() == set(draft.names.get("role", ["?"]))
    worn = any(model.parametrization != "none" for model in draft.models.values())
    if not known or worn:
        return
    for name, table in (("validate", draft.validate), ("evaluate", draft.evaluate)):
        for position, spec in enumerate(table.metrics if table is not None else ()):
            if spec.component.needs_samples:
                message = f"{spec.use!r} measures samples, and no model of this recipe is a"
                yield Problem(
                    path=(name, "metrics", position, "use"), code="R10",
                    message=f"{message} denoiser",
                    fix="take it out, or give a backbone a parametrization",
                )  # fmt: skip


def _validated(draft: Draft) -> Iterator[Problem]:
    """There are metrics, and patience lasts for a measurement."""
    table = draft.validate
    if table is None:
        return
    if not table.metrics:
        yield Problem(
            path=("validate", "metrics"), code="R11", message="nothing is measured",
            fix='name metrics, for example metrics = [{ use = "accuracy", data = ... }]',
        )  # fmt: skip
    if 0 < table.patience < table.every:
        message = f"a patience of {table.patience:,} images ends before the next measurement, after"
        yield Problem(
            path=("validate", "patience"), other=("validate", "every"), code="R10",
            message=f"{message} {table.every:,}",
            fix=f"write at least {table.every}, or 0 for none",
        )  # fmt: skip
