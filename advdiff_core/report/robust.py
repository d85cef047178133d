"""Evaluations under attack in tables and a curve, from their `report.json`. Free of torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from advdiff_core.report.charts import Series, line_chart
from advdiff_core.report.facts import clean

__all__ = ["config_lines", "curve_svg", "robust_tables", "title_of"]

Tables = Mapping[str, Any]
Table = tuple[Sequence[str], list[Sequence[str]]]


def eps_text(eps: float, tables: Tables) -> str:
    """A radius on the [0, 1] scale and in levels of 255; as it is for data without a range."""
    levels = tables["config"].get("levels", True)
    return f"{eps:.6g} ({255 * eps:.4g}/255)" if levels else f"{eps:.6g}"


def number_text(one: Tables) -> str:
    """A share with its counts and interval, or a mean with its interval."""
    if "hits" in one:
        share = 100 * one["hits"] / one["count"] if one["count"] else 0.0
        ends = f"[{100 * one['low']:.2f}, {100 * one['high']:.2f}]"
        return f"{share:.2f} % ({one['hits']} of {one['count']}) {ends}"
    return f"{one['value']:.6g} [{one['low']:.6g}, {one['high']:.6g}] ({one['count']})"


def title_of(tables: Tables) -> str:
    """What was done, on one line."""
    config = tables["config"]
    names = ", ".join(one["name"] for one in config["attacks"])
    radii = ", ".join(eps_text(eps, tables) for eps in config["eps"])
    return f"{names} in {config['norm']}, eps {radii}"


def config_lines(tables: Tables) -> list[tuple[str, str]]:
    """What was evaluated: weights, data, attacks."""
    config = tables["config"]
    average = "as trained" if config["ema"] < 0 else f"average {config['ema']}"
    lines = [
        ("objective", config["objective"]),
        ("role", f"{config['role']}, weights {average}, {config['nimg']:,} images seen"),
        ("weights", config["weights"][:16]),
        ("samples", f"{config['samples']['num']:,}, {config['samples']['pick']}"),
    ]
    data = config.get("data")
    if data:
        split = f", split {data['split']}" if data.get("split") else ""
        fingerprint = data["fingerprint"][:16]
        lines.append(("data", f"{data['use']}{split}, {data['count']:,} samples, {fingerprint}"))
    for one in config["attacks"]:
        keys = ", ".join(f"{key}={value}" for key, value in one["settings"].items())
        owner = f" of {one['distribution']}" if one["distribution"] else ""
        lines.append((f"attack {one['name']}", f"{one['use']}{owner}; {keys or 'no settings'}"))
    lines.append(("seed", f"{config['seed']}, {config['batch']} samples per bucket"))
    return lines


def robust_tables(tables: Tables) -> Iterator[Table]:
    """The curve, and what each attack did, as head and rows."""
    yield _curve(tables)
    yield _stages(tables)


def _verdicts(tables: Tables) -> bool:
    return bool(tables["config"]["objective"] == "classify")


def _curve(tables: Tables) -> Table:
    names = [one["name"] for one in tables["config"]["attacks"]]
    several = len(names) > 1
    what = "correct" if _verdicts(tables) else "objective"
    head = [f"eps ({tables['config']['norm']})", *(names if several else []), f"worst, {what}"]
    rows: list[Sequence[str]] = []
    for case, bare in tables["clean"].items():
        label = f"clean {case}".strip()
        rows.append([label, *([""] * len(names) if several else []), number_text(bare)])
        for point in tables["curve"]:
            if point["case"] == case:
                cells = [number_text(point["attacks"][name]) for name in names] if several else []
                label = f"{eps_text(point['eps'], tables)} {case}".strip()
                rows.append([label, *cells, number_text(point["worst"])])
    return head, rows


def _stages(tables: Tables) -> Table:
    head = ["attack", "eps", "tested", "broken", "max norm", "forwards", "gradients", "seconds"]
    if not _verdicts(tables):
        head.remove("broken")
    times = tables["time"]["stages"]
    rows: list[Sequence[str]] = []
    for one, seconds in zip(tables["stages"], times, strict=True):
        name = f"{one['name']} {one['case']}".strip()
        radius = "any" if one["eps"] is None else eps_text(one["eps"], tables)
        counts = [f"{one['tested']:,}", f"{one['broken']:,}"][: 2 if _verdicts(tables) else 1]
        passes = [f"{one['forwards']:,}", f"{one['gradients']:,}", f"{seconds:.1f}"]
        rows.append([name, radius, *counts, eps_text(one["max_norm"], tables), *passes])
    return head, rows


def curve_svg(tables: Tables) -> Markup:
    """Robust accuracy in per cent, or the objective, over eps, in levels of 255 for images."""
    levels = tables["config"].get("levels", True)
    factor, unit = (255, ", levels of 255") if levels else (1, "")
    lines = []
    for colour, (case, bare) in enumerate(tables["clean"].items()):
        points = [(0.0, _height(bare))]
        points += [
            (factor * point["eps"], _height(point["worst"]))
            for point in tables["curve"]
            if point["case"] == case and point["eps"] > 0
        ]
        lines.append(Series(label=clean(case) or "worst case", points=points, colour=colour))
    what = "robust accuracy in per cent" if _verdicts(tables) else "objective"
    return line_chart(what, lines, unit=f"eps, {clean(tables['config']['norm'])}{unit}")


def _height(one: Tables) -> float:
    if "hits" in one:
        return 100 * one["hits"] / one["count"] if one["count"] else 0.0
    return float(one["value"])
