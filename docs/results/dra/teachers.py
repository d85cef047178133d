"""Class-conditional diffusion models of CIFAR-10 at 16 pixels: plain, by Robustadv, by AT_Diff.

    python docs/results/dra/teachers.py --out RUNS --data FOLDER --base RUN [TEACHER ...]

FOLDER holds CIFAR-10 in its binary version, and `judge`, an import of a ResNet-56 trained on clean
CIFAR-10, whose pooled features the distance is measured in. RUN is a plain run of the small U-Net
on clean images without labels (docs/results/robustadv/images.py, part 16-clean, method ddpm). It is
given an embedding of classes that starts at zero, and trained on with labels, a tenth of them left
out so that it knows images without a label too; each teacher goes on from there. Half an hour of
one CPU core. Numbers go to records/teachers.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from here import RECORDS, SIZE, Lab, arguments, open_lab, recipe
from pages import record
from safetensors.torch import load_file, save_file

CLASSES = 10
#: Images with labels, and of what goes on from there by each method.
LABELLED, TUNED = 96_000, 32_000
PASSES = 3
#: As many optimizer updates as the others, in whole batches of 32.
FREE = TUNED // PASSES // 32 * 32
EMBEDDING = "condition.label_embedding.weight"
AVERAGE = "ema.student.0."
TEACHERS: dict[str, tuple[Path, int, dict[str, Any]]] = {
    "plain": (recipe("robustadv", "cifar10-plain"), TUNED, {}),
    "atdiff": (recipe("atdiff", "cifar10-free"), FREE, {"players.student.passes": PASSES}),
    "robustadv": (recipe("robustadv", "cifar10-corrupted"), TUNED, {}),
}


def widened(lab: Lab, base: Path) -> Path:
    """The averaged weights of a run without labels, and an embedding of classes that is zero."""
    place = lab.out / "widened.safetensors"
    if not place.exists():
        newest = max(base.glob("checkpoints/*/"), key=lambda path: int(path.name))
        found = load_file(newest / "shared.safetensors")
        tensors = {
            name.removeprefix(AVERAGE): tensor for name, tensor in found.items()
            if name.startswith(AVERAGE)
        }  # fmt: skip
        width = tensors["condition.out.weight"].shape[0]
        tensors[EMBEDDING] = torch.zeros(CLASSES + 1, width)
        save_file(tensors, place)
    return place


def common(given: Any) -> dict[str, Any]:
    """Keys of every run."""
    return {
        "data.path": given.data, "data.size": SIZE, "data.corrupt": [],
        "schedule.use": "vp-linear", "models.student.parametrization": "v",
        "models.student.conditional": True, "models.student.label_dropout": 0.1,
        "run.log_every": 3_200, "evaluate.metrics": [],
        "sample.steps": 50, "sample.clip_x0": True,
    }  # fmt: skip


def labelled(lab: Lab, given: Any) -> Path:
    """The run that is told of labels first, which all teachers go on from."""
    keys = {
        **common(given), "run.images": LABELLED, "models.student.init": widened(lab, given.base),
    }  # fmt: skip
    return lab.train("teacher-labelled", recipe("robustadv", "cifar10-plain"), keys)


def teacher(lab: Lab, given: Any, name: str) -> Path:
    """A teacher."""
    path, images, keys = TEACHERS[name]
    keys = {
        **common(given), **keys, "run.images": images,
        "models.student.init": labelled(lab, given),
    }  # fmt: skip
    return lab.train(f"teacher-{name}", path, keys)


def distance(given: Any) -> dict[str, Any]:
    """Keys that measure the distance to clean images in the judge's features."""
    judge = {
        "use": "cifar-resnet", "depth": 56, "parametrization": "none", "frozen": True,
        "init": given.data / "judge",
    }  # fmt: skip
    frechet = {
        "use": "frechet", "features": "tap", "role": "judge", "tap": "pooled", "images": 10_000,
        "resize": 32,
    }  # fmt: skip
    return {"models.judge": judge, "evaluate.metrics": [frechet], "evaluate.num": 1_000}


def main() -> None:
    """Train and measure all that is not there yet."""
    given = arguments(__doc__, tuple(TEACHERS), {"base": "plain run without labels"})
    lab = open_lab(given)
    found = (record(RECORDS, "teachers") or {}).get("teachers", {})
    for name in given.parts or TEACHERS:
        found[name] = lab.measure(teacher(lab, given, name), distance(given))
        lab.record(
            "teachers",
            {
                "teachers": found, "base": given.base.name, "labelled": LABELLED, "passes": PASSES,
                "images": {name: images for name, (_, images, _) in TEACHERS.items()},
            },
        )  # fmt: skip


if __name__ == "__main__":
    main()
