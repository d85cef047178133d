"""Where a component comes from: what its class says, or what its docstring cites."""

from __future__ import annotations

import re
from typing import Any

from advdiff_core.cli.settings_text import description

__all__ = ["citations", "source_of"]

_NAME = r"[A-Z][A-Za-z'-]+"
#: `Ho et al. (2020, eq. 14)`, `(Song et al., 2021, eq. 12 and 16)`, `Kingma & Ba 2015`.
_CITATION = re.compile(
    rf"(?P<who>(?:{_NAME}, )*{_NAME}(?: et al\.?| (?:&|and) {_NAME})|(?:{_NAME}, )+{_NAME}"
    rf"|(?<=\(){_NAME}),? "
    rf"\(?(?P<year>(?:19|20)\d\d)(?:\)?, (?P<where>(?:eq|sec|sect|alg|app|tab|fig)[a-z]*\.? "
    rf"[A-Z0-9][\w.]*(?:(?:, | and )[0-9]\w*)*))?\b"
)


def source_of(cls: type[Any]) -> str:
    """Papers and places in them, separated by semicolons; "" if none is named."""
    return str(cls.source) or "; ".join(citations(description(cls)))


def citations(text: str) -> list[str]:
    """The papers that a text cites, each as `Name et al. (2024), eq. 5`, in order."""
    found = []
    for match in _CITATION.finditer(" ".join(text.split())):
        where = f", {match['where'].rstrip('.')}" if match["where"] else ""
        found.append(f"{match['who']} ({match['year']}){where}")
    return list(dict.fromkeys(found))
