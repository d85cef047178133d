"""A run in a reader's words: what it was trained on, by what, on which machine, at what cost."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard

from advdiff_core.report.record import RunRecord

__all__ = ["clean", "cost_rows", "facts", "number", "sentence"]

MAX_CELL = 400


def clean(text: object, *, limit: int = MAX_CELL) -> str:
    """Text for a page: control and bidi characters shown as escapes, length limited."""
    shown = "".join(ch if ch.isprintable() or ch == "\n" else repr(ch)[1:-1] for ch in str(text))
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


def number(value: object) -> str:
    """A number for people: four digits, thousands separated; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return clean(value)
    if isinstance(value, float) and not (value.is_integer() and abs(value) < 1e15):
        return f"{value:.4g}"
    return f"{value:,.0f}"


def sentence(record: RunRecord) -> str:
    """One sentence: how far, on what, against whom."""
    recipe = record.recipe
    done = f"{record.nimg:,} images" if record.state == "finished" else (
        f"{record.nimg:,} of {record.images:,} images ({record.state})"
    )  # fmt: skip
    parts = [done, f"on {_use(recipe, 'data')}{_corrupted(recipe)}"]
    terms = ", ".join(_names(recipe, "terms"))
    return clean(f"Trained for {' '.join(parts)}, with {terms or 'no terms'}.")


def facts(record: RunRecord) -> list[tuple[str, str]]:
    """What ran, as name and value."""
    pairs = [*_recipe_facts(record.recipe), *_machine_facts(record), *_version_facts(record)]
    return [(clean(name), clean(value)) for name, value in pairs if value]


def _recipe_facts(recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    run = _table(recipe, "run")
    yield "data", _use(recipe, "data") + _corrupted(recipe)
    yield "noise schedule", _use(recipe, "schedule")
    for kind, one in (("models", "model"), ("views", "view"), ("terms", "term")):
        for name, table in _named(recipe, kind):
            yield f"{one} {name}", _described(kind, table)
    for name, table in _named(recipe, "players"):
        yield f"player {name}", _player(table)
    yield "sampler", _call(_table(recipe, "sample"))
    yield "seed", number(run.get("seed", ""))
    yield "images", number(run.get("images", ""))
    yield "batch", number(run.get("batch", ""))


def _machine_facts(record: RunRecord) -> Iterator[tuple[str, str]]:
    known = record.provenance
    device = str(known.get("device_name") or known.get("device") or "")
    parts = [device, str(known.get("cpu_capability") or ""), str(known.get("machine") or "")]
    yield "hardware", ", ".join(part for part in dict.fromkeys(parts) if part)
    threads, world = known.get("threads"), known.get("world")
    if threads:
        yield "processes", f"{world or 1}, with {threads} thread{'s' if threads != 1 else ''} each"
    precision = str(known.get("autocast") or "").removeprefix("torch.")
    yield "precision", {"None": "float32"}.get(precision, precision)
    speeds = [row["images_per_s"] for row in record.rows if _is_number(row.get("images_per_s"))]
    if speeds:
        yield "speed", f"{number(round(statistics.median(speeds)))} images/s (median of log ticks)"
    yield "model operations", _used(record)
    yield "training time", _time(record)
    yield "checkpoints", ", ".join(f"{nimg:,}" for nimg in record.checkpoints)
    yield "best", str(record.standing)


def _version_facts(record: RunRecord) -> Iterator[tuple[str, str]]:
    known, lock = record.provenance, record.lock
    yield "advdiff-core", str(known.get("advdiff_core") or lock.get("advdiff_core") or "")
    yield "torch", str(known.get("torch") or lock.get("torch") or "")
    yield "python", str(known.get("python") or lock.get("python") or "")
    plugins = lock.get("plugins")
    if isinstance(plugins, Mapping):
        yield "plugins", ", ".join(f"{name} {version}" for name, version in plugins.items())
    git = lock.get("git")
    if isinstance(git, Mapping):
        changed = " (with uncommitted changes)" if git.get("changed") else ""
        yield "git", f"{git.get('commit', '')}{changed}"
    yield "recipe hash", str(lock.get("recipe_hash") or known.get("recipe_hash") or "")


def _used(record: RunRecord) -> str:
    """Model operations per second, and their share of what the machine multiplies."""
    pairs = [(row.get("model_tflops"), row.get("mfu")) for row in record.rows]
    rates = [rate for rate, _ in pairs if _is_number(rate)]
    shares = [share for _, share in pairs if _is_number(share) and share > 0]
    if not rates or not shares:
        return ""
    rate, share = statistics.median(rates), statistics.median(shares)
    best = f"{number(rate / share)} TFLOP/s of matrix products measured here"
    return f"{number(rate)} TFLOP/s, {100 * share:.3g} % of the {best} (MFU)"


def _time(record: RunRecord) -> str:
    """Seconds of the log, added up over the processes that a resumed run had."""
    total, last = 0.0, 0.0
    for row in record.rows:
        seconds = row.get("seconds")
        if _is_number(seconds):
            total, last = (total + last, seconds) if seconds < last else (total, seconds)
    minutes, seconds = divmod(round(total + last), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _table(tables: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = tables.get(key)
    return found if isinstance(found, Mapping) else {}


def _named(recipe: Mapping[str, Any], key: str) -> list[tuple[str, Mapping[str, Any]]]:
    return [(name, t) for name, t in _table(recipe, key).items() if isinstance(t, Mapping)]


def _names(recipe: Mapping[str, Any], key: str) -> list[str]:
    return list(_table(recipe, key))


def _use(recipe: Mapping[str, Any], key: str) -> str:
    return str(_table(recipe, key).get("use", ""))


def _call(table: Mapping[str, Any], *keys: str) -> str:
    """`name (key value, key value)` of a component's table."""
    shown = keys or ("steps", "eta", "lr", "fraction", "std", "omega", "gamma", "radius", "norm")
    parts = [f"{key} {number(table[key])}" for key in shown if key in table]
    name = str(table.get("use", ""))
    return f"{name} ({', '.join(parts)})" if parts else name


def _corrupted(recipe: Mapping[str, Any]) -> str:
    wrappers = _table(recipe, "data").get("corrupt")
    if not isinstance(wrappers, Sequence) or not wrappers:
        return ""
    calls = [_call(one) for one in wrappers if isinstance(one, Mapping)]
    return f", corrupted by {' then '.join(calls)}"


def _described(kind: str, table: Mapping[str, Any]) -> str:
    if kind == "views":
        return f"{table.get('from', '')} moved by {_call(_table(table, 'perturb'))}"
    if kind == "terms":
        view = f" on view {table['view']}" if "view" in table else ""
        return f"{table.get('use', '')}{view}, weight {number(table.get('weight', 1.0))}"
    frozen = ", frozen" if table.get("frozen") is True else ""
    return f"{table.get('use', '')}, predicts {table.get('parametrization', '?')}{frozen}"


def _player(table: Mapping[str, Any]) -> str:
    terms = ", ".join(map(str, table.get("terms") or ()))
    every = table.get("every", 1)
    often = f", every {number(every)} steps" if every != 1 else ""
    return f"{_call(_table(table, 'optimizer'))} on {terms}{often}"


def cost_rows(plan: Mapping[str, Any]) -> list[list[str]]:
    """Passes of each model per step, as `advdiff plan --json` gives them."""
    keys = ("forwards", "input_backwards", "parameter_backwards", "parameters")
    roles = _table(plan, "roles")
    return [
        [clean(role), *(number(cost.get(key, "")) for key in keys)]
        for role, cost in roles.items()
        if isinstance(cost, Mapping)
    ]
