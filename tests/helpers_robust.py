"""A tiny classifier of images and attacks of every temper, to test evaluations under attack."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from advdiff_toys.perturbations import ToyFGSM
from safetensors.torch import save_file
from torch import Tensor

from advdiff_core import Attack, Budget, Build, Domain, Draws, Spec, Victim
from advdiff_core.engine.api import Trained, open_trained, train
from advdiff_core.engine.robust.job import Entry
from advdiff_core.recipe import recipe_from_dict
from advdiff_core.types import expand

__all__ = ["ATTACKS", "data_table", "entry_of", "plain_run", "trained_classifier", "write_data"]


def write_data(folder: Path) -> None:
    """`train.safetensors` and `test.safetensors`: images [1, 4, 4] in [0, 1] of three classes."""
    for name, count, seed in (("train", 300, 1), ("test", 60, 2)):
        generator = torch.Generator().manual_seed(seed)
        y = torch.randint(3, (count,), generator=generator)
        x = torch.rand(count, 1, 4, 4, generator=generator) * 0.5
        for k in range(3):
            x[y == k, :, k, :] += 0.35
        save_file({"x": x.clamp(0, 1), "y": y}, folder / f"{name}.safetensors")


def data_table(folder: Path, part: str) -> dict[str, Any]:
    """The dataset's table."""
    return {
        "use": "tensor-file", "path": str(folder / f"{part}.safetensors"), "images": "x",
        "labels": "y", "layout": "NCHW", "range": [0.0, 1.0],
    }  # fmt: skip


def plain_run(folder: Path, data: Mapping[str, Any], **tables: Any) -> Trained:
    """A run trained for a moment."""
    recipe = recipe_from_dict({
        "run": {
            "images": 3_000, "batch": 50, "device": "cpu", "precision": "fp32", "seed": 1,
            "name": "net", "checkpoint_every": 3_000, "log_every": 3_000,
        },
        "data": dict(data),
        **tables,
    })  # fmt: skip
    return open_trained(train(recipe, out=folder / "runs").run)


def trained_classifier(folder: Path) -> Trained:
    """A classifier of these images, nearly always right, with an average of its weights."""
    write_data(folder)
    return plain_run(
        folder,
        data_table(folder, "train"),
        models={
            "student": {"use": "toy-net", "outputs": 3, "width": 24, "parametrization": "none"}
        },
        terms={"ce": {"use": "cross-entropy"}},
        players={"student": {"optimizer": {"use": "adamw", "lr": 0.02}, "ema": [0.9]}},
    )


class Noise(Attack):
    """Signs drawn at random, never better than that."""

    def search(
        self, victim: Victim, x: Tensor, budget: Budget, domain: Domain | None, rng: Draws
    ) -> Tensor:
        """A corner of the ball, clean where that is right."""
        del domain
        found = x + expand(torch.as_tensor(budget.radius), x) * rng.normal(x.shape).sign()
        broken = victim.broken(victim.outputs(found))
        return found if broken is None else torch.where(expand(broken, x), found, x)


class Smallest(Attack):
    """Halves the step along the gradient until it no longer breaks: a minimal-norm attack."""

    minimal_norm: ClassVar[bool] = True
    norms: ClassVar[tuple[Any, ...]] = ("linf",)

    def search(
        self, victim: Victim, x: Tensor, budget: Budget, domain: Domain | None, rng: Draws
    ) -> Tensor:
        """The smallest of the broken points on one line."""
        del rng, domain
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(victim.loss(victim.outputs(x)).sum(), x)
        best = x.detach()
        for power in range(8):
            found = x.detach() + 2.0**-power * gradient.sign()
            broken = victim.broken(victim.outputs(found.clamp(0, 1)))
            assert broken is not None
            inside = torch.as_tensor(budget.radius >= 2.0**-power) & broken
            best = torch.where(expand(inside, x), found, best)
        return best


class Pair(Attack):
    """Noise, then the gradient: a composite of two."""

    def members(self) -> Mapping[str, Attack]:
        """Both, in order."""
        build = Build()
        return {
            "noise": Noise(Noise.Settings(), build),
            "step": ToyFGSM(ToyFGSM.Settings(), build),
        }

    def search(
        self, victim: Victim, x: Tensor, budget: Budget, domain: Domain | None, rng: Draws
    ) -> Tensor:
        """Both in turn; not used by evaluations."""
        raise NotImplementedError


class Last(Attack):
    """Goes to a broken point and comes back: a silent success."""

    def search(
        self, victim: Victim, x: Tensor, budget: Budget, domain: Domain | None, rng: Draws
    ) -> Tensor:
        """The clean input, after a look at the moved one."""
        del domain, rng
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(victim.loss(victim.outputs(x)).sum(), x)
        moved = x + budget.radius.reshape(-1, 1, 1, 1) * gradient.sign()
        victim.outputs(moved.detach().clamp(-1, 1))
        return x


class Cheat(Attack):
    """Overrides the final method, so that nothing projects: what it returns is `cheat(x)`."""

    cheat: ClassVar[Callable[[Tensor], Tensor]]

    def search(
        self, victim: Victim, x: Tensor, budget: Budget, domain: Domain | None, rng: Draws
    ) -> Tensor:
        """Not used."""
        raise NotImplementedError

    def run(  # type: ignore[misc]
        self, victim: Victim, x: Tensor, budget: Budget, *, domain: Domain | None, rng: Draws
    ) -> Tensor:
        """Return what breaks the contract."""
        del victim, budget, domain, rng
        return type(self).cheat(x)


def cheating(cheat: Callable[[Tensor], Tensor]) -> type[Attack]:
    """An attack that returns `cheat(x)` unprojected."""
    return type("Cheating", (Cheat,), {"cheat": staticmethod(cheat)})


class Broken(Attack):
    """Fails at its third call."""

    calls = 0

    def search(
        self, victim: Victim, x: Tensor, budget: Budget, domain: Domain | None, rng: Draws
    ) -> Tensor:
        """The clean input, and an error in the end."""
        del victim, budget, domain, rng
        Broken.calls += 1
        if Broken.calls % 3 == 0:
            message = "index 7 is out of bounds"
            raise IndexError(message)
        return x


class Global(Attack):
    """Draws from torch's global generator."""

    def search(
        self, victim: Victim, x: Tensor, budget: Budget, domain: Domain | None, rng: Draws
    ) -> Tensor:
        """Noise of no key."""
        del victim, domain, rng
        return x + budget.radius.reshape(-1, 1, 1, 1) * torch.rand(x.shape)


ATTACKS: dict[str, type[Attack]] = {
    "noise": Noise, "smallest": Smallest, "pair": Pair, "last": Last, "broken": Broken,
    "global": Global, "step": ToyFGSM,
}  # fmt: skip


def entry_of(name: str, attack: type[Attack], **settings: Any) -> Entry:
    """An attack of a job, without a registry."""
    made: Any = attack.Settings(**settings)
    spec = Spec(kind="attack", use=name, settings=made, component=attack, path="attack")
    built = attack(made, Build(path="attack"))
    return Entry(
        name=name, spec=spec, attack=built, members=dict(built.members()) or {"": built}
    )  # fmt: skip
