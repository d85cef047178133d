"""Several processes (gloo on this machine): the same gradients, weights and log as one."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from advdiff_core.engine.api import train
from advdiff_core.engine.best import best_checkpoint, read_standing
from advdiff_core.engine.checkpoint import load
from advdiff_core.engine.metrics_log import read_metrics
from advdiff_core.hooks.jsonl import JsonLines
from advdiff_core.hooks.manager import Hooks
from advdiff_core.recipe import load_recipe

RECIPE = Path(__file__).parents[1] / "recipes" / "players.toml"
OVERRIDES = (
    "run.images=48",
    "models.student.dropout=0.0",
    'schedule.density.sampler={ use = "toy-doubling", weighted = true }',
    'validate.metrics=[{ use = "sliced-wasserstein" }, { use = "frechet" }]',
    "validate.every=32",
    "validate.num=8",
    'validate.goal="min"',
)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A run made by two processes under torchrun."""
    folder = tmp_path_factory.mktemp("two")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        "-m", "advdiff_core", "train", RECIPE, "--out", folder, "--json",
        *(part for override in OVERRIDES for part in ("-s", override)),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])["nimg"] == 48
    return folder / "00000-players"


def test_two_processes_learn_what_one_process_learns(two, tmp_path):
    """Draws are keyed by the sample, so that two halves of a batch add up to the whole one."""
    hooks = Hooks()
    hooks.add(JsonLines(), name="jsonl")
    one = train(load_recipe(RECIPE, OVERRIDES), out=tmp_path, hooks=hooks).run
    a, b = load(two / "checkpoints" / "48").shared, load(one / "checkpoints" / "48").shared
    for role in ("student", "judge"):
        for name, tensor in b["models"][role].items():
            torch.testing.assert_close(a["models"][role][name], tensor, rtol=2e-4, atol=2e-6)
    # The law of training times heard of every sample once, in both.
    assert torch.equal(a["times"]["calls"], b["times"]["calls"])
    torch.testing.assert_close(a["times"]["losses"], b["times"]["losses"], rtol=1e-5, atol=0)
    rows = [read_metrics(run / "metrics.jsonl")[1] for run in (two, one)]
    for name in (
        "loss/denoise",
        "loss/equivariance",
        "loss/fool",
        "loss/judge",
        "grad_norm/student",
    ):
        assert rows[0][name] == pytest.approx(rows[1][name], rel=1e-5)


def test_two_processes_agree_on_which_weights_are_the_best(two):
    """Samples and metrics are shared out; both processes judge by the same numbers."""
    found = json.loads((two / "validation.json").read_text())
    measured = [row for row in read_metrics(two / "metrics.jsonl") if "validate/frechet" in row]
    assert [row["nimg"] for row in measured] == [0, 32, 48]
    best = min(measured, key=lambda row: row["validate/sliced_wasserstein"])
    assert (found["best"]["number"], found["best"]["nimg"]) == ("sliced_wasserstein", best["nimg"])
    assert read_standing(two / "checkpoints").as_json() == found["best"]
    assert best_checkpoint(two).is_dir()


def test_one_process_goes_on_where_two_stopped_and_says_what_it_cannot_promise(
    two, tmp_path, capsys
):
    """X06: another world size keeps the sample order; the level of repeatability is printed."""
    run = tmp_path / "copy"
    shutil.copytree(two, run)
    done = train(load_recipe(RECIPE, (*OVERRIDES, "run.images=64")), resume=run)
    assert done.nimg == 64
    assert "going on from 48 images; repeatability L2: world: 2 -> 1" in capsys.readouterr().err
