"""Laws of a step over random casts of players, terms and views."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import torch
from advdiff_robustadv.perturbations import RayFGSM, RayRandom
from advdiff_robustadv.terms import Equivariance
from advdiff_toys.networks import ToyCritic, ToyNet, ToyTarget
from advdiff_toys.perturbations import ToyFree
from advdiff_toys.terms import ToyAlign, ToyFool, ToyImitate, ToyJudge
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from advdiff_core import DataInfo, LossTerm
from advdiff_core.terms import Denoise
from advdiff_core.testing.steps import Model, Moved, Stage, Turn, build_stage, run_step

DATA = DataInfo(shape=(2,), count=64)
MODELS = {
    "student": Model(ToyNet, ToyNet.Settings(width=4)),
    "rival": Model(ToyNet, ToyNet.Settings(width=4), parametrization="v"),
    "teacher": Model(ToyNet, ToyNet.Settings(width=4), frozen=True),
    "judge": Model(ToyCritic, kind="discriminator"),
    "target": Model(ToyTarget, kind="alignment_target", frozen=True),
}
VIEWS = ("clean", "adv", "ran", "free", "chain")


def points(size: int, seed: int = 3) -> Tensor:
    """Samples [size, 2] in float64."""
    return torch.randn(size, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@cache
def stage(attacked: str) -> Stage:
    """Every model and view; the searches attack `attacked`. Steps leave it as it was."""
    keys = RayFGSM.Settings(role=attacked)
    views = {
        "adv": Moved("clean", RayFGSM, keys),
        "ran": Moved("clean", RayRandom, RayRandom.Settings(bias="random")),
        "free": Moved("clean", ToyFree),
        "chain": Moved("adv", RayFGSM, keys),
    }
    return build_stage(data=DATA, models=MODELS, views=views)


def term(made: Stage, name: str, role: str, view: str) -> LossTerm:
    """One of the terms a denoiser can have."""
    moved = view if view != "clean" else "adv"
    settings: dict[str, tuple[type[LossTerm], Any]] = {
        "denoise": (Denoise, Denoise.Settings(role=role, view=view)),
        "fool": (ToyFool, ToyFool.Settings(student=role, view=view)),
        "imitate": (ToyImitate, ToyImitate.Settings(role=role, view=view, teacher_view=view)),
        "align": (ToyAlign, ToyAlign.Settings(role=role, view=view)),
        "equivariance": (Equivariance, Equivariance.Settings(role=role, view=moved)),
    }
    component, keys = settings[name]
    return made.make(component, keys, path=f"terms.{role}.{name}.{view}")


@st.composite
def casts(draw: st.DrawFn) -> tuple[Stage, list[Turn]]:
    """A stage and one to three players with one to three terms each."""
    made = stage(draw(st.sampled_from(["student", "rival", "teacher"])))
    names = draw(st.lists(st.sampled_from(["student", "rival", "judge"]), min_size=1, unique=True))
    turns = []
    for name in names:
        how = {
            "passes": draw(st.integers(1, 3)),
            "moves": draw(st.booleans()),
            "every": draw(st.integers(1, 2)),
            "fresh": draw(st.booleans()),
        }
        turns.append(Turn(name, draw(terms(made, name)), **how))
    return made, turns


@st.composite
def terms(draw: st.DrawFn, made: Stage, player: str) -> dict[str, LossTerm]:
    """Terms of a player."""
    view = st.sampled_from(VIEWS)
    if player == "judge":
        role = draw(st.sampled_from(["student", "rival"]))
        keys = ToyJudge.Settings(student=role, view=draw(view))
        return {"judge": made.make(ToyJudge, keys, path="terms.judge")}
    kinds = st.sampled_from(["denoise", "fool", "imitate", "align", "equivariance"])
    chosen = draw(st.lists(st.tuples(kinds, view), min_size=1, max_size=3, unique=True))
    return {f"{player}.{kind}.{on}": term(made, kind, player, on) for kind, on in chosen}


@given(cast=casts(), index=st.integers(0, 1))
def test_plan_foretells_every_cast(cast: tuple[Stage, list[Turn]], index: int) -> None:
    """Forwards, input and parameter backwards, role by role, as counted while they happened."""
    made, turns = cast
    result = run_step(made, turns, points(3), index=index)
    assert result.counted == result.planned


@given(cast=casts())
def test_players_train_their_own_models_and_heads_alone(cast: tuple[Stage, list[Turn]]) -> None:
    """No gradient reaches a frozen model, or a model of a player that does not act."""
    made, turns = cast
    result = run_step(made, turns, points(3))
    trained = {name.split(".")[1] for name in result.grads if name.startswith("models.")}
    assert trained <= {turn.player for turn in turns}


@given(cast=casts())
def test_gradients_do_not_depend_on_sharing(cast: tuple[Stage, list[Turn]]) -> None:
    """Handing graphs and values from player to player changes no gradient (weights at rest)."""
    made, turns = cast
    shared = run_step(made, turns, points(4))
    parts = run_step(made, turns, points(4), micro=2)
    assert set(shared.grads) == set(parts.grads)
    for name, grad in shared.grads.items():
        torch.testing.assert_close(parts.grads[name], grad, rtol=1e-8, atol=1e-12)


@given(
    cuts=st.lists(st.integers(1, 69), unique=True, max_size=4).map(sorted),
    shape=st.sampled_from([(), (2,), (3, 4)]),
    index=st.integers(0, 3),
)
def test_draws_do_not_depend_on_how_a_batch_is_split(
    cuts: list[int], shape: tuple[int, ...], index: int
) -> None:
    """Ranks and micro-batches together draw, bit for bit, what one process draws."""
    made = stage("student")
    plan = made.plan([Turn("student", {"denoise": made.make(Denoise)})])
    x0 = points(70)

    def drawn(low: int, high: int) -> list[Tensor]:
        step = made.step(plan, x0[low:high], start=low, total=70, index=index)
        rng, size = step.rng("stream"), high - low
        first = rng.normal((size, *shape))
        return [first, rng.uniform((size, *shape)), rng.integers((size,), 0, 9), rng.stratified()]

    whole = drawn(0, 70)
    edges = [0, *cuts, 70]
    parts = [drawn(low, high) for low, high in itertools.pairwise(edges)]
    for number, tensor in enumerate(whole):
        assert torch.equal(torch.cat([part[number] for part in parts]), tensor)


@given(start=st.integers(0, 60), size=st.integers(1, 8))
def test_a_rank_computes_the_losses_of_its_rows(start: int, size: int) -> None:
    """Per-sample losses of some rows equal those in the whole batch, to rounding."""
    made = stage("student")
    parts = {
        "denoise": made.make(Denoise, path="terms.d"),
        "equivariance": made.make(Equivariance, path="terms.e"),
    }
    x0 = points(68)
    whole = run_step(made, [Turn("student", parts)], x0)
    rows = slice(start, start + size)
    rank = run_step(made, [Turn("student", parts)], x0[rows], start=start, total=68)
    for name, loss in whole.losses.items():
        torch.testing.assert_close(rank.losses[name], loss[rows], rtol=1e-11, atol=1e-14)
