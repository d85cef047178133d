"""Evaluations of a classifier behind the denoiser of another run, from job to report."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers_robust import data_table, plain_run, trained_classifier
from torch import Tensor, nn

from advdiff_core.cli import main
from advdiff_core.cli.purify import PurifyOptions
from advdiff_core.engine.api import Trained
from advdiff_core.engine.robust.job import AttackJob, Purify
from advdiff_core.engine.robust.purified import _Purified
from advdiff_core.engine.robust.result import RobustReport, Share
from advdiff_core.engine.robust.subjects import Start
from advdiff_core.errors import DataError, UsageError

DENOISER: dict[str, Any] = {
    "models": {"student": {"use": "toy-net", "width": 16}},
    "terms": {"denoise": {"use": "denoise"}},
    "sample": {"use": "ddim", "steps": 3},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs are."""
    return tmp_path_factory.mktemp("purify")


@pytest.fixture(scope="module")
def trained(folder: Path) -> Trained:
    """A classifier of small images."""
    return trained_classifier(folder)


@pytest.fixture(scope="module")
def denoiser(folder: Path, trained: Trained) -> Path:
    """A denoiser of the same images."""
    del trained
    return plain_run(folder, data_table(folder, "train"), **DENOISER).rundir.path


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Syncs are for power cuts, which no test makes, and slow."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def attack(trained: Trained, purify: Purify | None, **changes: Any) -> RobustReport:
    """Three signed steps on 20 images."""
    steps = {"use": "toy-fgsm", "random_start": True, "steps": 3}
    told: dict[str, Any] = {"attacks": (steps,), "eps": (0.1,), "num": 20, "batch": 8, **changes}
    return trained.attack(AttackJob(purify=purify, **told))


def left(report: RobustReport) -> int:
    """Images that are right at the last radius."""
    found = report.curve[-1].worst
    assert isinstance(found, Share)
    return found.hits


def test_purified_evaluation_says_gradient_and_both_accuracies(
    trained: Trained, denoiser: Path
) -> None:
    """E06, E20: what the attack saw, one draw and each of several; randomness is flagged."""
    report = attack(trained, Purify(run=denoiser, t=0.2, steps=3, draws=4))
    (how,) = (note for note in report.notes if "noised to" in note)
    assert "are noised to t = 0.2 and denoised in 3 steps, with fresh noise" in how
    assert how.endswith("purifier: full, through all 3 steps, recomputed one by one")
    (both,) = (note for note in report.notes if "at one draw" in note)
    assert f"({left(report)}) at each of 4 draws" in both
    one = int(both.split("(")[1].split(" of ")[0])
    assert one >= left(report)
    facts = report.config["purify"]
    assert (facts["gradient"], facts["steps"], facts["sampler"]) == ("full", 3, "ddim")
    assert re.search(r"probed on 20 samples: [\d,]+ forwards of single samples", report.notes[-1])
    codes = {flag.code for flag in report.flags}
    assert {"randomised", "inner-sampling"} <= codes
    assert not codes & {"stand-in-gradient", "silent-success"}


def test_purified_evaluation_repeats_bit_for_bit(trained: Trained, denoiser: Path) -> None:
    """All noise is keyed: of attack, verdict and flags."""
    purify = Purify(run=denoiser, t=0.2, steps=2, draws=2)
    found = [attack(trained, purify, name=name).as_json() for name in ("one", "two")]
    for one in found:
        del one["time"]
    assert found[0] == found[1]


@pytest.mark.parametrize("gradient", ["truncated", "surrogate", "identity"])
def test_stand_in_gradient_is_held_against_the_full_one(
    trained: Trained, denoiser: Path, gradient: Any
) -> None:
    """A flag with the cosine on eight samples and the mend."""
    purify = Purify(run=denoiser, t=0.4, steps=3, gradient=gradient, draws=1)
    report = attack(trained, purify)
    (flag,) = (flag for flag in report.flags if flag.code == "stand-in-gradient")
    assert f"sees the {gradient} gradient of the purifier: on 8 samples its cosine" in flag.message
    assert -1.0 <= float(flag.message.split("full one is ")[1].split(",")[0]) <= 1.0
    assert flag.severity == "doubtful"
    assert "--purify-gradient full" in flag.fix


def refused(trained: Trained, purify: Purify) -> str:
    """The error of an evaluation."""
    with pytest.raises((DataError, UsageError)) as found:
        attack(trained, purify)
    return str(found.value)


def test_purifier_of_other_data_is_refused(trained: Trained, folder: Path, denoiser: Path) -> None:
    """Other shapes, no denoiser, a time outside of the schedule: one line with the mend each."""
    points = plain_run(folder, {"use": "two-moons", "count": 200}, **DENOISER).rundir.path
    assert "its samples have shape [2], the classifier's [1, 4, 4] - take a denoiser that" in (
        refused(trained, Purify(run=points, t=0.2))
    )
    own = trained.rundir.path
    assert "has no denoiser to purify with - name a run that has one" in (
        refused(trained, Purify(run=own, t=0.2))
    )
    message = refused(trained, Purify(run=denoiser, t=7.0))
    assert message.startswith("--purify-t: found 7, the schedule's time goes from ")
    assert message.endswith(" to 1 - choose a time between them")


def test_purifier_of_data_without_domain_is_refused() -> None:
    """Whichever of the two lacks it."""
    from advdiff_core import DataInfo, Domain
    from advdiff_core.engine.robust.purified import _domains

    one = DataInfo(shape=(1, 4, 4), count=3, domain=Domain(0.0, 1.0))
    other = DataInfo(shape=(1, 4, 4), count=3, domain=Domain(-1.0, 1.0))
    none = DataInfo(shape=(1, 4, 4), count=3)
    assert _domains(one, one, Path("r")) is None
    assert _domains(one, other, Path("r")) == (one.domain, other.domain)
    with pytest.raises(DataError, match=r"--purify r: its samples have the domain None, the cl"):
        _domains(one, none, Path("r"))


class ByDraw(nn.Module):
    """Logits of two classes that name the first one, but for some samples at some draws."""

    def __init__(self) -> None:
        super().__init__()
        self.draw = 0

    def forward(self, x: Tensor) -> Tensor:
        """Sample 1 errs at the second draw, 2 at the first, 3 overflows at the third."""
        logits = torch.tensor([[1.0, 0.0]]).repeat(len(x), 1)
        logits[(2, 1, 3)[self.draw], 1] = (2.0, 2.0, torch.inf)[self.draw]
        self.draw += 1
        return logits


def test_verdict_tells_the_first_draw_from_the_others() -> None:
    """1 for an error at the first draw, 1/2 at another; logits that are not finite are errors."""
    inner: Any = SimpleNamespace(outcome=lambda *_: None)
    made = _Purified(inner=inner, module=ByDraw(), seed=0, draws=3, facts={}, notes=[])
    start = Start(x=torch.zeros(4, 1), y=torch.zeros(4, dtype=torch.int64), ids=(0, 1, 2, 3))
    found = made.outcome("", start, start.x)
    assert found.score.tolist() == [0.0, 0.5, 1.0, 0.5]
    assert found.finite.tolist() == [True, True, True, False]


def test_purifier_belongs_to_a_classifier() -> None:
    """A denoiser is not purified for."""
    purify = Purify(run=Path("r"), t=0.1)
    with pytest.raises(UsageError, match="only a classifier is purified for"):
        AttackJob(attacks=("pgd",), objective="denoise", purify=purify)


def test_purify_options_are_whole_or_absent() -> None:
    """No time, or no run: said which."""
    assert PurifyOptions().job() is None
    made = PurifyOptions(run=Path("r"), t=0.1, gradient="surrogate").job()
    assert made == Purify(run=Path("r"), t=0.1, gradient="surrogate")
    with pytest.raises(UsageError, match="--purify-t: there is no time that inputs are noised to"):
        PurifyOptions(run=Path("r")).job()
    with pytest.raises(UsageError, match="--purify-steps: is about a purifier, and there is no"):
        PurifyOptions(steps=3).job()


def test_command_line_purifies(
    trained: Trained, denoiser: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The options reach the job, and the gradient is printed beside the number."""
    run = str(trained.rundir.path)
    args = [
        "evaluate", run, "--attack", "toy-fgsm", "--eps", "0.1", "--num", "8",
        "--purify", str(denoiser), "--purify-t", "0.2", "--purify-steps", "2",
        "--purify-gradient", "truncated", "--purify-draws", "2",
    ]  # fmt: skip
    assert main(args) == 0
    out = capsys.readouterr().out
    assert "purifier: truncated, through the last 1 of 2 steps" in out
    assert "at each of 2 draws" in out
    assert main(["evaluate", run, "--purify", str(denoiser)]) == 2
    assert "--purify: is for an evaluation under attack" in capsys.readouterr().err
