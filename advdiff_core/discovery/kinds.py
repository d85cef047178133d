"""The kinds of components, their entry-point groups, and the rules for names."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from types import MappingProxyType

__all__ = [
    "CONTRACT",
    "CORE",
    "HOOKS",
    "KINDS",
    "canonical",
    "canonical_distribution",
    "group_of",
    "is_component_name",
]

#: Version of the contract between core and plugins: the `v1` in every entry-point group.
CONTRACT = 1
#: The distribution that owns the core's own components.
CORE = "advdiff-core"
#: Entry-point group of listeners (pluggy); listed here, loaded by the engine.
HOOKS = "hooks"

#: Registry kind -> where its interface lives. Strings, so that listing imports no torch.
KINDS: Mapping[str, str] = MappingProxyType({
    "alignment_target": "advdiff_core.interfaces.alignment_target:AlignmentTarget",
    "attack": "advdiff_core.interfaces.attack:Attack",
    "augmentation": "advdiff_core.interfaces.augmentation:Augmentation",
    "backbone": "advdiff_core.interfaces.backbone:Backbone",
    "corruption": "advdiff_core.interfaces.dataset:Corruption",
    "dataset": "advdiff_core.interfaces.dataset:Dataset",
    "discriminator": "advdiff_core.interfaces.discriminator:Discriminator",
    "loss_term": "advdiff_core.interfaces.loss_term:LossTerm",
    "metric": "advdiff_core.interfaces.metric:Metric",
    "noise_schedule": "advdiff_core.interfaces.noise_schedule:NoiseSchedule",
    "optimizer": "advdiff_core.interfaces.optimizer:Optimizer",
    "perturbation": "advdiff_core.interfaces.perturbation:Perturbation",
    "sampler": "advdiff_core.interfaces.sampler:Sampler",
    "time_sampler": "advdiff_core.interfaces.time_sampler:TimeSampler",
})  # fmt: skip

#: "+" because samplers are called "dpm++2m" everywhere.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}")
_DISTRIBUTION_RUN = re.compile(r"[-_.]+")


def group_of(kind: str) -> str:
    """Entry-point group of a kind, for example "advdiff.v1.attack"."""
    return f"advdiff.v{CONTRACT}.{kind}"


def is_component_name(name: str) -> bool:
    """True if `name` is made of ASCII letters, digits, `_`, `.`, `+` and `-`."""
    return _NAME.fullmatch(name) is not None


def canonical(name: str) -> str:
    """What two names must differ in: case, `-` against `_` and unicode forms do not count."""
    return unicodedata.normalize("NFKC", name).casefold().replace("_", "-")


def canonical_distribution(name: str) -> str:
    """The normal form of a distribution's name (PEP 503)."""
    return _DISTRIBUTION_RUN.sub("-", name).lower()
