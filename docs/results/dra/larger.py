"""The main comparisons with a classifier of a few million parameters, one seed.

    python docs/results/dra/larger.py --out RUNS --data FOLDER --base RUN [ARM ...]

See teachers.py for what the options name, and arms.py for what is trained otherwise. Fewer images,
since each costs ten times as much; attacked by 20 steps of PGD on the first 1,000 test images,
which leaves more than AutoAttack does. A quarter of an hour of one CPU core for each arm. Numbers
go to records/larger.json.
"""

from __future__ import annotations

from pathlib import Path

from arms import BATCH, EPS, SEEDS, attacked, train
from classifiers import verdicts
from here import RECORDS, arguments, open_lab
from pages import record
from safetensors.torch import load_file
from sweeps import PGD

DEPTH, WIDTH, IMAGES = 16, 4, 51_200
SUFFIX = f"-{DEPTH}-{WIDTH}"
LARGER = {
    "models.student.depth": DEPTH, "models.student.width": WIDTH, "run.images": IMAGES,
    "run.checkpoint_every": 12_800, "run.log_every": 3_200,
    "players.student.ema": [{"rate": 0.995, "after": IMAGES // 40}],
}  # fmt: skip
PARTS = ("at", "at-dra", "dm", "dm-dra", "dm-noisy")


def parameters(run: Path) -> int:
    """Numbers that a run trains, from its optimizer's momenta."""
    newest = max(run.glob("checkpoints/*/"), key=lambda path: int(path.name))
    tensors = load_file(newest / "shared.safetensors")
    return sum(
        tensor.numel() for name, tensor in tensors.items()
        if "models.student." in name and name.endswith("_buffer")
    )  # fmt: skip


def main() -> None:
    """Train and attack all that is not there yet."""
    given = arguments(__doc__, PARTS, {"base": "plain run without labels"})
    lab = open_lab(given)
    for arm in given.parts or PARTS:
        run = train(lab, given, arm, SEEDS[0], more=LARGER, suffix=SUFFIX)
        attacked(lab, given, run, "pgd", PGD)
        found = (record(RECORDS, "larger") or {}).get("runs", {})
        found[arm] = {
            "metrics": lab.measure(run, {})["metrics"], "robust": verdicts(run / "robust" / "pgd"),
            "parameters": parameters(run),
        }  # fmt: skip
        told = {"depth": DEPTH, "width": WIDTH, "images": IMAGES, "batch": BATCH, "eps": EPS}
        lab.record("larger", {"runs": found, "seed": SEEDS[0], "suffix": SUFFIX, **told})


if __name__ == "__main__":
    main()
