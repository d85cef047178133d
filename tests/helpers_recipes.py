"""Recipes over the toy components of `helpers_dists`."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from advdiff_core.discovery import Catalogue
from advdiff_core.errors import Fault, RecipeError
from advdiff_core.recipe import Recipe, loads_recipe

#: The least recipe that trains.
LEAST = '[data]\nuse = "digits"\n[models.student]\nuse = "net"\n'

#: A recipe that uses nearly every key and form of TOML.
FULL = """\
# A recipe for tests.
advdiff = 1

[run]
name = "full-1.0"
seed = 7
images = 10_000
batch = 32
micro_batch = 16
precision = "fp32"
channels_last = false
checkpoint_every = 5_000
log_every = 1_000
deterministic = true

[data]
use = "digits"
classes = [
    0,
    1,  # a comment, with "quotes" and [brackets]
    2,
]
domain = [-1, 1.0]
on_bad = "skip"

[[data.corrupt]]
use = "gaussian"
fraction = 0.9
std = "8/255"

[[data.corrupt]]
use = "gaussian"

[[data.augment]]
use = "flip"

[schedule]
use = "vp-linear"
num_steps = 100
density = { law = "log-normal", mean = -1.0, std = 1.0 }

[models.student]
use = "net"
channels = 64
gains = { a = 1.0, "b c" = 2 }
block.depth = 3
block.act = 'relu'
label = '''
two
lines'''

[models."critic"]
use = "judge"
kind = "discriminator"

[models.target]
use = "teacher"
kind = "alignment_target"

[views.adv]
from = "clean"
perturb = { use = "push", radius = "8/255", norm = "l2", attack = { use = "steps", norm = "l2" } }

[views.worse]
from = "adv"
perturb = { use = "push" }

[terms.denoise]
use = "denoise"
weights = [1.0, 2.0]

[terms.robust]
use = "denoise"
view = "worse"
weight = 0.3
after = 1_000
until = 9_000

[terms.judge]
use = "fool"
role = "critic"
view = "adv"

[players.student]
terms = ["denoise", "robust"]
optimizer = { use = "torch:AdamW", lr = 2e-4 }
ema = [0.999, { power = 0.1 }, { halflife = 500 }]
clip = 1.0
lr_schedule = { law = "cosine", warmup = 100, final = 0.1 }

[players.critic]
terms = ["judge"]
every = 2

[sample]
use = "ddim"
steps = 20
eta = 1
ema = 1

[evaluate]
metrics = [{ use = "distance" }, { use = "distance", features = "mid", role = "critic" }]
num = 500

[hooks]
off = []
progress = { width = 80, colours = ["red", "green"], deep = { on = true } }
"""


def load(catalogue: Catalogue, text: str, overrides: Sequence[str] = ()) -> Recipe:
    """Load a text that is no file."""
    return loads_recipe(text, "recipe.toml", overrides, catalogue)


def faults_of(catalogue: Catalogue, text: str, overrides: Sequence[str] = ()) -> list[Fault]:
    """Every fault of a text; the test fails if there is none."""
    with pytest.raises(RecipeError) as caught:
        load(catalogue, text, overrides)
    assert all(line.isprintable() for line in caught.value.lines())
    return list(caught.value.faults)


def fault_of(catalogue: Catalogue, text: str, overrides: Sequence[str] = ()) -> Fault:
    """The one fault of a text."""
    (fault,) = faults_of(catalogue, text, overrides)
    return fault
