"""A sweep as its user runs it: processes of its own, stopped in the middle, gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from advdiff_core.engine.api import train
from advdiff_core.recipe import load_recipe

RECIPE = """
advdiff = 1
[run]
images = 8_192
batch = 32
log_every = 256
checkpoint_every = 4_096
device = "cpu"
[data]
use = "two-moons"
count = 200
[models.student]
use = "mlp"
[terms.denoise]
use = "denoise"
[sample]
steps = 2
images = 4
[evaluate]
num = 16
metrics = [{ use = "sliced-wasserstein" }]
"""
SWEEP = (sys.executable, "-m", "advdiff_core", "sweep")


@pytest.mark.slow
def test_stopped_sweep_goes_on_to_the_numbers_of_one_that_was_not(tmp_path: Path) -> None:
    """SIGTERM: the live run saves, the sweep says how to go on, and nothing is computed twice."""
    (tmp_path / "moons.toml").write_text(RECIPE)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    grid = ("-s", "terms.denoise.weight=0.5,2")
    process = subprocess.Popen(
        (*SWEEP, "moons.toml", *grid), cwd=tmp_path, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    sweep = tmp_path / "sweeps" / "00000-moons"
    log = sweep / "runs" / "00000-weight-0.5" / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and log.stat().st_size):
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    assert "weight-0.5: stopped at" in err
    assert "weight-2: started" not in err
    assert "go on with: advdiff sweep --resume sweeps/00000-moons" in err.splitlines()[-1]
    assert "stopped" in out
    assert len(list((sweep / "runs").iterdir())) == 1

    done = subprocess.run(
        (*SWEEP, "--resume", sweep, "--json"), cwd=tmp_path, env=environment, text=True,
        capture_output=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "weight-0.5: started from" in done.stderr
    runs = {run["name"]: run for run in json.loads(done.stdout)["runs"]}
    assert {run["state"] for run in runs.values()} == {"finished"}
    assert len(list((sweep / "runs").iterdir())) == 2
    whole = train(load_recipe(sweep / "recipes" / "weight-0.5.toml"), out=tmp_path / "whole")
    assert (
        whole.metrics["sliced_wasserstein"] == (runs["weight-0.5"]["numbers"]["sliced_wasserstein"])
    )
