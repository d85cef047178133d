"""The laws catch planted mistakes, each in a message that names it."""

from __future__ import annotations

import importlib
import os

import planted_attacks
import planted_augmentations
import planted_data
import planted_networks
import planted_optimizers
import planted_perturbations
import planted_samplers
import planted_schedules
import planted_terms
import planted_times
import pytest
import torch
from planted import PLANTED, Planted

from advdiff_core.discovery import KINDS
from advdiff_core.testing import broken_laws
from advdiff_core.testing.collecting import kind_of
from advdiff_core.testing.index import LAW_NAMES, SLOW, law_names

importlib.import_module("planted_import")
os.environ.pop("PLANTED_BY_AN_IMPORT", None)

WITNESSES = 10
#: Share of the mistakes that must be caught.
WANTED = 0.95

HEALTHY = [
    planted_attacks.Healthy,
    planted_attacks.Turns,
    planted_augmentations.Mix,
    planted_augmentations.Ordered,
    planted_augmentations.Turn,
    planted_data.Damage,
    planted_data.Distance,
    planted_data.Healthy,
    planted_networks.Critic,
    planted_networks.Healthy,
    planted_networks.Honest,
    planted_networks.Target,
    planted_networks.Told,
    planted_optimizers.Healthy,
    planted_perturbations.Free,
    planted_perturbations.Healthy,
    planted_samplers.Healthy,
    planted_schedules.Discrete,
    planted_schedules.Healthy,
    planted_terms.Healthy,
    planted_times.Healthy,
]

#: What the core itself sees to, whatever a component does.
ENFORCED = {"keeps-its-type", "settings-refuse-nonsense"}

caught: dict[str, bool] = {}


@pytest.fixture(autouse=True)
def restored():
    """A mistake may switch the default dtype."""
    yield
    torch.set_default_dtype(torch.float32)


def name_of(value: object) -> str:
    """Name of a mistake, for its test."""
    cls = value.component if isinstance(value, Planted) else value
    return f"{cls.__module__.removeprefix('planted_')}-{cls.__name__}"


@pytest.mark.parametrize("mistake", PLANTED, ids=name_of)
def test_laws_notice_a_planted_mistake(mistake: Planted) -> None:
    """The law meant for it finds the mistake and says so."""
    broken = broken_laws(
        mistake.component, only=[mistake.law], witnesses=WITNESSES, example=mistake.example
    )
    caught[name_of(mistake)] = mistake.law in broken
    message = broken.get(mistake.law, "")
    assert message, f"{mistake.law} does not notice"
    for word in mistake.words:
        assert word in message, message
    assert "\n" not in message


@pytest.mark.parametrize("component", HEALTHY, ids=name_of)
def test_laws_hold_for_the_healthy_originals(component: type) -> None:
    """What the mistakes are planted in breaks no law."""
    # A process for each would take most of a minute; the laws of our own components try it.
    names = set(law_names(kind_of(component))) - {"import-is-clean", *SLOW}
    assert broken_laws(component, only=sorted(names), witnesses=5) == {}


def test_every_law_notices_some_mistake() -> None:
    """No law is there for nothing, but those that the core enforces and those that are slow."""
    tried = {(kind_of(one.component), one.law) for one in PLANTED}
    for kind in KINDS:
        idle = {law for law in LAW_NAMES[kind] if (kind, law) not in tried} - SLOW - ENFORCED
        assert idle == set(), kind
    assert set(LAW_NAMES[""]) - {law for _, law in tried} - ENFORCED == set()


def test_laws_catch_nearly_every_mistake() -> None:
    """At least 40 mistakes are planted, and at least 95 % of them are caught."""
    assert len(PLANTED) >= 40
    assert sum(caught.values()) >= WANTED * len(caught)
