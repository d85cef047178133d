"""Scripts of results: what they train and measure are recipes that load, and their page is written.

Nothing is trained: the scripts run with a lab that notes what it is asked for and makes up numbers.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from advdiff_core.cli.environment import catalogue
from advdiff_core.recipe import load_recipe

RESULTS = Path(__file__).parents[2] / "docs" / "results"
SCRIPTS = {
    "robustadv": ("vitro", "sweeps", "images", "mnist", "probes"),
    "atdiff": ("points", "digits", "images", "ablation", "robustness"),
    "dra": (
        "teachers", "probes", "classifiers", "standard", "sweeps", "analyses", "larger", "chosen",
    ),
    "adt": ("digits", "cifar", "bias", "backbones"),
}  # fmt: skip


#: Numbers of metrics whose names do not depend on settings, of those that pages show.
NUMBERS = {
    "accuracy": ("accuracy",),
    "uniformity-alignment": ("uniformity", "alignment"),
    "frequency-saliency": ("saliency_low", "saliency_mid", "saliency_high"),
    "classification-dimension": ("cls_95", "cls_99", "robust_dim"),
    "noise-head-eot": ("noise_head_single", "noise_head_eot"),
}


class Rehearsal:
    """What a script asks its lab for: recipes with changed keys, measurements, records."""

    def __init__(self, folder: Path) -> None:
        self.folder = self.out = folder
        self.recipes: dict[Path, tuple[Path, dict[str, Any]]] = {}
        self.asked: list[tuple[Path, dict[str, Any]]] = []
        self.records: dict[str, Any] = {}

    def train(self, name: str, recipe: Path, keys: Mapping[str, Any]) -> Path:
        """A run that is not there."""
        run = self.folder / name
        assert run not in self.recipes or self.recipes[run] == (recipe, dict(keys)), name
        self.recipes[run] = recipe, dict(keys)
        return run

    def measure(self, run: Path, keys: Mapping[str, Any], checkpoint: int = 0) -> dict[str, Any]:
        """Numbers for whatever is asked for."""
        del checkpoint
        self.asked.append((run, dict(keys)))
        _, own = self.recipes.get(run, (None, {}))
        metrics = keys.get("evaluate.metrics", own.get("evaluate.metrics", []))
        found: dict[str, float] = {}
        for place, one in enumerate(metrics):
            # As the core names the numbers of a metric that is listed again.
            times = sum(other["use"] == one["use"] for other in metrics[: place + 1])
            end = f"#{times}" if times > 1 else ""
            found |= {f"{name}{end}": 1.0 for name in _numbers(one)}
        return {"metrics": found}

    def shards(self, run: Path, name: str, count: int, keys: Mapping[str, Any]) -> Path:
        """A folder of images that is not there; how they are drawn is loaded, too."""
        del count
        self.asked.append((run, dict(keys)))
        return self.folder / name

    def attack(self, run: Path, name: str, words: Sequence[object]) -> dict[str, Any]:
        """A report of nothing."""
        assert run in self.recipes, name
        assert "--attack" in words, name
        return dict.fromkeys(("clean", "curve", "stages", "flags"))

    def record(self, name: str, found: Any) -> None:
        """Kept, as JSON would."""
        self.records[name] = json.loads(json.dumps(found))


def _numbers(metric: Mapping[str, Any]) -> Iterator[str]:
    """Names of a metric's numbers, of those that pages show."""
    inner = metric.get("metric", metric)
    end = f"_{inner['role']}_{inner['tap']}" if {"role", "tap"} <= set(inner) else ""
    name = inner["use"].replace("-", "_") + end
    if metric["use"] == "few-steps":
        for steps in metric["steps"]:
            for label in metric.get("labels", [""]):
                yield "_".join(filter(None, ("few_steps", name, label, str(steps))))
    elif metric["use"] == "noise-robustness":
        yield f"noise_{name}_plain"
        for level in metric["levels"]:
            for place in ("every", *(f"at{place:g}" for place in metric["places"])):
                yield f"noise_{name}_{place}_{level:g}"
    elif metric["use"] == "distribution-gap":
        for part in ("sliced", "sliced_floor", "sliced_worst", "eps_norm", "variance"):
            yield f"gap_{part}"
    elif metric["use"] == "linear-probe":
        yield "probe_accuracy"
        yield from (f"probe_robust_accuracy_{255 * eps:g}" for eps in metric["eps"])
    elif metric["use"] == "probe-sweep":
        yield from (
            f"probe_{tap}_{level:g}" for tap in metric["taps"] for level in metric["sigmas"]
        )
    elif metric["use"] == "topk-sae":
        yield from (f"sae_fvu_k{k}" for k in metric["k"])
    yield from NUMBERS.get(metric["use"], (name,))


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Opens a folder's scripts, whose modules are forgotten afterwards."""
    before = set(sys.modules)

    def open_(folder: str, name: str) -> ModuleType:
        monkeypatch.syspath_prepend(str(RESULTS / folder))
        return importlib.import_module(name)

    yield open_
    for name in set(sys.modules) - before:
        origin = getattr(sys.modules[name], "__file__", None)
        if origin and Path(origin).is_relative_to(RESULTS):
            del sys.modules[name]


def rehearse(stage: Any, monkeypatch: pytest.MonkeyPatch, folder: str, name: str) -> Rehearsal:
    """What one script would do."""
    told = Rehearsal(Path("/nowhere"))
    script = stage(folder, name)
    words = [name, "--out", str(told.folder), "--data", "data"]
    if folder == "dra":
        words += ["--base", "base"]
        monkeypatch.setattr(stage(folder, "teachers"), "widened", lambda *given: given[1])
        monkeypatch.setattr(script, "verdicts", lambda folder: "1" * 2000, raising=False)
        monkeypatch.setattr(script, "parameters", lambda run: 1, raising=False)
    monkeypatch.setattr(script, "open_lab", lambda given: told)
    monkeypatch.setattr(script, "record", lambda *given: None, raising=False)
    monkeypatch.setattr(sys, "argv", words)
    script.main()
    return told


def check(recipe: Path, keys: Mapping[str, Any], toml: Any) -> None:
    """`advdiff check`: every key exists and has a value that is allowed."""
    words = [f"{key}={toml(value)}" for key, value in keys.items()]
    load_recipe(recipe, tuple(words), catalogue())


@pytest.mark.parametrize(
    ("folder", "name"), [(folder, name) for folder, names in SCRIPTS.items() for name in names]
)
def test_what_a_script_trains_and_measures_can_be_loaded(
    stage: Any, monkeypatch: pytest.MonkeyPatch, folder: str, name: str
) -> None:
    """Recipes with all changes of keys, as trained and as measured; seeds are left out."""
    told = rehearse(stage, monkeypatch, folder, name)
    toml = stage(folder, "lab").toml
    seen = set()
    asked = [(run, {}) for run in told.recipes] + told.asked
    for run, more in asked:
        if run not in told.recipes:
            continue
        recipe, keys = told.recipes[run]
        keys = {**keys, **more} | {"run.seed": 0}
        text = f"{recipe} {toml(keys)}"
        if text not in seen:
            check(recipe, keys, toml)
        seen.add(text)
    assert told.recipes, "a script trains something"
    assert told.records, "and keeps what it found"


def test_the_page_of_atdiff_shows_every_record_and_says_what_is_missing(
    stage: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """From made-up numbers, which are all 1; without records, each part names its script."""
    pytest.importorskip("matplotlib")
    records = {}
    for name in SCRIPTS["atdiff"]:
        records |= rehearse(stage, monkeypatch, "atdiff", name).records
    page, probes, values = (stage("atdiff", name) for name in ("page", "page_probes", "values"))
    for module in (page, probes, values):
        monkeypatch.setattr(module, "HERE", tmp_path)
    found = {}
    for known in (records, {}):
        for module in (page, probes):
            monkeypatch.setattr(module, "record", lambda folder, name, known=known: known.get(name))
        monkeypatch.setattr(sys, "argv", ["page", "--out", str(tmp_path / "runs")])
        page.main()
        found[bool(known)] = (tmp_path / "atdiff.md").read_text()
    assert found[False].count("Written and not run for want of time") == len(SCRIPTS["atdiff"])
    assert "Written and not run" not in found[True]
    row = "| ancestral | 10 | 1 (1-1) | 1 (1-1); +0 %, lower in 0 of 3 | "
    assert found[True].count(row) == 2
    assert "| free AT, full | 21312 | 1 (1) |" in found[True]
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert pictures == {f"atdiff-{end}.png" for end in ("points", "digits", "cifar16", "noise")}


#: A classifier under attack, as the scripts keep it: two of four images stay right.
HITS = {"count": 4, "hits": 2, "low": 0.15, "high": 0.85}
REPORT = {
    "clean": {"": HITS}, "curve": [{"worst": HITS}], "flags": [],
    "stages": [{"name": "autoattack/apgd-ce", "broken": 1}],
}  # fmt: skip


def run_of_dra(robust: str) -> dict[str, Any]:
    """A run of which these images stay right."""
    return {"metrics": {"accuracy": 0.5}, "attack": REPORT, "robust": robust, "seconds": 1.0}


def records_of_dra(stage: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Records as the scripts keep them; attacks, which a rehearsal does not run, are made up."""
    records = {}
    for name in SCRIPTS["dra"]:
        records |= rehearse(stage, monkeypatch, "dra", name).records
    seeds = {str(seed): run_of_dra("1100") for seed in (1, 2)}
    better = {str(seed): run_of_dra("1110") for seed in (1, 2, 3)}
    records["classifiers"]["runs"] = {"at": seeds, "at-dra": better, "dm": {}}
    records["standard"]["runs"] = {"at": REPORT}
    records["chosen"]["runs"] = better
    return records


def test_the_page_of_dra_shows_every_record_and_says_what_is_missing(
    stage: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Means and comparisons in pairs, over the seeds that both have; parts without a record."""
    pytest.importorskip("matplotlib")
    records = records_of_dra(stage, monkeypatch)
    page, parts = stage("dra", "page"), stage("dra", "page_analyses")
    monkeypatch.setattr(page, "HERE", tmp_path)
    found = {}
    for known in (records, {}):
        for module in (page, parts):
            monkeypatch.setattr(module, "record", lambda folder, name, known=known: known.get(name))
        monkeypatch.setattr(sys, "argv", ["page", "--out", str(tmp_path / "runs")])
        page.main()
        found[bool(known)] = (tmp_path / "dra.md").read_text()
    assert found[False].count("Written and not run") == len(SCRIPTS["dra"]) - 1
    assert "Written and not run" not in found[True]
    assert "| AT + DRA | 3 | 50.0 (50.0-50.0) | 75.0 (75.0-75.0) |" in found[True]
    assert "| AT + DRA against AT | +0.0, higher in 0 of 2 | +25.0 +- 49.0, hig" in found[True]
    assert "Not finished: DM-AT, DM-AT + DRA, DM-AT + noisy-input teacher" in found[True]
    assert "| AT | 50.0 (15.0-85.0) | 50.0 (15.0-85.0) | apgd-ce 1 | none |" in found[True]
    assert "| none | none | none | 100.0 | 100.0 |" in found[True]
    assert "| 4.0 | 0.06 | up.1.0 | 100.0 | 100.0 |" in found[True]
    assert "| AT + DRA, chosen | 3 | 50.0 (50.0-50.0) | 75.0 (75.0-75.0) |" in found[True]
    assert "clean +0.0, higher in 0 of 2; robust +25.0 +- 49.0, higher in 2 of 2." in found[True]


def test_images_count_once_in_a_comparison_however_many_seeds_were_attacked(stage: Any) -> None:
    """The interval is that of four images, not of eight: 1.96 * stdev / sqrt(4), by hand."""
    paired = stage("dra", "paired")
    base = {"1": run_of_dra("1000"), "2": run_of_dra("1000"), "3": run_of_dra("1111")}
    ours = {"1": run_of_dra("1100"), "2": run_of_dra("1110")}
    found = paired.change(ours, base)
    each = [0.0, 1.0, 0.5, 0.0]
    deviation = (sum((value - 0.375) ** 2 for value in each) / 3) ** 0.5
    assert found.mean == pytest.approx(37.5)
    assert found.error == pytest.approx(100 * 1.96 * deviation / 2)
    assert (found.higher, found.seeds) == (2, 2)
