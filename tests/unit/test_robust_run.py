"""Evaluations under attack: counts, curves, resuming, what is refused, on a tiny classifier."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import helpers_robust
import pytest
import torch
from helpers_robust import ATTACKS, Noise, cheating, data_table, entry_of, trained_classifier

from advdiff_core import Attack
from advdiff_core.draws import SampleDraws
from advdiff_core.engine.api import Trained
from advdiff_core.engine.robust import evaluate as evaluating
from advdiff_core.engine.robust.guard import digest_of
from advdiff_core.engine.robust.job import AttackJob
from advdiff_core.engine.robust.journal import Journal
from advdiff_core.engine.robust.result import RobustReport, Share, mean_of, share_of
from advdiff_core.engine.robust.victims import classifier
from advdiff_core.errors import AdvdiffError, DataError, Interrupted, UnsoundError, UsageError

EPS = (0.0, 0.05, 0.12)
Run = Callable[..., RobustReport]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the data and the run are."""
    return tmp_path_factory.mktemp("robust")


@pytest.fixture(scope="module")
def trained(folder: Path) -> Trained:
    """The classifier."""
    return trained_classifier(folder)


@pytest.fixture
def attack(trained: Trained, folder: Path, monkeypatch: pytest.MonkeyPatch, request: Any) -> Run:
    """Attacks the classifier with attacks of `helpers_robust`; each call in its own folder."""
    count = 0
    # Syncs are for power cuts, which no test makes, and slow.
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    monkeypatch.setattr(evaluating, "flags_of", lambda *_: [])
    own = hashlib.sha256(request.node.name.encode()).hexdigest()[:12]

    def run(*names: str | type[Attack], **changes: Any) -> RobustReport:
        nonlocal count
        count += 1
        known = [(n, ATTACKS[n]) if isinstance(n, str) else ("cheat", n) for n in names]
        made = tuple(entry_of(name, one) for name, one in known)
        monkeypatch.setattr(evaluating, "entries", lambda *_: made)
        told: dict[str, Any] = {
            "attacks": [name for name, _ in known], "eps": EPS, "batch": 16,
            "data": data_table(folder, "test"), "name": f"{own}-{count}",
            **changes,
        }  # fmt: skip
        return trained.attack(AttackJob(**told))

    return run


def rows_of(report: RobustReport) -> list[dict[str, Any]]:
    """The lines per sample."""
    text = (report.folder / "examples.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def worst(report: RobustReport) -> list[int]:
    """Samples that are still right at each radius."""
    found = [point.worst for point in report.curve]
    assert all(isinstance(one, Share) for one in found)
    return [one.hits for one in found if isinstance(one, Share)]


def clean(report: RobustReport) -> int:
    """Samples that are right without attack."""
    (found,) = report.clean.values()
    assert isinstance(found, Share)
    return found.hits


def test_curve_falls_and_is_clean_accuracy_at_zero(attack: Run) -> None:
    """E11: eps = 0 is the clean accuracy exactly, more is never more robust, a lot breaks all."""
    report = attack("step", eps=(1.0, 0.0, 0.05, 0.12))
    hits = worst(report)
    assert [point.eps for point in report.curve] == [0.0, 0.05, 0.12, 1.0]
    assert hits[0] == clean(report) >= 55
    assert hits == sorted(hits, reverse=True)
    assert 0 < hits[2] < hits[0]
    assert hits[3] <= 20
    assert all(isinstance(p.worst, Share) and p.worst.count == 60 for p in report.curve)


def test_numbers_are_those_of_the_lines_per_sample(attack: Run) -> None:
    """E18: every sample once, clean and robust on the same ones, counts equal, norms inside."""
    report = attack("noise", "step")
    rows = rows_of(report)
    assert [row["id"] for row in rows] == list(range(60))
    assert sum(row["clean"] == "right" for row in rows) == clean(report)
    for place, (point, hits) in enumerate(zip(report.curve, worst(report), strict=True)):
        verdicts = [row["eps"][place] for row in rows]
        assert sum(one["worst"] == "right" for one in verdicts) == hits
        for row, one in zip(rows, verdicts, strict=True):
            assert one["radius"] == point.eps
            found = one["attack"] is not None
            assert found == (row["clean"] == "right" and one["worst"] == "wrong")
            assert not found or one["norm"] <= point.eps * (1 + 1e-5)


def test_every_attack_is_counted_alone_and_the_worst_of_all(attack: Run) -> None:
    """An ensemble is at most as robust as each of its attacks, and names what broke a sample."""
    report = attack("noise", "step")
    alone = {name: attack(name) for name in ("noise", "step")}
    for place, point in enumerate(report.curve):
        for name, one in alone.items():
            assert point.attacks[name] == one.curve[place].worst
        least = min(one.hits for one in point.attacks.values() if isinstance(one, Share))
        assert worst(report)[place] <= least
    names = {row["eps"][-1]["attack"] for row in rows_of(report)}
    assert names <= {None, "noise", "step"}
    assert "step" in names


def test_members_run_on_what_is_left(attack: Run) -> None:
    """A composite is run member by member; the second gets what the first left."""
    report = attack("pair", eps=(0.12,))
    noise, step = report.stages
    assert (noise.name, step.name) == ("pair/noise", "pair/step")
    assert noise.tested == clean(report)
    assert step.tested == clean(report) - noise.broken
    assert worst(report) == [clean(report) - noise.broken - step.broken]
    assert step.gradients == step.tested
    assert noise.gradients == 0


def test_members_draw_from_children_of_the_composite(attack: Run) -> None:
    """The numbers of a member are those of `rng.child(member)` in the composite's own search."""
    from safetensors.torch import load_file

    report = attack("pair", eps=(0.12,), save=60, seed=4)
    found = load_file(report.folder / "adversarial.safetensors")
    rows = rows_of(report)
    checked = 0
    for one, x, moved in zip(
        found["id"].tolist(), found["clean"], found["adversarial"], strict=True
    ):
        if rows[one]["eps"][0]["attack"] == "pair/noise":
            draws = SampleDraws((4, "robust", "pair"), [one]).child("noise")
            wanted = (x + 2 * 0.12 * draws.normal((1, 1, 4, 4))[0].sign()).clamp(-1, 1)
            torch.testing.assert_close(moved, wanted, rtol=0, atol=1e-6)
            checked += 1
    assert checked == report.stages[0].broken > 0


def test_minimal_norm_attacks_run_once_and_answer_for_all_radii(attack: Run) -> None:
    """One search without a radius, and the same verdicts as a search at each radius."""
    many = attack("smallest", eps=(0.0625, 0.125, 0.25))
    (stage,) = many.stages
    assert stage.eps is None
    assert stage.tested == clean(many)
    for place, eps in enumerate((0.0625, 0.125, 0.25)):
        one = attack("smallest", eps=(eps,))
        assert one.stages[0].eps == eps
        assert worst(one) == [worst(many)[place]]
    assert worst(many)[0] > worst(many)[2]


def test_found_perturbations_count_at_every_radius_that_holds_them(attack: Run) -> None:
    """Adding a larger radius never makes a smaller one look more robust."""
    few, many = attack("noise", eps=(0.05,)), attack("noise", eps=(0.05, 0.12))
    assert worst(many)[0] <= worst(few)[0]


@pytest.mark.parametrize("name", ["step", "noise"])
def test_verdicts_do_not_depend_on_the_bucket(attack: Run, name: str) -> None:
    """E19: buckets of 1, 7 and 30; random numbers are drawn per sample."""
    told: dict[str, Any] = {"num": 30, "eps": (0.12, 0.35)}
    lines = [rows_of(attack(name, batch=batch, **told)) for batch in (1, 7, 30)]
    assert lines[0] == lines[1] == lines[2]
    assert any(row["eps"][1]["attack"] for row in lines[0])


def test_repeating_an_evaluation_repeats_its_report_byte_for_byte(attack: Run) -> None:
    """E24: everything but the time."""
    first, second = attack("noise", "pair"), attack("noise", "pair")
    texts = [(one.folder / "examples.jsonl").read_bytes() for one in (first, second)]
    assert texts[0] == texts[1]
    tables = [one.as_json() for one in (first, second)]
    for one in tables:
        assert one.pop("time")["seconds"] >= 0
    assert json.dumps(tables[0], sort_keys=True) == json.dumps(tables[1], sort_keys=True)


class StoppedError(Exception):
    """A kill, as far as the code after it is concerned."""


def test_evaluation_goes_on_after_a_kill_anywhere(
    attack: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E24: stopped before each of the first buckets in turn, with a torn last line; same bytes."""
    whole = attack("noise", "pair", name="whole", save=3)
    plain = Journal.append
    torn = b'{"stage":3,"ids":[1,2'

    def append(self: Journal, row: Any) -> None:
        if len(self.rows) in stops:
            stops.remove(len(self.rows))
            with self.path.open("ab") as file:
                file.write(torn)
            raise StoppedError
        plain(self, row)

    monkeypatch.setattr(Journal, "append", append)
    count = len((whole.folder / "journal.jsonl").read_text().splitlines())
    stops = set(range(count))
    for _ in range(count):
        with pytest.raises(StoppedError):
            attack("noise", "pair", name="killed", save=3)
    report = attack("noise", "pair", name="killed", save=3)
    tables = [one.as_json() for one in (whole, report)]
    for one in tables:
        one.pop("time")
    assert tables[0] == tables[1]
    for name in ("examples.jsonl", "adversarial.safetensors", "adversarial.png", "config.json"):
        assert (whole.folder / name).read_bytes() == (report.folder / name).read_bytes()


def test_journal_cuts_a_torn_line_and_keeps_the_rest(tmp_path: Path) -> None:
    """Cut anywhere in the last line, the lines before it are there and the next is appended."""
    journal = Journal(tmp_path)
    journal.append({"stage": 0, "ids": [1]})
    journal.append({"stage": 0, "ids": [2]})
    journal.close()
    data = journal.path.read_bytes()
    for cut in range(data.index(b"\n") + 1, len(data)):
        journal.path.write_bytes(data[:cut])
        again = Journal(tmp_path)
        again.append({"stage": 0, "ids": [3]})
        again.close()
        assert [row["ids"] for row in Journal(tmp_path).rows] == [[1], [3]]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            b'{"ids":3}\n{"ids":[1]}\n',
            "journal.jsonl:1: is no line of a journal - remove the folder",
        ),
        (b'{"ids":[1]}\nnonsense\n{}\n', "journal.jsonl:2: is not valid JSON"),
    ],
)
def test_journal_refuses_damage_in_the_middle(tmp_path: Path, text: bytes, line: str) -> None:
    """A line that is whole and wrong was not torn by a kill."""
    (tmp_path / "journal.jsonl").write_bytes(text)
    with pytest.raises(DataError, match=line) as caught:
        Journal(tmp_path)
    assert caught.value.code == "S15"


def test_journal_of_other_samples_is_refused(attack: Run) -> None:
    """Buckets that are not those whose turn it is were not written by this evaluation."""
    report = attack("step", name="swapped")
    path = report.folder / "journal.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[1], lines[0], *lines[2:]]))
    (report.folder / "report.json").unlink()
    with pytest.raises(DataError, match="line 1 is of other samples than those whose turn it is"):
        attack("step", name="swapped")


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"eps": (0.06,)}, r"eps.0 was 0.05 and is 0.06"),
        ({"seed": 3}, "seed was 0 and is 3"),
        ({"num": 20}, r"samples.num was 60 and is 20"),
        ({"norm": "l2"}, "norm was 'linf' and is 'l2'"),
        ({"batch": 8}, "batch was 16 and is 8"),
        ({"ema": -1}, "ema was 0 and is -1"),
        ({"attacks": ("step",), "who": "step"}, "attacks.0.name was 'noise' and is 'step'"),
    ],
)
def test_folder_of_another_evaluation_is_refused(
    attack: Run, changes: dict[str, Any], difference: str, request: Any
) -> None:
    """E24: one line that names the first difference; the first evaluation stays as it is."""
    first = attack("noise", eps=(0.05,), name=f"config-{request.node.name[-20:-1]}")
    who = changes.pop("who", "noise")
    told = {"eps": (0.05,), **changes, "name": first.folder.name}
    with pytest.raises(
        UsageError, match=rf"holds another evaluation: {difference} - choose an"
    ) as e:
        attack(who, **told)
    assert (e.value.code, e.value.exit_code) == ("E24", 2)


def test_folder_is_named_by_what_is_evaluated(attack: Run) -> None:
    """Without a name: the same options find the finished report, others get another folder."""
    first = attack("step", eps=(0.05,), name="")
    stamp = (first.folder / "report.json").stat().st_mtime_ns
    again, other = attack("step", eps=(0.05,), name=""), attack("step", eps=(0.06,), name="")
    assert again.folder == first.folder != other.folder
    assert (first.folder / "report.json").stat().st_mtime_ns == stamp
    assert again.as_json() == first.as_json()


def test_kill_minus_nine_loses_one_bucket(trained: Trained, folder: Path) -> None:
    """SIGKILL in the middle of a real process, then the same command: the report of one go."""
    program = (
        "import json, sys\n"
        "from advdiff_core.engine.api import open_trained\n"
        "from advdiff_core.engine.robust.job import AttackJob\n"
        "job = AttackJob(attacks=['toy-fgsm'], eps=(0.05, 0.12), batch=16, name=sys.argv[2],\n"
        "                data=json.loads(sys.argv[3]))\n"
        "open_trained(sys.argv[1]).attack(job)\n"
    )
    told = [str(trained.rundir.path), "killed9", json.dumps(data_table(folder, "test"))]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "ADVDIFF_FAULT": "robust.bucket:7:kill"}
    command = [sys.executable, "-c", program, *told]
    killed = subprocess.run(command, env=environ, capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr[-2000:]
    place = trained.rundir.path / "robust" / "killed9"
    assert len((place / "journal.jsonl").read_text().splitlines()) == 6
    assert not (place / "report.json").exists()
    job: dict[str, Any] = {
        "attacks": ["toy-fgsm"], "eps": (0.05, 0.12), "batch": 16,
        "data": data_table(folder, "test"),
    }  # fmt: skip
    resumed, whole = (trained.attack(AttackJob(name=name, **job)) for name in ("killed9", "go"))
    assert rows_of(resumed) == rows_of(whole)
    assert resumed.curve == whole.curve


def test_signal_stops_after_the_bucket_and_says_how_to_go_on(
    attack: Run, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 75; what was done is kept."""
    plain = Trained.attack
    monkeypatch.setattr(Trained, "attack", lambda self, job: plain(self, job, stop=(1,)))  # type: ignore[arg-type]
    with pytest.raises(Interrupted, match="stopped; whole buckets are kept - go on with the same"):
        attack("step", name="stopped")
    place = trained.rundir.path / "robust" / "stopped"
    assert len((place / "journal.jsonl").read_text().splitlines()) == 1


CHEATS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "ball": (lambda x: (x + 0.2).clamp(-1, 1), r"the linf norm is 0.2\d*, above the radius 0.05"),
    "domain": (lambda x: x + 1.5, r"lies in \[[-\d.]+, [12].\d+\], outside the domain \[-1, 1\]"),
    "NaN": (lambda x: x * torch.nan, "the attack returned values that are not finite"),
    "shape": (lambda x: x[:, :, 1:], r"returned shape \[\d+, 1, 3, 4\], wanted \[\d+, 1, 4, 4\]"),
    "dtype": (lambda x: (x + 0.05).clamp(-1, 1).bfloat16().float(), "the linf norm is 0.05"),
}


@pytest.mark.parametrize("kind", CHEATS)
def test_attack_that_breaks_its_budget_is_named_and_no_number_is_stated(
    attack: Run, trained: Trained, kind: str
) -> None:
    """E09: in spite of the projection that an attack can go around; exit code 7, no report."""
    cheat, line = CHEATS[kind]
    # The run's domain is that of its data set, [-1, 1]: half of the radius, counted there.
    with pytest.raises(UnsoundError, match=r"attack cheat, sample \d+: ") as caught:
        attack(cheating(cheat), eps=(0.025,), name=f"cheat-{kind}")
    assert caught.value.code == "E09"
    assert caught.value.exit_code == 7
    assert re.search(line, str(caught.value))
    assert not (trained.rundir.path / "robust" / f"cheat-{kind}" / "report.json").exists()


def test_attack_that_fails_midway_states_no_number(attack: Run, trained: Trained) -> None:
    """E25: named with its samples and cause, 7, nothing but the journal is there."""
    helpers_robust.Broken.calls = 0
    line = (
        "attack broken: failed on samples 3[0-9] to [0-9]+: IndexError: index 7 is out of bounds; "
        "no robust accuracy is stated - mend the attack, or leave it out"
    )
    with pytest.raises(UnsoundError, match=line) as caught:
        attack("step", "broken", eps=(0.05,), name="fails")
    assert (caught.value.code, caught.value.exit_code) == ("E25", 7)
    assert isinstance(caught.value.__cause__, IndexError)
    place = trained.rundir.path / "robust" / "fails"
    assert sorted(path.name for path in place.iterdir()) == [
        ".lock", "config.json", "journal.jsonl"
    ]  # fmt: skip


def test_attack_that_draws_from_the_global_generator_is_refused(attack: Run) -> None:
    """E17: and the state of the generator is put back all the same."""
    before = torch.get_rng_state()
    with pytest.raises(
        UnsoundError, match="attack global: drew from torch's global random generat"
    ):
        attack("global")
    assert torch.equal(before, torch.get_rng_state())


def test_evaluation_leaves_the_run_as_it_was(attack: Run, trained: Trained) -> None:
    """E17: weights, modes, flags, gradients and random state of the run's own network."""
    module = trained.experiment.scene.roles["student"].module
    before = (digest_of(module), [part.training for part in module.modules()])
    flags = [(p.requires_grad, p.grad is None) for p in module.parameters()]
    state = torch.get_rng_state()
    attack("step", "noise")
    assert (digest_of(module), [part.training for part in module.modules()]) == before
    assert [(p.requires_grad, p.grad is None) for p in module.parameters()] == flags
    assert torch.equal(state, torch.get_rng_state())


def test_attack_that_touches_the_network_is_refused(
    attack: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E17: caught when its stage ends, naming the tensor."""
    plain = Noise.search

    def search(self: Any, victim: Any, *args: Any) -> Any:
        victim.victim.network.backbone.last.bias.data.add_(1e-6)
        return plain(self, victim, *args)

    monkeypatch.setattr(Noise, "search", search)
    line = "attack noise: changed the network: tensor backbone.last.bias is not what it was"
    with pytest.raises(UnsoundError, match=line):
        attack("noise", eps=(0.05,))


def test_silent_successes_are_counted_and_told(attack: Run) -> None:
    """E12: samples seen broken and returned clean count as robust, with a line that says so."""
    report = attack("last", eps=(0.12,))
    reference = attack("step", eps=(0.12,))
    broken = clean(reference) - worst(reference)[0]
    assert report.stages[0].silent == broken > 0
    assert worst(report) == [clean(report)]
    line = f"last saw {broken} samples broken that it returned unbroken: they count as robust"
    assert line in report.notes


def test_average_of_the_weights_is_that_of_the_metrics(attack: Run, trained: Trained) -> None:
    """E23: the digest says which weights were attacked."""
    averaged, raw = attack("step", num=8), attack("step", num=8, ema=-1)
    assert (averaged.config["ema"], raw.config["ema"]) == (0, -1)
    for report, ema in ((averaged, 0), (raw, -1)):
        assert report.config["weights"] == digest_of(classifier(trained.experiment, "student", ema))
    assert averaged.config["weights"] != raw.config["weights"]
    with pytest.raises(UsageError, match="role 'student' has 1 averages, number 3 was asked for"):
        attack("step", ema=3)


def test_data_are_named_and_told_from_training_data(attack: Run, folder: Path) -> None:
    """Held-out images are looked for among the training images; without --data these are used."""
    held = attack("step", num=30)
    assert "0 of the 30 samples are among the 300 training samples they were compared with" in (
        held.notes
    )
    own = attack("step", num=30, data=None)
    assert "the 30 samples are training data of the run: not held out" in own.notes
    assert held.config["data"]["fingerprint"] != own.config["data"]["fingerprint"]
    assert own.config["data"]["count"] == 300
    spread = attack("step", num=30, data=None, pick="spread")
    assert [row["id"] for row in rows_of(spread)] == list(range(0, 300, 10))


def test_missing_classes_are_told(attack: Run, trained: Trained, folder: Path) -> None:
    """The first samples of a sorted data set may all be of one class."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "test.safetensors")
    order = tensors["y"].argsort()
    save_file(
        {"x": tensors["x"][order].contiguous(), "y": tensors["y"][order].contiguous()},
        folder / "sorted.safetensors",
    )
    report = attack("step", num=10, data=data_table(folder, "sorted"))
    line = "the 10 samples hold 1 of 3 classes; --pick spread takes them from all over the data"
    assert line in report.notes
    spread = attack("step", num=30, data=data_table(folder, "sorted"), pick="spread")
    assert not any("classes" in note for note in spread.notes)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no attack": ({"attacks": ()}, "--attack: there is no attack - name one, such as pgd"),
    "no radius": ({"eps": ()}, "--eps: there is no radius - write --eps 8/255"),
    "negative": ({"eps": (-0.1,)}, "--eps: found -0.1, wanted a finite number that is not"),
    "infinite": ({"eps": (float("inf"),)}, "--eps: found inf, wanted a finite number that is"),
    "levels": ({"eps": (8,)}, "--eps: 8 is above 1, the whole range of an image - for 8/255 write"),
    "noise level": ({"t": (0.5,)}, "--t: a classifier has no noise level - leave it out, or name"),
    "role": ({"role": "critic"}, "--role: 'critic' is no classifier of this run; it has student"),
    "denoiser": (
        {"objective": "denoise"}, r"--role: the run has 0 denoisers \(none\) - attack a run that h"
    ),
    "number": ({"num": 61}, "--num: 61 samples were asked for, the data have 60 - ask for at most"),
    "two splits": ({"split": "test"}, "--split: --data names the part itself - write split = ..."),
    "split": (
        {"data": None, "split": "test"}, "--split: the run's data, 'tensor-file', have no parts - n"
    ),
    "shape": (
        {"data": {"use": "two-moons", "count": 9}},
        r"data: the samples are \[2\], the network's are \[1, 4, 4\] - name data of the same shape",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_job_that_makes_no_sense_is_refused(attack: Run, what: str) -> None:
    """One line with the option, what was found, and the mend."""
    changes, line = REFUSED[what]
    with pytest.raises(UsageError, match=line):
        attack("step", **changes)


def test_attack_that_does_not_know_the_norm_is_refused_before_anything_runs(
    trained: Trained, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Naming the norms it knows."""
    from advdiff_core.engine.robust import job as jobs

    monkeypatch.setattr(helpers_robust.ToyFGSM, "norms", ("linf",))
    line = "--norm: toy-fgsm cannot search in l2, only in linf - write --norm linf, or take another"
    with pytest.raises(UsageError, match=line):
        jobs.entries(AttackJob(attacks=("toy-fgsm",), norm="l2"), trained.experiment)


def test_unlabelled_data_are_refused(attack: Run, folder: Path) -> None:
    """A verdict needs a true class."""
    table = {**data_table(folder, "test"), "labels": ""}
    with pytest.raises(
        UsageError, match="data: the data have no labels - name labelled data by --"
    ):
        attack("step", data=table)


def test_label_that_the_classifier_does_not_know_is_refused(attack: Run, folder: Path) -> None:
    """Data of other classes are named with the sample."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "test.safetensors")
    tensors["y"][17] = 5
    save_file(tensors, folder / "more.safetensors")
    with pytest.raises(
        DataError, match="sample 17 has label 5, the classifier has 3 classes - name"
    ):
        attack("step", data=data_table(folder, "more"))


def test_normalised_inputs_are_refused(
    attack: Run, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E10: the range found, the domain, and that normalisation belongs into the network."""
    from advdiff_core.engine.source import Source

    plain = Source.clean
    monkeypatch.setattr(
        Source, "clean", lambda self, rows: plain(self, rows)._replace(x=plain(self, rows).x * 2.5)
    )
    line = (
        r"data: sample 0 lies in \[-2[\d.]+, [\d.]+\], wanted \[-1, 1\] - give raw images; normal"
    )
    with pytest.raises(UsageError, match=line) as caught:
        attack("step")
    assert caught.value.code == "E10"


def test_logits_that_are_not_finite_count_as_failures(
    attack: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E16: clean and attacked, each with a line."""
    from advdiff_core.engine.robust import subjects

    plain = subjects.classifier

    def made(*args: Any) -> Any:
        module = plain(*args)

        def blind(_: Any, inputs: Any, logits: torch.Tensor) -> torch.Tensor:
            dark = inputs[0].flatten(1)[:, 0] < -0.7
            return torch.where(dark[:, None], torch.nan, logits)

        module.register_forward_hook(blind)
        return module

    whole = attack("step", eps=(0.05,))
    monkeypatch.setattr(subjects, "classifier", made)
    report = attack("step", eps=(0.05,))
    assert clean(report) < clean(whole)
    lost = clean(whole) - clean(report)
    line = f"{lost} clean samples have outputs that are not finite: counted as wrong"
    assert line in report.notes
    assert all(row["clean"] in ("right", "wrong") for row in rows_of(report))


def test_saved_inputs_break_the_network_when_read_again(attack: Run, trained: Trained) -> None:
    """As many as asked for, in the order found; asking for more than before makes them anew."""
    from safetensors.torch import load_file

    report = attack("step", eps=(0.12,), save=3, name="saved")
    found = load_file(report.folder / "adversarial.safetensors")
    assert found["adversarial"].shape == (3, 1, 4, 4)
    assert (report.folder / "adversarial.png").read_bytes()[:4] == b"\x89PNG"
    network = classifier(trained.experiment, "student", 0)
    labels = torch.tensor([rows_of(report)[one]["label"] for one in found["id"].tolist()])
    assert bool((network(found["clean"]).argmax(1) == labels).all())
    assert bool((network(found["adversarial"]).argmax(1) != labels).all())
    more = attack("step", eps=(0.12,), save=5, name="saved")
    again = load_file(more.folder / "adversarial.safetensors")
    assert again["id"][:3].tolist() == found["id"].tolist()
    assert torch.equal(again["adversarial"][:3], found["adversarial"])
    assert len(again["id"]) == 5


def test_report_comes_back_from_its_file(attack: Run) -> None:
    """What is stored is all there is."""
    report = attack("noise", "pair")
    tables = json.loads((report.folder / "report.json").read_text())
    assert RobustReport.from_json(report.folder, tables).as_json() == report.as_json()


def test_mean_of_an_objective_has_its_interval_and_leaves_out_what_is_not_finite() -> None:
    """In closed form: mean of 1, 2, 3, 6, standard error sqrt(14 / 3 / 4)."""
    found = mean_of([1.0, 2.0, None, 3.0, 6.0])
    assert (found.value, found.count) == (3.0, 4)
    half = 1.959963984540054 * (14 / 3 / 4) ** 0.5
    assert (found.low, found.high) == pytest.approx((3 - half, 3 + half), rel=1e-12)
    assert mean_of([None]).count == 0


@pytest.mark.parametrize(("hits", "count", "low", "high"), [
    (0, 10, 0.0, 0.27753279),
    (10, 10, 0.72246721, 1.0),
    (5, 10, 0.23659309, 0.76340691),
    (673, 1000, 0.64331045, 0.70136549),
])  # fmt: skip
def test_share_has_the_interval_of_wilson(hits: int, count: int, low: float, high: float) -> None:
    """Wilson (1927): (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)."""
    found = share_of(hits, count)
    assert found.value == hits / count
    p, z = hits / count, 1.959963984540054
    half = z * (p * (1 - p) / count + z * z / (4 * count * count)) ** 0.5
    ends = [(p + z * z / (2 * count) + sign * half) / (1 + z * z / count) for sign in (-1, 1)]
    assert (found.low, found.high) == pytest.approx(ends, abs=1e-12)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-6)


def test_errors_of_the_registry_are_those_of_recipes(trained: Trained) -> None:
    """An unknown attack or setting is refused with the nearest name."""
    from advdiff_core.errors import RecipeError

    with pytest.raises(RecipeError, match="toy-fgsm") as caught:
        trained.attack(AttackJob(attacks=("toy-fgms",)))
    assert "--attack" in caught.value.faults[0].where()
    with pytest.raises(AdvdiffError, match="steps"):
        trained.attack(AttackJob(attacks=({"use": "toy-fgsm", "stesp": 2},)))
