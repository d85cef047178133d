"""The page of `processes.py`, from its record alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from statistics import median
from typing import Any, Protocol

from pages import table
from process_links import DOWN, EVERY, LOSS, STEPS, TIMEOUT
from process_runs import BATCH
from process_runs import EVERY as KILL_EVERY
from process_runs import STEPS as KILL_STEPS
from process_worlds import PAIRS, RECIPES
from process_worlds import STEPS as WORLD_STEPS

#: Seconds within which all processes are to be gone, and the difference of losses hoped for.
LIMIT, WANTED = 15, 1e-6
HEAD = ["recipe", "processes", "loss, first step", "loss", "from step", "weights"]
KINDS = {
    "one": "1", "two": "2", "three": "3", "shared": "2, shared out", "one64": "1", "two64": "2",
}  # fmt: skip


class Found(Protocol):
    """The record."""

    def of(self, part: str) -> dict[str, Any]:
        """All that is there of a part, by name."""

    def commits(self) -> list[str]:
        """At which commits it was found."""


def page(record: Found, rounds: int) -> str:
    """The page.

    Args:
        record: What was found.
        rounds: Kills that are wanted.
    """
    facts = record.of("facts")
    machines = sorted({f"{one['hardware']}; torch {one['torch']}" for one in facts.values()})
    seeds = sorted({one["seed"] for one in facts.values()})
    lines = [
        "# Several processes",
        "",
        "Written by `python docs/results/processes.py --out runs/processes` from runs of "
        "tests/recipes/players.toml (two players, an adversarial view, averages, clipping) on "
        f"gloo. Commits {', '.join(record.commits())}; {'; '.join(machines)}; one thread per "
        f"process; float32 unless it says otherwise; seed {', '.join(map(str, seeds))}. Other jobs "
        "ran beside it on the same cores, so that seconds are upper bounds.",
        "",
        *kills_part(record.of("kills"), record.of("resumed"), rounds),
        *worlds_part(record.of("worlds")),
        *links_part(record.of("links"), record.of("refused").get("why", "")),
    ]
    return "\n".join(lines)


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that so large a share of them does not exceed."""
    return sorted(values)[ceil(share * len(values)) - 1]


def kept(one: Mapping[str, Any]) -> bool:
    """Whether a round went as promised, but for its seconds."""
    return bool(
        one["code"] == (75 if one["checkpoint"] else 70)
        and one["named"] == one["errors"] == 1
        and not one["traceback"]
    )


def kills_part(
    kills: Mapping[str, Mapping[str, Any]], resumed: Mapping[str, bool], rounds: int
) -> list[str]:
    """Seconds, codes and lines of the kills, and whether the runs went on as if nothing was."""
    head = [
        "## A process is killed",
        "",
        f"`advdiff train --nproc 2`, and 3 in every fifth round: {KILL_STEPS} steps, a checkpoint "
        f"every {KILL_EVERY}. SIGKILL goes to a drawn process after a drawn step; in round 0 "
        "while the processes start. Seconds are those from the kill until the command and all its "
        f"processes are gone; at most {LIMIT} are promised. The exit code has to be 75 where there "
        "is a checkpoint and 70 else; one line, the only error, has to name process and signal.",
        "",
    ]
    if not kills:
        return [*head, "Not made yet.", ""]
    seconds = [one["seconds"] for one in kills.values()]
    count = len(kills)
    summary = table(
        ["what", "found"],
        [
            ["rounds", f"{count} of {rounds}"],
            [f"gone within {LIMIT} s", f"{sum(one <= LIMIT for one in seconds)} of {count}"],
            ["seconds: median", median(seconds)],
            ["seconds: 95th percentile", quantile(seconds, 0.95)],
            ["seconds: longest", max(seconds)],
            ["exit code and line as promised", f"{sum(map(kept, kills.values()))} of {count}"],
            ["bit for bit as never stopped", f"{sum(resumed.values())} of {len(resumed)}"],
        ],
    )
    each = table(
        ["round", "processes", "killed", "after step", "seconds", "exit code", "checkpoint",
         "lines that name it", "ends the same"],
        [
            [name.removeprefix("kill-"), one["processes"], one["rank"],
             "start" if one["step"] < 0 else one["step"], one["seconds"], one["code"],
             told(one["checkpoint"]), one["named"], told(resumed.get(name))]
            for name, one in kills.items()
        ],
    )  # fmt: skip
    after = (
        "Runs with a checkpoint were gone on with by as many processes, those without one begun "
        "again; then every number of the last checkpoint and of the log was compared."
    )
    return [*head, *summary, after, "", *each]


def told(flag: bool | None) -> str:
    """A flag in words."""
    return {True: "yes", False: "no", None: "not tried yet"}[flag]


def worlds_part(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Differences between numbers of processes, in float32 and float64."""
    head = [
        "## Several processes learn what one learns",
        "",
        f"{WORLD_STEPS} steps, the same batch of {BATCH} for all processes together, no dropout. "
        "*Loss* is the largest relative difference of a loss over all steps, *from step* the first "
        f"at which one exceeds {WANTED:g}, which was hoped for; *weights* the largest absolute "
        "difference of a weight at the end. Rows add to the recipe what they name. *Shared out* is "
        "FSDP2, compared with 2 plain processes.",
        "",
    ]
    if not found:
        return [*head, "Not made yet.", ""]
    lines = []
    for double in (False, True):
        pairs = [pair for pair in PAIRS if pair[0].endswith("64") == double]
        rows = [
            row(words, pair, found[f"{recipe}: {', '.join(pair)}"])
            for recipe, (words, _) in RECIPES.items() for pair in pairs
        ]  # fmt: skip
        lines += [
            "In float64 (weights, networks, losses, gradients, optimizers; samples and noise stay "
            "float32):" if double else "In float32, which is what recipes run in:",
            "",
            *table(HEAD, rows),
        ]  # fmt: skip
    return [*head, *lines, *verdict(found)]


def row(words: str, pair: tuple[str, str], one: Mapping[str, Any]) -> list[Any]:
    """A row of the table."""
    compared = " against ".join(KINDS[kind] for kind in reversed(pair))
    return [words, compared, one["first"], one["largest"], one["over"] or "never", one["weights"]]


def verdict(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the numbers say, by the numbers."""

    def worst(recipe: str, double: bool) -> float:
        return max(
            one["largest"] for name, one in found.items()
            if name.startswith(f"{recipe}: ") and ("64" in name) == double
        )  # fmt: skip

    good = [words for recipe, (words, _) in RECIPES.items() if worst(recipe, False) <= WANTED]
    grown = "; ".join(
        f"{words}: {worst(recipe, False):.2g} and {worst(recipe, True):.2g}"
        for recipe, (words, _) in RECIPES.items()
    )
    return [
        f"Within {WANTED:g} in float32: {'; '.join(good) or 'none'}. Largest in float32 and in "
        f"float64: {grown}.",
        "",
    ]


def links_part(found: Mapping[str, Any], refused: str) -> list[str]:
    """Links that fail."""
    head = [
        "## The link between two processes fails",
        "",
        "Two processes without a launcher, as on two machines: each in a network namespace of its "
        "own, joined by TUN devices whose packets the script carries. (`tc netem` would lose "
        "packets, too, but is a module that not every kernel has.)",
        "",
    ]
    if refused:
        return [*head, f"Not made: namespaces are not permitted here ({refused}).", ""]
    lines = list(head)
    cuts = [one for name, one in found.items() if name.startswith("down")]
    if cuts:
        lines += cut_lines(cuts)
    lossy = [one for name, one in found.items() if name.startswith("loss")]
    if lossy:
        lines += lossy_lines(lossy, found.get("same"))
    return lines if found else [*lines, "Not made yet.", ""]


def cut_lines(cuts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Links that go down."""
    rows = [
        [one["end"], rank, one["step"], seconds(one["told"][rank]), seconds(one["seconds"][rank]),
         one["codes"][rank]]
        for one in cuts for rank in range(2)
    ]  # fmt: skip
    return [
        f"The link goes down after step {DOWN}; there is a checkpoint every {EVERY} steps; "
        f"`run.timeout` is {TIMEOUT} s. Seconds are from then on, until the process says what is "
        "wrong and until it is gone: in between, the interpreter takes itself down.",
        "",
        *table(["down at process", "process", "after step", "says so, s", "gone, s", "exit code"],
               rows),
        "What they say:",
        "",
        "```text",
        *(line for one in cuts for said in one["said"] for line in said),
        "```",
        "",
    ]  # fmt: skip


def seconds(value: float | None) -> Any:
    """Seconds, if it came to that."""
    return "never" if value is None else value


def lossy_lines(lossy: Sequence[Mapping[str, Any]], same: bool | None) -> list[str]:
    """Links that lose packets."""
    rows = [
        [f"{100 * one['loss']:g} %", f"{one['carried']:,}", f"{one['lost']:,}", one["training"],
         one["seconds"], ", ".join(map(str, one["codes"]))]
        for one in lossy
    ]  # fmt: skip
    ends = {True: "The two ended the same, bit for bit.", False: "The two did not end the same."}
    return [
        f"{STEPS} steps over a link that loses {100 * LOSS:g} % of the packets in each direction, "
        "beside one that loses none.",
        "",
        *table(["loss", "packets carried", "lost", "training, s", "whole command, s", "exit codes"],
               rows),
        *([ends[same], ""] if same is not None else []),
    ]  # fmt: skip
