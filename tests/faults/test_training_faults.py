"""Faults inside training: numerics, signals, changed recipes and data; tiny networks."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from attrs import evolve

from advdiff_core.engine import tick
from advdiff_core.engine.api import open_trained, train
from advdiff_core.engine.checkpoint import load, newest_valid
from advdiff_core.engine.distributed import World, joined_world
from advdiff_core.engine.rundir import open_run
from advdiff_core.errors import (
    AdvdiffError,
    DataError,
    Interrupted,
    NumericsError,
    PluginError,
    StorageError,
    UsageError,
)
from advdiff_core.hooks.manager import Hooks
from advdiff_core.hooks.specs import hookimpl
from advdiff_core.recipe import load_recipe
from advdiff_core.terms import Denoise

RECIPE = """
advdiff = 1
[run]
name = "tiny"
images = 64
batch = 8
log_every = 16
checkpoint_every = 16
threads = 1
precision = "fp32"
[data]
use = "two-moons"
count = 40
[models.student]
use = "mlp"
width = 16
blocks = 1
[players.student]
ema = [0.9]
optimizer = { use = "adamw", lr = 1e-2 }
[sample]
use = "ddim"
steps = 2
images = 4
"""


@pytest.fixture
def recipe(tmp_path):
    """A recipe of a few steps, with overrides."""
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return lambda *overrides: load_recipe(path, overrides)


def newest(run: Path):
    """The newest checkpoint of a run, read."""
    path, skipped = newest_valid(run / "checkpoints")
    assert path is not None
    assert not skipped
    return load(path)


def poison(monkeypatch, nimg, how):
    """Make the denoise term go wrong in the step that begins at `nimg` images."""
    original = Denoise.forward

    def forward(self, step):
        loss = original(self, step)
        return how(loss) if step.nimg == nimg else loss

    monkeypatch.setattr(Denoise, "forward", forward)


class InfiniteGradient(torch.autograd.Function):
    """Identity with an infinite gradient."""

    @staticmethod
    def forward(ctx, x):
        """Identity."""
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        """Too much."""
        return g * torch.inf


BAD = {
    "nan loss": (lambda loss: loss * torch.nan, "N01", "the loss is nan"),
    "inf loss": (lambda loss: loss + torch.inf, "N01", "the loss is inf"),
    "inf gradient": (
        InfiniteGradient.apply,
        "N02",
        r"gradient of models\.student\.\S+ is not finite",
    ),
}


@pytest.mark.parametrize("nimg", [32, 40], ids=["after a log tick", "between two"])
@pytest.mark.parametrize("kind", BAD)
def test_training_stops_before_the_optimizer_moves_on_numbers_that_are_not_finite(
    recipe, tmp_path, monkeypatch, kind, nimg
):
    """N01, N02: exit 6, weights as before the step, a capsule, and a run that can go on."""
    how, code, words = BAD[kind]
    clean = train(recipe(f"run.images={nimg}"), out=tmp_path / "clean")
    with monkeypatch.context() as patch:
        poison(patch, nimg, how)
        with pytest.raises(NumericsError, match=words) as caught:
            train(recipe(), out=tmp_path / "bad")
    assert caught.value.exit_code == 6
    assert caught.value.code == code
    assert "capsule" in str(caught.value)
    run = tmp_path / "bad" / "00000-tiny"
    before = newest(clean.run).shared["models"]["student"]
    capsule = next((run / "capsule").iterdir())
    from safetensors.torch import load_file

    stored = load_file(capsule / "tensors.safetensors")
    for name, tensor in before.items():
        assert torch.equal(stored[f"models.student.{name}"], tensor)
    done = train(recipe(), resume=run)
    whole = train(recipe(), out=tmp_path / "whole")
    assert same_state(done.run, whole.run)


def same_state(a: Path, b: Path) -> bool:
    """Whether the newest checkpoints of two runs hold the same tensors, bit for bit."""
    left, right = newest(a), newest(b)
    return left.nimg == right.nimg and tree_equal(left.shared, right.shared)


def tree_equal(a, b) -> bool:
    """Bit-equality of nested state."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(tree_equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(tree_equal(x, y) for x, y in zip(a, b, strict=True))
    return a == b


class SignalAt:
    """Sends this process a signal at a log tick."""

    def __init__(self, number, nimg):
        self.number, self.nimg = number, nimg

    @hookimpl
    def metrics_logged(self, run, nimg):
        """Send it."""
        if nimg == self.nimg:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_signal_finishes_the_step_saves_and_says_how_to_go_on(recipe, tmp_path, number):
    """K03: exit 75 with a checkpoint of the step in progress; the resumed run is bit-identical."""
    hooks = Hooks()
    hooks.add(SignalAt(number, 32), name="signal")
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="stopped at 32 of 64 images") as caught:
        train(recipe(), out=tmp_path / "a", hooks=hooks)
    assert caught.value.exit_code == 75
    assert "--resume" in caught.value.fix
    assert signal.getsignal(number) == before
    run = tmp_path / "a" / "00000-tiny"
    assert newest(run).nimg == 32
    train(recipe(), resume=run)
    whole = train(recipe(), out=tmp_path / "b")
    assert same_state(run, whole.run)


def test_resume_equals_the_uninterrupted_run_at_every_position(recipe, tmp_path):
    """D09: stopping after any number of steps and going on changes no bit, metrics included."""
    whole = train(recipe(), out=tmp_path / "whole")
    lines = (whole.run / "metrics.jsonl").read_text().splitlines()
    for nimg in range(8, 64, 8):
        part = train(recipe(f"run.images={nimg}"), out=tmp_path / "parts")
        train(recipe(), resume=part.run)
        assert same_state(part.run, whole.run)
        assert len((part.run / "metrics.jsonl").read_text().splitlines()) >= len(lines)


def test_saving_every_step_changes_nothing(recipe, tmp_path):
    """N11: the weights do not depend on how often they are saved or sampled."""
    often = train(recipe("run.checkpoint_every=8", "sample.every=8"), out=tmp_path / "a")
    never = train(recipe("run.checkpoint_every=1000"), out=tmp_path / "b")
    assert same_state(often.run, never.run)


def test_resuming_a_finished_run_does_nothing(recipe, tmp_path):
    """K11: no step is taken and the stored metrics are returned."""
    first = train(recipe(), out=tmp_path)
    files = {
        p: p.stat().st_mtime_ns for p in first.run.rglob("*") if p.is_file() and p.name != ".lock"
    }
    again = train(recipe(), resume=first.run)
    assert again.nimg == 64
    assert again.seconds == 0.0
    assert all(p.stat().st_mtime_ns == time for p, time in files.items())


def test_resume_without_a_checkpoint_starts_anew_in_the_same_folder(recipe, tmp_path):
    """K01: a run killed before its first checkpoint loses nothing but time."""
    whole = train(recipe(), out=tmp_path / "whole")
    killed = train(recipe("run.images=8"), out=tmp_path / "killed")
    for path in (killed.run / "checkpoints" / "8").iterdir():
        path.unlink()
    (killed.run / "checkpoints" / "8").rmdir()
    train(recipe(), resume=killed.run)
    assert same_state(killed.run, whole.run)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("run.seed=5", "run.seed"),
        ("run.batch=16", "run.batch"),
        ("models.student.width=32", "models.student.width"),
        ("players.student.optimizer.lr=1e-3", "players.student.optimizer.lr"),
        ("data.count=41", "data.count"),
        ("schedule.use='vp-cosine'", "schedule.use"),
    ],
)
def test_resume_refuses_a_recipe_that_would_have_learnt_something_else(
    recipe, tmp_path, change, key
):
    """R15: old and new value are shown."""
    run = train(recipe("run.images=16"), out=tmp_path).run
    with pytest.raises(
        DataError, match=key.replace(".", r"\.") + " was .* and is .* now"
    ) as caught:
        train(recipe(change), resume=run)
    assert caught.value.code == "R15"


@pytest.mark.parametrize("change", ["run.log_every=8", "run.checkpoint_every=24", "run.keep=5"])
def test_resume_accepts_changes_that_cannot_change_what_is_learnt(recipe, tmp_path, change):
    """R15: length, log interval and the like may differ."""
    run = train(recipe("run.images=16"), out=tmp_path / "a").run
    train(recipe(change), resume=run)
    whole = train(recipe(), out=tmp_path / "b")
    left, right = newest(run).shared["models"], newest(whole.run).shared["models"]
    assert tree_equal(left, right)


def test_resume_refuses_data_that_have_changed(recipe, tmp_path, monkeypatch):
    """D04: the fingerprint of the data is compared."""
    run = train(recipe("run.images=16"), out=tmp_path).run
    from advdiff_core.datasets.points import TwoMoons

    monkeypatch.setattr(TwoMoons, "fingerprint", lambda self: "something else")
    with pytest.raises(DataError, match="data have changed since the checkpoint") as caught:
        train(recipe(), resume=run)
    assert caught.value.code == "D04"


def test_resume_falls_back_to_the_previous_checkpoint_and_says_so(recipe, tmp_path, capsys):
    """S01: a damaged newest checkpoint is skipped by name; the result is the same."""
    run = train(recipe("run.images=32"), out=tmp_path / "a").run
    shared = run / "checkpoints" / "32" / "shared.safetensors"
    data = bytearray(shared.read_bytes())
    data[-5] ^= 4
    shared.write_bytes(data)
    train(recipe(), resume=run)
    assert "skipped a damaged checkpoint" in capsys.readouterr().err
    assert same_state(run, train(recipe(), out=tmp_path / "b").run)


def test_resume_stops_when_every_checkpoint_is_damaged(recipe, tmp_path):
    """S01: nothing is trained on top of damage."""
    run = train(recipe("run.images=16"), out=tmp_path).run
    for shared in run.glob("checkpoints/*/shared.safetensors"):
        shared.write_bytes(b"")
    with pytest.raises(DataError, match="all 1 checkpoints are damaged"):
        train(recipe(), resume=run)


def test_opening_a_run_names_the_checkpoints_it_has(recipe, tmp_path):
    """A checkpoint that is not there is refused with the list of those that are."""
    run = train(recipe("run.images=32"), out=tmp_path).run
    assert open_trained(run, checkpoint=16).nimg == 16
    with pytest.raises(DataError, match="has no checkpoint 7; it has 16, 32"):
        open_trained(run, checkpoint=7)


def test_samples_do_not_depend_on_the_batch_they_are_made_in(recipe, tmp_path):
    """One seed, one image: batches of 1, 3 and 8 agree to rounding."""
    trained = open_trained(train(recipe("run.images=16"), out=tmp_path).run)
    whole = trained.sample(range(8)).x0
    assert trained.sample(range(8)).nfe == 2
    for batch in (1, 3):
        torch.testing.assert_close(
            trained.sample(range(8), batch=batch).x0, whole, rtol=1e-5, atol=1e-6
        )
    torch.testing.assert_close(trained.sample([5, 2]).x0, whole[[5, 2]], rtol=1e-5, atol=1e-6)


def test_sampling_refuses_an_average_that_is_not_there(recipe, tmp_path):
    """Asking for EMA 3 of 1 is a usage error that says how to get the raw weights."""
    trained = open_trained(train(recipe("run.images=16"), out=tmp_path).run)
    with pytest.raises(UsageError, match="has 1 averages, number 3 was asked for"):
        trained.sample([0], ema=3)


def test_cuda_is_refused_where_there_is_none(recipe, tmp_path, monkeypatch):
    """Asking for a device that is not there names the key; nothing is started."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="no CUDA device is available here"):
        train(recipe("run.device='cuda'"), out=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_broken_hook_never_stops_a_run(recipe, tmp_path):
    """A listener that raises is named and switched off; training goes on."""
    said = []

    class Broken:
        @hookimpl
        def metrics_logged(self, run, nimg):
            """Fail."""
            message = f"no more at {nimg}"
            raise RuntimeError(message)

    hooks = Hooks(warn=said.append)
    hooks.add(Broken(), name="broken", owner="some-dist 1.0")
    assert train(recipe(), out=tmp_path, hooks=hooks).nimg == 64
    assert len(said) == 1
    assert (
        "'broken' (some-dist 1.0) failed in metrics_logged: RuntimeError: no more at 16" in said[0]
    )


def test_metric_that_cannot_be_built_is_found_before_the_training(recipe, tmp_path, monkeypatch):
    """P13: what is needed at the end alone is built at the start; no folder is made."""
    from advdiff_core.metrics.wasserstein import SlicedWasserstein

    def broken(self, settings, build):
        message = "no projections today"
        raise RuntimeError(message)

    monkeypatch.setattr(SlicedWasserstein, "__init__", broken)
    with pytest.raises(PluginError, match=r"sliced-wasserstein.*no projections today") as caught:
        train(recipe("evaluate.metrics=[{use='sliced-wasserstein'}]"), out=tmp_path / "x")
    assert caught.value.code == "P13"
    assert not (tmp_path / "x").exists()


def test_two_metrics_of_one_kind_keep_their_numbers_and_protocols_apart(recipe, tmp_path):
    """The second one's numbers carry its place; each number names its protocol."""
    two = "evaluate.metrics=[{use='sliced-wasserstein'}, {use='sliced-wasserstein', seed=1}]"
    run = train(recipe(two, "run.images=16", "evaluate.num=40"), out=tmp_path).run
    found = json.loads((run / "evaluation.json").read_text())
    assert set(found["protocols"]) == {"sliced-wasserstein", "sliced-wasserstein#2"}
    assert found["owners"]["sliced_wasserstein"] == "sliced-wasserstein"
    assert found["owners"]["sliced_wasserstein#2"] == "sliced-wasserstein#2"


def test_run_folder_says_what_was_trained_also_after_it_was_made_longer(recipe, tmp_path):
    """The frozen recipe and the plan are there; a longer run freezes its new length."""
    run = train(recipe("run.images=16"), out=tmp_path).run
    assert json.loads((run / "plan.json").read_text())["roles"]["student"]["forwards"] == 1
    assert load_recipe(run / "recipe.lock.toml").run.images == 16
    train(recipe("run.images=32"), resume=run)
    assert load_recipe(run / "recipe.lock.toml").run.images == 32
    again = train(load_recipe(run / "recipe.lock.toml"), out=tmp_path / "again").run
    assert same_state(run, again)


def test_samples_that_are_not_finite_are_counted_not_measured(recipe, tmp_path):
    """E22: no metric is computed over them; the first seed is named."""
    overrides = ("run.images=16", "evaluate.num=6", "evaluate.metrics=[{use='sliced-wasserstein'}]")
    trained = open_trained(train(recipe(*overrides), out=tmp_path).run)
    for tensor in trained.experiment.players[0].emas["student"][0].shadow.values():
        tensor.fill_(torch.nan)
    with pytest.raises(
        NumericsError, match="6 of 6 samples are not finite, first seed 0"
    ) as caught:
        trained.evaluate()
    assert caught.value.code == "E22"


def test_processes_that_found_different_checkpoints_do_not_go_on(recipe, tmp_path, monkeypatch):
    """X05: the digests of all processes are compared before anything is loaded."""
    run = train(recipe("run.images=16"), out=tmp_path).run
    monkeypatch.setattr(World, "gather", lambda self, text: [text, "another"])
    with pytest.raises(DataError, match="processes found different checkpoints") as caught:
        train(recipe(), resume=run)
    assert caught.value.code == "X05"


def test_group_that_cannot_be_joined_names_its_address(monkeypatch):
    """X08: a wrong rendezvous is one line with the address."""
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "7"), ("MASTER_ADDR", "localhost")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", "no-port")
    with pytest.raises(AdvdiffError, match="cannot join 2 processes at localhost") as caught:
        joined_world().__enter__()
    assert caught.value.code == "X08"


def test_run_that_is_going_on_is_not_resumed_by_another_process(recipe, tmp_path):
    """K11, S08: the folder is locked before its checkpoint is read; the holder is named."""
    run = train(recipe("run.images=16"), out=tmp_path).run
    held = open_run(run).lock()
    with pytest.raises(StorageError) as caught:
        train(recipe(), resume=run)
    held.release()
    assert caught.value.code == "S08"
    assert caught.value.exit_code == 5
    assert train(recipe(), resume=run).nimg == 64


def test_checkpoint_that_cannot_be_rotated_is_told(recipe, tmp_path, monkeypatch, capsys):
    """S04: old checkpoints that stay are no failure of the save, and no secret."""
    original = tick.save

    def save(*args, **kwargs):
        return evolve(original(*args, **kwargs), notes=("cannot remove 16",))

    monkeypatch.setattr(tick, "save", save)
    train(recipe("run.images=16"), out=tmp_path)
    assert "advdiff: warning: cannot remove 16" in capsys.readouterr().err
