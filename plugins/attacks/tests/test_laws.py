"""Every attack here keeps the laws of its kind."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from advdiff_core import Build, DataInfo
from advdiff_core.backbones.mlp import MLP
from advdiff_core.testing import Example, laws


def surrogate(folder: Path) -> Example:
    """Logits of 1000 classes, whose weights lie in a safetensors file."""
    data = DataInfo(shape=(2,), count=64, classes=3)
    keys = {"width": 8, "outputs": 1000}
    network = MLP(MLP.Settings(**keys), Build(data=data))
    file = folder / "surrogate.safetensors"
    save_file(network.state_dict(), file)
    attack = {"use": "pgd", "steps": 2}
    model = {"use": "mlp", **keys}
    return Example(settings={"attack": attack, "model": model, "weights": str(file)}, data=data)


#: One of each family of formulas; tests/test_corruptions.py tries all kinds.
KINDS = ("elastic", "fog", "jpeg", "saturate", "shot-noise")

EXAMPLES = {
    "attack:autoattack": [
        {"steps": 3, "targets": 2, "queries": 10},
        {"version": "plus", "steps": 2, "targets": 1, "restarts": 1, "queries": 5},
        {"version": "rand", "steps": 3, "eot": 2},
        {"version": "fast", "steps": 3, "bucket": 2, "interval": 0},
    ],
    "attack:spsa": [
        {"steps": 3, "samples": 8, "at_once": 3},
        {"steps": 2, "samples": 4, "loss": "kl", "drop_broken": False, "at_once": 9},
    ],
    "attack:square": [
        {"queries": 20},
        {"queries": 12, "restarts": 2, "rescale": True, "bucket": 2, "interval": 3},
    ],
    "attack:apgd-ce": [
        {"steps": 8},
        {"steps": 6, "restarts": 2, "bucket": 2, "interval": 2, "eot": 2},
    ],
    "attack:apgd-dlr": [{"steps": 8}, {"steps": 5, "restarts": 0, "enlarge": False, "interval": 0}],
    "attack:apgd-t": [{"steps": 4, "targets": 2}, {"steps": 2, "targets": 0, "bucket": 1}],
    "attack:cw-l2": [
        {"steps": 20, "searches": 3, "initial_c": 10.0, "lr": 0.3},
        {"steps": 10, "searches": 10, "initial_c": 100.0, "lr": 1.0, "abort_early": False},
    ],
    "attack:deepfool": [{"steps": 10}, {"steps": 4, "candidates": 1, "overshoot": 0.1}],
    "attack:eot": [
        {"attack": {"use": "pgd", "steps": 3, "loss": "dlr"}, "samples": 3},
        {"attack": {"use": "fgsm"}, "samples": 3, "noise": "frozen", "at_once": 2},
        {"attack": {"use": "pgd", "steps": 2, "drop_broken": True}, "samples": 2, "at_once": 1},
        {"attack": {"use": "fab", "steps": 2}, "samples": 2},
    ],
    "attack:fab": [{"steps": 3}, {"steps": 2, "restarts": 2, "candidates": 2, "settle": True}],
    "attack:fab-t": [
        {"steps": 3, "targets": 2},
        {"steps": 2, "restarts": 2, "targets": 2, "settle": True},
    ],
    "attack:fgsm": [
        {},
        {"start": "uniform", "step_scale": 1.25, "keep": "last"},
        {"loss": "margin", "start": "corners", "start_scale": 0.5, "step_scale": 0.5},
        {"loss": "kl", "start": "gaussian", "start_std": 0.01},
    ],
    "attack:foolbox:LinfBasicIterativeAttack": [{"steps": 2}],
    "attack:pyautoattack": [{"attacks": ["apgd-ce"], "steps": 4}],
    "attack:torchattacks:PGD": [{"steps": 2, "random_start": False}],
    "attack:pgd": [
        {},
        {"loss": "dlr", "restarts": 2, "steps": 3, "drop_broken": True},
        {"loss": "kl", "start": "gaussian", "step": 0.01, "keep": "last"},
        {"loss": "ce", "start": "corners", "momentum": 1.0, "steps": 4, "sparsity": 0.2},
        {"start": "none", "keep": "last", "drop_broken": True},
    ],
    "attack:transfer": [surrogate],
    "metric:corruption-accuracy": [
        {"severities": [1, 5], "kinds": ["contrast", "shot-noise"]},
        {"severities": [3], "kinds": ["jpeg"], "batch": 7},
    ],
    "metric:robust-accuracy": [
        {"attack": {"use": "pgd", "steps": 3}, "batch": 7},
        {"attack": {"use": "fgsm"}, "norm": "l2", "eps": 0.5},
    ],
    **{f"corruption:common:{name}": [{"severity": 4}, {"fraction": 0.4}] for name in KINDS},
}

FOREIGN = ("foolbox:LinfBasicIterativeAttack", "pyautoattack", "torchattacks:PGD")

#: What is not promised of code of other packages; each says so by an error or in its documentation.
EXPECTED = {
    f"attack:{name}/{law}": reason
    for name in FOREIGN
    for law, reason in {
        "cost-as-declared": "nobody counts what foreign code runs",
        "works-without-domain": "it knows pixels in [0, 1], and says so",
        "works-without-verdicts": "it attacks classifiers, and says so",
    }.items()
}

test_attacks_keep_the_laws = laws(
    "advdiff-attacks", examples=EXAMPLES, expected_failures=EXPECTED, witnesses=5
)
