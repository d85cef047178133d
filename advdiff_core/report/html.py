"""Pages that hold everything they show: one style, no script, nothing fetched, all escaped."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

import advdiff_core

__all__ = ["filled"]


def filled(template: str, values: Mapping[str, Any]) -> str:
    """The HTML text of a template.

    Args:
        template: Its name in `advdiff_core/report/templates`.
        values: What it shows; `version`, `policy` and `style` are added.
    """
    style = _resource("report.css")
    own = {
        "version": advdiff_core.__version__, "policy": _policy(style), "style": Markup(style)
    }  # fmt: skip
    return _environment().get_template(template).render({**own, **values})


@cache
def _resource(name: str) -> str:
    return resources.files("advdiff_core.report").joinpath("templates", name).read_text("utf-8")


def _policy(style: str) -> str:
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(_resource),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
