"""Names of the laws by kind, so that collecting them imports no torch; a test keeps them right."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["LAW_NAMES", "SLOW", "law_names"]

#: Laws by kind; those of every kind under "".
LAW_NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "": (
            "builds",
            "import-is-clean",
            "is-documented",
            "keeps-final-methods",
            "settings-round-trip",
            "settings-refuse-nonsense",
            "refusals-name-a-key",
            "settings-hold-at-the-edge",
            "building-is-repeatable",
            "updated-leaves-what-is-trained",
        ),
        "alignment_target": (
            "width-and-shape",
            "is-detached",
            "samples-are-independent",
            "leaves-everything-alone",
            "has-no-memory",
        ),
        "attack": (
            "never-worse-than-clean",
            "takes-victims-apart-or-not",
            "members-find-the-same",
            "refuses-unknown-norms",
            "inside-budget-and-domain",
            "zero-radius-is-identity",
            "leaves-everything-alone",
            "follows-its-generator",
            "samples-are-independent",
            "cost-as-declared",
            "raises-the-loss",
            "works-without-verdicts",
            "works-without-domain",
        ),
        "augmentation": (
            "keeps-shape-and-range",
            "follows-its-generator",
            "any-cut-of-the-batch",
            "labels-as-declared",
            "tells-what-it-did",
            "leaves-everything-alone",
        ),
        "backbone": (
            "shapes",
            "taps-as-declared",
            "stop-at-is-the-full-forward",
            "samples-are-independent",
            "leaves-everything-alone",
            "gradients-arrive",
            "labels-as-declared",
            "guidance-as-declared",
            "double-backward-as-declared",
            "channels-last",
            "bf16-autocast",
            "compiles",
        ),
        "corruption": (
            "pure-function-of-indices",
            "damages-what-it-says",
            "damages-a-fraction",
            "obeys-its-seed",
            "leaves-everything-alone",
        ),
        "dataset": (
            "batches-as-described",
            "pure-function-of-indices",
            "hands-out-copies",
            "leaves-everything-alone",
            "fingerprint-is-stable",
            "orders-as-asked",
        ),
        "discriminator": (
            "one-row-per-sample",
            "samples-are-independent",
            "leaves-everything-alone",
            "gradients-arrive",
            "double-backward-as-declared",
        ),
        "loss_term": (
            "one-loss-per-sample",
            "needs-equals-asked",
            "edits-nothing",
            "gradients-are-finite",
            "samples-are-independent",
            "follows-the-order-of-samples",
            "repeats-itself",
        ),
        "metric": (
            "finite-numbers",
            "protocol-says-something",
            "order-does-not-matter",
            "repeats-itself",
            "best-on-equal-sets",
            "symmetric-as-claimed",
        ),
        "noise_schedule": (
            "log-snr-falls",
            "ends",
            "time-of-log-snr",
            "log-snr-is-its-formula",
            "variance-as-declared",
            "keeps-type-and-shape",
            "each-time-on-its-own",
            "quantile-is-uniform",
            "snap",
            "grids-fall",
            "noise-input-in-range",
        ),
        "optimizer": (
            "moves-downhill",
            "state-is-plain",
            "resumes-exactly",
            "reads-the-rate",
            "leaves-everything-alone",
            "skips-what-has-no-gradient",
        ),
        "perturbation": (
            "inside-the-budget",
            "zero-budget-is-identity",
            "follows-its-generator",
            "leaves-everything-alone",
            "samples-are-independent",
            "cost-as-declared",
            "target-as-declared",
            "no-gradient-leaks",
            "survives-a-flat-network",
            "climbs-what-it-derives",
            "keeps-its-type",
            "free-update",
        ),
        "sampler": (
            "grid-falls",
            "counts-evaluations",
            "reaches-a-known-point",
            "converges",
            "converges-in-its-order",
            "keeps-the-distribution",
            "images-are-independent",
            "gradients-where-asked",
            "tells-every-step",
            "takes-a-state-back",
            "leaves-everything-alone",
            "linear-as-it-says",
        ),
        "time_sampler": (
            "times-in-range",
            "follows-its-numbers",
            "each-number-on-its-own",
            "state-is-all",
            "survives-bad-losses",
            "levels-only-rise",
        ),
    }
)

#: Laws that are tried only with `--advdiff-slow`.
SLOW = frozenset(["compiles"])


def law_names(kind: str) -> tuple[str, ...]:
    """Laws that a component of a kind has to keep, those of every kind first."""
    return LAW_NAMES[""] + LAW_NAMES[kind]
