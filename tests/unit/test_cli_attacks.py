"""`advdiff evaluate RUN --attack ...`, and its results in `show` and `report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers_robust import data_table, trained_classifier

from advdiff_core.cli import main
from advdiff_core.engine.robust import gather
from advdiff_core.engine.robust.evidence import Evidence, Flag

FLAG = Flag(code="planted", message="the gradient is zero", fix="use square", severity="doubtful")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a trained classifier."""
    return trained_classifier(tmp_path_factory.mktemp("cli_attacks")).rundir.path


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No flag is raised, and nothing waits for the disk."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    monkeypatch.setattr(gather, "judge", lambda evidence: [])


def held_out(run: Path) -> str:
    """The table of the test images as TOML."""
    table = data_table(run.parent.parent, "test")
    pairs = (f"{key} = {json.dumps(value)}" for key, value in table.items())
    return f"{{{', '.join(pairs)}}}"


def call(capsys: pytest.CaptureFixture[str], run: Path, *args: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one evaluation of twelve samples."""
    code = main(["evaluate", str(run), "--num", "12", "--data", held_out(run), *args])
    out, err = capsys.readouterr()
    return code, out, err


def test_result_says_what_was_evaluated_and_what_is_left(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """E10, E23: counts, interval, radius in both scales, largest norm, weights, data, cost."""
    args = ("--attack", "toy-fgsm", "-A", "steps=2", "--eps", "8/255", "--eps", "0.2")
    code, out, err = call(capsys, run, *args)
    assert code == 0, err
    lines = " ".join(out.split())
    assert "role student, weights average 0, 3,000 images seen" in lines
    assert "data tensor-file, 60 samples, " in lines
    assert "attack toy-fgsm toy-fgsm of advdiff-toys" in lines
    assert "steps=2" in lines
    assert "0.0313725 (8/255)" in lines
    assert "0.2 (51/255)" in lines
    assert " % (12 of 12) [75.75, 100.00]" in lines
    assert "0 of the 12 samples are among the 300 training samples" in lines
    assert "toy-fgsm, eps 0.03137: " in err
    assert "gradients seconds" in lines


def test_json_is_the_stored_report(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One object on stdout, with the folder; an ensemble has a share per attack."""
    table = '{use = "toy-fgsm", random_start = true}'
    code, out, err = call(
        capsys, run, "--attack", "toy-fgsm", "--attack", table, "--eps", "0.1", "--json"
    )
    assert code == 0, err
    found = json.loads(out)
    stored = json.loads((Path(found["folder"]) / "report.json").read_text())
    assert {key: found[key] for key in stored} == stored
    (point,) = found["curve"]
    assert set(point["attacks"]) == {"toy-fgsm", "toy-fgsm#2"}
    assert point["worst"]["count"] == 12
    assert point["worst"]["hits"] <= min(one["hits"] for one in point["attacks"].values())
    assert stored["config"]["attacks"][1]["settings"]["random_start"] is True


def test_report_and_show_tell_the_evaluation(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table in both, a curve and the facts in the report, the object under --json."""
    args = ("--attack", "toy-fgsm", "--eps", "0.05", "--eps", "0.1", "--name", "shown")
    assert call(capsys, run, *args)[0] == 0
    assert main(["show", str(run)]) == 0
    text = capsys.readouterr().out
    assert "robust/shown: toy-fgsm in linf, eps 0.05 (12.75/255), 0.1 (25.5/255)" in text
    assert main(["show", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["robust"]["shown"]["config"]["eps"] == [0.05, 0.1]
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "Under attack" in page
    assert "toy-fgsm in linf, eps 0.05 (12.75/255), 0.1 (25.5/255)" in page
    assert "robust accuracy in per cent over eps, linf, levels of 255" in page
    assert "robust/shown" in page


def test_unfinished_and_damaged_evaluations_are_problems_of_show(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder without a report is not finished; one that is no report is named."""
    (run / "robust" / "half").mkdir(parents=True)
    (run / "robust" / "odd").mkdir()
    (run / "robust" / "odd" / "report.json").write_text("[]")
    assert main(["show", str(run)]) == 0
    text = capsys.readouterr().out
    assert "half/report.json: the evaluation is not finished; repeat its command to go on" in text
    assert "odd/report.json: is no report of an evaluation" in text


def test_flags_are_printed_beside_the_number_and_fail_under_strict(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """7 after the report; without --strict 0, the flag beside the number and in the report."""
    monkeypatch.setattr(gather, "judge", lambda evidence: [FLAG])
    args = ("--attack", "toy-fgsm", "--eps", "0.1", "--seed", "5")
    code, out, err = call(capsys, run, *args)
    assert code == 0, err
    assert "flag [doubtful] planted: the gradient is zero - use square" in out
    code, out, err = call(capsys, run, *args, "--strict")
    assert code == 7
    assert "flag [doubtful] planted" in out
    assert "advdiff: error[E00] " in err
    assert "1 flag: planted - see " in err
    assert main(["show", str(run)]) == 0
    assert "flag: planted" in capsys.readouterr().out


def test_judges_get_the_evidence(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks of all samples, the first as tensors, and a probe that runs further attacks."""
    seen: list[Evidence] = []
    probed: list[Any] = []

    def judge(evidence: Evidence) -> list[Flag]:
        seen.append(evidence)
        probed.append(evidence.probe("toy-fgsm", {"steps": 3}))
        probed.append(evidence.probe("no-such-attack", {}))
        probed.append(evidence.probe("toy-fgsm", {"stesp": 3}))
        return []

    monkeypatch.setattr(gather, "judge", judge)
    args = ("--attack", "toy-fgsm", "--eps", "0.1", "--eps", "0.2", "--seed", "6", "--json")
    code, out, err = call(capsys, run, *args)
    assert code == 0, err
    (evidence,) = seen
    (outcome,) = evidence.outcomes
    found = json.loads(out)
    assert len(evidence.x) == len(evidence.y) == len(outcome.tested) == 12
    assert (outcome.name, outcome.use, outcome.settings["steps"]) == ("toy-fgsm", "toy-fgsm", 1)
    assert int(outcome.broken.sum()) == found["stages"][0]["broken"]
    assert int(evidence.clean.sum()) == found["clean"][""]["hits"]
    assert evidence.budget.radius == pytest.approx(0.2)
    assert probed[0].shape == (12,)
    assert probed[1:] == [None, None]


REFUSED: dict[str, tuple[list[str], int, str]] = {
    "no attack": (["--eps", "8/255"], 2, "--eps: is for an evaluation under attack, and"),
    "settings": (["-A", "steps=2"], 2, "-A: is for an evaluation under attack, and"),
    "strict": (["--strict"], 2, "--strict: is for an evaluation under attack, and"),
    "radius": (
        ["--attack", "toy-fgsm", "--eps", "much"], 2,
        "--eps: found 'much', wanted a number or a fraction - write --eps 8/255",
    ),
    "division": (["--attack", "toy-fgsm", "--eps", "8/0"], 2, "found '8/0', wanted a number"),
    "levels": (["--attack", "toy-fgsm", "--eps", "8"], 2, "8 is above 1, the whole range"),
    "two attacks": (
        ["--attack", "toy-fgsm", "--attack", "toy-fgsm", "-A", "steps=2"], 2,
        "-A: -A sets keys of one attack, and there are 2 - write --attack '{use = ",
    ),
    "unknown": (["--attack", "toy-fgms"], 2, "--attack: attack.0.use: "),
    "table": (["--attack", "{use = "], 2, "--attack"),
    "key": (["--attack", "toy-fgsm", "-A", "stesp=2"], 2, "stesp"),
    "no pair": (["--attack", "toy-fgsm", "-A", "steps"], 2, "-A: 'steps': this is not key=value"),
    "name": (["--attack", "toy-fgsm", "--name", "../x"], 2, "'robust/../x' is not inside the"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_wrong_option_is_one_line(run: Path, capsys: pytest.CaptureFixture[str], what: str) -> None:
    """The option, what was found, the mend; no traceback."""
    options, wanted, line = REFUSED[what]
    args = options if "--attack" in options else []
    if args:
        code, _, err = call(capsys, run, *args)
    else:
        code = main(["evaluate", str(run), *options])
        err = capsys.readouterr().err
    assert code == wanted, err
    assert line in err
    assert "Traceback" not in err
    assert err.startswith("advdiff: error")
    assert len(err.splitlines()) == 1


def test_attack_that_fails_prints_no_number(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """E25: 7, nothing on stdout, the cause in the crash log."""
    from advdiff_toys.perturbations import ToyFGSM

    def search(*args: Any) -> Any:
        message = "boom"
        raise ArithmeticError(message)

    monkeypatch.setattr(ToyFGSM, "search", search)
    code, out, err = call(capsys, run, "--attack", "toy-fgsm", "--eps", "0.07")
    assert (code, out) == (7, "")
    first, second = err.splitlines()
    assert first.startswith("advdiff: error[E25] attack toy-fgsm: failed on samples 0 to 11: Arith")
    assert "boom; no robust accuracy is stated - mend the attack, or leave it out" in first
    assert second.endswith("crash.log")
    assert "ArithmeticError: boom" in (run / "crash.log").read_text()
