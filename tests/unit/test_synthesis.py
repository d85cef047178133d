"""`advdiff sample --to shards`: what is in the shards, resuming, and choosing by a classifier."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from advdiff_datasets.shards import NpzShards
from hypothesis import given
from hypothesis import strategies as st

from advdiff_core.cli import main
from advdiff_core.engine.api import Trained, open_trained, train
from advdiff_core.engine.judge import Judge, find_judge
from advdiff_core.engine.lock import Lock
from advdiff_core.engine.shards import read_shard, write_shard
from advdiff_core.engine.signals import StopFlag
from advdiff_core.engine.synthesis import Job, Synthesis, best_of_each_class
from advdiff_core.errors import DataError, Interrupted, NumericsError, StorageError, UsageError
from advdiff_core.interfaces.component import Build
from advdiff_core.recipe import recipe_from_dict

CLASSES = 3


def tables(path: Path, **others: Any) -> dict[str, Any]:
    """A recipe on small pictures of three classes."""
    return {
        "advdiff": 1,
        "run": {"images": 32, "batch": 16, "device": "cpu", "precision": "fp32"},
        "data": {"use": "tensor-file", "path": str(path), "images": "x", "labels": "y"},
        **others,
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A class-conditional denoiser, and a classifier of the same pictures."""
    folder = tmp_path_factory.mktemp("runs")
    draws = np.random.default_rng(0)
    pixels = draws.integers(0, 256, (30, 3, 6, 5), dtype=np.uint8)
    np.savez(folder / "data.npz", x=pixels, y=np.arange(30) % CLASSES)
    denoiser = tables(
        folder / "data.npz",
        models={"student": {"use": "mlp", "width": 16, "conditional": True}},
        terms={"denoise": {"use": "denoise"}},
        sample={"use": "ddim", "steps": 3},
    )
    classifier = tables(
        folder / "data.npz",
        models={"net": {"use": "mlp", "width": 16, "outputs": CLASSES, "parametrization": "none"}},
        terms={"loss": {"use": "cross-entropy", "role": "net"}},
        players={"net": {"optimizer": {"use": "adam", "lr": 0.1}}},
    )
    return {
        name: train(recipe_from_dict(recipe), out=folder / name).run
        for name, recipe in {"denoiser": denoiser, "classifier": classifier}.items()
    }


@pytest.fixture(scope="module")
def trained(runs: dict[str, Path]) -> Trained:
    """The denoiser, opened."""
    return open_trained(runs["denoiser"])


@pytest.fixture(scope="module")
def judge(runs: dict[str, Path]) -> Judge:
    """The classifier."""
    return find_judge(open_trained(runs["classifier"]).experiment, None, batch=7)


def synthesis(trained: Trained, folder: Path, job: Job, **keys: Any) -> Synthesis:
    """A data set of this job."""
    if keys.get("judge") is not None:
        keys["judged_by"] = {"role": "net"}
    return Synthesis(trained=trained, job=job, folder=folder, batch=4, **keys)


LABELS = (0, 1, 2)
SMALL = Job(first=3, num=23, labels=LABELS, shard=10)


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, but the lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def test_shards_hold_each_image_with_its_seed_and_label(trained: Trained, tmp_path: Path) -> None:
    """Image i has seed first + i and the i-th label in turn, and is the sample of that seed."""
    found = synthesis(trained, tmp_path, SMALL).run()
    assert (found["count"], found["made"], found["shards"]) == (23, 23, 3)
    arrays = [read_shard(tmp_path / f"shard-{n:06}.npz")[0] for n in range(3)]
    joined = {name: np.concatenate([one[name] for one in arrays]) for name in arrays[0]}
    assert joined["seed"].tolist() == list(range(3, 26))
    assert joined["label"].tolist() == [k % 3 for k in range(23)]
    assert (joined["image"].dtype, joined["image"].shape) == (np.uint8, (23, 6, 5, 3))
    alone = trained.sample([14], labels=torch.tensor([11 % 3])).x0[0]
    levels = ((alone + 1) * 127.5).clamp(0, 255).permute(1, 2, 0).numpy()
    assert np.abs(joined["image"][11].astype(float) - levels).max() <= 0.51


def test_npz_shards_reads_what_was_written(trained: Trained, tmp_path: Path) -> None:
    """The index fits: classes, counts, sizes, hashes; and how the images were made."""
    synthesis(trained, tmp_path, SMALL).run()
    data = NpzShards(NpzShards.Settings(path=tmp_path, verify=True), Build(path="data"))
    assert (data.info.count, data.info.classes, data.info.shape) == (23, CLASSES, (3, 6, 5))
    assert data.batch(torch.arange(23)).y.tolist() == [k % 3 for k in range(23)]
    made = json.loads((tmp_path / "index.json").read_text())["made"]
    assert (made["nimg"], made["first_seed"], made["sample"]["steps"]) == (32, 3, 3)
    assert made["weights"] == trained.weights_id()


@pytest.mark.parametrize("select", [None, 0.5])
@pytest.mark.parametrize("write", [1, 2, 3, 4, 5, 7, 8])
def test_interrupted_anywhere_it_goes_on_to_the_same_bytes(
    trained: Trained, judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    select: float | None, write: int,
) -> None:  # fmt: skip
    """S04: any write fails; the same call again keeps whole shards and ends as if nothing was."""
    job = Job(first=3, num=23, labels=LABELS, shard=10, select=select)
    keys = {"judge": judge}
    synthesis(trained, tmp_path / "whole", job, **keys).run()
    calls = 0

    def fails(operation: str, path: Path) -> None:
        nonlocal calls
        calls += operation == "rename"
        if operation == "rename" and calls == write:
            raise OSError(5, "planned")

    with monkeypatch.context() as patch:
        patch.setattr("advdiff_core.engine.shards.DISK.before", fails)
        if write <= (5 if select is None else 8):
            with pytest.raises(StorageError):
                synthesis(trained, tmp_path / "parts", job, **keys).run()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").rglob("shard*")}
    synthesis(trained, tmp_path / "parts", job, **keys).run()
    assert content(tmp_path / "parts") == content(tmp_path / "whole")
    source = tmp_path / "parts" / ("candidates" if select else "")
    kept = {path for path in before if path.parent == source}
    assert all(path.stat().st_mtime_ns == before[path] for path in kept)


def test_killed_it_goes_on_to_the_same_bytes(
    runs: dict[str, Path], trained: Trained, tmp_path: Path
) -> None:
    """K01: SIGKILL just before the second shard gets its name."""
    arguments = ["sample", str(runs["denoiser"]), "--to", "shards", "--num", "23", "--batch", "4",
                 "--seeds", "3-25", "--shard-size", "10"]  # fmt: skip
    killed = subprocess.run(
        [sys.executable, "-m", "advdiff_core", *arguments, "--out", str(tmp_path / "parts")],
        env={**os.environ, "ADVDIFF_FAULT": "shards.rename:3:kill", "OMP_NUM_THREADS": "1"},
        capture_output=True, check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert {p.name for p in (tmp_path / "parts").glob("*.npz")} == {"shard-000000.npz"}
    assert main([*arguments, "--out", str(tmp_path / "parts")]) == 0
    assert main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    assert content(tmp_path / "parts") == content(tmp_path / "whole")


def test_a_signal_stops_it_between_batches(trained: Trained, tmp_path: Path) -> None:
    """The message says how to go on; whole shards are kept."""
    stop = StopFlag()

    def tell(line: str) -> None:
        stop.signal = int(signal.SIGTERM)

    with pytest.raises(Interrupted, match="whole shards are kept") as caught:
        synthesis(trained, tmp_path, SMALL, stop=stop, tell=tell).run()
    assert caught.value.fix == "go on with the same command"
    assert [path.name for path in tmp_path.glob("*.npz")] == ["shard-000000.npz"]


def test_damaged_shards_are_made_again(trained: Trained, tmp_path: Path) -> None:
    """S01: a flipped bit, a cut file, a shard of other seeds; each is told, and mended."""
    synthesis(trained, tmp_path, SMALL).run()
    whole, lines = content(tmp_path), []
    first, second, third = (tmp_path / f"shard-{n:06}.npz" for n in range(3))
    raw = bytearray(first.read_bytes())
    raw[400] ^= 4
    first.write_bytes(raw)
    second.write_bytes(second.read_bytes()[:-20])
    arrays, _ = read_shard(third)
    write_shard(third, {**arrays, "seed": arrays["seed"] + 1})
    synthesis(trained, tmp_path, SMALL, tell=lines.append).run()
    assert content(tmp_path) == whole
    assert sum("is damaged and made again" in line for line in lines) == 3


def test_finished_data_sets_stay_as_they_are(trained: Trained, tmp_path: Path) -> None:
    """The same command once more makes no image."""
    synthesis(trained, tmp_path, SMALL).run()
    lines: list[str] = []
    synthesis(trained, tmp_path, SMALL, tell=lines.append).run()
    assert lines == []


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (Job(first=4, num=23, labels=LABELS, shard=10), "first_seed was 3, is 4"),
        (Job(first=3, num=24, labels=LABELS, shard=10), "num was 23, is 24"),
        (Job(first=3, num=23, labels=(1,), shard=10), "labels was [0, 1, 2], is [1]"),
    ],
)
def test_a_folder_is_not_made_of_two_jobs(
    trained: Trained, tmp_path: Path, job: Job, words: str
) -> None:
    """The first difference is named; the folder stays as it is."""
    synthesis(trained, tmp_path, SMALL).run()
    before = content(tmp_path)
    with pytest.raises(UsageError) as caught:
        synthesis(trained, tmp_path, job).run()
    assert words in caught.value.message
    assert content(tmp_path) == before


def test_two_processes_do_not_write_one_folder(trained: Trained, tmp_path: Path) -> None:
    """S08: the second one is told who is at it."""
    with Lock(tmp_path / ".lock"), pytest.raises(StorageError, match="is in use by process"):
        synthesis(trained, tmp_path, SMALL).run()


def test_samples_that_are_not_finite_are_refused(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E22 with the first seed; no shard is written."""
    sample = trained.sample

    def broken(seeds: range, **keys: Any) -> Any:
        made = sample(seeds, **keys)
        made.x0[1] = torch.nan
        return made

    monkeypatch.setattr(Trained, "sample", lambda self, seeds, **keys: broken(seeds, **keys))
    with pytest.raises(
        NumericsError, match="1 of 4 samples are not finite, first seed 4"
    ) as caught:
        synthesis(trained, tmp_path, SMALL).run()
    assert caught.value.code == "E22"
    assert not list(tmp_path.glob("*.npz"))


def test_the_best_of_each_class_are_kept(trained: Trained, judge: Judge, tmp_path: Path) -> None:
    """Candidates stay; of each class the share that the classifier is surest of, in order."""
    job = Job(num=30, labels=LABELS, shard=8, select=0.5)
    found = synthesis(trained, tmp_path, job, judge=judge).run()
    assert (found["made"], found["count"]) == (30, 15)
    every = [read_shard(path)[0] for path in sorted((tmp_path / "candidates").glob("*.npz"))]
    chosen = [read_shard(path)[0] for path in sorted(tmp_path.glob("*.npz"))]
    all_, kept = (
        {name: np.concatenate([one[name] for one in parts]) for name in parts[0]}
        for parts in (every, chosen)
    )
    for label in LABELS:
        sure = np.sort(all_["confidence"][all_["label"] == label])[::-1]
        assert np.array_equal(np.sort(kept["confidence"][kept["label"] == label])[::-1], sure[:5])
    assert kept["seed"].tolist() == sorted(kept["seed"].tolist())
    assert np.array_equal(kept["image"], all_["image"][kept["seed"]])
    assert [len(one["seed"]) for one in chosen] == [8, 7]


def test_confidence_is_the_softmax_of_the_stored_image(trained: Trained, judge: Judge) -> None:
    """Of the 8-bit image, in the classifier's domain, with its averaged weights."""
    pixels = np.random.default_rng(1).integers(0, 256, (9, 6, 5, 3), dtype=np.uint8)
    labels = torch.arange(9) % 3
    module = judge.experiment.scene.roles["net"].module
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).double() / 127.5 - 1
    emas = [e for p in judge.experiment.players for es in p.emas.values() for e in es]
    assert emas == []
    with torch.no_grad():
        expected = module(x.float()).output.softmax(1)[torch.arange(9), labels]
    found = judge.confidence(pixels, labels)
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-6)


def test_judges_that_do_not_fit_are_refused(trained: Trained, judge: Judge, tmp_path: Path) -> None:
    """Too few classes, other shapes, no classifier at all."""
    pixels = np.zeros((2, 6, 5, 3), np.uint8)
    with pytest.raises(UsageError, match="'net' knows 3 classes, the labels go to 5"):
        judge.confidence(pixels, torch.tensor([0, 5]))
    with pytest.raises(UsageError, match=r"takes samples of shape \[3, 6, 5\], not \[1, 2, 2\]"):
        judge.check((1, 2, 2))
    with pytest.raises(UsageError, match=r"the run has 0 classifiers \(none\)"):
        find_judge(trained.experiment, None)
    with pytest.raises(UsageError, match="'student' is no classifier of the run; it has none"):
        find_judge(trained.experiment, "student")


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=40),
    st.sampled_from([0.05, 0.2, 0.5, 1.0]),
)
def test_choice_keeps_the_share_of_each_class(pairs: list[tuple[int, int]], share: float) -> None:
    """Exact counts; nobody left out is surer than one that is kept; earlier ones win ties."""
    labels, sure = (np.array(column) for column in zip(*pairs, strict=True))
    kept = best_of_each_class(labels, sure.astype(np.float32), share)
    assert kept.tolist() == sorted(set(kept.tolist()))
    for label in set(labels.tolist()):
        rows = np.flatnonzero(labels == label)
        mine = [row for row in kept if labels[row] == label]
        assert len(mine) == max(int(share * len(rows) + 1e-9), 1)
        best = sorted(rows.tolist(), key=lambda row: (-sure[row], row))[: len(mine)]
        assert mine == sorted(best)


def test_damaged_files_are_no_shards(tmp_path: Path) -> None:
    """S02 names the file; pickled objects are not read."""
    np.savez(tmp_path / "a.npz", image=np.array([{}], dtype=object))
    (tmp_path / "b.npz").write_bytes(b"PK")
    for name in ("a.npz", "b.npz", "c.npz"):
        with pytest.raises(DataError) as caught:
            read_shard(tmp_path / name)
        assert (caught.value.code, caught.value.where) == ("S02", str(tmp_path / name))


def call(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line."""
    code = main(arguments)
    found = capsys.readouterr()
    return code, found.out, found.err


def test_command_line_makes_and_chooses(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """DM-AT's procedure in one command; the JSON says what was made, and by whom it was judged."""
    code, out, err = call(
        ["sample", str(runs["denoiser"]), "--to", "shards", "--num", "12", "--classes", "0-1",
         "--judge", str(runs["classifier"]), "--select", "0.5", "--out", str(tmp_path / "a"),
         "-s", "sample.steps=2", "--json"],
        capsys,
    )  # fmt: skip
    assert code == 0, err
    facts = json.loads(out)
    assert (facts["count"], facts["made"], facts["labels"]) == (6, 12, [0, 1])
    assert facts["sample"]["steps"] == 2
    assert (facts["judge"]["role"], facts["judge"]["nimg"]) == ("net", 32)
    assert "12 of 12 images" in err
    code, out, _ = call(
        ["sample", str(runs["denoiser"]), "--to", "shards", "--out", str(tmp_path / "b")], capsys
    )
    assert code == 0
    assert "64 images in 1 shards" in out
    assert 'use = "npz-shards"' in out


def test_a_model_of_the_run_may_judge(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A frozen classifier with weights from elsewhere joins by -s."""
    model = (
        'models.net={use="mlp", width=16, outputs=3, parametrization="none", frozen=true, '
        f'init="{runs["classifier"]}"}}'
    )
    command = ["sample", str(runs["denoiser"]), "--to", "shards", "--judge"]
    code, out, err = call(
        [*command, "net", "-s", model, "--out", str(tmp_path / "a"), "--json"], capsys
    )
    assert code == 0, err
    assert json.loads(out)["judge"]["role"] == "net"
    (path,) = (tmp_path / "a").glob("*.npz")
    arrays, _ = read_shard(path)
    judge = find_judge(open_trained(runs["classifier"]).experiment, None)
    expected = judge.confidence(arrays["image"], torch.from_numpy(arrays["label"]))
    np.testing.assert_allclose(arrays["confidence"], expected, rtol=1e-5)
    code, _, err = call([*command, "nosuch", "--out", str(tmp_path / "b")], capsys)
    assert code == 2
    assert "'nosuch' is no classifier of the run; it has none" in err


def test_judge_may_be_the_best_checkpoint_of_a_run(runs, tmp_path, capsys):
    """`RUN/best` is taken for a run, and says what is missing where nothing was measured."""
    best = str(runs["classifier"] / "best")
    command = ["sample", str(runs["denoiser"]), "--to", "shards", "--num", "4", "--judge", best]
    code, _, err = call([*command, "--out", str(tmp_path / "a")], capsys)
    assert code == 4
    assert "no checkpoint is the best: nothing was measured during this training" in err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--select", "0.5"], "--select belongs to a synthetic data set"),
        (["--judge", "x"], "--judge belongs to a synthetic data set"),
        (["--shard-size", "5"], "--shard-size belongs to a synthetic data set"),
        (["--to", "shards", "--select", "0.5"], "--select needs a classifier to choose by"),
        (["--to", "shards", "--seeds", "1-3,9"], "the seeds of a data set follow each other"),
        (["--to", "shards", "--classes", "3"], "found 3, but the data have 3 classes"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    """Code 2, one line, with the mend."""
    code, _, err = call(["sample", str(runs["denoiser"]), *options], capsys)
    assert code == 2
    assert words in err
    assert not (runs["denoiser"] / "shards").exists()
