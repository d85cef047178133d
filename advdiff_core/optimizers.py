"""Optimizers: `adamw`, `adam`, `radam`, `sgd`, and `torch:<Name>` for others of `torch.optim`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import attrs
import torch
from torch import nn
from torch.optim import Optimizer as TorchOptimizer

from advdiff_core.errors import Fault, RecipeError, nearest
from advdiff_core.interfaces.optimizer import Optimizer
from advdiff_core.settings import setting, settings

__all__ = ["SGD", "Adam", "AdamW", "RAdam", "TorchFamily"]

NamedParameters = Sequence[tuple[str, nn.Parameter]]

DECAY_RULES = ("matrices", "but-norms", "all")
DECAY_HELP = (
    "what weight decay acts on: matrices and kernels (no biases, norms, embeddings); all but norms;"
    " or all"
)


def _length(count: int) -> Callable[[Any, attrs.Attribute[Any], tuple[float, ...]], None]:
    """A validator of the number of entries."""

    def check(_: Any, attribute: attrs.Attribute[Any], value: tuple[float, ...]) -> None:
        if len(value) != count:
            message = f"{attribute.name}: found {len(value)} numbers, wanted {count}"
            raise ValueError(message)

    return check


def _lr(default: float) -> Any:
    return setting(default, help="learning rate at its peak", gt=0)


def _betas() -> Any:
    field = setting((0.9, 0.999), help="decay of first and second moment per step", ge=0, lt=1)
    field.validator(_length(2))
    return field


def _eps() -> Any:
    return setting(1e-8, help="added to the root of the second moment", gt=0)


def _weight_decay(default: float, help: str) -> Any:
    return setting(default, help=help, ge=0)


def _nesterov() -> Any:
    def check(instance: Any, _: attrs.Attribute[Any], value: bool) -> None:
        if value and not instance.momentum:
            message = "nesterov: true, but momentum is 0"
            raise ValueError(message)

    field = setting(False, help="Nesterov momentum")
    field.validator(check)
    return field


def _decay() -> Any:
    return setting("matrices", help=DECAY_HELP, choices=DECAY_RULES)


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

    @settings
    class Settings:
        """Keys of `use = "adamw"`."""

        lr: float = _lr(2e-4)
        betas: tuple[float, ...] = _betas()
        eps: float = _eps()
        weight_decay: float = _weight_decay(0.01, "share of the weights, times lr, lost per step")
        decay: str = _decay()

    def make(self, parameters: NamedParameters) -> TorchOptimizer:
        """See `Optimizer.make`."""
        return build_optimizer(torch.optim.AdamW, parameters, self.settings, self.build.path)


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015); weight decay, if any, is added to the gradient."""

    @settings
    class Settings:
        """Keys of `use = "adam"`."""

        lr: float = _lr(2e-4)
        betas: tuple[float, ...] = _betas()
        eps: float = _eps()
        weight_decay: float = _weight_decay(0.0, "times the weights, added to the gradient")
        decay: str = _decay()

    def make(self, parameters: NamedParameters) -> TorchOptimizer:
        """See `Optimizer.make`."""
        return build_optimizer(torch.optim.Adam, parameters, self.settings, self.build.path)


class RAdam(Optimizer):
    """Adam with rectified variance, which needs no warm-up (Liu et al. 2020)."""

    @settings
    class Settings:
        """Keys of `use = "radam"`."""

        lr: float = _lr(2e-4)
        betas: tuple[float, ...] = _betas()
        eps: float = _eps()
        weight_decay: float = _weight_decay(0.0, "decay of the weights")
        decoupled_weight_decay: bool = setting(
            True, help="decay as in AdamW; false: added to the gradient"
        )
        decay: str = _decay()

    def make(self, parameters: NamedParameters) -> TorchOptimizer:
        """See `Optimizer.make`."""
        return build_optimizer(torch.optim.RAdam, parameters, self.settings, self.build.path)


class SGD(Optimizer):
    """Stochastic gradient descent with momentum."""

    @settings
    class Settings:
        """Keys of `use = "sgd"`."""

        lr: float = _lr(0.01)
        momentum: float = setting(0.9, help="momentum; 0 for none", ge=0, lt=1)
        nesterov: bool = _nesterov()
        weight_decay: float = _weight_decay(0.0, "times the weights, added to the gradient")
        decay: str = _decay()

    def make(self, parameters: NamedParameters) -> TorchOptimizer:
        """See `Optimizer.make`."""
        return build_optimizer(torch.optim.SGD, parameters, self.settings, self.build.path)


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
        field.validator(_length(len(default)))
        return _typed(field, tuple[float, ...])
    return None


def build_optimizer(
    torch_class: type[TorchOptimizer], parameters: NamedParameters, settings: Any, where: str
) -> TorchOptimizer:
    """An optimizer with one group per decay rule, by torch's fastest implementation.

    Args:
        torch_class: Class of `torch.optim`.
        parameters: `(name, parameter)` pairs.
        settings: Its arguments as attributes, and `decay`, one of `DECAY_RULES`.
        where: Place in the recipe, for messages.

    Raises:
        RecipeError: If torch refuses the arguments or the parameters.
    """
    options = attrs.asdict(settings, recurse=False)
    rule = options.pop("decay", "all")
    groups = _groups(parameters, options, rule)
    try:
        return torch_class(groups, **(options | _implementation(torch_class)))
    except ValueError as error:
        message = f"torch.optim.{torch_class.__name__} refuses this: {error}"
        raise RecipeError([Fault(code="R10", key=where, message=message)]) from error


def _groups(
    parameters: NamedParameters, options: dict[str, Any], rule: str
) -> list[dict[str, Any]]:
    if rule == "all" or not options.get("weight_decay"):
        return [{"params": [parameter for _, parameter in parameters]}]
    norms = norms_in(parameters)
    chosen = {
        name: name not in norms if rule == "but-norms" else is_matrix(name, parameter)
        for name, parameter in parameters
    }
    decayed = [parameter for name, parameter in parameters if chosen[name]]
    spared = [parameter for name, parameter in parameters if not chosen[name]]
    groups: list[dict[str, Any]] = [
        {"params": decayed},
        {"params": spared, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """True for two or more axes, unless it or its module is named an embedding."""
    return parameter.dim() >= 2 and not any("embedding" in part for part in name.split(".")[-2:])


def norms_in(parameters: NamedParameters) -> frozenset[str]:
    """Names of the scales and shifts of norms: modules whose `weight` is a vector."""
    scales = {name.rpartition(".") for name, parameter in parameters if parameter.dim() == 1}
    norms = {module for module, _, leaf in scales if leaf == "weight"}
    return frozenset(name for name, _ in parameters if name.rpartition(".")[0] in norms)


def _implementation(torch_class: type[TorchOptimizer]) -> dict[str, bool]:
    """Switch to the fastest kernel: fused (measured 4 times faster on a CPU), else multi-tensor."""
    known = inspect.signature(torch_class).parameters
    return next(({name: True} for name in ("fused", "foreach") if name in known), {})
