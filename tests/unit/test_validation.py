"""Validation: measured during the training, the best weights kept, the run ended early."""

import json
import math
import os
import shutil
import signal
import time
from itertools import pairwise
from typing import ClassVar

import pytest
import torch
from attrs import evolve

from advdiff_core.engine import fsio, tick
from advdiff_core.engine.api import open_trained, train
from advdiff_core.engine.best import Standing, best_checkpoint, read_standing
from advdiff_core.engine.checkpoint import find_checkpoint, load, newest_valid, read_weights
from advdiff_core.engine.validation import Validator
from advdiff_core.errors import DataError, Interrupted, NumericsError, RecipeError
from advdiff_core.hooks.jsonl import JsonLines
from advdiff_core.hooks.manager import Hooks
from advdiff_core.hooks.specs import hookimpl
from advdiff_core.interfaces.metric import Metric
from advdiff_core.recipe import check_recipe, load_recipe, recipe_from_dict
from advdiff_core.recipe.measuring import Validate
from advdiff_core.settings import Spec

TINY = {
    "run": {
        "images": 80, "batch": 8, "log_every": 16, "checkpoint_every": 24, "keep": 2,
        "threads": 1, "precision": "fp32", "device": "cpu",
    },
    "data": {"use": "two-moons", "count": 40},
    "models": {"student": {"use": "mlp", "width": 8, "blocks": 1}},
    "players": {"student": {"ema": [0.9]}},
    "sample": {"use": "ddim", "steps": 2, "images": 4},
}  # fmt: skip
MEASURED = {"every": 16, "num": 16, "metrics": [{"use": "sliced-wasserstein"}]}


class Scripted(Metric):
    """Numbers that a test has written down, one per measurement; the last one repeats."""

    needs_samples: ClassVar[bool] = False
    values: ClassVar[list[float]] = []
    drawn: ClassVar[list[float]] = []

    def __init__(self, settings, build):
        super().__init__(settings, build)
        self.asked = 0

    def protocol(self):
        """Constant."""
        return {"by": "script"}

    def compute(self, evaluation):
        """The next number, beside another one; it draws where it should not, and writes a file."""
        value = self.values[min(self.asked, len(self.values) - 1)]
        self.asked += 1
        self.drawn.append(float(torch.randn(())))
        evaluation.module("student")
        (evaluation.folder / "notes.txt").write_text("x")
        return {"score": value, "other": -value}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Real syncs are slow, and what they promise is tested elsewhere."""
    monkeypatch.setattr(fsio.os, "fsync", lambda descriptor: None)


def tiny(**validate):
    """The recipe, measured by these keys of `[validate]`."""
    return recipe_from_dict({**TINY, **({"validate": validate} if validate else {})})


def scripted(monkeypatch, values, **validate):
    """The recipe, measured by the script."""
    monkeypatch.setattr(Scripted, "values", list(values))
    monkeypatch.setattr(Scripted, "drawn", [])
    recipe = tiny(**{**MEASURED, **validate})
    spec = Spec(kind="metric", use="scripted", settings=Scripted.Settings(), component=Scripted)
    return evolve(recipe, validate=evolve(recipe.validate, metrics=(spec,)))


def logged(*listeners):
    """Listeners that write the log."""
    hooks = Hooks()
    hooks.add(JsonLines(), name="jsonl")
    for number, one in enumerate(listeners):
        hooks.add(one, name=f"listener-{number}")
    return hooks


def rows(run):
    """Lines of the log without what a clock says."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k not in {"seconds", "images_per_s"}} for r in found]


def checkpoints(run):
    """Images of the checkpoints, in order."""
    return sorted(int(path.name) for path in (run / "checkpoints").iterdir())


def same(a, b):
    """Whether two nested states are bit-identical."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_validation_changes_no_weight_and_no_loss(monkeypatch, tmp_path):
    """Models, averages, optimizer and the lines of losses are those of a run without it."""
    plain = train(tiny(), out=tmp_path / "a", hooks=logged()).run
    measured = train(scripted(monkeypatch, [1, 2]), out=tmp_path / "b", hooks=logged()).run
    found, wanted = (load(newest_valid(r / "checkpoints")[0]).shared for r in (measured, plain))
    assert found.pop("validation")["number"] == "score"
    assert same(found, wanted)
    losses = [row for row in rows(measured) if not any(k.startswith("validate/") for k in row)]
    assert losses == rows(plain)


def test_validation_measures_at_both_ends_and_every_so_many_images(monkeypatch, tmp_path):
    """At 0, then at multiples of `every`, then at the end; each line of the log once."""
    run = train(scripted(monkeypatch, [5], every=32), out=tmp_path, hooks=logged()).run
    found = [(row["nimg"], row["step"]) for row in rows(run) if "validate/score" in row]
    assert found == [(0, 0), (32, 4), (64, 8), (80, 10)]
    again = train(
        scripted(monkeypatch, [5], every=500, start=False), out=tmp_path, hooks=logged()
    ).run
    assert [row["nimg"] for row in rows(again) if "validate/score" in row] == [80]


def test_metric_that_draws_from_the_global_generator_draws_the_same(monkeypatch, tmp_path):
    """Its numbers repeat, and the state of the generator is put back."""
    torch.manual_seed(5)
    before, found = torch.random.get_rng_state(), []
    for name in ("a", "b"):
        train(scripted(monkeypatch, [1]), out=tmp_path / name)
        found.append(list(Scripted.drawn))
        assert torch.equal(torch.random.get_rng_state(), before)
        torch.manual_seed(6)
        before = torch.random.get_rng_state()
    assert found[0] == found[1]
    assert len(set(found[0])) == 6


def test_images_per_second_do_not_count_the_time_of_measurements(monkeypatch, tmp_path):
    """An hour of measuring leaves the speed of training what it was."""
    late = [0.0]
    clock = time.monotonic
    monkeypatch.setattr(tick.time, "monotonic", lambda: clock() + late[0])
    recipe = scripted(monkeypatch, [1])
    original = Scripted.compute

    def compute(self, evaluation):
        late[0] += 3600.0
        return original(self, evaluation)

    monkeypatch.setattr(Scripted, "compute", compute)
    run = train(recipe, out=tmp_path, hooks=logged()).run
    lines = (run / "metrics.jsonl").read_text().splitlines()
    speeds = [found["images_per_s"] for found in map(json.loads, lines) if "images_per_s" in found]
    assert len(speeds) == 5
    assert min(speeds) > 1.0


def test_best_checkpoint_is_kept_however_old_it_is(monkeypatch, tmp_path):
    """Measured at 0, 16, ..., 80 with two checkpoints kept, the best one at 16 stays."""
    made = train(scripted(monkeypatch, [0.1, 0.9, 0.2, 0.3, 0.4, 0.5]), out=tmp_path)
    assert checkpoints(made.run) == [16, 72, 80]
    assert made.best["value"] == 0.9
    assert made.best["nimg"] == 16
    assert best_checkpoint(made.run) == made.run / "checkpoints" / "16"
    assert read_standing(made.run / "checkpoints").as_json() == made.best


def test_best_checkpoint_holds_the_weights_that_were_measured(monkeypatch, tmp_path):
    """It is what a run of that length ends with."""
    made = train(scripted(monkeypatch, [0, 1, 2, 0]), out=tmp_path / "a")
    short = train(
        recipe_from_dict({**TINY, "run": {**TINY["run"], "images": 32}}), out=tmp_path / "b"
    )
    best = load(best_checkpoint(made.run)).shared
    wanted = load(short.run / "checkpoints" / "32").shared
    assert same(best["models"], wanted["models"])
    assert same(best["ema"], wanted["ema"])


def test_best_can_be_named_wherever_weights_are(monkeypatch, tmp_path):
    """`RUN/best` and `RUN/checkpoints/best` are it; `init` and `open_trained` take it."""
    made = train(scripted(monkeypatch, [0, 0, 3, 0]), out=tmp_path).run
    wanted = made / "checkpoints" / "32"
    for name in (made / "best", made / "checkpoints" / "best"):
        assert find_checkpoint(name) == (wanted, ())
    weights = read_weights(made / "best", "student", ema=0)
    assert weights.nimg == 32
    started = recipe_from_dict({
        **TINY, "run": {**TINY["run"], "images": 8},
        "models": {"student": {**TINY["models"]["student"], "init": str(made / "best")}},
        "players": {"student": {"ema": [0.9], "optimizer": {"use": "sgd", "lr": 1e-30}}},
    })  # fmt: skip
    run = train(started, out=tmp_path).run
    found = read_weights(run, "student")
    for name, tensor in weights.tensors.items():
        torch.testing.assert_close(found.tensors[name], tensor)
    lock = load_recipe(run / "recipe.lock.toml")
    assert lock.locked["student"]["path"] == str(made / "best")


def test_patience_ends_a_run_that_gets_no_better(monkeypatch, tmp_path, capsys):
    """Best at 16, patience of 32: over at 48, with a last line, a checkpoint and metrics."""
    recipe = scripted(monkeypatch, [0.1, 0.9, 0.2, 0.3], patience=32)
    recipe = evolve(recipe, run=evolve(recipe.run, log_every=40))
    made = train(recipe, out=tmp_path, hooks=logged())
    assert made.nimg == 48
    assert checkpoints(made.run) == [16, 24, 48]
    assert made.best["over"]
    assert "loss/denoise" in made.metrics
    assert [row["nimg"] for row in rows(made.run) if "loss/denoise" in row] == [40, 48]
    words = "stopped at 48 of 80 images: nothing better for 32; best score 0.9 at 16 images"
    assert words in capsys.readouterr().err


def test_measurement_is_due_once_a_multiple_was_passed():
    """Whatever the batch; a run that begins, or goes on from before a measurement, owes it."""
    validator = Validator(settings=Validate(every=16), experiment=None, metrics={})
    assert validator.pending(0)
    measured = []
    for nimg in range(0, 81, 10):
        if validator.due(nimg):
            measured.append(nimg)
            validator.judge({"score": 0.0}, nimg)
    assert measured == [20, 40, 50, 70, 80]
    assert not validator.pending(90)
    assert validator.pending(100)
    late = Validator(settings=Validate(every=16, start=False), experiment=None, metrics={})
    assert not late.pending(0)
    assert not late.pending(15)
    assert late.pending(16)


@pytest.mark.parametrize(
    ("settings", "values", "best"),
    [
        ({}, [1, 3, 2], (3, 1)),
        ({"goal": "min"}, [3, 1, 2], (1, 1)),
        ({}, [2, 2, 2], (2, 0)),
        ({"ties": "last"}, [2, 2, 2], (2, 2)),
        ({"goal": "min", "ties": "last"}, [2, 3, 2], (2, 2)),
        ({}, [math.nan, 1, math.nan], (1, 1)),
        ({}, [math.inf, 1, -math.inf], (1, 1)),
        ({"goal": "min"}, [-math.inf, 1], (1, 1)),
        ({}, [math.nan], None),
        ({"best": "other"}, [1, 3, 2], (-1, 0)),
    ],
)
def test_best_is_by_goal_and_ties_and_finite(settings, values, best):
    """Numbers that are not finite are never the best; equal ones go by `ties`."""
    validator = Validator(settings=Validate(**settings), experiment=None, metrics={})
    verdicts = [
        validator.judge({"score": value, "other": -value}, place)
        for place, value in enumerate(values)
    ]
    found = validator.standing
    assert (None if found.value is None else (found.value, found.nimg)) == best
    assert verdicts.count(True) == 0 if best is None else verdicts[best[1]]
    assert validator.pinned == (frozenset() if best is None else {best[1]})


def test_patience_counts_from_the_best(tmp_path):
    """It is at its end as many images after the best, and never before there is one."""
    validator = Validator(settings=Validate(patience=20), experiment=None, metrics={})
    found = []
    for nimg, value in enumerate([math.nan] * 5 + [1, 2, 1, 1, 1]):
        validator.judge({"score": value}, 10 * nimg)
        found.append(validator.over)
    assert found == [False] * 8 + [True, True]


class StopAt:
    """Asks the run to stop once so many lines were logged."""

    def __init__(self, count):
        self.left = count

    @hookimpl
    def metrics_logged(self):
        """Count, and stop as a signal would."""
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("lines", [1, 2, 5, 7])
def test_run_with_validation_resumes_bit_identically(tmp_path, lines):
    """Stopped after any line, the run has the same log, best and weights as one in a single go."""
    recipe = tiny(**MEASURED, goal="min")
    whole = train(recipe, out=tmp_path / "a", hooks=logged()).run
    with pytest.raises(Interrupted):
        train(recipe, out=tmp_path / "b", hooks=logged(StopAt(lines)))
    (run,) = (tmp_path / "b").iterdir()
    made = train(recipe, resume=run, hooks=logged())
    assert rows(run) == rows(whole)
    assert checkpoints(run) == checkpoints(whole)
    a, b = (load(newest_valid(r / "checkpoints")[0]).shared for r in (run, whole))
    assert same(a, b)
    assert made.best == b["validation"]


def test_stopping_does_not_wait_for_a_measurement(monkeypatch, tmp_path):
    """A signal before it comes leaves it to the resumed run, which begins by measuring."""
    recipe = scripted(monkeypatch, [1, 2, 3])
    with pytest.raises(Interrupted):
        train(recipe, out=tmp_path, hooks=logged(StopAt(2)))
    (run,) = tmp_path.iterdir()
    assert [(row["nimg"], "validate/score" in row) for row in rows(run)] == [(0, True), (16, False)]
    standing = read_standing(run / "checkpoints")
    assert (standing.measured, standing.nimg) == (0, 0)


def test_run_killed_at_a_best_checkpoint_goes_on_from_it(tmp_path):
    """What came after it is gone; the log and the best of the run are as if nothing had been."""
    recipe = tiny(**MEASURED, goal="min")
    whole = train(recipe, out=tmp_path / "a", hooks=logged()).run
    run = train(recipe, out=tmp_path / "b", hooks=logged()).run
    found = checkpoints(run)
    assert len(found) > 1
    for old, new in pairwise(reversed(found)):
        shutil.rmtree(run / "checkpoints" / str(old))
        train(recipe, resume=run, hooks=logged())
        assert rows(run) == rows(whole), f"from {new}"


def test_run_that_ended_early_is_finished_until_it_gets_more_patience(tmp_path, capsys):
    """Going on trains nothing; with more patience it trains to its end."""
    # The distance falls, so that the first weights are the best by a goal that is wrong.
    first = train(tiny(**MEASURED, patience=16), out=tmp_path, hooks=logged())
    assert first.best["over"]
    assert first.nimg < 80
    log = rows(first.run)
    again = train(tiny(**MEASURED, patience=16), resume=first.run, hooks=logged())
    assert (again.nimg, again.best) == (first.nimg, first.best)
    assert rows(first.run) == log
    more = train(tiny(**MEASURED), resume=first.run, hooks=logged())
    assert more.nimg == 80
    assert not more.best["over"]


def test_validation_may_begin_in_a_run_that_had_none(tmp_path):
    """Adding or changing `[validate]` is no change of what is learnt."""
    recipe = recipe_from_dict({**TINY, "run": {**TINY["run"], "images": 40}})
    run = train(recipe, out=tmp_path, hooks=logged()).run
    made = train(tiny(**MEASURED, goal="min"), resume=run, hooks=logged())
    measured = [row["nimg"] for row in rows(run) if "validate/sliced_wasserstein" in row]
    assert measured == [40, 48, 64, 80]
    assert made.best["nimg"] in measured


def test_best_starts_anew_when_another_number_decides(tmp_path, capsys):
    """Values of two numbers are not compared, and a message says so."""
    short = {**TINY, "run": {**TINY["run"], "images": 32}}
    run = train(recipe_from_dict({**short, "validate": MEASURED}), out=tmp_path).run
    made = train(tiny(**MEASURED, goal="min"), resume=run)
    err = capsys.readouterr().err
    assert "the best is now the min of sliced_wasserstein, it was the max of" in err
    assert made.best["goal"] == "min"
    assert made.best["nimg"] > 32


def test_best_starts_anew_when_its_checkpoint_is_gone(monkeypatch, tmp_path, capsys):
    """A value without weights is worth nothing."""
    short = {**TINY, "run": {**TINY["run"], "images": 64}}
    run = train(recipe_from_dict({**short, "validate": MEASURED}), out=tmp_path).run
    best = read_standing(run / "checkpoints").nimg
    assert best == 0, "the first weights are the farthest from the data"
    shutil.rmtree(run / "checkpoints" / "0")
    with pytest.raises(DataError, match="the best checkpoint, of 0 images, is gone"):
        best_checkpoint(run)
    made = train(tiny(**MEASURED), resume=run)
    assert "the best checkpoint, of 0 images, is gone: validation starts" in capsys.readouterr().err
    assert made.best["nimg"] == 80


def test_unknown_number_is_refused_before_the_first_step(monkeypatch, tmp_path):
    """The measurement before the first step finds it, names what there is, and the nearest."""
    with pytest.raises(
        RecipeError, match=r"no metric gives 'scor'; there are score, other"
    ) as info:
        train(scripted(monkeypatch, [1], best="scor"), out=tmp_path, hooks=logged())
    assert info.value.faults[0].key == "validate.best"
    assert info.value.faults[0].fix == "did you mean 'score'?"
    (run,) = tmp_path.iterdir()
    assert not (run / "checkpoints").exists()


def test_failing_metric_stops_the_run_and_keeps_what_was_saved(monkeypatch, tmp_path):
    """Its own error is told; the last checkpoint is from before it."""
    recipe = scripted(monkeypatch, [1, 2, 3])
    original = Scripted.compute

    def compute(self, evaluation):
        if self.asked == 2:
            raise NumericsError("logits are not finite", code="E22", where="evaluate")
        return original(self, evaluation)

    monkeypatch.setattr(Scripted, "compute", compute)
    with pytest.raises(NumericsError, match="logits are not finite"):
        train(recipe, out=tmp_path)
    (run,) = tmp_path.iterdir()
    assert checkpoints(run) == [16, 24]


def test_measurement_is_stored_with_its_protocol(monkeypatch, tmp_path):
    """`validation.json` has the last numbers, how they came about, and which weights are best."""
    run = train(scripted(monkeypatch, [1, 3, 2]), out=tmp_path).run
    found = json.loads((run / "validation.json").read_text())
    assert found["nimg"] == 80
    assert found["metrics"] == {"score": 2.0, "other": -2.0}
    assert found["protocols"]["scripted"]["by"] == "script"
    assert found["best"]["value"] == 3.0
    assert (run / "validation" / "notes.txt").exists()
    assert not (run / "notes.txt").exists()


def test_trained_run_opens_with_its_best_weights(tmp_path):
    """By the word best, as by its number of images."""
    made = train(tiny(**MEASURED, goal="min"), out=tmp_path)
    best = open_trained(made.run, checkpoint="best")
    assert best.nimg == made.best["nimg"]
    assert best.checkpoint.name == str(made.best["nimg"])
    assert open_trained(made.run / "best").checkpoint == best.checkpoint
    with pytest.raises(DataError, match="no checkpoint is the best: nothing was measured"):
        open_trained(train(tiny(), out=tmp_path).run, checkpoint="best")


def test_damaged_best_checkpoint_is_named(tmp_path):
    """Nothing else is taken for it."""
    run = train(tiny(**MEASURED, goal="min"), out=tmp_path).run
    file = best_checkpoint(run) / "shared.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(DataError, match="is damaged") as info:
        open_trained(run, checkpoint="best")
    assert str(file) in str(info.value)


def test_standing_survives_a_damaged_newest_checkpoint(tmp_path):
    """The next older one still says which is the best."""
    run = train(tiny(**MEASURED, goal="min"), out=tmp_path).run
    newest = run / "checkpoints" / "80" / "state.json"
    newest.write_bytes(newest.read_bytes() + b" ")
    assert read_standing(run / "checkpoints").number == "sliced_wasserstein"
    assert read_standing(run / "checkpoints").measured < 80


@pytest.mark.parametrize(
    "noted",
    [
        [1],
        {"value": 1},
        "x",
        {**Standing().as_json(), "more": 1},
        {**Standing().as_json(), "value": "0.5"},
        {**Standing().as_json(), "nimg": 1.5},
        {**Standing().as_json(), "number": None},
        {**Standing().as_json(), "over": 1},
    ],
)
def test_strange_record_of_measurements_is_refused(noted):
    """As everything a checkpoint holds that it should not."""
    with pytest.raises(DataError, match="is no record of measurements"):
        Standing.read(noted)


@pytest.mark.parametrize(
    ("lines", "key", "words"),
    [
        ("[validate]\n", "validate.metrics", "nothing is measured"),
        (
            "[validate]\npatience = 5\nevery = 10\nmetrics = [{ use = 'frechet' }]\n",
            "validate.patience",
            "a patience of 5 images ends before the next measurement, after 10",
        ),
        ("[validate]\nmetrics = [{ use = 'frechet' }]\ngoal = 'up'\n", "validate.goal", "'up'"),
        ("[validate]\nmetrics = [{ use = 'no' }]\n", "validate.metrics.0.use", "no"),
        ("[validate]\nevery = 0\nmetrics = [{ use = 'frechet' }]\n", "validate.every", "at least"),
        ("[validate]\npatiense = 0\n", "validate.patiense", "unknown key"),
        ("validate = 3\n", "validate", "wanted a table"),
    ],
)
def test_faults_of_the_table_are_told_with_their_key(tmp_path, lines, key, words):
    """All are found by `advdiff check`."""
    path = tmp_path / "a.toml"
    base = "advdiff = 1\n[data]\nuse = 'two-moons'\n[models.student]\nuse = 'mlp'\n"
    path.write_text(lines + base if lines.startswith("validate") else base + lines)
    faults = {fault.key: fault for fault in check_recipe(path)}
    assert key in faults, faults
    assert words in faults[key].message


def test_metrics_of_samples_need_a_denoiser_in_validation_too():
    """As in `[evaluate]`."""
    classifier = {
        "data": {"use": "two-moons"},
        "models": {"student": {"use": "mlp", "outputs": 2, "parametrization": "none"}},
        "terms": {"ce": {"use": "cross-entropy"}},
        "validate": {"metrics": [{"use": "frechet"}]},
    }
    with pytest.raises(RecipeError, match="'frechet' measures samples") as info:
        recipe_from_dict(classifier)
    assert info.value.faults[0].key == "validate.metrics.0.use"


def test_validation_that_never_comes_is_warned_of():
    """More images between measurements than the run has."""
    recipe = tiny(metrics=[{"use": "frechet"}], every=1000)
    (warning,) = [one for one in recipe.warnings if one.key == "validate.every"]
    assert "measured every 1,000 images, the run has 80" in warning.message


def test_recipe_without_validation_is_frozen_as_before(tmp_path):
    """A table that is not there is not written down; one that is comes back from the lock."""
    run = train(tiny(), out=tmp_path).run
    assert "validate" not in load_recipe(run / "recipe.lock.toml").to_dict()
    recipe = tiny(**MEASURED)
    run = train(recipe, out=tmp_path).run
    assert load_recipe(run / "recipe.lock.toml").validate == recipe.validate
