"""The page that `attacks.py` writes."""

from __future__ import annotations

from statistics import median
from typing import Any

INTRODUCTION = """\
Written by `docs/results/attacks.py`, which runs the attacks of advdiff-attacks and those of
[pyautoattack](https://pypi.org/project/pyautoattack/) in turns: the same published networks, the
first {count} test images of CIFAR-10, the same settings, float32. A sample counts as broken when a
fresh forward misclassifies it inside the ball and the range. Seconds are processor time of one
thread (on a GPU: of the clock), which other jobs on the machine disturb little."""
SUITES = """\
Each attack gets the samples that its own side has left, and each side draws its own numbers. The
robust accuracy is in per cent; "disagree" counts samples that one side broke and the other did
not."""
SAVINGS = """\
Seconds on samples of the network that is timed above, the median of three runs, with one saving
switched off at a time; in brackets the time relative to that with all savings. Looking at each step
for broken samples is what a loop that waits for the device does; on a CPU it is no wait. FAB drops
samples as they break whatever the interval is, and takes all samples as one part."""


def page(
    about: dict[str, str],
    count: int,
    suites: list[dict[str, Any]],
    alone: list[dict[str, Any]],
    saved: dict[str, dict[str, list[float]]],
) -> str:
    """All tables."""
    lines = [
        "# AutoAttack beside its reference",
        "",
        f"{INTRODUCTION.format(count=count)}",
        "",
        "| what | value |",
        "| --- | --- |",
        *(f"| {name} | {value} |" for name, value in about.items()),
        "",
        "## Whole suites",
        "",
        SUITES,
        "",
        *(line for suite in suites for line in _suite(suite, count)),
        "## Each attack alone",
        "",
        "On all samples that are classified rightly, with the same random numbers on both sides.",
        "",
        "| network | radius | settings | attack | robust, advdiff | robust, pyautoattack "
        "| disagree |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(line for one in alone for line in _alone(one, count)),
        "",
        *_savings(saved),
    ]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _suite(suite: dict[str, Any], count: int) -> list[str]:
    head = f"{suite['net']}, {suite['radius']}/255, {_keys(suite['keys'])}"
    lines = [
        f"### {head}",
        "",
        f"Clean accuracy {_percent(suite['clean'], count)} %.",
        "",
        "| after | robust, advdiff | robust, pyautoattack | disagree | seconds, advdiff "
        "| seconds, pyautoattack | times faster |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    gone: list[set[int]] = [set(), set()]
    seconds = [0.0, 0.0]
    for member, both in suite["members"].items():
        for side, result in enumerate(both):
            gone[side] |= set(result["broken"])
            seconds[side] += result["seconds"]
        lines.append(_row(member, suite["clean"], gone, count, [one["seconds"] for one in both]))
    lines.append(_row("the whole suite", suite["clean"], gone, count, seconds))
    return [*lines, ""]


def _row(name: str, clean: int, gone: list[set[int]], count: int, seconds: list[float]) -> str:
    robust = [_percent(clean - len(one), count) for one in gone]
    faster = f"{seconds[1] / seconds[0]:.2f}" if seconds[0] else "-"
    cells = [name, *robust, len(gone[0] ^ gone[1]), *(f"{one:.1f}" for one in seconds), faster]
    return f"| {' | '.join(map(str, cells))} |"


def _alone(one: dict[str, Any], count: int) -> list[str]:
    lines = []
    for member, both in one["members"].items():
        gone = [set(side["broken"]) for side in both]
        robust = [_percent(one["clean"] - len(side), count) for side in gone]
        cells = [one["net"], f"{one['radius']}/255", _keys(one["keys"]), member, *robust]
        lines.append(f"| {' | '.join(cells)} | {len(gone[0] ^ gone[1])} |")
    return lines


def _savings(saved: dict[str, dict[str, list[float]]]) -> list[str]:
    members = list(next(iter(saved.values())))
    base = {member: median(saved["all savings"][member]) for member in members}
    lines = [
        "## What each saving saves",
        "",
        SAVINGS,
        "",
        f"| switched off | {' | '.join(members)} |",
        f"| --- | {' | '.join('---' for _ in members)} |",
    ]
    for way, found in saved.items():
        cells = [
            f"{median(found[member]):.2f} ({median(found[member]) / base[member]:.2f})"
            for member in members
        ]
        lines.append(f"| {'nothing' if way == 'all savings' else way} | {' | '.join(cells)} |")
    return lines


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}"


def _keys(keys: dict[str, int]) -> str:
    return f"{keys['steps']} steps, {keys['targets']} targets, {keys['queries']} queries"
