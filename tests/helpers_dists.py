"""Toy distributions for tests: a dist-info folder and modules, written in a moment, without pip."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

#: Components of every kind, enough for a whole recipe; the loader never builds them.
TOY_PARTS = '''
from __future__ import annotations
from pathlib import Path
from typing import Literal
from advdiff_core import (
    AlignmentTarget, Attack, Augmentation, Backbone, Corruption, Dataset, Discriminator, LossTerm,
    Metric, NoiseSchedule, Optimizer, Perturbation, Sampler, Spec, setting, settings,
)

def concrete(cls):
    """Fill in the abstract methods: nothing here is ever called."""
    for name in cls.__abstractmethods__:
        setattr(cls, name, lambda self, *args: None)
    cls.__abstractmethods__ = frozenset()
    return cls

@concrete
class Digits(Dataset):
    """Toy data."""
    @settings
    class Settings:
        path: Path | None = setting(None, help="a file")
        classes: tuple[int, ...] = setting((), ge=0, le=9, help="digits kept")

@concrete
class Linear(NoiseSchedule):
    """Toy schedule."""
    @settings
    class Settings:
        num_steps: int | None = setting(1000, ge=1, help="times")
        beta: tuple[float, float] = setting((1e-4, 0.02), gt=0.0, lt=1.0, help="ends")

@concrete
class Cosine(NoiseSchedule):
    """Another toy schedule."""
    @settings
    class Settings:
        offset: float = setting(0.008, ge=0.0, help="offset")

@concrete
class Net(Backbone):
    """Toy network."""
    @settings
    class Block:
        depth: int = setting(1, ge=1, le=100, help="layers")
        act: Literal["silu", "relu"] = setting("silu", help="activation")
    @settings
    class Settings:
        channels: int = setting(32, ge=1, le=4096, help="width")
        dropout: float = setting(0.0, ge=0.0, lt=1.0, help="dropout")
        attention: bool = setting(False, help="attention")
        norm: str = setting("group", choices=("group", "layer"), help="norm")
        mults: tuple[int, ...] = setting((1, 2), ge=1, help="levels")
        gains: dict[str, float] = setting(factory=dict, help="gains")
        block: Block = setting(factory=lambda: Net.Block(), help="a block")
        label: str = setting("net", help="free text")

@concrete
class Other(Backbone):
    """Another toy network."""
    @settings
    class Settings:
        width: int = setting(help="width, required")

@concrete
class Judge(Discriminator):
    """Toy discriminator."""

@concrete
class Teacher(AlignmentTarget):
    """Toy target."""

@concrete
class Push(Perturbation):
    """Toy perturbation."""
    @settings
    class Settings:
        radius: float = setting(0.1, ge=0.0, le=1.0, help="radius in pixels")
        norm: Literal["linf", "l2"] = setting("linf", help="norm")
        attack: Spec | None = setting(None, kind="attack", help="searches")

@concrete
class Steps(Attack):
    """Toy attack."""
    @settings
    class Settings:
        steps: int = setting(3, ge=1, help="steps")
        norm: Literal["linf", "l2"] = setting("linf", help="norm")
        bound: float = setting(1.0, gt=0.0, le=10.0, help="bound of the logits")
        levels: Literal[1, 2] = setting(1, help="levels")
        attack: Spec | None = setting(None, kind="attack", help="an attack to start from")

@concrete
class Denoise(LossTerm):
    """Toy term."""
    @settings
    class Settings:
        role: str = setting("student", ref="role", help="role")
        view: str = setting("clean", ref="view", help="view")
        power: float = setting(2.0, gt=0.0, help="power")
        weights: tuple[float, ...] = setting((), help="weights")

@concrete
class Solver(Sampler):
    """Toy sampler."""
    @settings
    class Settings:
        steps: int = setting(50, ge=1, help="steps")
        eta: float = setting(0.0, ge=0.0, le=1.0, help="noise")

@concrete
class Distance(Metric):
    """Toy metric."""
    @settings
    class Settings:
        features: str = setting("pixels", help="features")
        role: str = setting("", ref="role", help="whose features")

@concrete
class Adam(Optimizer):
    """Toy optimizer."""
    @settings
    class Settings:
        lr: float = setting(1e-3, gt=0.0, le=10.0, help="rate")
        betas: tuple[float, float] = setting((0.9, 0.999), ge=0.0, lt=1.0, help="betas")

@settings
class FamilySettings:
    lr: float = setting(0.1, gt=0.0, help="rate")
    name: str = setting("AdamW", help="which")

@concrete
class Family(Optimizer):
    """Toy family."""
    variants = "AdamW or Lion"
    @classmethod
    def variant_names(cls):
        return ("AdamW", "Lion")
    @classmethod
    def settings_type(cls, variant):
        if variant not in ("AdamW", "Lion"):
            raise ValueError(f"there is no optimizer {variant!r}; there are AdamW and Lion")
        return FamilySettings

@concrete
class Noise(Corruption):
    """Toy corruption."""
    @settings
    class Settings:
        fraction: float = setting(1.0, ge=0.0, le=1.0, help="fraction")
        std: float = setting(0.1, ge=0.0, help="strength")

@concrete
class Flip(Augmentation):
    """Toy augmentation."""
    @settings
    class Settings:
        chance: float = setting(0.5, ge=0.0, le=1.0, help="chance")
'''

TOY_GROUPS = {
    "advdiff.v1.alignment_target": {"teacher": "Teacher"},
    "advdiff.v1.attack": {"steps": "Steps"},
    "advdiff.v1.augmentation": {"flip": "Flip"},
    "advdiff.v1.backbone": {"net": "Net", "other": "Other"},
    "advdiff.v1.corruption": {"gaussian": "Noise"},
    "advdiff.v1.dataset": {"digits": "Digits"},
    "advdiff.v1.discriminator": {"judge": "Judge"},
    "advdiff.v1.hooks": {"progress": "Progress"},
    "advdiff.v1.loss_term": {"denoise": "Denoise", "fool": "Denoise"},
    "advdiff.v1.metric": {"distance": "Distance"},
    "advdiff.v1.noise_schedule": {"vp-linear": "Linear", "vp-cosine": "Cosine"},
    "advdiff.v1.optimizer": {"adamw": "Adam", "torch": "Family"},
    "advdiff.v1.perturbation": {"push": "Push"},
    "advdiff.v1.sampler": {"ddim": "Solver"},
}


class Site:
    """A folder that distributions are written into.

    Args:
        folder: Where their metadata go.
        code: Where their modules go; the same folder if left out. It must be on `sys.path`.
    """

    def __init__(self, folder: Path, code: Path | None = None) -> None:
        self.folder = folder
        self.code = code or folder
        self._before = set(sys.modules)

    def dist(
        self,
        name: str,
        groups: Mapping[str, Mapping[str, str]] | str | bytes = "",
        *,
        version: str = "1.0",
        modules: Mapping[str, str] | None = None,
        metadata: str | None = "",
        suffix: str = "dist-info",
    ) -> Path:
        """Write a distribution and return its metadata folder.

        Args:
            name: Name of the distribution.
            groups: Entry points by group, or the text or bytes of `entry_points.txt`.
            version: Version.
            modules: Source by module name, or by path ending in a suffix.
            metadata: Text of METADATA; made from name and version if "", left out if None.
            suffix: "dist-info" or "egg-info".
        """
        folder = self.folder / f"{name.replace('-', '_')}-{version}.{suffix}"
        folder.mkdir(parents=True)
        if metadata is not None:
            text = metadata or f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\nText.\n"
            (folder / ("METADATA" if suffix == "dist-info" else "PKG-INFO")).write_text(text)
        raw = groups if isinstance(groups, str | bytes) else _entry_points(groups)
        (folder / "entry_points.txt").write_bytes(raw.encode() if isinstance(raw, str) else raw)
        for path, source in (modules or {}).items():
            target = self.code / (path if "." in path else f"{path}.py")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(source)
        return folder

    def toy_core(self, name: str = "advdiff-core", module: str = "toy_core_parts") -> Path:
        """Write the toy components, by default in the core's name."""
        groups = {
            group: {entry: f"{module}:{cls}" for entry, cls in entries.items()}
            for group, entries in TOY_GROUPS.items()
        }
        return self.dist(name, groups, modules={module: TOY_PARTS})

    def forget(self) -> None:
        """Drop modules that were imported from the folder."""
        for name in set(sys.modules) - self._before:
            file = getattr(sys.modules[name], "__file__", None)
            if file and Path(file).is_relative_to(self.code):
                del sys.modules[name]


def _entry_points(groups: Mapping[str, Mapping[str, str]]) -> str:
    blocks = (
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
        for group, entries in groups.items()
    )
    return "\n".join(blocks)
