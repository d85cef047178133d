"""Laws of training times and target networks, as the engine runs them."""

import pytest
import torch

from advdiff_core.engine.api import open_trained, train
from advdiff_core.engine.assemble import assemble
from advdiff_core.engine.checkpoint import load
from advdiff_core.engine.distributed import World
from advdiff_core.engine.followers import Follower
from advdiff_core.engine.signals import StopFlag
from advdiff_core.engine.trainer import Trainer
from advdiff_core.errors import ContractError, RecipeError
from advdiff_core.interfaces.time_sampler import Times
from advdiff_core.recipe import recipe_from_dict
from advdiff_core.step.queries import Time

PLAIN = {
    "advdiff": 1,
    "run": {"images": 128, "batch": 16, "seed": 3, "precision": "fp32", "checkpoint_every": 32},
    "data": {"use": "two-moons", "count": 90},
    "models": {"student": {"use": "toy-net"}},
    "terms": {"denoise": {"use": "denoise"}},
    "players": {"student": {"terms": ["denoise"], "optimizer": {"use": "adamw", "lr": 1e-2}}},
}
DOUBLING = {"density": {"sampler": {"use": "toy-doubling", "levels": 4}}}
TARGET = {"use": "toy-net", "follow": {"role": "student", "rate": 0.9}}


def recipe(**tables):
    """The plain recipe, with whole tables put in."""
    return recipe_from_dict({**PLAIN, **tables})


def weighted(**keys):
    """A schedule whose times weigh."""
    sampler = {**DOUBLING["density"]["sampler"], "weighted": True}
    return {"density": {"sampler": sampler, **keys}}


def trainer_of(made):
    """A trainer before its first step."""
    return Trainer(assemble(made), world=World(), ticks=None, stop=StopFlag())


def weights(trainer, role="student"):
    """Weights of a role, as one vector."""
    parameters = trainer.scene.roles[role].module.parameters()
    return torch.cat([p.detach().flatten() for p in parameters]).clone()


def test_law_draws_the_times_of_the_noised_view():
    """Times are on its grid, which doubles half-way, by images of the whole run."""
    trainer = trainer_of(recipe(schedule=DOUBLING))
    schedule = trainer.scene.schedule
    for nimg, count in ((0, 4), (64, 8)):
        trainer.nimg = nimg
        (step,) = trainer._new_steps(trainer.experiment.plan, trainer.feed)
        t = step.get(Time())
        grid = torch.linspace(schedule.t_min, schedule.t_max, count, dtype=torch.float64)
        assert ((t.double()[:, None] - grid).abs().min(1).values < 1e-6).all()
        assert len(t.unique()) == count


def test_importance_weights_scale_each_sample_of_terms_on_noised_views():
    """The gradient is that of the weighted sum; the loss that is logged stays the plain one."""
    plain, heavy = (trainer_of(recipe(schedule=table)) for table in (DOUBLING, weighted()))
    steps = [t._new_steps(t.experiment.plan, t.feed)[0] for t in (plain, heavy)]
    player = heavy.experiment.players[0]
    for step in steps:
        step.enter(player.phase(0), [])
    loss = plain.experiment.players[0].terms[0].module(steps[0])
    share = (steps[0].get(Time()) - heavy.scene.schedule.t_min) / (
        heavy.scene.schedule.t_max - heavy.scene.schedule.t_min
    )
    parameters = list(plain.scene.roles["student"].module.parameters())
    wanted = torch.autograd.grad(((0.5 + share) * loss).mean(), parameters)
    turn = heavy._turn(player)
    turn._backward(steps[1], synced=True)
    for parameter, gradient in zip(
        heavy.scene.roles["student"].module.parameters(), wanted, strict=True
    ):
        torch.testing.assert_close(parameter.grad, gradient)
    assert heavy.stats.means(World())["loss/denoise"] == pytest.approx(float(loss.detach().mean()))


def test_terms_on_images_are_neither_weighted_nor_reported():
    """A classifier's loss has no noise level."""
    classifier = {
        "models": {"student": {"use": "mlp", "parametrization": "none"}},
        "terms": {"label": {"use": "cross-entropy"}},
        "players": {"student": {"terms": ["label"]}},
        "schedule": weighted(),
    }
    trainer = trainer_of(recipe(**classifier))
    trainer.train_step()
    assert int(trainer.scene.times.calls) == 0


@pytest.mark.parametrize("micro", [16, 5])
def test_law_hears_the_objective_of_the_whole_batch_after_each_pass(micro):
    """Three passes are three reports of the sum of losses, however the batch is cut."""
    tables = {
        "run": {**PLAIN["run"], "micro_batch": micro},
        "players": {"student": {**PLAIN["players"]["student"], "passes": 3, "update": "pass"}},
        "terms": {"denoise": {"use": "denoise", "weight": 2.0}},
    }
    trainer = trainer_of(recipe(schedule=weighted(), **tables))
    trainer.train_step()
    assert int(trainer.scene.times.calls) == 3
    seen = 2.0 * trainer.stats.means(World())["loss/denoise"] * 3 * 16
    assert float(trainer.scene.times.losses) == pytest.approx(seen, rel=1e-5)


def test_rows_of_one_process_are_the_batch():
    """Alone, nothing is gathered."""
    values = torch.arange(4.0)
    assert World().rows(values, 4) is values


def test_rows_of_uneven_shares_come_back_in_the_order_of_the_batch(monkeypatch):
    """Five samples on two processes are two and three rows; the padding is cut off again."""
    batch = torch.arange(5.0)
    worlds = [World(rank=rank, size=2) for rank in range(2)]
    parts = [batch[start : start + size] for start, size in (w.share(5) for w in worlds)]
    assert [len(part) for part in parts] == [2, 3]

    def all_gather(found, mine, *, group):
        assert len(mine) == 3
        assert group is None
        for row, part in zip(found, parts, strict=True):
            row[: len(part)] = part

    monkeypatch.setattr(torch.distributed, "all_gather", all_gather)
    for world, part in zip(worlds, parts, strict=True):
        assert torch.equal(world.rows(part, 5), batch)


def test_law_and_target_resume_bit_for_bit(tmp_path):
    """What was learnt, and the average, are in the checkpoint."""
    tables = {
        "schedule": weighted(),
        "models": {**PLAIN["models"], "target": TARGET},
    }
    made = recipe(**tables)
    run = train(made, out=tmp_path).run
    middle, end = (load(run / "checkpoints" / name) for name in ("64", "128"))
    trainer = trainer_of(made)
    trainer.load(middle.shared, middle.rank_state)
    assert int(trainer.scene.times.calls) == 4
    for _ in range(4):
        trainer.train_step()
    shared, _ = trainer.state()
    assert int(shared["times"]["calls"]) == 8
    for table in ("times", "models"):
        found, wanted = flat(shared[table]), flat(end.shared[table])
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def flat(table, prefix=""):
    """Nested tables of tensors as one, by dotted name."""
    found = {}
    for key, value in table.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found


@pytest.mark.parametrize("rate", [0.9, 0.0])
def test_target_network_is_the_average_of_the_weights_it_follows(rate):
    """It starts as a copy; each optimizer update moves it by 1 - rate."""
    follow = {**TARGET, "follow": {"role": "student", "rate": rate}}
    trainer = trainer_of(recipe(models={**PLAIN["models"], "target": follow}))
    wanted = weights(trainer)
    assert torch.equal(weights(trainer, "target"), wanted)
    for _ in range(3):
        trainer.train_step()
        wanted = rate * wanted + (1 - rate) * weights(trainer)
        torch.testing.assert_close(weights(trainer, "target"), wanted)
    if rate == 0:
        assert torch.equal(weights(trainer, "target"), weights(trainer))


def test_target_network_moves_at_every_update_of_a_player_with_passes(monkeypatch):
    """Updates count, not batches."""
    tables = {
        "models": {**PLAIN["models"], "target": TARGET},
        "players": {"student": {**PLAIN["players"]["student"], "passes": 2, "update": "pass"}},
    }
    trainer = trainer_of(recipe(**tables))
    seen = []
    monkeypatch.setattr(Follower, "update", lambda one, levels: seen.append((one.name, levels)))
    trainer.train_step()
    assert seen == [("target", None)] * 2


def test_target_network_is_trained_mode_and_takes_no_gradient():
    """It shares the student's dropout masks, and no backward reaches it."""
    trainer = trainer_of(recipe(models={**PLAIN["models"], "target": TARGET}))
    role = trainer.scene.roles["target"]
    assert role.module.training
    assert role.owner is None
    assert not any(p.requires_grad for p in role.module.parameters())
    assert role.info.follows == "student"


def test_decay_depends_on_the_levels_of_the_law():
    """It is mu0^(s0 / N): 0.95 at 2 levels is 0.95^(2/20) at 20."""
    one = Follower(name="target", leader="student", module=None, source=None, rate=0.95, levels=2)
    assert one.decay(2) == pytest.approx(0.95)
    assert one.decay(20) == pytest.approx(0.95**0.1)
    assert one.decay(None) == 0.95


@pytest.mark.parametrize(
    ("follow", "more", "words"),
    [
        (
            {"role": "student", "levels": 2},
            {},
            ["models.target.follow.levels", "depends on a grid"],
        ),
        (
            {"role": "student"},
            {"width": 7},
            ["models.target.follow", "differ in", "models.student"],
        ),
    ],
)
def test_target_network_that_cannot_follow_is_refused(follow, more, words):
    """A decay by levels needs levels; weights must fit."""
    target = {"use": "mlp", "follow": follow, **more}
    made = recipe(models={"student": {"use": "mlp"}, "target": target})
    with pytest.raises(RecipeError) as caught:
        assemble(made)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ({"frozen": True}, ["models.target.frozen", "follows 'student'", "take it out"]),
        ({"init": "here"}, ["models.target.init", "starts as a copy"]),
        ({"follow": {"role": "target"}}, ["models.target.follow.role", "no player trains"]),
    ],
)
def test_recipe_refuses_target_networks_with_weights_of_their_own(target, words):
    """One line says which key contradicts."""
    with pytest.raises(RecipeError) as caught:
        recipe(models={**PLAIN["models"], "target": {**TARGET, **target}})
    for word in words:
        assert word in str(caught.value)


def test_recipe_refuses_a_target_network_that_a_player_trains():
    """Either it learns or it follows."""
    players = {"student": {**PLAIN["players"]["student"], "models": ["student", "target"]}}
    with pytest.raises(RecipeError, match="yet a player trains it"):
        recipe(models={**PLAIN["models"], "target": TARGET}, players=players)


def test_law_that_draws_too_few_times_is_refused(monkeypatch):
    """The message names the key and both shapes."""
    trainer = trainer_of(recipe(schedule=DOUBLING))
    monkeypatch.setattr(trainer.scene.times, "draw", lambda u, nimg: Times(u[:3]))
    (step,) = trainer._new_steps(trainer.experiment.plan, trainer.feed)
    with pytest.raises(ContractError, match=r"drew t \[3\] for 16 samples") as caught:
        step.get(Time())
    assert "schedule.density.sampler" in str(caught.value)


def test_run_with_a_law_and_a_target_opens_again(tmp_path):
    """Weights of both roles come back; the law is not needed to sample."""
    tables = {"schedule": weighted(), "models": {**PLAIN["models"], "target": TARGET}}
    made = train(recipe(**tables), out=tmp_path)
    found = open_trained(made.run)
    assert set(found.experiment.scene.roles) == {"student", "target"}
