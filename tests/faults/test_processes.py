"""Several processes (gloo on this machine): the same gradients, weights and log as one."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_processes import advdiff, in_processes
from helpers_robust import data_table, trained_classifier
from torch import Tensor

from advdiff_core.engine.api import open_trained, train
from advdiff_core.engine.checkpoint import load, read_weights
from advdiff_core.engine.robust.job import AttackJob
from advdiff_core.engine.synthesis import Job, Synthesis
from advdiff_core.hooks.jsonl import JsonLines
from advdiff_core.hooks.manager import Hooks
from advdiff_core.recipe import load_recipe, recipe_from_dict

RECIPE = Path(__file__).parents[1] / "recipes" / "players.toml"
OVERRIDES = (
    "run.images=64",
    "run.keep=10",
    "models.student.dropout=0.0",
    'schedule.density.sampler={ use = "toy-doubling", weighted = true }',
)
SETS = tuple(part for override in OVERRIDES for part in ("-s", override))
SHARDED = ("-s", "models.student.shard=true", "-s", "models.judge.shard=true")
CLOSE = {"rtol": 2e-4, "atol": 2e-6}


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A run made by one process."""
    hooks = Hooks()
    hooks.add(JsonLines(), name="jsonl")
    return train(
        load_recipe(RECIPE, OVERRIDES), out=tmp_path_factory.mktemp("one"), hooks=hooks
    ).run


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A run made by two processes under torchrun."""
    folder = tmp_path_factory.mktemp("two")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        "-m", "advdiff_core", "train", RECIPE, "--out", folder, "--json", *SETS,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])["nimg"] == 64
    return folder / "00000-players"


@pytest.fixture(scope="module")
def shared_out(tmp_path_factory):
    """A run made by two processes that share out the roles."""
    folder = tmp_path_factory.mktemp("shared")
    done = advdiff("train", RECIPE, "--out", folder, *SETS, *SHARDED, nproc=2)
    assert done.returncode == 0, done.stderr
    return folder / "00000-players"


def flat(state: Any, place: str = "") -> dict[str, Any]:
    """Every leaf of a state, by its place."""
    if isinstance(state, dict):
        parts = [flat(value, f"{place}/{key}") for key, value in state.items()]
    elif isinstance(state, list):
        parts = [flat(value, f"{place}/{index}") for index, value in enumerate(state)]
    else:
        return {place: state}
    return {key: value for part in parts for key, value in part.items()}


def assert_same(run: Path, other: Path, nimg: int = 64, **close: float) -> None:
    """Every number of two checkpoints: bit for bit, or close."""
    a, b = (flat(load(path / "checkpoints" / str(nimg)).shared) for path in (run, other))
    assert a.keys() == b.keys()
    for name, value in a.items():
        if isinstance(value, Tensor) and close:
            torch.testing.assert_close(value, b[name], msg=lambda m, n=name: f"{n}: {m}", **close)
        elif isinstance(value, Tensor):
            assert torch.equal(value, b[name]), name
        elif name != "/micro":
            assert value == b[name], name


def cut_back(run: Path, to: Path) -> Path:
    """A copy of a run that stopped at 48 images."""
    shutil.copytree(run, to)
    shutil.rmtree(to / "checkpoints" / "64")
    return to


def test_two_processes_learn_what_one_process_learns(one, two):
    """Draws are keyed by the sample, so that two halves of a batch add up to the whole one."""
    assert_same(one, two, **CLOSE)
    # The law of training times heard of every sample once, in both.
    a, b = (load(run / "checkpoints" / "64").shared["times"] for run in (one, two))
    assert torch.equal(a["calls"], b["calls"])
    rows = [json.loads((run / "metrics.jsonl").read_text().splitlines()[0]) for run in (two, one)]
    for name in (
        "loss/denoise",
        "loss/equivariance",
        "loss/fool",
        "loss/judge",
        "grad_norm/student",
    ):
        assert rows[0][name] == pytest.approx(rows[1][name], rel=1e-5)


def test_one_process_goes_on_where_two_stopped_and_says_what_it_cannot_promise(
    one, two, tmp_path, capsys
):
    """X06: another world size keeps the sample order; the level of repeatability is printed."""
    run = cut_back(two, tmp_path / "copy")
    done = train(load_recipe(RECIPE, OVERRIDES), resume=run)
    assert done.nimg == 64
    assert "going on from 48 images; repeatability L2: world: 2 -> 1" in capsys.readouterr().err
    assert_same(one, run, **CLOSE)


def test_killed_process_is_named_and_the_run_goes_on_bit_for_bit(two, tmp_path):
    """X01: the others stop within seconds, and a resumed run ends where one that never stopped."""
    fault = {"ADVDIFF_FAULT": "train.step@1:4:kill"}
    killed = advdiff("train", RECIPE, "--out", tmp_path, *SETS, nproc=2, env=fault)
    run = tmp_path / "00000-players"
    assert killed.returncode == 75
    said = killed.stderr.splitlines()[-1]
    assert "error[X01] process 1 (pid " in said
    assert "ended by SIGKILL (exit code -9); the other processes were stopped" in said
    assert f"go on with: advdiff train --resume {run}" in said
    assert "Traceback" not in killed.stderr
    assert not (run / "checkpoints" / "64").exists()
    done = advdiff("train", "--resume", run, nproc=2)
    assert done.returncode == 0, done.stderr
    assert "going on from 48 images; repeatability L0: bit-identical" in done.stderr
    assert_same(two, run)


def test_three_processes_go_on_where_two_stopped(one, two, tmp_path):
    """X06, X07: shares of 5, 5 and 6 samples; what is learnt is what one process learns."""
    run = cut_back(two, tmp_path / "copy")
    done = advdiff("train", "--resume", run, nproc=3)
    assert done.returncode == 0, done.stderr
    assert "repeatability L2: world: 2 -> 3" in done.stderr
    assert_same(one, run, **CLOSE)


def test_shared_out_roles_learn_what_whole_ones_learn(one, shared_out, tmp_path):
    """FSDP2: two players, an adversarial view, averages and clipping, with rows in own files."""
    run = shared_out
    assert_same(one, run, **CLOSE)
    # Each process wrote its own rows, and no pickle.
    files = {path.name: path.stat().st_size for path in (run / "checkpoints" / "64").iterdir()}
    assert files["rank-0000.safetensors"] > 2 * files["shared.safetensors"]
    assert files["rank-0001.safetensors"] > 2 * files["shared.safetensors"]
    assert {Path(name).suffix for name in files} == {".safetensors", ".json", ""}
    # They are whole for who reads the run, in one process: weights, averages, samples, more steps.
    whole = load(run / "checkpoints" / "64").shared
    for average, wanted in ((None, whole["models"]["student"]), (1, whole["ema"]["student"][1])):
        found = read_weights(run, "student", ema=average).tensors
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in found)
    a, b = (open_trained(path).sample(range(3)).x0 for path in (one, run))
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    again = cut_back(run, tmp_path / "again")
    train(load_recipe(run / "recipe.lock.toml"), resume=again)
    assert_same(one, again, **CLOSE)


@pytest.mark.slow
def test_shared_out_roles_go_on_bit_for_bit(shared_out, tmp_path):
    """A resumed run of shared roles ends where one that never stopped does."""
    again = cut_back(shared_out, tmp_path / "again")
    done = advdiff("train", "--resume", again, nproc=2)
    assert done.returncode == 0, done.stderr
    assert_same(shared_out, again)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("train.step@1:4:signal:SIGSTOP", "is stopped after 4 s (step 3, 48 images)"),
        ("train.step@0:4:signal:SIGSTOP", "process 0"),
    ],
)
def test_stopped_process_is_named_after_the_time_that_the_recipe_gives(fault, said, tmp_path):
    """X03: which one, how long it was waited for, and the last step."""
    done = advdiff(
        "train", RECIPE, "--out", tmp_path, *SETS, "-s", "run.timeout=4", nproc=2,
        env={"ADVDIFF_FAULT": fault},
    )  # fmt: skip
    assert done.returncode == 75, done.stderr
    assert "error[X03]" in done.stderr
    assert said in done.stderr
    assert "go on with: advdiff train --resume" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_error_of_one_process_is_the_one_that_is_told(tmp_path):
    """X02: its message and exit code, not that the others lost it."""
    fault = {"ADVDIFF_FAULT": "train.step@1:4:raise:EIO"}
    done = advdiff("train", RECIPE, "--out", tmp_path, *SETS, nproc=2, env=fault)
    assert done.returncode == 5
    assert done.stderr.splitlines()[-2].startswith("advdiff: error Input/output error")
    assert done.stderr.splitlines()[-1].startswith("advdiff: process 1 ended with 5")


@pytest.mark.slow
def test_signal_to_one_process_stops_all_at_one_step(two, tmp_path):
    """X09: all save the same step, exit code 75; going on gives the run that never stopped."""
    fault = {"ADVDIFF_FAULT": "train.step@1:3:signal:SIGTERM"}
    done = advdiff("train", RECIPE, "--out", tmp_path, *SETS, nproc=2, env=fault)
    run = tmp_path / "00000-players"
    assert done.returncode == 75
    assert "stopped at 48 of 64 images; everything is saved" in done.stderr.splitlines()[-1]
    assert max(int(path.name) for path in (run / "checkpoints").iterdir()) == 48
    assert advdiff("train", "--resume", run, nproc=2).returncode == 0
    assert_same(two, run)


#: Kills in turn, each in the run that the one before it left: the point (counted from the start of
#: the processes), the newest checkpoint after it, and which files of the next one lie hidden: None
#: where process 0 lives long enough to remove them, or where there is no next one yet.
#: In a save process 0 writes its five files in this order and process 1 its one, "rank-0001".
FILES = [
    "shared.safetensors", "rank-0000.safetensors", "state.json", "manifest.json", "COMMIT",
]  # fmt: skip
KILLS = [
    # Within the first file of process 1, before there is any checkpoint.
    ("save.write@1:2:kill", None, None),
    # The second file of process 0 in the second save is written, but not yet on the disk.
    ("save.fsync@0:7:kill", 16, FILES[:2]),
    # Process 1 has written its file of the next save.
    ("save.fsync@1:1:kill", 16, None),
    # Within the first file of process 0.
    ("save.write@0:8:kill", 16, FILES[:1]),
    # The second save from there is complete, but for its name.
    ("save.rename@0:2:kill", 32, FILES),
    # The next one has its name; that this is on the disk is not yet sure.
    ("save.sync_dir@0:2:kill", 48, None),
]


def assert_killed_while_saving(
    done: subprocess.CompletedProcess[str], fault: str, run: Path, newest: int | None
) -> None:
    """It ended as promised, and every checkpoint that can be seen is whole."""
    rank = fault[fault.index("@") + 1]
    said = done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr, fault
    assert f"error[X01] process {rank} (pid " in said, fault
    assert "ended by SIGKILL (exit code -9); the other processes were stopped" in said, fault
    found = [path for path in sorted((run / "checkpoints").iterdir()) if path.name.isdigit()]
    wanted = [str(nimg) for nimg in range(16, (newest or 0) + 1, 16)]
    assert [path.name for path in found] == wanted, fault
    for path in found:
        assert [load(path, rank=one).nimg for one in range(2)] == [int(path.name)] * 2, fault
    if newest is None:
        assert done.returncode == 70, fault
        assert "nothing was saved yet: start it again" in said, fault
    else:
        assert done.returncode == 75, fault
        assert f"go on with: advdiff train --resume {run}" in said, fault


@pytest.mark.slow
def test_process_killed_while_saving_leaves_no_half_checkpoint(two, tmp_path):
    """X04: either it is there and whole, or the one before it is the newest; both can go on."""
    run = tmp_path / "00000-players"
    command: tuple[object, ...] = ("train", RECIPE, "--out", tmp_path, *SETS)
    for fault, newest, hidden in KILLS:
        done = advdiff(*command, nproc=2, env={"ADVDIFF_FAULT": fault})
        assert_killed_while_saving(done, fault, run, newest)
        left = [path for path in (run / "checkpoints").iterdir() if path.name.startswith(".")]
        if hidden is not None:
            # It was killed at that point: these files were begun, and no other of process 0.
            assert [path.name.split("-")[:2] for path in left] == [[".tmp", str(newest + 16)]]
            names = {path.name for path in left[0].iterdir()} - {"rank-0001.safetensors"}
            assert names == set(hidden), fault
        command = ("train", "--resume", run)
    done = advdiff(*command, nproc=2)
    assert done.returncode == 0, done.stderr
    assert "going on from 48 images; repeatability L0: bit-identical" in done.stderr
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["16", "32", "48", "64"]
    assert_same(two, run)


# Work that is shared after the training.


@pytest.fixture(scope="module")
def shared_work(tmp_path_factory):
    """What three processes found, and the folder that they found it in."""
    folder = tmp_path_factory.mktemp("work")
    shutil.copytree(trained_classifier(folder).rundir.path, folder / "victim")
    tables = {
        "run": {"images": 32, "batch": 16, "device": "cpu", "precision": "fp32"},
        "data": data_table(folder, "train"),
        "models": {"student": {"use": "mlp", "width": 8, "conditional": True}},
        "terms": {"denoise": {"use": "denoise"}}, "sample": {"use": "ddim", "steps": 3},
        "evaluate": {
            "num": 31, "repeats": 2, "batch": 8, "metrics": [{"use": "frechet"}, {"use": "frechet"}]
        },
    }  # fmt: skip
    made = train(recipe_from_dict(tables), out=folder / "runs").run
    shutil.copytree(made, folder / "denoiser")
    net = {"use": "toy-net", "outputs": 3, "batch_norm": True, "parametrization": "none"}
    norms = {
        "run": {"images": 60, "batch": 20, "device": "cpu", "precision": "fp32"},
        "data": data_table(folder, "train"), "models": {"net": net},
        "terms": {"ce": {"use": "cross-entropy", "role": "net"}}, "players": {"net": {}},
    }  # fmt: skip
    (folder / "norms.json").write_text(json.dumps(norms))
    return folder, in_processes(3, folder, "collectives", "norms", "evaluation")


def test_processes_put_together_what_each_has(shared_work):
    """Rows, means by samples, texts, votes: as if one process had done it."""
    found = shared_work[1]["collectives"]
    mean = torch.arange(20.0).reshape(10, 2).mean(0)
    assert found["rows"]
    assert found["patient"]
    assert found["mean"] == [mean.tolist(), pytest.approx(float(mean[0]))]
    assert found["sum"] == [3.0, 3.0]
    assert found["texts"] == ["", "\u00e4", "\u00e4\u00e4"]
    assert found["votes"] == [False, True, False]
    assert found["main"] == {"from": 0}


def test_running_statistics_are_the_same_everywhere(shared_work):
    """Each process normalises its own share; what is saved is what all of them hold."""
    found = shared_work[1]["norms"]
    assert len(set(found["digests"])) == 1
    assert found["moved"] > 1e-3


def test_samples_shared_by_processes_are_those_of_one(shared_work):
    """Each seed is sampled once, all get all, and a process without seeds knows the cost too."""
    folder, found = shared_work
    parts = [torch.load(folder / f"samples-{rank}.pt", weights_only=True) for rank in range(3)]
    alone = open_trained(folder / "denoiser")
    for part in parts:
        torch.testing.assert_close(part["seven"], alone.sample(range(3, 10)).x0)
        torch.testing.assert_close(part["two"], alone.sample(range(2)).x0)
    assert found["evaluation"]["nfe"] == [3, 3]


def test_metrics_shared_by_processes_are_those_of_one(shared_work):
    """X07: 31 samples and 3 processes; each sample counts once, each metric is computed once."""
    folder, found = shared_work
    wanted = open_trained(folder / "denoiser").evaluate()["metrics"]
    assert found["evaluation"]["metrics"] == pytest.approx(wanted, rel=1e-4)
    assert set(wanted) >= {"frechet", "frechet#2"}


def test_shards_made_by_processes_are_those_of_one(shared_work):
    """Byte for byte, with an index of all of them."""
    folder, found = shared_work
    assert found["evaluation"]["shards"] == [14, 4]
    trained = open_trained(folder / "denoiser")
    job = Job(num=14, labels=(0, 1, 2), shard=4)
    Synthesis(trained=trained, job=job, folder=folder / "alone", batch=3).run()
    for path in (folder / "alone").glob("*.npz"):
        assert path.read_bytes() == (folder / "shards" / path.name).read_bytes()
    assert len(list((folder / "alone").glob("*.npz"))) == 4


def test_attack_shared_by_processes_finds_what_one_finds(shared_work):
    """X07: 23 samples in buckets of 4; the journal is that of one process, but for the seconds."""
    folder, found = shared_work
    job = AttackJob(
        attacks=({"use": "toy-fgsm"},), eps=(0.05, 0.2), num=23, batch=4, save=3, name="alone"
    )
    report = open_trained(folder / "victim").attack(job)
    theirs = found["evaluation"]["report"]
    assert theirs["curve"] == report.as_json()["curve"]
    assert theirs["clean"] == report.as_json()["clean"]
    places = Path(found["evaluation"]["folder"]), report.folder
    journals = [
        [json.loads(line) for line in (place / "journal.jsonl").read_text().splitlines()]
        for place in places
    ]
    assert len(journals[0]) == len(journals[1])
    for row, other in zip(*journals, strict=True):
        assert {**row, "seconds": 0} == {**other, "seconds": 0}
    for name in ("examples.jsonl", "adversarial.safetensors"):
        assert (places[0] / name).read_bytes() == (places[1] / name).read_bytes()
