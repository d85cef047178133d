"""The parts of the page on what representations are like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from arms import ARMS, named
from here import RECORDS
from pages import provenance, record, table

__all__ = ["analyses", "probes"]

TEACHERS = {
    "plain": "plain", "robustadv": "Robustadv", "atdiff": "AT_Diff, free",
    "noisy": "noisy-input classifier",
}  # fmt: skip
#: What the paper's table of dimensions says (CIFAR-10): CLS-95, CLS-99, robust dimension.
PAPER = {"at": (9, 14, 9), "at-dra": (15, 42, 22), "dm": (10, 11, 11), "dm-dra": (12, 15, 23)}
SHOWN = {
    "uniformity": "uniformity (lower: more uniform)", "alignment": "alignment (lower: nearer)",
    "cknna": "CKNNA with the teacher", "saliency_low": "saliency, low",
    "saliency_mid": "saliency, mid", "saliency_high": "saliency, high",
    "probe_accuracy": "linear probe", "probe_robust_accuracy_8": "linear probe, attacked at 8/255",
    "sae_fvu_k4": "sparse codes, FVU, k = 4", "sae_fvu_k16": "sparse codes, FVU, k = 16",
}  # fmt: skip
HEADS = ("noise_head_single", "noise_head_eot")
ROBUST = "probe_robust_accuracy_"


def probes() -> list[str]:
    """The sweep of probes."""
    found = record(RECORDS, "probes")
    if found is None:
        return ["The sweep of probes (`probes.py`) was not run for want of time.", ""]
    lines = [
        "Where they read best: accuracy of linear probes on training images that were not fitted,",
        "in per cent, features at a tap, no label told.", "",
    ]  # fmt: skip
    rows = [
        [TEACHERS[name], tap, *(f"{100 * one[f'probe_{tap}_{sigma:g}']:.1f}" for sigma in sigmas)]
        for sigmas in [found["sigmas"]]
        for name, numbers in found["teachers"].items() if name != "noisy"
        for one in [numbers["metrics"]]
        for tap in found["taps"]
    ]  # fmt: skip
    head = ("teacher", "tap", *(f"sigma {sigma:g}" for sigma in found["sigmas"]))
    lines += table(head, rows)
    noisy = found["teachers"].get("noisy")
    if noisy:
        accuracy = 100 * noisy["metrics"]["accuracy"]
        lines += [
            f"The noisy-input classifier names {accuracy:.1f} % of the clean test images rightly",
            "by its own head.", "",
        ]  # fmt: skip
    return lines


def analyses(out: Path) -> list[str]:
    """Experiment 5."""
    found = record(RECORDS, "analyses")
    lines = ["## 5. What the representations are like", ""]
    if found is None:
        script = "Written and not run for want of time; `analyses.py` makes the numbers."
        return [*lines, script, ""]
    runs = sorted(out.glob(f"[0-9]*-{named('at-dra', found['seed'])}"))
    if runs:
        lines += provenance(RECORDS, runs[-1], "docs/results/dra/analyses.py", "analyses")
    lines += [
        f"Seed {found['seed']}, features before the last layer, 1,000 test images; attacks by ten",
        "steps of PGD, radius 8/255. Definitions are in docs/dra-analyses.md.", "",
    ]  # fmt: skip
    models = {arm: found["models"][arm]["metrics"] for arm in PAPER if arm in found["models"]}
    return [*lines, *of_classifiers(models), *of_teachers(found)]


def of_classifiers(models: dict[str, Any]) -> list[str]:
    """The metrics of the classifiers, and the paper's table of dimensions."""
    labels = [ARMS[arm].label for arm in models]
    rows = [
        [label, *(float(models[arm][key]) for arm in models)] for key, label in SHOWN.items()
    ]  # fmt: skip
    lines = table(("quantity", *labels), rows)
    dimensions = [
        [ARMS[arm].label, *(int(models[arm][key]) for key in ("cls_95", "cls_99", "robust_dim")),
         *PAPER[arm]]
        for arm in models
    ]  # fmt: skip
    told = (
        "Directions that classification needs, here and in the paper (other networks, 32 pixels):"
    )
    head = ("method", "CLS-95", "CLS-99", "robust", "paper's CLS-95", "CLS-99", "robust")
    return [*lines, told, "", *table(head, dimensions)]


def of_teachers(found: dict[str, Any]) -> list[str]:
    """Probes of the teachers under attack."""
    models = {
        name: found["models"][name]["metrics"] for name in TEACHERS if name in found["models"]
    }
    if not models:
        return []
    radii = [key for key in next(iter(models.values())) if key.startswith(ROBUST)]
    rows = [
        [
            TEACHERS[name], f"{100 * one['probe_accuracy']:.1f}",
            *(f"{100 * one[key]:.1f}" for key in radii),
            *(f"{100 * one[key]:.1f}" if key in one else "" for key in HEADS),
        ]
        for name, one in models.items()
    ]  # fmt: skip
    text = [
        f"Linear probes of the teachers at `{found['tap']}`, sigma {found['sigma']:g}, noise",
        "frozen, no label told, in per cent; the last two columns draw new noise at each answer,",
        "attacked at 2/255 by the gradient of one draw, and of the mean of 20 (200 images).", "",
    ]  # fmt: skip
    at = [f"{key.removeprefix(ROBUST)}/255" for key in radii]
    return [*text, *table(("teacher", "clean", *at, "single draw", "averaged"), rows)]
