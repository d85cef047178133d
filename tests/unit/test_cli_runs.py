"""The verbs that run: their JSON contract on a real, tiny run, all in one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from safetensors.torch import load_file

RECIPE = """
advdiff = 1
[run]
seed = 3
images = 256
batch = 64
log_every = 64
checkpoint_every = 128
device = "cpu"
[data]
use = "two-moons"
count = 500
corrupt = [{ use = "gaussian", fraction = 0.5, std = 0.1 }]
[models.student]
use = "mlp"
[terms.denoise]
use = "denoise"
[sample]
steps = 4
images = 16
[evaluate]
num = 32
metrics = [{ use = "sliced-wasserstein" }]
"""

#: Runs command lines one after the other: torch is imported once for all of them.
SCRIPT = """
import contextlib, io, json, sys
from advdiff_core.cli import main
results = []
for args in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(args)
    results.append({"code": code, "out": out.getvalue(), "err": err.getvalue()})
print(json.dumps(results))
"""

RUN = "runs/00000-moons"
VALIDATED = "three/00000-moons"
VALIDATE = [
    "-s", "validate.metrics=[{use='sliced-wasserstein'}]", "-s", "validate.goal=min",
    "-s", "validate.every=64", "-s", "validate.num=16",
]  # fmt: skip
EVALUATE = ["evaluate", "two/00000-moons"]
CALLS = {
    "plan": ["plan", "moons.toml", "--json"],
    "plan text": ["plan", "moons.toml"],
    "train": ["train", "moons.toml", "--json"],
    "sample": ["sample", RUN, "--num", "5", "--seeds", "3-7", "--out", "few", "--json"],
    "sample more": ["sample", RUN, "--num", "20", "--batch", "6", "--out", "more", "--json"],
    "sample old": ["sample", RUN, "--num", "2", "--checkpoint", "128", "--out", "old"],
    "sample labels": ["sample", RUN, "--labels", "7"],
    "sample none": ["sample", RUN, "--checkpoint", "7"],
    "train text": ["train", "moons.toml", "--out", "text"],
    "evaluate": ["evaluate", RUN, "--json"],
    "evaluate text": ["evaluate", RUN],
    "show": ["show", RUN, "--json"],
    "show text": ["show", RUN],
    "report": ["report", RUN, "--json"],
    "again": ["train", "--resume", RUN, "-s", "run.images=384"],
    "lock": ["train", f"{RUN}/recipe.lock.toml", "-s", "run.images=256", "--out", "two", "--json"],
    "compare": ["report", RUN, "two/00000-moons", "--out", "both.html"],
    "repeats": [*EVALUATE, "-s", "evaluate.repeats=3", "-s", "evaluate.num=8", "--json"],
    "repeats text": ["show", "two/00000-moons"],
    "other metrics": [*EVALUATE, "-s", "evaluate.metrics=[{use='frechet'}]", "--json"],
    "borrowed": [
        *EVALUATE,
        "--metrics",
        "other.toml",
        "-s",
        "evaluate.metrics.0.batch=9",
        "--json",
    ],
    "borrowed none": [*EVALUATE, "--metrics", "none.toml"],
    "borrowed from nowhere": [*EVALUATE, "--metrics", "nowhere"],
    "borrowed and attacked": [*EVALUATE, "--metrics", "other.toml", "--attack", "pgd"],
    "other data": [*EVALUATE, "-s", "data.count=400"],
    "validated": ["train", "moons.toml", *VALIDATE, "--out", "three", "--json"],
    "validated text": ["train", "moons.toml", *VALIDATE, "--out", "four"],
    "show validated": ["show", VALIDATED],
    "show validated json": ["show", VALIDATED, "--json"],
    "evaluate best": ["evaluate", VALIDATED, "--checkpoint", "best", "--json"],
    "sample best": ["sample", VALIDATED, "--num", "2", "--checkpoint", "best", "--out", "best"],
    "sample no best": ["sample", RUN, "--checkpoint", "best"],
    "sample newest": ["sample", RUN, "--checkpoint", "newest"],
    "contradiction": ["train", "--resume", RUN, "--out", "x"],
    "no run": ["sample", "nosuch"],
    "not a run": ["evaluate", "."],
}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every call's code, stdout and stderr; "folder" is where they ran."""
    folder = tmp_path_factory.mktemp("cli_runs")
    (folder / "moons.toml").write_text(RECIPE)
    (folder / "other.toml").write_text('extends = "base.toml"\n[data]\nuse = "not-at-hand"\n')
    (folder / "base.toml").write_text("[[evaluate.metrics]]\nuse = 'frechet'\n")
    (folder / "none.toml").write_text("[evaluate]\nnum = 5\n")
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps(list(CALLS.values())), capture_output=True, text=True, check=False,
        cwd=folder, env={**os.environ, "ADVDIFF_PLUGINS": "", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return {**dict(zip(CALLS, json.loads(ran.stdout), strict=True)), "folder": folder}


def result(done: dict[str, Any], call: str) -> Any:
    """The JSON a successful call printed."""
    assert done[call]["code"] == 0, done[call]
    return json.loads(done[call]["out"])


def test_train_prints_one_object_last(done: dict[str, Any]) -> None:
    """`run`, `nimg`, `seconds`, `metrics` with their protocols; the chatter is on stderr."""
    found = result(done, "train")
    measured = {"metrics", "owners", "protocols", "repeats"}
    assert set(found) == {"run", "nimg", "seconds"} | measured
    assert found["owners"]["sliced_wasserstein"] in found["protocols"]
    assert (found["run"], found["nimg"]) == (RUN, 256)
    assert found["seconds"] > 0
    assert any(name.startswith("sliced") for name in found["metrics"])
    assert "training to 256 images on cpu, 64 per step" in done["train"]["err"]


def test_train_leaves_what_is_promised(done: dict[str, Any]) -> None:
    """Lock file, log, pictures, checkpoints by images seen."""
    folder = done["folder"] / RUN
    assert (folder / "recipe.lock.toml").is_file()
    assert (folder / "checkpoints" / "256" / "COMMIT").is_file()
    assert next(path.name for path in sorted((folder / "images").iterdir())) == "000000256.png"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["nimg"] for row in rows][:4] == [64, 128, 192, 256]


def test_plan_counts_passes_per_role(done: dict[str, Any]) -> None:
    """Plain denoising: one forward and one parameter backward of the student."""
    student = result(done, "plan")["roles"]["student"]
    passes = [student[key] for key in ("forwards", "input_backwards", "parameter_backwards")]
    assert passes == [1, 0, 1]
    assert (
        "student: 1 forward, 0 input-only backwards, 1 parameter backward"
        in (done["plan text"]["out"])
    )


def test_sample_says_how_it_sampled(done: dict[str, Any]) -> None:
    """The three files; seeds, NFE, seconds and checkpoint in the JSON and beside the samples."""
    found = result(done, "sample")
    assert (found["num"], found["nfe"], found["nimg"], found["seeds"]) == (5, 4, 256, "3-7")
    stored = json.loads((done["folder"] / "few" / "samples.json").read_text())
    assert stored["seeds"] == [3, 4, 5, 6, 7]
    assert stored["seconds"] > 0
    assert stored["checkpoint"].endswith("checkpoints/256")
    assert (done["folder"] / "few" / "samples.png").read_bytes().startswith(b"\x89PNG")
    assert done["sample old"]["code"] == 0
    old = json.loads((done["folder"] / "old" / "samples.json").read_text())
    assert old["nimg"] == 128


def test_a_seed_is_one_sample(done: dict[str, Any]) -> None:
    """Whatever the batch and the other seeds."""
    few = load_file(done["folder"] / "few" / "samples.safetensors")
    more = load_file(done["folder"] / "more" / "samples.safetensors")
    assert few["seeds"].tolist() == [3, 4, 5, 6, 7]
    assert few["samples"].equal(more["samples"][3:8])


def test_evaluate_stores_numbers_with_their_protocol(done: dict[str, Any]) -> None:
    """The metrics again, and where they are stored."""
    found = result(done, "evaluate")
    trained = result(done, "train")["metrics"]
    assert found["nimg"] == 256
    assert found["metrics"]
    assert all(trained[name] == value for name, value in found["metrics"].items())
    stored = json.loads((done["folder"] / RUN / "evaluation.json").read_text())
    assert stored["protocols"]
    assert f"{RUN}, 256 images" in done["evaluate text"]["out"]


def test_evaluate_measures_in_another_way(done: dict[str, Any]) -> None:
    """`-s` takes other metrics and ranges of seeds; the spread is in the JSON and in the text."""
    assert set(result(done, "other metrics")["metrics"]) == {"frechet", "frechet_data"}
    found = result(done, "repeats")
    known = found["repeats"]["sliced_wasserstein"]
    assert len(known["values"]) == 3
    assert found["metrics"]["sliced_wasserstein"] == known["mean"]
    assert found["protocols"]["sliced-wasserstein"]["seeds"] == "0-23"
    text = done["repeats text"]["out"]
    assert f"{known['mean']:.4g} ({known['min']:.4g} to {known['max']:.4g})" in text


def test_evaluate_takes_the_metrics_of_another_recipe(done: dict[str, Any]) -> None:
    """Whatever else it holds; `-s` reaches into them. One without metrics, or none, is refused."""
    assert set(result(done, "borrowed")["metrics"]) == {"frechet", "frechet_data"}
    found = done["borrowed none"]
    assert (found["code"], found["out"]) == (2, "")
    assert "none.toml: evaluate.metrics: it names no metrics" in found["err"]
    assert "no installed plugin ships a recipe 'nowhere'" in done["borrowed from nowhere"]["err"]
    assert "--metrics: found beside --attack" in done["borrowed and attacked"]["err"]


@pytest.mark.parametrize("call", ["evaluate text", "train text", "show text", "repeats text"])
def test_numbers_are_printed_with_their_protocol(done: dict[str, Any], call: str) -> None:
    """Below each group of numbers is how they were measured."""
    out = done[call]["out"]
    assert out.index("  sliced_wasserstein ") < out.index("    sliced-wasserstein: ")
    text = " ".join(out.split())
    assert all(part in text for part in ("sampler ddim", "nfe 4", "; samples"))


def test_show_tells_how_far_a_run_is(done: dict[str, Any]) -> None:
    """State, images, metrics, newest checkpoint."""
    found = result(done, "show")
    assert (found["state"], found["nimg"], found["images"]) == ("finished", 256, 256)
    assert found["checkpoints"][0] == 256
    assert found["metrics"] == result(done, "evaluate")["metrics"]
    assert found["problems"] == []
    assert "256 of 256 (100 %)" in done["show text"]["out"]


def test_best_weights_are_told_and_can_be_named(done: dict[str, Any]) -> None:
    """Which they are is printed by train and show; evaluate and sample take them."""
    best = result(done, "validated")["best"]
    assert best["number"] == "sliced_wasserstein"
    words = f"sliced_wasserstein {best['value']:.4g} at {best['nimg']:,} images"
    printed = done["validated text"]["out"]
    assert f"best {words}: measure it by --checkpoint best, start from it by" in printed
    assert "init = 'four/00000-moons/best'" in printed
    assert words in done["show validated"]["out"]
    assert result(done, "show validated json")["best"] == best
    assert result(done, "evaluate best")["nimg"] == best["nimg"]
    assert done["sample best"]["code"] == 0, done["sample best"]["err"]
    assert "validation at 64 images: sliced_wasserstein" in done["validated"]["err"]


def test_report_is_written_beside_the_run(done: dict[str, Any]) -> None:
    """`RUN/report.html` for one run; several compare in a file of their own."""
    found = result(done, "report")
    assert found["report"] == f"{RUN}/report.html"
    page = (done["folder"] / found["report"]).read_text()
    assert "Samples after 256 images" in page
    assert "sliced" in page
    assert done["compare"]["out"] == "both.html\n"
    assert "Comparison of 2 runs" in (done["folder"] / "both.html").read_text()


def test_a_run_goes_on_and_repeats(done: dict[str, Any]) -> None:
    """`--resume` alone suffices, longer if asked; the lock file trains the same run again."""
    assert done["again"]["code"] == 0, done["again"]
    assert "384 images" in done["again"]["out"]
    first, second = result(done, "train"), result(done, "lock")
    assert second["metrics"] == first["metrics"]


@pytest.mark.parametrize(
    ("call", "code", "line"),
    [
        ("sample labels", 2, "advdiff: error --labels: found 7, but the data have"),
        ("sample none", 4, f"advdiff: error[S02] {RUN}: has no checkpoint 7; it has 128, 256"),
        ("sample no best", 4, f"advdiff: error[S02] {RUN}: no checkpoint is the best: nothing was"),
        ("sample newest", 2, "advdiff: error --checkpoint: found 'newest', wanted a number of ima"),
        ("contradiction", 2, "advdiff: error advdiff train: --out and --resume contradict"),
        ("other data", 4, "advdiff: error[R15] two/00000-moons: data.count was 500 when the run"),
        ("no run", 4, "advdiff: error[S02] nosuch: there is no run folder here"),
        ("not a run", 4, "advdiff: error[S02] .: is not a run folder"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(done: dict[str, Any], call: str, code: int, line: str) -> None:
    """The right code, nothing on stdout, what there is to choose from."""
    assert (done[call]["code"], done[call]["out"]) == (code, "")
    assert done[call]["err"].startswith(line)
    assert done[call]["err"].count("\n") == 1
