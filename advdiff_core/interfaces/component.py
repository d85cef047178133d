"""What every component is: a final class with typed Settings, built from them and a `Build`."""

from __future__ import annotations

import hashlib
from abc import ABC
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import field, frozen

from advdiff_core.errors import Fault, RecipeError
from advdiff_core.settings import settings as settings_class

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import nn

    from advdiff_core.interfaces.frozen_network import FrozenNetwork
    from advdiff_core.interfaces.noise_schedule import NoiseSchedule
    from advdiff_core.interfaces.time_sampler import TimeSampler
    from advdiff_core.settings import Spec
    from advdiff_core.types import DataInfo, TapInfo

__all__ = ["BUILD_ORDER", "Build", "Component", "ModelInfo", "ViewInfo"]

#: Kinds of models in the order they are built: later ones may run frozen networks of the first.
BUILD_ORDER = ("backbone", "discriminator", "alignment_target")


@frozen(kw_only=True)
class ModelInfo:
    """What a component may know of a model role.

    Attributes:
        kind: "backbone", "discriminator" or "alignment_target".
        frozen: True if no player trains it.
        parametrization: "eps", "x0", "v", "flow", "edm"; "none" for classifiers and other kinds.
        sigma_data: Standard deviation of the data that a denoiser assumes; None for other kinds.
        taps: Taps of the network by name.
        width: Width of an alignment target's features; 0 for other kinds.
        classes: Classes whose labels change the output; 0 for networks that ignore them.
        guided: True if it is told the strength of guidance (`Backbone.guided`).
        learns_sigma: True if it has a variance head (`Backbone.learns_sigma`).
        follows: Role whose weights it averages; "" for networks that are no target network.
        double_backward: False if gradients of gradients fail in it (`supports_double_backward` of
            backbones and discriminators).
    """

    kind: str
    frozen: bool
    parametrization: str = "none"
    sigma_data: float | None = None
    taps: Mapping[str, TapInfo] = field(factory=dict)
    width: int = 0
    classes: int = 0
    guided: bool = False
    learns_sigma: bool = False
    follows: str = ""
    double_backward: bool = True


@frozen(kw_only=True)
class ViewInfo:
    """What a component may know of a view.

    Attributes:
        base: View it perturbs; None for a root.
        root: "clean" (noised sample) or "image" at the bottom of its chain.
        follows: True if the target moves with the perturbation.
    """

    base: str | None
    root: str
    follows: bool = True


@frozen(kw_only=True)
class Build:
    """What a component is told of the others when it is built.

    Parts that are built later than the component are empty: the order is dataset, schedule, models,
    views, terms, players, sampler, metrics.

    Attributes:
        path: Dotted key of the component's table, for example "terms.equivariance".
        seed: Seed of the run.
        images: Length of the run.
        data: The dataset's description; None while the dataset itself is built. A model that
            `sees` pictures, and a metric, is told of these where samples are latents.
        schedule: The noise schedule; None in recipes without one.
        times: What draws the training times, where the recipe names one.
        models: Model roles by name.
        networks: Networks of frozen roles, by role; see `network`.
        views: Views by name, the roots "clean" and "image" included.
        terms: The loss terms as the recipe names them, not built, by name: a term that shares the
            queries of another one makes them from the settings of that one.
        c_noise: Range of the noise-level input that the models will see.
        make: Builds a nested component from its `Spec`.
        load: Gives a nested network the weights stored at a path; see `weights`.
    """

    path: str = ""
    seed: int = 0
    images: int = 0
    data: DataInfo | None = None
    schedule: NoiseSchedule | None = None
    times: TimeSampler | None = None
    models: Mapping[str, ModelInfo] = field(factory=dict)
    networks: Mapping[str, FrozenNetwork] = field(factory=dict)
    views: Mapping[str, ViewInfo] = field(factory=dict)
    terms: Mapping[str, Spec] = field(factory=dict)
    c_noise: tuple[float, float] = (0.0, 1000.0)
    make: Callable[[Spec], Component] | None = None
    load: Callable[[nn.Module, str, Path, str], object] | None = None

    def generator(self, purpose: str = "init") -> torch.Generator:
        """A CPU generator keyed by seed, place in the recipe and purpose."""
        import torch

        key = f"{self.seed}/{self.path}/{purpose}".encode()
        number = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1
        return torch.Generator().manual_seed(number)

    def nested(self, spec: Spec) -> Component:
        """Build a component nested in the settings, for example an attack inside a perturbation."""
        assert self.make is not None, "this Build cannot make components"
        return self.make(spec)

    def network(self, role: str, *, key: str) -> FrozenNetwork:
        """The network of a frozen backbone of the recipe, for components that run it themselves.

        Args:
            role: Its role.
            key: Key of the component's table that names it, for messages.

        Raises:
            RecipeError: R10 if the role is trained, or is no backbone.
        """
        if role in self.networks:
            return self.networks[role]
        known = self.models.get(role)
        is_backbone = known is not None and known.kind == "backbone"
        what = "is trained" if is_backbone else "is no backbone of this recipe"
        fix = f"write frozen = true in models.{role}, or name a frozen backbone"
        fault = Fault(code="R10", key=f"{self.path}.{key}", message=f"{role!r} {what}", fix=fix)
        raise RecipeError([fault])

    def weights(self, network: nn.Module, path: Path, *, key: str, role: str = "student") -> None:
        """Give a nested network, on the CPU, weights that are stored, as `init` does to a role.

        Args:
            network: What `nested` built.
            path: A run or checkpoint, a folder of `advdiff import`, or a safetensors file.
            key: Key of the component's table that names the path, for messages.
            role: Role whose weights are taken, where `path` is a run.

        Raises:
            DataError: If they are missing, damaged or do not fit.
        """
        assert self.load is not None, "this Build cannot load weights"
        self.load(network, role, path, f"{self.path}.{key}")


class Component(ABC):  # noqa: B024 - its kinds add the abstract methods.
    """Base of everything a recipe can name after `use =`.

    A component is final (never subclassed), holds a nested `Settings` class made with
    `advdiff_core.settings` / `setting`, and is built as `Component(settings, build)`. The first
    line of its docstring is what `advdiff plugins` and `explain` show.

    Attributes:
        Settings: attrs class of its keys.
        variants: For families such as `torch:AdamW`: one line saying what may follow the colon.
            None (the default) if nothing may.
        source: Paper and place in it, or another origin, for `advdiff explain`. Left out, it is
            what the docstring cites in the form `Name et al. (2024, eq. 5)`.
    """

    @settings_class
    class Settings:
        """A component without keys."""

    variants: ClassVar[str | None] = None
    source: ClassVar[str] = ""

    def __init__(self, settings: Any, build: Build) -> None:
        self.settings = settings
        self.build = build

    @classmethod
    def variant_names(cls) -> tuple[str, ...]:
        """Every name that may follow the colon of a family; () if they cannot be listed.

        Asked by `advdiff schema` alone, which makes the settings of each.
        """
        return ()

    @classmethod
    def settings_type(cls, variant: str | None) -> type[Any]:
        """The Settings class; families may make one per variant.

        A family that has a class `Settings` of its own has just these keys, whatever the variant.

        Raises:
            ValueError: If the family has no such variant; the message lists near names.
        """
        del variant
        return cls.Settings
