"""Charts: round marks, every point inside the frame, gaps where there is no number."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from advdiff_core.report.charts import HEIGHT, MAX_POINTS, WIDTH, Series, line_chart, short, ticks

NUMBERS = st.floats(-1e9, 1e9) | st.just(math.nan) | st.just(math.inf)


def series(points: list[tuple[float, float]], label: str = "run") -> Series:
    """One line."""
    return Series(label=label, points=points)


def coordinates(svg: str) -> list[tuple[float, float]]:
    """Points of all paths."""
    paths = re.findall(r' d="([^"]+)"', svg)
    pairs = [re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path) for path in paths]
    return [(float(x), float(y)) for path in pairs for x, y in path]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.5, 1]), (0, 128_000, [0, 50_000, 100_000]), (-0.3, 0.3, [-0.2, 0, 0.2])],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    """Multiples of 1, 2 or 5 times a power of ten."""
    assert ticks(low, high, 3) == pytest.approx(expected)


@given(low=st.floats(-1e9, 1e9), span=st.floats(1e-3, 1e9), count=st.integers(2, 8))
def test_ticks_stay_inside_and_are_few(low: float, span: float, count: int) -> None:
    """Between one and about `count` marks, none outside."""
    assume(low + span > low)
    marks = ticks(low, low + span, count)
    slack = span * 1e-6 + abs(low) * 1e-9
    assert len(marks) <= count + 2
    assert all(low - slack <= mark <= low + span + slack for mark in marks)


@given(st.lists(st.tuples(st.floats(0, 1e9), NUMBERS), max_size=30))
@example([(0.0, 2.2250738585072014e-308)])
def test_chart_keeps_every_point_inside_its_frame(points: list[tuple[float, float]]) -> None:
    """Whatever the numbers: no crash, nothing drawn outside, as many points as are finite."""
    points = sorted(points, key=lambda point: point[0])
    svg = str(line_chart("loss", [series(points)]))
    drawn = coordinates(svg)
    assert len(drawn) == sum(math.isfinite(y) for _, y in points)
    assert all(-1 <= x <= WIDTH + 1 and -1 <= y <= HEIGHT + 1 for x, y in drawn)
    assert bool(svg) == bool(drawn)


def test_chart_breaks_the_line_where_there_is_no_number() -> None:
    """NaN makes a gap, not a line across it."""
    svg = str(line_chart("loss", [series([(0, 1), (1, math.nan), (2, 1), (3, 2)])]))
    path = re.findall(r' d="([^"]+)"', svg)[0]
    assert path.count("M") == 2
    assert path.count("L") == 1


def test_chart_uses_decades_for_wide_spans() -> None:
    """A loss that falls by a thousand is drawn on a logarithmic axis."""
    svg = str(line_chart("loss", [series([(0, 1000.0), (1, 1.0)])]))
    assert re.findall(r'text-anchor="end">([^<]+)</text>', svg)[:4] == ["1", "10", "100", "1k"]


def test_chart_thins_long_logs_and_keeps_the_end() -> None:
    """A million ticks do not make a page of a hundred megabytes; the last value is exact."""
    points = [(float(n), float(n % 7)) for n in range(10_000)]
    svg = str(line_chart("loss", [series(points)]))
    assert len(coordinates(svg)) <= MAX_POINTS + 1
    assert "run: 4 at 10k" in svg or f"run: {short(9999 % 7)} at" in svg


def test_chart_escapes_labels() -> None:
    """Names of runs and metrics are text."""
    svg = str(line_chart('"><script>', [series([(0, 1), (1, 2)], label="</title><script>")]))
    assert "<script>" not in svg


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (40_000, "40k"), (1_500_000, "1.5M"), (0.02, "0.02"), (2e9, "2G")]
)
def test_short_numbers_fit_an_axis(value: float, text: str) -> None:
    """Thousands and millions by letter."""
    assert short(value) == text
