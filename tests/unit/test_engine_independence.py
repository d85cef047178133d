"""What one part of a recipe learns depends neither on the other parts nor on the cut of a batch."""

from pathlib import Path

import pytest
import torch

from advdiff_core.engine.assemble import assemble
from advdiff_core.engine.distributed import World
from advdiff_core.engine.planning import plan_experiment
from advdiff_core.engine.players import Term
from advdiff_core.engine.signals import StopFlag
from advdiff_core.engine.trainer import Trainer
from advdiff_core.recipe import load_recipe, recipe_from_dict
from advdiff_core.types import Cost

RECIPE = Path(__file__).parents[1] / "recipes" / "players.toml"
PLAIN = {
    "advdiff": 1,
    "run": {"images": 64, "batch": 16, "seed": 3, "precision": "fp32"},
    "data": {"use": "two-moons", "count": 90},
    "models": {"student": {"use": "toy-net"}},
    "terms": {"denoise": {"use": "denoise"}},
    "players": {"student": {"terms": ["denoise"], "optimizer": {"use": "adamw", "lr": 1e-3}}},
}


def trained(recipe, steps=4):
    """A trainer after some steps."""
    trainer = Trainer(assemble(recipe), world=World(), ticks=None, stop=StopFlag())
    for _ in range(steps):
        trainer.train_step()
    return trainer


def weights(trainer, role="student"):
    """Weights of a role, as one vector."""
    parameters = trainer.scene.roles[role].module.parameters()
    return torch.cat([p.detach().flatten() for p in parameters])


def with_tables(**tables):
    """The plain recipe with further tables merged in, one level deep."""
    return {
        k: {**PLAIN.get(k, {}), **tables[k]} if k in tables else PLAIN[k]
        for k in {**PLAIN, **tables}
    }


JUDGE = {
    "models": {"judge": {"use": "toy-critic", "kind": "discriminator"}},
    "terms": {"judge": {"use": "toy-judge"}},
    "players": {"judge": {"terms": ["judge"], "optimizer": {"use": "sgd", "lr": 0.1}}},
}


@pytest.mark.parametrize("every", [1, 2])
def test_another_player_changes_no_bit_of_the_student(every):
    """A judge that looks at the student's fakes leaves what the student learns untouched."""
    alone = trained(recipe_from_dict(PLAIN))
    tables = {k: dict(v) for k, v in JUDGE.items()}
    tables["players"] = {"judge": {**JUDGE["players"]["judge"], "every": every}}
    joined = trained(recipe_from_dict(with_tables(**tables)))
    assert torch.equal(weights(alone), weights(joined))


def test_an_attacked_view_with_weight_zero_changes_no_bit_of_the_student():
    """An attack draws from its own stream and touches no gradient."""
    tables = {
        "views": {"adv": {"from": "clean", "perturb": {"use": "ray-fgsm"}}},
        "terms": {"equivariance": {"use": "equivariance", "view": "adv", "weight": 0.0}},
        "players": {
            "student": {**PLAIN["players"]["student"], "terms": ["denoise", "equivariance"]}
        },
    }
    joined = trained(recipe_from_dict(with_tables(**tables)))
    assert torch.equal(weights(trained(recipe_from_dict(PLAIN))), weights(joined))


def test_a_term_of_weight_zero_trains_nothing_of_its_own():
    """A projection head that is only watched is in no optimizer, and in no norm that is clipped."""
    player = {**PLAIN["players"]["student"], "clip": 0.05}
    models = {"target": {"use": "toy-target", "kind": "alignment_target"}}
    tables = {
        "models": models,
        "terms": {"align": {"use": "toy-align", "weight": 0.0}},
        "players": {"student": {**player, "terms": ["denoise", "align"]}},
    }
    alone = trained(recipe_from_dict({**PLAIN, "players": {"student": player}}))
    joined = trained(recipe_from_dict(with_tables(**tables)))
    names = [name for name, _ in joined.experiment.players[0].parameters]
    assert names == [name for name, _ in alone.experiment.players[0].parameters]
    assert torch.equal(weights(alone), weights(joined))
    tables["terms"]["align"]["weight"] = 1e-3
    counted = trained(recipe_from_dict(with_tables(**tables)), steps=0)
    assert any(
        name.startswith("terms.align.") for name, _ in counted.experiment.players[0].parameters
    )


def test_order_of_tables_and_terms_changes_no_bit():
    """Tables and lists of terms are sets: their order is not part of a recipe."""
    forward = load_recipe(RECIPE).to_dict()
    backward = {key: forward[key] for key in reversed(forward)}
    for key in ("terms", "models", "players"):
        backward[key] = {name: backward[key][name] for name in reversed(backward[key])}
    student = dict(backward["players"]["student"])
    student["terms"] = list(reversed(student["terms"]))
    backward["players"]["student"] = student
    a, b = trained(recipe_from_dict(forward)), trained(recipe_from_dict(backward))
    assert torch.equal(weights(a), weights(b))
    assert torch.equal(weights(a, "judge"), weights(b, "judge"))


@pytest.mark.parametrize("micro", [1, 3, 8])
def test_micro_batches_learn_what_the_whole_batch_learns(micro):
    """Cutting a batch changes gradients by rounding alone; draws not at all."""
    recipe = load_recipe(RECIPE, ["models.student.dropout=0.0"])
    cut = load_recipe(RECIPE, ["models.student.dropout=0.0", f"run.micro_batch={micro}"])
    a, b = trained(recipe, steps=2), trained(cut, steps=2)
    for role in ("student", "judge"):
        torch.testing.assert_close(weights(a, role), weights(b, role), rtol=1e-4, atol=1e-6)
    one, other = a.stats.means(World()), b.stats.means(World())
    assert {name: pytest.approx(value, rel=1e-5) for name, value in one.items()} == other


def test_micro_batch_found_from_memory_covers_the_batch(monkeypatch):
    """With little memory the batch is cut in multiples of the draw blocks."""
    recipe = recipe_from_dict(with_tables(run={**PLAIN["run"], "batch": 80}))
    assert trained(recipe, steps=0).micro == 80
    experiment = assemble(recipe)
    from advdiff_core.engine import micro

    need = micro.saved_bytes_per_image(experiment)
    monkeypatch.setattr(micro, "available_bytes", lambda device: int(need * 70 / micro.SHARE))
    assert trained(recipe, steps=1).micro == 64
    monkeypatch.setattr(micro, "available_bytes", lambda device: int(need * 5 / micro.SHARE))
    assert trained(recipe, steps=1).micro == 5


def test_plan_says_what_the_engine_counts_over_a_cycle_of_players():
    """The rehearsed passes of each step equal those counted at run time."""
    recipe = load_recipe(RECIPE)
    trainer = trained(recipe, steps=0)
    from advdiff_core.engine.planning import step_cost

    for index in range(4):
        before = {name: role.cost for name, role in trainer.scene.roles.items()}
        trainer.train_step()
        planned = step_cost(trainer.experiment, index=index).roles
        for name, role in trainer.scene.roles.items():
            expected = planned.get(name, Cost())
            assert before[name] + expected == role.cost, (index, name)


def test_quickstart_costs_three_forwards_one_input_backward_one_parameter_backward():
    """The main promise of sharing: clean, attack and adversarial forward, and nothing else."""
    path = Path(__file__).parents[2] / "examples" / "quickstart.toml"
    overrides = ["run.batch=4", "models.student.channels=8"]
    trainer = trained(load_recipe(path, overrides), steps=1)
    assert trainer.scene.roles["student"].cost == Cost(3, 1, 1)
    report = plan_experiment(trainer.experiment).as_json()
    roles = report["roles"]["student"] if "roles" in report else report["student"]
    assert (roles["forwards"], roles["input_backwards"], roles["parameter_backwards"]) == (3, 1, 1)


def test_free_passes_move_the_weights_once_a_pass_or_once_a_batch():
    """Update = "pass" takes a step after each backward, "batch" one with the mean gradient."""
    for update, expected in (("pass", 3), ("batch", 1)):
        tables = {
            "views": {"free": {"from": "clean", "perturb": {"use": "toy-free"}}},
            "terms": {"denoise": {"use": "denoise", "view": "free"}},
            "players": {"student": {**PLAIN["players"]["student"], "passes": 3, "update": update}},
        }
        trainer = trained(recipe_from_dict(with_tables(**tables)), steps=1)
        assert trainer.experiment.players[0].updates == expected


def test_one_pass_equals_plain_training_bit_for_bit():
    """A free perturbation starts at zero: one pass is training without it."""
    tables = {
        "views": {"free": {"from": "clean", "perturb": {"use": "toy-free"}}},
        "terms": {"denoise": {"use": "denoise", "view": "free"}},
    }
    free, plain = trained(recipe_from_dict(with_tables(**tables))), trained(recipe_from_dict(PLAIN))
    assert torch.equal(weights(free), weights(plain))


def test_term_takes_part_between_after_and_until():
    """`after` and `until` count images; outside of them a term neither costs nor learns."""
    tables = {
        "views": {"adv": {"from": "clean", "perturb": {"use": "ray-fgsm"}}},
        "terms": {"equivariance": {"use": "equivariance", "view": "adv", "after": 16, "until": 48}},
        "players": {
            "student": {**PLAIN["players"]["student"], "terms": ["denoise", "equivariance"]}
        },
    }
    trainer = trained(recipe_from_dict(with_tables(**tables)), steps=0)
    forwards = []
    for _ in range(4):
        before = trainer.scene.roles["student"].cost.forwards
        trainer.train_step()
        forwards.append(trainer.scene.roles["student"].cost.forwards - before)
    assert forwards == [1, 3, 3, 1]


def test_ramp_raises_a_weight_from_its_beginning():
    """Linear in the images since `after`, by the images alone, and the full weight from then on."""
    term = Term(name="a", module=None, weight=0.5, after=100, ramp=40)
    assert [term.weight_at(n) for n in (100, 119, 139, 140, 10**9)] == [0.0125, 0.25, 0.5, 0.5, 0.5]
    assert Term(name="a", module=None, weight=0.5).weight_at(0) == 0.5


def test_ramp_weighs_what_a_term_teaches_in_each_step():
    """The step with half the weight moves as one with that weight throughout."""
    sgd = {"terms": ["denoise"], "optimizer": {"use": "sgd", "lr": 0.1}}
    tables = {"players": {"student": sgd}, "terms": {"denoise": {"use": "denoise", "ramp": 32}}}
    half = {"players": {"student": sgd}, "terms": {"denoise": {"use": "denoise", "weight": 1 / 32}}}
    a, b = (trained(recipe_from_dict(with_tables(**t)), steps=1) for t in (tables, half))
    assert torch.equal(weights(a), weights(b))
    whole = trained(recipe_from_dict(with_tables(players={"student": sgd})), steps=1)
    assert not torch.equal(weights(a), weights(whole))


def test_frozen_teacher_runs_without_gradient_and_is_not_trained():
    """A role no player trains stays bit-equal and is counted on its own."""
    tables = {
        "models": {"student": {"use": "toy-net"}, "teacher": {"use": "toy-net", "frozen": True}},
        "terms": {"imitate": {"use": "toy-imitate", "teacher": "teacher"}},
        "players": {"student": {**PLAIN["players"]["student"], "terms": ["denoise", "imitate"]}},
    }
    trainer = trained(recipe_from_dict(with_tables(**tables)), steps=0)
    before = weights(trainer, "teacher").clone()
    trainer.train_step()
    assert torch.equal(weights(trainer, "teacher"), before)
    assert trainer.scene.roles["teacher"].cost == Cost(1, 0, 0)
    assert trainer.scene.roles["student"].cost == Cost(1, 0, 1)
