"""The report: one HTML file that holds everything it shows, made from run folders."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import tomli_w
from attrs import define
from markupsafe import Markup

from advdiff_core.errors import DataError
from advdiff_core.hooks.specs import Section
from advdiff_core.report.charts import Series, legend, line_chart
from advdiff_core.report.compare import comparison, differences
from advdiff_core.report.facts import clean, cost_rows, facts, number, sentence
from advdiff_core.report.html import filled
from advdiff_core.report.measures import Group, groups_of
from advdiff_core.report.record import Picture, RunRecord
from advdiff_core.report.robust import config_lines, curve_svg, robust_tables, title_of

__all__ = ["render"]

#: Keys of the log that are no curves.
NO_CURVES = {"nimg", "step", "seconds", "model_tflops"}
MAX_EARLIER = 6
MAX_RECIPE = 200_000

Sections = Callable[[RunRecord], Sequence[Section]]


def _no_sections(record: RunRecord) -> Sequence[Section]:
    del record
    return ()


def render(records: Sequence[RunRecord], sections: Sections = _no_sections) -> str:
    """The report of one run, or the comparison of several, as one HTML text.

    The page runs no script and may fetch nothing (its Content-Security-Policy says so); everything
    that comes from a run is escaped.

    Args:
        records: The runs, at least one.
        sections: Gives the sections that listeners add for a run.
    """
    several = len(records) > 1
    return filled("report.html.j2", {
        "title": f"Comparison of {len(records)} runs" if several else clean(records[0].name),
        "lead": "" if several else sentence(records[0]),
        "legend": legend([clean(one.name) for one in records]) if several else "",
        "several": several,
        "runs": [_RunPage.of(record, sections(record)) for record in records],
        "charts": _charts(records),
        "comparison": comparison(records) if several else None,
        "differences": differences(records) if several else None,
    })  # fmt: skip


@define(kw_only=True)
class _Image:
    caption: str
    uri: str


@define(kw_only=True)
class _SectionPage:
    title: str
    paragraphs: list[str]
    rows: list[list[str]]
    images: list[_Image]

    @classmethod
    def of(cls, section: Section) -> _SectionPage:
        return cls(
            title=clean(section.title),
            paragraphs=[clean(one, limit=10_000) for one in str(section.text).split("\n\n") if one],
            rows=[[number(cell) for cell in row] for row in section.rows],
            images=[
                _Image(caption=clean(caption), uri=_data_uri(png))
                for caption, png in section.images.items()
            ],
        )


@define(kw_only=True)
class _RunPage:
    """What the template shows of one run."""

    name: str
    picture: _Image | None
    earlier: list[_Image]
    metrics: list[Group]
    measured: str
    robust: list[dict[str, Any]]
    cost: list[list[str]]
    sections: list[_SectionPage]
    facts: list[tuple[str, str]]
    problems: list[str]
    recipe: str

    @classmethod
    def of(cls, record: RunRecord, sections: Iterable[Section]) -> _RunPage:
        problems = [clean(one) for one in record.problems]
        pictures = _pictures(record, problems)
        return cls(
            name=clean(record.name),
            picture=pictures[-1] if pictures else None,
            earlier=pictures[:-1],
            metrics=groups_of(record.evaluation),
            measured=_measured(record),
            robust=[_robust(name, tables) for name, tables in record.robust],
            cost=cost_rows(record.plan),
            sections=[_SectionPage.of(section) for section in sections],
            facts=facts(record),
            problems=problems,
            recipe=clean(tomli_w.dumps(record.recipe), limit=MAX_RECIPE),
        )


def _pictures(record: RunRecord, problems: list[str]) -> list[_Image]:
    """The last picture, and before it a few spread over the training."""
    *earlier, last = record.pictures or (None,)
    step = max(1, -(-len(earlier) // MAX_EARLIER))
    chosen = [*earlier[::step], last]
    return [image for one in chosen if one is not None and (image := _read(one, problems))]


def _read(picture: Picture, problems: list[str]) -> _Image | None:
    try:
        return _Image(caption=f"{picture.nimg:,}", uri=_data_uri(picture.read()))
    except DataError as error:
        problems.append(clean(error))
        return None


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _measured(record: RunRecord) -> str:
    nimg = record.evaluation.get("nimg")
    return f"Measured after {number(nimg)} images." if nimg is not None else ""


def _robust(name: str, tables: Mapping[str, Any]) -> dict[str, Any]:
    """What the template shows of an evaluation under attack."""
    flags = [f"{one['code']}: {one['message']} - {one['fix']}" for one in tables["flags"]]
    return {
        "title": clean(title_of(tables), limit=1000),
        "name": clean(name),
        "tables": [
            ([clean(cell) for cell in head], [[clean(cell) for cell in row] for row in rows])
            for head, rows in robust_tables(tables)
        ],
        "svg": curve_svg(tables),
        "facts": [(clean(key), clean(value, limit=1000)) for key, value in config_lines(tables)],
        "notes": [clean(one, limit=1000) for one in tables["notes"]],
        "flags": [clean(one, limit=1000) for one in flags],
    }


def _charts(records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """A chart per logged quantity, losses first, a line per run."""
    names = {key for one in records for row in one.rows for key in row} - NO_CURVES
    order = sorted(names, key=lambda name: (not name.startswith("loss"), name))
    charts = [{"title": clean(name), "svg": _chart(name, records)} for name in order]
    return [chart for chart in charts if chart["svg"]]


def _chart(name: str, records: Sequence[RunRecord]) -> Markup:
    lines = [
        Series(label=clean(record.name), points=_points(record, name), colour=index)
        for index, record in enumerate(records)
    ]
    return line_chart(clean(name), lines)


def _points(record: RunRecord, name: str) -> list[tuple[float, float]]:
    found = [(row.get("nimg"), row.get(name)) for row in record.rows]
    return [
        (float(x), float(y))
        for x, y in found
        if isinstance(x, int | float) and isinstance(y, int | float)
    ]
