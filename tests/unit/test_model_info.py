"""What components are told of the models of a recipe."""

from __future__ import annotations

from typing import Any

from advdiff_toys.networks import ToyCritic, ToyTarget
from advdiff_toys.terms import ToyAlign

from advdiff_core.engine.assemble import assemble
from advdiff_core.recipe import loads_recipe
from advdiff_core.testing import Model, build_stage
from advdiff_core.types import DataInfo

RECIPE = """
[data]
use = "two-moons"
[models.student]
use = "toy-net"
[models.target]
use = "toy-target"
kind = "alignment_target"
width = 6
[terms.align]
use = "toy-align"
width = 6
[players.student]
terms = ["align"]
"""


def test_the_width_of_a_target_is_known_to_terms() -> None:
    """A projection head learns from it how wide it has to be; other kinds have none."""
    term: Any = assemble(loads_recipe(RECIPE)).players[0].terms[0].module
    assert isinstance(term, ToyAlign)
    widths = {name: model.width for name, model in term.build.models.items()}
    assert widths == {"student": 0, "target": 6}


def test_a_stage_tells_the_same() -> None:
    """So that laws and tests of terms need no engine."""
    models = {
        "target": Model(
            ToyTarget, ToyTarget.Settings(width=6), kind="alignment_target", frozen=True
        ),
        "judge": Model(ToyCritic, kind="discriminator"),
    }
    made = build_stage(data=DataInfo(shape=(2,), count=9), models=models)
    widths = {name: role.info.width for name, role in made.scene.roles.items()}
    assert widths == {"target": 6, "judge": 0}
