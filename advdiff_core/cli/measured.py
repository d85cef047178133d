"""Numbers of an evaluation on the command line, never without their protocol."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from advdiff_core.cli.output import table

__all__ = ["measured", "measured_json"]

#: Of `evaluation.json`, what belongs to its numbers.
_PARTS = ("metrics", "repeats", "owners", "protocols")


def measured(evaluation: Mapping[str, Any]) -> str:
    """The metrics by protocol, each group followed by its protocol; "" if there are none.

    Args:
        evaluation: Content of `evaluation.json`.
    """
    from advdiff_core.report.measures import groups_of

    texts = []
    for group in groups_of(evaluation):
        head = ("", *group.columns) if len(group.columns) > 1 else ()
        rows = [(row.name, *row.cells) for row in group.rows]
        note = textwrap.wrap(group.protocol, 96, initial_indent="    ", subsequent_indent="    ")
        texts.append("\n".join([table(rows, head, indent="  "), *note]))
    return "\n".join(texts)


def measured_json(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The same for programs: `metrics`, their `repeats`, and `protocols` by the `owners` of each.

    Args:
        evaluation: Content of `evaluation.json`.
    """
    return {part: evaluation.get(part) or {} for part in _PARTS}
