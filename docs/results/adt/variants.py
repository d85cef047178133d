"""What is compared: rule, score, K, H and lambda of adversarial tuning, beside plain tuning."""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["ALL", "EVERY", "ONCE", "VARIANTS", "Variant", "keys_of"]

#: Steps of the discriminator for each of the generator: the paper's H.
EVERY = 5


class Variant(NamedTuple):
    """A way to tune.

    Attributes:
        name: What the page calls it.
        recipe: End of the recipe's name.
        keys: Keys that differ from it.
        every: H; plain tuning has no discriminator.
    """

    name: str
    recipe: str
    keys: dict[str, Any]
    every: int = 1

    @property
    def judged(self) -> bool:
        """Whether a discriminator is part of it."""
        return self.recipe == "adt"


#: A table replaces the siamese discriminator: another `use` drops its keys.
PROJECTED = {"models.discriminator": {"kind": "discriminator", "use": "projected", "width": 32}}
#: Ten times the rate.
FAST = {"players.student.optimizer.lr": 2e-4}
VARIANTS = {
    "plain": Variant("plain tuning", "plain-tuned", {}),
    "adt": Variant("ADT", "adt", {}, EVERY),
    "projected": Variant("ADT without siamese score", "adt", PROJECTED, EVERY),
    "drtune": Variant("rule of DRTune", "adt", {"terms.adversarial.gradient": "drtune"}, EVERY),
    "h1": Variant("H = 1", "adt", {"players.student.every": 1}, 1),
    "k1": Variant("K = 1", "adt", {"terms.adversarial.gradient_steps": 1}, EVERY),
    "k-all": Variant("K = all", "adt", {"terms.adversarial.gradient_steps": 10}, EVERY),
    "lambda-0": Variant("lambda = 0", "adt", {"terms.denoise.weight": 0.0}, EVERY),
    "plain-fast": Variant("plain tuning, ten times the rate", "plain-tuned", FAST),
    "adt-fast": Variant("ADT, ten times the rate", "adt", FAST, EVERY),
    "lambda-1": Variant("lambda = 1", "adt", {"terms.denoise.weight": 1.0}, EVERY),
}
#: With the first seed alone: the rate that was not taken. The others with all seeds.
ONCE = ("plain-fast", "adt-fast")
ALL = tuple(VARIANTS)


def keys_of(variant: str, *, updates: int, batch: int, seed: int) -> dict[str, Any]:
    """Keys of a run of so many updates of the generator."""
    one = VARIANTS[variant]
    images = updates * one.every * batch
    return {
        "run.seed": seed, "run.images": images, "run.batch": batch,
        "run.checkpoint_every": images, "run.log_every": max(batch, images // 10), **one.keys,
    }  # fmt: skip
