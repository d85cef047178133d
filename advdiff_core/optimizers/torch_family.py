"""Other optimizers of `torch.optim`, by name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import attrs
import torch
from torch.optim import Optimizer as TorchOptimizer

from advdiff_core.errors import nearest
from advdiff_core.interfaces.optimizer import Optimizer
from advdiff_core.optimizers.groups import NamedParameters, build_optimizer
from advdiff_core.optimizers.keys import DECAY_HELP, DECAY_RULES, length
from advdiff_core.settings import setting

__all__ = ["TorchFamily"]


class TorchFamily(Optimizer):
    """Any optimizer of `torch.optim` by name, for example `torch:NAdam`; keys are its arguments."""

    variants: ClassVar[str | None] = "name of a class in torch.optim, for example torch:NAdam"

    @classmethod
    def variant_names(cls) -> tuple[str, ...]:
        """The classes of torch.optim that a training step can run."""
        return tuple(_known_optimizers())

    @classmethod
    def settings_type(cls, variant: str | None) -> type[Any]:
        """Settings with the numbers, switches and tuples of that class's signature.

        Raises:
            ValueError: If there is no such optimizer or it cannot be used in a training step.
        """
        if variant in REFUSED:
            message = f"torch.optim.{variant} cannot be used: {REFUSED[variant]}"
            raise ValueError(message)
        known = _known_optimizers()
        if variant not in known:
            near = _same_letters(variant, known) or nearest(variant or "", known)
            hint = f"did you mean {near!r}? " if near else ""
            message = (
                f"torch.optim has no optimizer {variant!r}; {hint}there are {', '.join(known)}"
            )
            raise ValueError(message)
        return _settings_of(variant)

    def make(self, parameters: NamedParameters) -> TorchOptimizer:
        """See `Optimizer.make`."""
        torch_class = _known_optimizers()[self.settings.variant]
        return build_optimizer(torch_class, parameters, self.settings, self.build.path)


#: Optimizers of torch that a training step cannot run, with the reason.
REFUSED: Mapping[str | None, str] = {
    "LBFGS": "it calls the loss several times per step through a closure, and a step has one loss",
    "SparseAdam": "it takes sparse gradients only, and backbones give dense ones",
    "Optimizer": "it is the base class",
}

#: Arguments that choose an implementation, not a method, or that would turn descent into ascent.
_NOT_SETTINGS = frozenset(
    ("params", "foreach", "fused", "capturable", "differentiable", "maximize", "variant")
)


def _same_letters(name: str | None, known: Iterable[str]) -> str | None:
    return next((k for k in known if k.lower() == (name or "").lower()), None)


def _known_optimizers() -> dict[str, type[TorchOptimizer]]:
    return {
        name: value
        for name, value in sorted(vars(torch.optim).items())
        if isinstance(value, type) and issubclass(value, TorchOptimizer) and name not in REFUSED
    }


@functools.cache
def _settings_of(variant: str) -> type[Any]:
    signature = inspect.signature(_known_optimizers()[variant]).parameters
    fields = {
        name: field
        for name, parameter in signature.items()
        if name not in _NOT_SETTINGS and (field := _field_of(name, parameter, variant)) is not None
    }
    if "weight_decay" in fields:
        fields["decay"] = _typed(setting("all", help=DECAY_HELP, choices=DECAY_RULES), str)
    doc = f'Keys of `use = "torch:{variant}"`.'
    body = {"variant": variant, "__doc__": doc}
    return attrs.make_class("Settings", fields, frozen=True, kw_only=True, class_body=body)


def _typed(field: Any, kind: Any) -> Any:
    """An attrs field with its type, which `make_class` cannot read from an annotation."""
    field.type = kind
    return field


def _field_of(name: str, parameter: inspect.Parameter, variant: str) -> Any:
    """The key for an argument; None if its default is no number, switch or tuple of numbers."""
    default, words = parameter.default, f"see torch.optim.{variant}"
    if isinstance(default, bool):
        return _typed(setting(default, help=words), bool)
    if isinstance(default, int) and parameter.annotation is int:
        return _typed(setting(default, help=words), int)
    if isinstance(default, int | float):
        gt, ge = (0.0 if name == key else None for key in ("lr", "weight_decay"))
        return _typed(setting(float(default), help=words, gt=gt, ge=ge), float)
    if isinstance(default, tuple) and all(isinstance(v, int | float) for v in default):
        field = setting(tuple(map(float, default)), help=words)
        field.validator(length(len(default)))
        return _typed(field, tuple[float, ...])
    return None
