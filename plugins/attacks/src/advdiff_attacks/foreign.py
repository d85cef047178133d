"""Attacks of torchattacks, foolbox and pyautoattack, for comparison with the native ones."""

from __future__ import annotations

import functools
import inspect
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from advdiff_attacks.foreign_base import Call, Foreign
from advdiff_attacks.foreign_settings import foreign, settings_of, unknown
from advdiff_core import Build, ContractError
from advdiff_core.settings import setting, settings
from advdiff_core.types import Norm

__all__ = ["Foolbox", "PyAutoAttack", "TorchAttacks"]

#: What the packages call the norms.
TITLES: dict[Norm, Literal["Linf", "L2", "L1"]] = {"linf": "Linf", "l2": "L2", "l1": "L1"}

ALL: tuple[Norm, ...] = ("linf", "l2", "l1")


class TorchAttacks(Foreign):
    """An attack of torchattacks, `torchattacks:<Name>`; its keys are the attack's own arguments.

    Radius and norm come from the budget, the seed from the run; lengths among its arguments are on
    the scale [0, 1]. Note that its AutoAttack takes 10 steps where the original takes 100.
    """

    package = "torchattacks"
    variants: ClassVar[str | None] = "name of an attack of torchattacks, such as torchattacks:PGD"

    @classmethod
    def settings_type(cls, variant: str | None) -> type[Any]:
        """Settings with the arguments of that attack.

        Raises:
            ValueError: If the package is missing, or has no such attack; with the nearest name.
        """
        foreign(cls.package)
        known = _torchattacks()
        complaint = unknown(cls.package, variant, known, _UNUSABLE.get(variant or "", ""))
        if complaint:
            raise ValueError(complaint)
        return settings_of(cls.package, variant or "", known[variant or ""])

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        self._made = _torchattacks()[settings.variant]
        self.norms = _TORCHATTACKS_NORMS.get(settings.variant, ("linf",))  # type: ignore[misc]
        self.minimal_norm = settings.variant in _TORCHATTACKS_MINIMAL  # type: ignore[misc]

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.package}:{self.settings.variant}"

    def call(self, call: Call) -> Tensor:
        """See `Foreign.call`."""
        known = inspect.signature(self._made).parameters
        decided = {
            "eps": call.radius, "max_epsilon": call.radius, "norm": TITLES[call.norm],
            "seed": call.seed,
        }  # fmt: skip
        if "n_classes" in known:
            with torch.no_grad():
                decided["n_classes"] = call.net(call.x[:1]).shape[1]
        decided = {key: value for key, value in decided.items() if key in known}
        attack = self._made(call.net, **self.arguments(), **decided)
        found: Tensor = attack(call.x, call.y)
        return found


#: Norms of attacks of torchattacks that are not for Linf.
_TORCHATTACKS_NORMS: dict[str, tuple[Norm, ...]] = {
    "APGD": ("linf", "l2"), "APGDT": ("linf", "l2"), "AutoAttack": ("linf", "l2"), "CW": ("l2",),
    "DeepFool": ("l2",), "EADEN": ("l1",), "EADL1": ("l1",), "FAB": ALL, "GN": ALL,
    "PGDL2": ("l2",), "PGDRSL2": ("l2",), "Square": ("linf", "l2"), "VANILA": ALL,
}  # fmt: skip

_TORCHATTACKS_MINIMAL = frozenset(("CW", "DeepFool", "EADEN", "EADL1", "FAB"))

_PIXELS = "it changes a few pixels by any amount, which no budget of Linf, L2 or L1 describes"

#: Why attacks of torchattacks cannot be used.
_UNUSABLE = {
    "JSMA": _PIXELS, "LGV": "it trains models of its own", "MultiAttack": "it combines attacks",
    "OnePixel": _PIXELS, "Pixle": _PIXELS, "SparseFool": _PIXELS,
}  # fmt: skip


@functools.cache
def _torchattacks() -> dict[str, Any]:
    try:
        package = foreign("torchattacks")
    except ValueError:
        return {}
    names = (name for name in package.__all__ if name not in _UNUSABLE)
    return {name: getattr(package, name) for name in sorted(names)}


class Foolbox(Foreign):
    """An attack of foolbox, `foolbox:<Name>`; its keys are the attack's own arguments.

    Radius comes from the budget, whose norm has to be the attack's; lengths among its arguments are
    on the scale [0, 1]. Attacks that look for the smallest perturbation are given no radius.
    """

    package = "foolbox"
    variants: ClassVar[str | None] = (
        "name of an attack of foolbox, such as foolbox:L2DeepFoolAttack"
    )

    @classmethod
    def settings_type(cls, variant: str | None) -> type[Any]:
        """Settings with the arguments of that attack.

        Raises:
            ValueError: If the package is missing, or has no such attack; with the nearest name.
        """
        foreign(cls.package)
        known = _foolbox()
        complaint = unknown(cls.package, variant, known, _FOOLBOX_UNUSABLE.get(variant or "", ""))
        if complaint:
            raise ValueError(complaint)
        return settings_of(cls.package, variant or "", known[variant or ""])

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        self._made = _foolbox()[settings.variant]
        self.norms = _foolbox_norms(self._made)  # type: ignore[misc]
        base = foreign("foolbox").attacks.base
        self.minimal_norm = issubclass(self._made, base.MinimizationAttack)  # type: ignore[misc]

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.package}:{self.settings.variant}"

    def call(self, call: Call) -> Tensor:
        """See `Foreign.call`."""
        foolbox = foreign("foolbox")
        decided = {"distance": getattr(foolbox.distances, call.norm), "constraint": call.norm}
        known = inspect.signature(self._made).parameters
        keys = self.arguments() | {key: value for key, value in decided.items() if key in known}
        model = foolbox.PyTorchModel(call.net, bounds=(0, 1), device=call.x.device)
        criterion = foolbox.criteria.Misclassification(call.y)
        radius = None if self.minimal_norm else call.radius
        found: Tensor = self._made(**keys)(model, call.x, criterion, epsilons=radius)[0]
        return found


_FOOLBOX_UNUSABLE = {
    "BinarizationRefinementAttack": "it has to be given points that are broken already",
    "DatasetAttack": "it has to be fed inputs of other classes first",
    "GenAttack": "it needs a target class",
    "L0BrendelBethgeAttack": _PIXELS,
    "L0FMNAttack": _PIXELS,
    "PointwiseAttack": _PIXELS,
    "SpatialAttack": "it turns and shifts images, which no budget of Linf, L2 or L1 describes",
}


def _foolbox_norms(made: Any) -> tuple[Norm, ...]:
    """The norms of an attack: what it is told, or its `distance`, or the name it begins with."""
    known = inspect.signature(made).parameters
    if "distance" in known:
        return ALL
    if "constraint" in known:
        return ("l2", "linf")
    titles: dict[str, Norm] = {"linf": "linf", "l2": "l2", "l1": "l1"}
    told = f"{getattr(made, 'distance', '')} {made.__name__}".lower()
    return tuple(norm for title, norm in titles.items() if title in told)[:1]


@functools.cache
def _foolbox() -> dict[str, Any]:
    try:
        attacks = foreign("foolbox").attacks
    except ValueError:
        return {}
    bases = (attacks.base.FixedEpsilonAttack, attacks.base.MinimizationAttack)
    return {
        name: made
        for name, made in sorted(vars(attacks).items())
        if isinstance(made, type) and issubclass(made, bases) and name not in _FOOLBOX_UNUSABLE
    }


class PyAutoAttack(Foreign):
    """AutoAttack as its authors wrote it, packaged as pyautoattack (Croce and Hein 2020).

    For comparison: `autoattack` finds the same and is faster. What it counts over the life of the
    process is put back, so that one model's flags do not stick to the next.
    """

    package = "pyautoattack"
    norms: ClassVar[tuple[Norm, ...]] = ALL

    @settings
    class Settings:
        """Keys of `use = "pyautoattack"`."""

        version: str = setting(
            "standard", help="set of attacks", choices=("standard", "plus", "rand")
        )
        attacks: tuple[str, ...] = setting(
            (), help="some of them alone, in this order",
            choices=("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square"),
        )  # fmt: skip
        steps: int = setting(100, ge=1, help="steps of its auto-PGD and FAB")
        queries: int = setting(5000, ge=1, help="queries of its Square")
        targets: int = setting(9, ge=1, help="target classes of its apgd-t and fab-t")

    settings: Any

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        try:
            foreign(self.package)
        except ValueError as error:
            complaint, _, fix = str(error).partition(": ")
            raise ContractError(complaint, where=build.path, fix=fix) from None

    def call(self, call: Call) -> Tensor:
        """See `Foreign.call`."""
        package = foreign(self.package)
        checks = foreign(f"{self.package}.checks")
        counters = dict(checks.funcs)
        try:
            attack = package.AutoAttack(
                call.net, norm=TITLES[call.norm], eps=call.radius, seed=call.seed,
                version=self.settings.version, device=call.x.device,
            )  # fmt: skip
            self._set(attack)
            found: Tensor = attack.run_standard_evaluation(call.x, call.y, batch_size=len(call.x))[
                0
            ]
        finally:
            checks.funcs.update(counters)
        return found

    def _set(self, attack: Any) -> None:
        """The keys of the recipe, where the original keeps them."""
        keys = self.settings
        for part in (attack.apgd, attack.apgd_targeted, attack.fab):
            part.n_iter = keys.steps
        attack.square.n_queries = keys.queries
        attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = keys.targets
        if keys.attacks:
            attack.attacks_to_run = list(keys.attacks)
