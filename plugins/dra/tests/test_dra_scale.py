"""Fifty million generated images: a recipe checks and starts in little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from helpers_rows import RECIPES
from helpers_shards import sparse_shard

for needed in ("advdiff_attacks", "advdiff_backbones", "advdiff_datasets", "advdiff_metrics"):
    pytest.importorskip(needed)

MOST = 2**30
#: Networks and batches are made small: what they take comes on top, and is the same for any number
#: of images.
SMALL = ("models.student.depth=10", "models.student.width=1", "views.adv.perturb.attack.steps=1")
HELD = "{use='subset', of={use='cifar10', path='data'}, choose='first', count=16}"
METRIC = f"{{use='robust-accuracy', eps='8/255', attack={{use='pgd', steps=1}}, data={HELD}}}"
SHORT = (
    "run.images=256", "run.batch=256", "run.micro_batch=32", "run.precision=fp32",
    "evaluate.metrics=[]", f"validate.metrics=[{METRIC}]",
    "data.synthetic.path=synthetic",
)  # fmt: skip


def layout(folder: Path) -> None:
    """CIFAR-10 and fifty shards of a million images in the sizes they have, of holes."""
    real = folder / "data" / "cifar-10-batches-bin"
    real.mkdir(parents=True)
    for name in (*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"):
        with (real / name).open("wb") as file:
            file.truncate(10_000 * 3073)
    (folder / "synthetic").mkdir()
    for number in range(50):
        sparse_shard(folder / "synthetic" / f"shard-{number:05}.npz", 1_000_000)


def peak(folder: Path, *words: str) -> int:
    """Most memory of its own that a command took, in bytes; it has to succeed.

    What is mapped (code of libraries, shards) is the system's, which takes it back when it wants.
    """
    command = [sys.executable, "-m", "advdiff_core", *words]
    most = 0
    with (folder / "said").open("w+") as said:
        process = subprocess.Popen(command, cwd=folder, stdout=said, stderr=said)
        while process.poll() is None:
            most = max(most, _own(process.pid))
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.02)
        said.seek(0)
        assert process.returncode == 0, said.read()
    return most


def _own(pid: int) -> int:
    """Bytes of a process that no file backs; 0 once it has ended."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.slow
def test_a_recipe_with_fifty_million_images_starts_within_a_gigabyte(tmp_path: Path) -> None:
    """154 GB of shards: checked, planned, opened, a step of 256 with 204 generated, saved."""
    layout(tmp_path)
    options = [word for change in (*SMALL, *SHORT) for word in ("-s", change)]
    recipe = str(RECIPES / "cifar10-dm-at-50m.toml")
    taken = {v: peak(tmp_path, v, recipe, *options) for v in ("check", "plan", "train")}
    assert max(taken.values()) < MOST, taken
    (run,) = (tmp_path / "runs").iterdir()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["nimg"] == 256
