"""The static part of a run: roles, views, schedule and where things are computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, WeakSet

import torch
from attrs import define, field, frozen
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from advdiff_core.interfaces.component import ModelInfo
from advdiff_core.interfaces.noise_schedule import NoiseSchedule
from advdiff_core.interfaces.perturbation import Perturbation
from advdiff_core.interfaces.time_sampler import TimeSampler
from advdiff_core.types import Cost, DataInfo

__all__ = [
    "ROOTS", "Compute", "Density", "Role", "Scene", "ViewDecl", "eval_mode", "parameters_frozen",
    "running_statistics", "statistics_frozen", "statistics_kept", "statistics_taken",
    "swaps_parameters",
]  # fmt: skip

#: Views every recipe has: the noised sample and the image itself.
ROOTS = ("clean", "image")


@frozen(kw_only=True)
class Compute:
    """Where and in which precision networks run.

    Attributes:
        device: Device of every tensor of the run.
        autocast: Autocast dtype of network forwards; None for full precision.
        channels_last: Whether image tensors use the channels_last memory format.
        tf32: Whether a GPU multiplies float32 matrices in TF32.
        pinned: Whether batches wait in pinned memory for their copy to the device.
    """

    device: torch.device = field(factory=lambda: torch.device("cpu"))
    autocast: torch.dtype | None = None
    channels_last: bool = False
    tf32: bool = False
    pinned: bool = False

    def stage(self, x: Tensor) -> Tensor:
        """Put a batch [B, ...] where its copy to the device needs no one to wait."""
        return x.pin_memory() if self.pinned and x.device.type == "cpu" else x

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Context of a network forward."""
        if self.autocast is None:
            yield
            return
        with torch.autocast(self.device.type, dtype=self.autocast):
            yield

    def place(self, x: Tensor) -> Tensor:
        """Move a batch [B, ...] to the device, in the memory format networks run fastest in."""
        x = x.to(self.device, non_blocking=True)
        if self.channels_last and x.dim() == 4:
            return x.contiguous(memory_format=torch.channels_last)
        return x


@frozen(kw_only=True)
class Density:
    """Density of training times.

    Attributes:
        law: "uniform" in t, or "log-normal" in sigma / alpha.
        mean: Mean of log(sigma / alpha) of the log-normal law.
        std: Standard deviation of it.
        stratified: One time per stratum of the global batch instead of independent ones.
    """

    law: str = "uniform"
    mean: float = -1.2
    std: float = 1.2
    stratified: bool = True


@define(kw_only=True, eq=False)
class Role:
    """A model role at run time.

    Attributes:
        name: Name in the recipe.
        info: What components may know of it.
        module: The network: backbone, discriminator or alignment target.
        owner: Player that trains it; None if frozen.
        wear: Turns the raw network into a denoiser (parametrization); None for other kinds.
        run: What is called instead of `module` (compiled or sharded); None for the module itself.
        random: True if its forward draws from torch's global generator in train mode (dropout).
        augment_dim: Length of the vector that tells it what augmentations did; 0 if it is not told.
        recompute: Recompute its activations in the backward instead of keeping them.
        skeleton: The network without numbers, where `module` is shared out to the processes; None
            where it is whole.
        norm_start: "first-step" if batch norms take the statistics of the first step as they are.
        cost: Passes counted so far.
    """

    name: str
    info: ModelInfo
    module: nn.Module
    owner: str | None = None
    wear: Any = None
    run: Callable[..., Any] | None = None
    random: bool = False
    augment_dim: int = 0
    recompute: bool = False
    skeleton: nn.Module | None = None
    norm_start: str = "standard"
    cost: Cost = field(factory=Cost)

    @property
    def call(self) -> Callable[..., Any]:
        """The callable forward."""
        return self.run if self.run is not None else self.module

    def count(self, cost: Cost) -> None:
        """Add passes to the tally."""
        self.cost = self.cost + cost


@frozen
class ViewDecl:
    """A view as declared by the recipe; see `advdiff_core.interfaces.query.ViewSetup`."""

    root: str
    base: str | None = None
    perturbation: Perturbation | None = None


@frozen(kw_only=True, eq=False)
class Scene:
    """Everything about a run that no batch changes.

    Attributes:
        roles: Model roles.
        views: Views, the roots included.
        schedule: Noise schedule; None for recipes without a diffusion view.
        density: Density of training times.
        times: What draws them instead; None for the density's law.
        data: Description of the data.
        compute: Device and precision.
        seed: Seed of every stream.
    """

    roles: Mapping[str, Role] = field(factory=dict)
    views: Mapping[str, ViewDecl] = field(factory=lambda: {name: ViewDecl(name) for name in ROOTS})
    schedule: NoiseSchedule | None = None
    density: Density = field(factory=Density)
    times: TimeSampler | None = None
    data: DataInfo | None = None
    compute: Compute = field(factory=Compute)
    seed: int = 0

    @property
    def models(self) -> Mapping[str, ModelInfo]:
        """Descriptions of the roles."""
        return {name: role.info for name, role in self.roles.items()}


@contextmanager
def parameters_frozen(modules: list[nn.Module], *, statistics: bool = False) -> Iterator[None]:
    """Run the body with `requires_grad = False` on all parameters; restores each flag afterwards.

    An inner maximisation then stores no activations for weight gradients and cannot touch `.grad`.

    Args:
        modules: The networks.
        statistics: Keep the running statistics of batch norms as they are, too.
    """
    flags = [(p, p.requires_grad) for module in modules for p in _now(module)]
    names = {module: _flags(module) for module in modules if module in _SWAPPING}
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        with statistics_frozen(modules if statistics else []):
            yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for module, known in names.items():
            for name, parameter in module.named_parameters():
                parameter.requires_grad_(known[name])


def swaps_parameters(module: nn.Module) -> None:
    """Note of a network that a forward may put other parameters of the same names in place."""
    _SWAPPING.add(module)


def _now(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that are in place."""
    return list(module.parameters()) if module in _SWAPPING else _parts(module).parameters


def _flags(module: nn.Module) -> dict[str, bool]:
    return {name: parameter.requires_grad for name, parameter in module.named_parameters()}


@contextmanager
def statistics_frozen(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Run the body with the running statistics of batch norms as they are."""
    norms = [part for module in modules for part in _parts(module).norms]
    tracking = [part for part in norms if part.training and part.track_running_stats]
    try:
        for part in tracking:
            part.track_running_stats = False
        yield
    finally:
        for part in tracking:
            part.track_running_stats = True


def running_statistics(modules: Iterable[nn.Module]) -> list[Tensor]:
    """Running means and variances of the batch norms that move theirs."""
    norms = [part for module in modules for part in _parts(module).norms]
    moving = [part for part in norms if part.training and part.track_running_stats]
    found = [tensor for part in moving for tensor in (part.running_mean, part.running_var)]
    return [tensor for tensor in found if tensor is not None]


@contextmanager
def statistics_taken(module: nn.Module) -> Iterator[None]:
    """Run a forward whose batch statistics become the running ones, whatever these were."""
    norms = _parts(module).norms
    momenta = [part.momentum for part in norms]
    try:
        for part in norms:
            part.momentum = 1.0
        yield
    finally:
        for part, momentum in zip(norms, momenta, strict=True):
            part.momentum = momentum


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Run a forward again, as a backward that recomputes does, without moving running statistics.

    Unlike `parameters_frozen` it leaves batch norms their buffers: a forward that is run again has
    to save the tensors that the first one saved.

    Args:
        module: The network.
    """
    norms = [part for part in _parts(module).norms if part.training and part.track_running_stats]
    momenta = [part.momentum for part in norms]
    counts = [None if (n := part.num_batches_tracked) is None else n.clone() for part in norms]
    try:
        for part in norms:
            part.momentum = 0.0
        yield
    finally:
        for part, momentum, count in zip(norms, momenta, counts, strict=True):
            part.momentum = momentum
            if part.num_batches_tracked is not None and count is not None:
                part.num_batches_tracked.copy_(count)


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Run the body with every part of a network in eval mode; restores the mode of each."""
    training = [part for part in _parts(module).modules if part.training]
    try:
        for part in training:
            part.training = False
        yield
    finally:
        for part in training:
            part.training = True


class _Parts(NamedTuple):
    """What a network is made of."""

    parameters: list[nn.Parameter]
    norms: list[_NormBase]
    modules: list[nn.Module]


#: Parts of networks, whose make-up is fixed for a run: walking a tree of modules in every step
#: costs about a millisecond.
_FOUND: WeakKeyDictionary[nn.Module, _Parts] = WeakKeyDictionary()
#: Networks whose parameters are not the same objects from one moment to the next.
_SWAPPING: WeakSet[nn.Module] = WeakSet()


def _parts(module: nn.Module) -> _Parts:
    if module not in _FOUND:
        modules = list(module.modules())
        norms = [part for part in modules if isinstance(part, _NormBase)]
        _FOUND[module] = _Parts(list(module.parameters()), norms, modules)
    return _FOUND[module]
