"""Denoisers and samplers under attack, on a tiny run of points."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_robust import plain_run

from advdiff_core.engine.api import Trained
from advdiff_core.engine.robust.job import AttackJob
from advdiff_core.engine.robust.result import Mean, RobustReport
from advdiff_core.engine.robust.subjects import make_subject
from advdiff_core.errors import UsageError


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A denoiser of two moons with a sampler of three steps."""
    return plain_run(
        tmp_path_factory.mktemp("moons"),
        {"use": "two-moons", "count": 200},
        models={"student": {"use": "toy-net", "width": 16}},
        terms={"denoise": {"use": "denoise"}},
        sample={"use": "ddim", "steps": 3},
    )


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Syncs are for power cuts, which no test makes, and slow."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def attack(trained: Trained, objective: Any, **changes: Any) -> RobustReport:
    """Two signed steps on 24 samples in buckets of ten.

    From a random start: where the objective is zero, at the clean input, its gradient is.
    """
    steps = {"use": "toy-fgsm", "random_start": True, "steps": 2}
    told = {"attacks": (steps,), "eps": (0.0, 0.05, 0.2), "num": 24, "batch": 10, **changes}
    return trained.attack(AttackJob(objective=objective, **told))


def means(report: RobustReport, case: str) -> list[float]:
    """Worst objective by radius."""
    found = [point.worst for point in report.curve if point.case == case]
    return [one.value for one in found if isinstance(one, Mean)]


def lines(report: RobustReport) -> list[dict[str, Any]]:
    """The lines per sample."""
    path: Path = report.folder / "examples.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_prediction_gap_is_zero_when_clean_and_grows_with_the_radius(trained: Trained) -> None:
    """Two noise levels, each with its own curve; the mean is that of the lines per sample."""
    report = attack(trained, "prediction-gap", t=(0.3, 0.7))
    assert list(report.clean) == ["t=0.3", "t=0.7"]
    for case, clean in report.clean.items():
        assert clean.value == 0.0
        found = means(report, case)
        assert found[0] == 0.0
        assert 0.0 < found[1] < found[2]
        rows = [row for row in lines(report) if row["case"] == case]
        assert [row["id"] for row in rows] == list(range(24))
        assert sum(row["eps"][2]["worst"] for row in rows) / 24 == pytest.approx(found[2])
        assert all(row["eps"][2]["norm"] <= 0.2 * (1 + 1e-5) for row in rows)
    assert report.flags == ()


def test_denoising_loss_is_that_of_the_clean_input_and_grows(trained: Trained) -> None:
    """Without attack it is the mean square of eps_hat - eps, computed here by hand."""
    report = attack(trained, "denoise", t=(0.5,))
    job = AttackJob(attacks=("toy-fgsm",), objective="denoise", t=(0.5,), num=24)
    subject: Any = make_subject(job, trained.experiment)
    start = subject.start("t=0.5", list(range(24)))
    schedule = trained.experiment.scene.schedule
    assert schedule is not None
    t = torch.full((24,), 0.5)
    x0 = subject.chosen.batch(list(range(24))).x
    eps = (start.x - schedule.alpha(t)[:, None] * x0) / schedule.sigma(t)[:, None]
    with torch.no_grad():
        role = trained.experiment.scene.roles["student"]
        eps_hat = role.wear(subject.module, start.x, t).eps
    wanted = float((eps_hat - eps).square().mean(1).double().mean())
    assert report.clean["t=0.5"].value == pytest.approx(wanted, rel=1e-4)
    found = means(report, "t=0.5")
    assert found[0] == report.clean["t=0.5"].value
    assert found[0] < found[1] < found[2]


def test_sampler_moves_when_its_start_is_moved(trained: Trained) -> None:
    """The output distance, by gradients through all steps; no data are read."""
    report = attack(trained, "sample-distance", save=4)
    found = means(report, "")
    assert found[0] == 0.0
    assert 0.0 < found[1] < found[2]
    assert report.stages[-1].gradients == 48
    assert "data" not in report.config
    from safetensors.torch import load_file

    tensors = load_file(report.folder / "adversarial.safetensors")
    moved = (tensors["adversarial"] - tensors["clean"]).abs().amax(1)
    assert torch.allclose(moved, torch.full((4,), 0.2), atol=1e-5)


def test_buckets_change_no_objective(trained: Trained) -> None:
    """Noise is drawn per sample: the same to rounding in buckets of 5 and 24."""
    small, whole = (attack(trained, "prediction-gap", batch=batch) for batch in (5, 24))
    for one, other in zip(lines(small), lines(whole), strict=True):
        got, wanted = one["eps"][2]["worst"], other["eps"][2]["worst"]
        assert got == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize(
    ("objective", "changes", "line"),
    [
        ("denoise", {"t": (7.0,)}, "--t: found 7, the schedule's time goes from 0.* to 1 - choose"),
        (
            "sample-distance",
            {"t": (0.5,)},
            "--t: a sampler begins at its grid's first time - leave",
        ),
        (
            "classify",
            {},
            r"--role: the run has 0 classifiers \(none\) - attack a denoiser by --obje",
        ),
        ("denoise", {"role": "teacher"}, "'teacher' is no denoiser of this run; it has student"),
    ],
)
def test_job_that_does_not_fit_the_denoiser_is_refused(
    trained: Trained, objective: str, changes: dict[str, Any], line: str
) -> None:
    """One line with what the run has."""
    with pytest.raises(UsageError, match=line):
        attack(trained, objective, **changes)


def test_objective_of_a_sampler_needs_one(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that cannot be sampled has no such distance."""
    from attrs import evolve

    bare = evolve(trained.experiment.recipe, sample=None)
    monkeypatch.setattr(trained.experiment, "recipe", bare)
    with pytest.raises(
        UsageError, match="--objective: this recipe has no sampler - attack another"
    ):
        attack(trained, "sample-distance")


def test_outputs_that_are_not_finite_are_told_and_left_out(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E16: the means are of finite outputs, and a line says how many are not."""
    from advdiff_core.engine.robust import subjects

    plain = subjects.network

    def made(*args: Any) -> Any:
        module = plain(*args)

        def blind(_: Any, inputs: Any, out: Any) -> Any:
            dark = inputs[0][:, 0] > 0.5
            return out._replace(output=torch.where(dark[:, None], torch.nan, out.output))

        module.register_forward_hook(blind)
        return module

    monkeypatch.setattr(subjects, "network", made)
    report = attack(trained, "denoise", t=(0.5,), eps=(0.0,))
    (clean,) = report.clean.values()
    assert 0 < clean.count < 24
    lost = 24 - clean.count
    line = f"{lost} clean samples have outputs that are not finite at t=0.5: left out of the means"
    assert line in report.notes
