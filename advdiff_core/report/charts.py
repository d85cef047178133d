"""Line charts as inline SVG: no script, no font, no file; colours follow the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from attrs import evolve, frozen
from markupsafe import Markup, escape

__all__ = ["Series", "legend", "line_chart", "short", "ticks"]

WIDTH, HEIGHT = 340, 210
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 30
#: Points drawn per line at most; more are averaged in equal groups.
MAX_POINTS = 240
#: A positive quantity that spans more than this factor is drawn on a logarithmic axis.
LOG_SPAN = 30.0
COLOURS = 8
#: Values nearer to 0 than this are 0 to a chart.
TINY = 1e-290


@frozen(kw_only=True)
class Series:
    """A line.

    Attributes:
        label: What it is, for the legend and the tooltip.
        points: `(x, y)` in order of x; y that is not finite breaks the line.
        colour: Number of its colour.
        spread: Lowest and highest y behind each point, drawn as a bar; empty for none.
    """

    label: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    spread: Sequence[tuple[float, float]] = ()


@frozen(kw_only=True)
class Axis:
    """A scale: values to pixels, and the values marked on it."""

    place: Callable[[float], float]
    marks: Sequence[float]


def line_chart(title: str, series: Sequence[Series], *, unit: str = "images") -> Markup:
    """An SVG figure with a line per series.

    Args:
        title: Name of the quantity.
        series: The lines; those without a finite point are left out.
        unit: Unit of x.
    """
    lines = [line for line in map(_thinned, map(_normal, series)) if _finite(line.points)]
    if not lines:
        return Markup("")
    points = [point for line in lines for point in _finite([*line.points, *_ends(line)])]
    across, up = _x_axis(points), _y_axis(points)
    body = [
        *(_horizontal(value, up) for value in up.marks),
        *(_vertical_mark(value, across) for value in across.marks),
        *(part for line in lines for part in _line(line, across, up)),
        Markup('<text class="unit" x="{}" y="{}" text-anchor="end">{}</text>').format(
            WIDTH - RIGHT, HEIGHT - 3, unit
        ),
    ]
    opening = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
        WIDTH, HEIGHT, f"{title} over {unit}"
    )
    return opening + Markup("").join(body) + Markup("</svg>")


def _normal(line: Series) -> Series:
    """Numbers too small to be divided are drawn as 0: scales would break on them."""

    def plain(y: float) -> float:
        return 0.0 if abs(y) < TINY else y

    points = [(x, plain(y)) for x, y in line.points]
    return evolve(
        line, points=points, spread=[(plain(low), plain(high)) for low, high in line.spread]
    )


def _ends(line: Series) -> list[tuple[float, float]]:
    """Both ends of every bar of a line."""
    pairs = zip(line.points, line.spread, strict=False)
    return [(x, end) for (x, _), bar in pairs for end in bar]


def _finite(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _thinned(line: Series) -> Series:
    """Few enough points: the means of equal groups, the last point kept as it is."""
    size = math.ceil(len(line.points) / MAX_POINTS)
    if size <= 1:
        return line
    *rest, last = line.points
    groups = [rest[start : start + size] for start in range(0, len(rest), size)]
    means = [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in groups
    ]
    return Series(label=line.label, points=[*means, last], colour=line.colour)


def _x_axis(points: Sequence[tuple[float, float]]) -> Axis:
    low, high = min(x for x, _ in points), max(x for x, _ in points)
    if low == high:
        low, high = low - 1, high + 1
    # Runs begin at zero: show it unless the data are far from it.
    low = min(low, 0.0) if low < 0.5 * high else low
    scale = (WIDTH - LEFT - RIGHT) / (high - low)
    return Axis(place=lambda x: LEFT + (x - low) * scale, marks=ticks(low, high, 4))


def _y_axis(points: Sequence[tuple[float, float]]) -> Axis:
    low, high = min(y for _, y in points), max(y for _, y in points)
    if low > 0 and high / low > LOG_SPAN:
        return _log_axis(low, high)
    if low == high:
        low, high = low - (abs(low) or 1) * 0.1, high + (abs(high) or 1) * 0.1
    # A quantity that comes near zero is seen in proportion to it.
    room = (high - low) * 0.06
    low, high = 0.0 if 0 <= low < 0.4 * high else low - room, high + room
    scale = (HEIGHT - TOP - BOTTOM) / (high - low)
    return Axis(place=lambda y: TOP + (high - y) * scale, marks=ticks(low, high, 4))


def _log_axis(low: float, high: float) -> Axis:
    bottom, top = math.log10(low) - 0.05, math.log10(high) + 0.05
    scale = (HEIGHT - TOP - BOTTOM) / (top - bottom)
    decades = range(math.ceil(bottom), math.floor(top) + 1)
    step = max(1, math.ceil(len(decades) / 5))
    marks = [10.0**power for power in decades if power % step == 0]
    return Axis(place=lambda y: TOP + (top - math.log10(y)) * scale, marks=marks)


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round values between `low` and `high`: multiples of 1, 2 or 5 times ten."""
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def _horizontal(value: float, axis: Axis) -> Markup:
    y = axis.place(value)
    return Markup(
        '<line class="grid" x1="{}" x2="{}" y1="{y:.1f}" y2="{y:.1f}"/>'
        '<text class="tick" x="{}" y="{base:.1f}" text-anchor="end">{}</text>'
    ).format(LEFT, WIDTH - RIGHT, LEFT - 6, short(value), y=y, base=y + 3.5)


def _vertical_mark(value: float, axis: Axis) -> Markup:
    return Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
        axis.place(value), HEIGHT - BOTTOM + 14, short(value)
    )


def _line(line: Series, across: Axis, up: Axis) -> list[Markup]:
    """The path of a line, a dot at its end, and a tooltip with the last value."""
    path = " ".join(
        f"{'L' if joined else 'M'}{across.place(x):.1f} {up.place(y):.1f}"
        for joined, (x, y) in _joined(line.points)
    )
    x, y = _finite(line.points)[-1]
    colour = f"s{line.colour % COLOURS}"
    tooltip = f"{line.label}: {short(y)} at {short(x)}"
    return [
        Markup('<path class="line {}" d="{}"><title>{}</title></path>').format(
            colour, path, tooltip
        ),
        Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="2.5"/>').format(
            colour, across.place(x), up.place(y)
        ),
        *_bars(line, across, up),
    ]


def _bars(line: Series, across: Axis, up: Axis) -> Iterable[Markup]:
    ends = _ends(line)
    for (x, low), (_, high) in zip(ends[::2], ends[1::2], strict=True):
        if math.isfinite(low) and math.isfinite(high):
            yield Markup('<path class="line s{}" d="M{x:.1f} {:.1f} L{x:.1f} {:.1f}"/>').format(
                line.colour % COLOURS, up.place(low), up.place(high), x=across.place(x)
            )


def _joined(points: Sequence[tuple[float, float]]) -> Iterable[tuple[bool, tuple[float, float]]]:
    """Finite points, each with whether it continues the line."""
    joined = False
    for x, y in points:
        if math.isfinite(x) and math.isfinite(y):
            yield joined, (x, y)
            joined = True
        else:
            joined = False


def short(value: float) -> str:
    """A number for an axis: `2.5k`, `1.5M`, `0.02`, `1e-05`."""
    for limit, factor, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e3, 1e3, "k")):
        if abs(value) >= limit:
            return f"{value / factor:.4g}{letter}"
    return f"{value:.3g}"


def legend(labels: Sequence[str]) -> Markup:
    """Names with the colours of the lines, for several runs."""
    items = [
        Markup('<span class="key"><span class="swatch s{}"></span>{}</span>').format(
            index % COLOURS, escape(label)
        )
        for index, label in enumerate(labels)
    ]
    return Markup('<p class="legend">{}</p>').format(Markup(" ").join(items))
