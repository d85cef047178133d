"""Experiment 3b: which network the discriminator reads, and how large it is.

    python docs/results/adt/backbones.py --out RUNS [NETWORK ...]

ADT on digits as in digits.py, one seed, with a deeper frozen network, one of random weights, a
random vision transformer, and a discriminator on pixels that reads none. Ten minutes of one CPU
core. Numbers go to records/backbones.json.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from digits import NUMBER, SEEDS, classifier, measured, tuned
from here import RECORDS, arguments, open_lab
from pages import record


class Network(NamedTuple):
    """What the discriminator reads.

    Attributes:
        name: What the page calls it.
        keys: Keys of the run; a `depth` trains a classifier of that depth first.
    """

    name: str
    keys: dict[str, Any]
    depth: int = 0


RESNET: dict[str, Any] = {
    "use": "cifar-resnet", "mean": [0.5], "std": [0.5], "parametrization": "none", "frozen": True,
}  # fmt: skip
VIT: dict[str, Any] = {
    "use": "timm:vit_tiny_patch16_224", "image_size": 16, "patch_size": 4,
    "parametrization": "none", "frozen": True,
}  # fmt: skip
NETWORKS = {
    "resnet8": Network("ResNet-8, trained", {}),
    "resnet20": Network("ResNet-20, trained", {}, 20),
    "random8": Network("ResNet-8, random", {"models.encoder": {**RESNET, "depth": 8}}),
    "vit": Network("ViT-tiny, random", {"models.encoder": VIT}),
    "patch": Network(
        "none: patches of pixels",
        {"models.discriminator": {"kind": "discriminator", "use": "patch", "channels": 32}},
    ),
}  # fmt: skip


def main() -> None:
    """Train and measure all that is not there yet."""
    given = arguments(__doc__, tuple(NETWORKS))
    lab = open_lab(given)
    found: dict[str, Any] = (record(RECORDS, "backbones") or {}).get("runs", {})
    for name in given.parts or NETWORKS:
        network, keys = NETWORKS[name], dict(NETWORKS[name].keys)
        if network.depth:
            trained = classifier(lab, f"encoder{network.depth}", 7, network.depth)
            keys["models.encoder"] = {**RESNET, "depth": network.depth, "init": trained}
        run = tuned(lab, "adt", SEEDS[0], keys, name if keys else "")
        found[name] = measured(lab, run, judged=True)
        lab.record("backbones", {"runs": found, "number": NUMBER})


if __name__ == "__main__":
    main()
