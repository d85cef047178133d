"""The recipes of latent consistency models: their settings, and what they are warned of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from advdiff_core.recipe import load_recipe

FOLDER = Path(__file__).parents[1] / "src" / "advdiff_atdiff" / "recipes"


def test_stable_diffusion_is_distilled_with_the_settings_of_the_released_script() -> None:
    """k, w, loss, optimizer, clipping and target network; nothing is warned of."""
    recipe = load_recipe(FOLDER / "lcm-sd15.toml")
    assert recipe.warnings == ()
    sampler: Any = recipe.schedule.density.sampler
    assert (sampler.settings.skip, sampler.settings.function) == (20, "lcm")
    term: Any = recipe.terms["consistency"].spec.settings
    assert (term.w_min, term.w_max, term.distance, term.huber_c) == (5, 15, "pseudo-huber", 0.001)
    player = recipe.players["student"]
    optimizer: Any = player.optimizer.settings
    assert (optimizer.lr, optimizer.weight_decay, player.clip) == (1e-6, 0.0, 1.0)
    follow = recipe.models["target"].follow
    assert follow is not None
    assert (follow.role, follow.rate) == ("student", 0.95)
    schedule: Any = recipe.schedule.spec.settings
    assert (schedule.beta_start, schedule.beta_end, schedule.root) == (0.00085, 0.012, True)


@pytest.mark.parametrize("name", ["digits-lcd-free", "lcm-sd15-free"])
def test_the_adversarial_ones_differ_in_the_adversary_alone(name: str) -> None:
    """A view, the option, and the passes; all else is the baseline's."""
    free = load_recipe(FOLDER / f"{name}.toml").to_dict()
    plain = load_recipe(FOLDER / f"{name.removesuffix('-free')}.toml").to_dict()
    term, player = free["terms"]["consistency"], free["players"]["student"]
    assert (term.pop("view"), term.pop("moves")) == ("adv", "student")
    assert (player.pop("passes"), player.pop("update")) == (3, "pass")
    assert set(free.pop("views")) == {"adv"}
    plain["terms"]["consistency"] |= {"view": "adv", "moves": "student"}
    for keys in (plain["terms"]["consistency"], plain["players"]["student"]):
        for key in ("view", "moves", "passes", "update"):
            keys.pop(key, None)
    free["run"].pop("name")
    plain["run"].pop("name")
    assert free == plain
