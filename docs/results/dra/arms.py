"""Classifiers of CIFAR-10 at 16 pixels by TRADES: what they learn from, what they are aligned to.

A wide resnet of depth 10 and width 1 (0.08 M parameters), three steps of the inner attack, bf16.
All arms have the same number of images, updates and steps of the attack; what differs is the data
(real ones, or 70 % synthetic ones) and the teacher of the alignment.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from here import SIZE, Lab, recipe, toml
from teachers import teacher

__all__ = [
    "ARMS", "ATTACKED", "BATCH", "EPS", "FEW", "FRACTION", "IMAGES", "NOISY", "SEEDS", "SIGMA",
    "STEPS", "SYNTHETIC", "TAP", "WEIGHT", "Arm", "Point", "attacked", "frozen", "named", "noisy",
    "real", "train",
]  # fmt: skip

IMAGES, BATCH = 102_400, 64
#: Images that the classifier of noised images is trained on: the encoder is half as costly a step.
NOISY = 102_400
SEEDS = (1, 2, 3)
EPS = "8/255"
#: Test images that are attacked, the first ones.
ATTACKED = 1_000
#: Place and noise level of the teacher's features; see the sweep of probes, which chose them.
TAP, SIGMA = "mid.1", 0.06
WEIGHT = 0.5
#: Synthetic images, and evaluations of the network for each.
SYNTHETIC, STEPS = 20_000, 12
FRACTION = 0.7
#: Real images of the arms that have few; their teacher has seen them all.
FEW = 2_500
UNET = {
    "use": "unet", "channels": 32, "channel_mult": [1, 2, 2], "blocks": 1, "attention": [8],
}  # fmt: skip


class Point(NamedTuple):
    """How a classifier is aligned: noise level, weight, place in the teacher."""

    sigma: float = SIGMA
    weight: float = WEIGHT
    tap: str = TAP


DEFAULT = Point()


class Arm(NamedTuple):
    """What a classifier learns from: data, and a teacher."""

    label: str
    synthetic: bool
    teacher: str = ""
    few: bool = False


ARMS = {
    "at": Arm("AT", synthetic=False),
    "at-dra": Arm("AT + DRA", synthetic=False, teacher="plain"),
    "dm": Arm("DM-AT", synthetic=True),
    "dm-dra": Arm("DM-AT + DRA", synthetic=True, teacher="plain"),
    "dm-noisy": Arm("DM-AT + noisy-input teacher", synthetic=True, teacher="noisy"),
    "dm-robustadv": Arm("DM-AT + DRA, Robustadv teacher", synthetic=True, teacher="robustadv"),
    "dm-atdiff": Arm("DM-AT + DRA, AT_Diff teacher", synthetic=True, teacher="atdiff"),
    "few": Arm("AT, few images", synthetic=False, few=True),
    "few-dra": Arm("AT, few images + DRA", synthetic=False, teacher="plain", few=True),
}


def real(given: Any, **keys: Any) -> dict[str, Any]:
    """The images of CIFAR-10, halved."""
    return {"use": "cifar10", "path": given.data, "size": SIZE, **keys}


def synthetic(lab: Lab, given: Any) -> Path:
    """Shards of images that the plain teacher drew."""
    sampler = {"sample.use": "dpm++2m", "sample.steps": STEPS, "sample.clip_x0": True}
    return lab.shards(teacher(lab, given, "plain"), "synthetic", SYNTHETIC, sampler)


def data(lab: Lab, given: Any, *, mixed: bool = False, few: bool = False) -> dict[str, Any]:
    """The table of a recipe's data."""
    augment = [{"use": "crop", "pad": 2}, {"use": "flip"}]
    if few:
        return {"use": "subset", "of": real(given), "count": FEW, "augment": augment}
    if not mixed:
        return {**real(given), "augment": augment}
    shards = {"use": "npz-shards", "path": synthetic(lab, given)}
    return {
        "use": "mixture", "real": real(given), "synthetic": shards, "fraction": FRACTION,
        "augment": augment,
    }  # fmt: skip


def common(given: Any) -> dict[str, Any]:
    """Keys of every classifier."""
    test = {"use": "accuracy", "data": real(given, split="test")}
    return {
        "run.batch": BATCH, "run.precision": "bf16", "run.channels_last": True,
        "run.log_every": 12_800, "run.checkpoint_every": 51_200, "evaluate.metrics": [test],
    }  # fmt: skip


def trades(given: Any, seed: int) -> dict[str, Any]:
    """Keys of what is trained by TRADES."""
    return {
        **common(given), "run.images": IMAGES, "run.seed": seed,
        "schedule": {"use": "vp-linear"}, "models.student.depth": 10, "models.student.width": 1,
        "views.adv.perturb.attack.steps": 3, "views.adv.perturb.attack.step": "4/255",
        "players.student.optimizer.lr": 0.1,
        "players.student.ema": [{"rate": 0.995, "after": IMAGES // 40}],
    }  # fmt: skip


def noisy(lab: Lab, given: Any) -> Path:
    """The encoder of the teacher, from random weights, trained to tell classes of noised images."""
    keys = {
        **common(given), "data": data(lab, given), "run.images": NOISY,
        "models.student.denoiser": UNET, "models.student.tap": TAP, "models.student.sigma": SIGMA,
        "players.student.lr_schedule.warmup": NOISY // 40,
    }  # fmt: skip
    return lab.train("noisy-classifier", recipe("dra", "cifar10-noisy-classifier"), keys)


def aligned(lab: Lab, given: Any, name: str, point: Point) -> dict[str, Any]:
    """Keys of the alignment with a teacher."""
    target = {
        "kind": "alignment_target", "frozen": True, "teacher": "teacher", "sigma": point.sigma,
    }  # fmt: skip
    keys = {"terms.align.weight": point.weight, "terms.align.hidden": 256}
    if name == "noisy":
        encoder = {"use": "diffusion-classifier", "parametrization": "none", "denoiser": UNET}
        told = {"tap": TAP, "sigma": SIGMA, "noise": "none"}
        return {
            **keys, "schedule": {"use": "edm"},
            "models.teacher": {**encoder, **told, "frozen": True, "init": noisy(lab, given)},
            "models.target": {**target, "use": "noisy-classifier-features", "tap": "pooled"},
        }  # fmt: skip
    return {
        **keys, "models.teacher": frozen(lab, given, name),
        "models.target": {**target, "use": "diffusion-features", "tap": point.tap,
                          "condition": "label"},
    }  # fmt: skip


def frozen(lab: Lab, given: Any, name: str) -> dict[str, Any]:
    """The table of a teacher, as a model that is not trained."""
    told = {"parametrization": "v", "conditional": True, "label_dropout": 0.1}
    return {**UNET, **told, "frozen": True, "init": teacher(lab, given, name)}


def attacked(  # noqa: PLR0913 - which attack, at which radius, on how many images.
    lab: Lab, given: Any, run: Path, name: str, attack: str, num: int = ATTACKED
) -> dict[str, Any]:
    """The report of a classifier under attack, on the first images of the test part."""
    test = toml(real(given, split="test"))
    words = ["--attack", attack, "--eps", EPS, "--num", num, "--data", test]
    return lab.attack(run, name, words)


def named(arm: str, seed: int, point: Point = DEFAULT) -> str:
    """Name of a classifier's run."""
    if not ARMS[arm].teacher:
        return f"{arm}-{seed}"
    other = "" if point.tap == TAP else f"-{point.tap}"
    return f"{arm}-{seed}-{point.sigma:g}-{point.weight:g}{other}"


def train(  # noqa: PLR0913 - what is learnt from, how it is aligned, and what differs.
    lab: Lab, given: Any, arm: str, seed: int, point: Point = DEFAULT,
    more: Mapping[str, Any] | None = None, suffix: str = "",
) -> Path:  # fmt: skip
    """A classifier; `more` are further keys, of a run whose name ends in `suffix`."""
    _, mixed, name, few = ARMS[arm]
    keys = {**trades(given, seed), "data": data(lab, given, mixed=mixed, few=few), **(more or {})}
    path = "cifar10-trades"
    if name:
        keys |= aligned(lab, given, name, point)
        path = "cifar10-dra-noisy-teacher" if name == "noisy" else "cifar10-dra"
    return lab.train(f"{named(arm, seed, point)}{suffix}", recipe("dra", path), keys)
