"""Rules over several keys: names that must exist, chains that must end, pairs that must fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from advdiff_core.recipe.draft import Draft, listed, references
from advdiff_core.recipe.lines import Key
from advdiff_core.recipe.measuring_rules import check_measuring
from advdiff_core.recipe.problems import Problem, described
from advdiff_core.recipe.schema import (
    ROOT_VIEWS,
    Sample,
    Schedule,
)
from advdiff_core.settings import Spec

__all__ = ["check"]


def check(draft: Draft) -> Iterator[Problem]:
    """Every broken rule; only rules whose tables could be read are judged."""
    yield from references(draft)
    yield from _ownership(draft)
    yield from _training(draft)
    yield from _following(draft)
    yield from _sharing(draft)
    yield from _view_chains(draft)
    yield from _sampling(draft)
    yield from check_measuring(draft)
    yield from _numbers(draft)


def _ownership(draft: Draft) -> Iterator[Problem]:
    """Each term and each model has one player."""
    if not draft.knows_players:
        return
    for what, ref in (("terms", "term"), ("models", "role")):
        owners: dict[str, Key] = {}
        for name, player in draft.players.items():
            for position, one in enumerate(getattr(player, what)):
                here = ("players", name, what, position)
                if one in owners:
                    yield _two_owners(ref, one, here, owners[one])
                owners.setdefault(one, here)
        if what == "terms":
            yield from _orphans(draft, owners)


def _two_owners(ref: str, name: str, here: Key, there: Key) -> Problem:
    verb = "trained" if ref == "role" else "listed"
    message = f"{ref} {name!r} is {verb} by the players {there[1]!r} and {here[1]!r}"
    fix = "give it to one of them"
    if there[1] == here[1]:
        message, fix = f"{ref} {name!r} is listed twice by {here[1]!r}", "list it once"
    return Problem(path=here, other=there, code="R10", message=message, fix=fix)


def _orphans(draft: Draft, owners: Mapping[str, Key]) -> Iterator[Problem]:
    players = listed(draft.names["player"])
    for name in draft.names.get("term", ()):
        if name not in owners:
            yield Problem(
                path=("terms", name), code="R10", message=f"no player lists the term {name!r}",
                fix=f"add it to the terms of a player ({players})",
            )  # fmt: skip


def _training(draft: Draft) -> Iterator[Problem]:
    """There is something to train, something to train it with, and nothing frozen is trained."""
    if draft.knows_players and not draft.players and draft.names.get("role"):
        fix = "add [players.<name>] with models and terms"
        yield Problem(path=("players",), code="R11", message="no player trains anything", fix=fix)
    for name, player in draft.players.items():
        here = ("players", name)
        if not player.terms:
            message = f"the player {name!r} has no terms"
            yield Problem(path=(*here, "terms"), code="R11", message=message, fix=_terms_fix(draft))
        if not player.models:
            message, fix = f"the player {name!r} trains no model", "list a role"
            yield Problem(path=(*here, "models"), code="R11", message=message, fix=fix)
        for position, role in enumerate(player.models):
            yield from _trainable(draft, role, (*here, "models", position))


def _terms_fix(draft: Draft) -> str:
    known = draft.names.get("term", ())
    return f"list some of {listed(known)}" if known else "add [terms.<name>]"


def _trainable(draft: Draft, role: str, here: Key) -> Iterator[Problem]:
    model = draft.models.get(role)
    if model is None:
        return
    if model.frozen:
        message = f"the model {role!r} is frozen, yet the player {here[1]!r} trains it"
        other = ("models", role, "frozen")
        yield Problem(
            path=here, other=other, code="R10", message=message, fix="change one of the two"
        )
    elif model.kind == "alignment_target":
        message = f"the alignment target {role!r} is never trained, yet a player lists it"
        other = ("models", role, "kind")
        yield Problem(path=here, other=other, code="R10", message=message, fix="take it out")


def _sharing(draft: Draft) -> Iterator[Problem]:
    """Roles that are shared out to the processes are trained, and not compiled."""
    trained = {role for player in draft.players.values() for role in player.models}
    for name, model in draft.models.items():
        if not model.shard:
            continue
        here = ("models", name, "shard")
        if draft.knows_players and name not in trained:
            message = f"{name!r} is shared out to the processes, and no player trains it"
            fix = "take it out: what is not trained has neither gradients nor optimizer state"
            yield Problem(path=here, code="R10", message=message, fix=fix)
        if model.compile:
            message = f"{name!r} is shared out to the processes and compiled"
            other = ("models", name, "compile")
            yield Problem(
                path=here, other=other, code="R10", message=message, fix="take one of the two out"
            )


def _following(draft: Draft) -> Iterator[Problem]:
    """Target networks follow a role that a player trains, and have no weights of their own."""
    trained = {role for player in draft.players.values() for role in player.models}
    for name, model in draft.models.items():
        if model.follow is None:
            continue
        here, leader = ("models", name, "follow"), model.follow.role
        for key, given in (("init", model.init is not None), ("frozen", model.frozen)):
            if given:
                message = f"{name!r} follows {leader!r}, and `{key}` is given for it, too"
                yield Problem(
                    path=("models", name, key), other=here, code="R10", message=message,
                    fix="take it out: a target network starts as a copy",
                )  # fmt: skip
        if name in trained:
            message = f"{name!r} follows {leader!r}, yet a player trains it"
            yield Problem(path=here, code="R10", message=message, fix="take one of the two out")
        if draft.knows_players and leader not in trained:
            message = f"{name!r} follows {leader!r}, which no player trains"
            fix = "name a role that a player trains"
            yield Problem(path=(*here, "role"), code="R10", message=message, fix=fix)


def _view_chains(draft: Draft) -> Iterator[Problem]:
    """Views start at "clean" or "image" and never lead back to themselves."""
    for name in draft.names.get("view", ()):
        if name in ROOT_VIEWS and name in draft.views:
            message = f"{name!r} is a view every recipe has"
            yield Problem(
                path=("views", name), code="R10", message=message, fix="choose another name"
            )
    reported: set[str] = set()
    for name in draft.views:
        chain = _chain(draft, name)
        if chain[-1] in chain[:-1] and not reported & set(chain):
            reported |= set(chain)
            loop = " -> ".join(chain[chain.index(chain[-1]) :])
            message = f"views are made from each other in a circle: {loop}"
            other = ("views", chain[-2], "from")
            yield Problem(
                path=("views", chain[-1], "from"), other=other, code="R10", message=message,
                fix='let one of them start at "clean" or "image"',
            )  # fmt: skip


def _chain(draft: Draft, name: str) -> list[str]:
    """The view and those it is made from, up to a root or the first one met twice."""
    chain = [name]
    while chain[-1] in draft.views and chain[-1] not in (*chain[:-1], *ROOT_VIEWS):
        chain.append(draft.views[chain[-1]].base)
    return chain


def _sampling(draft: Draft) -> Iterator[Problem]:
    """What is sampled is a denoiser, with an average that is kept."""
    sample = draft.sample
    model = draft.models.get(sample.role) if sample else None
    if sample is None or model is None:
        return
    if model.parametrization == "none":
        yield Problem(
            path=("sample", "role"), other=("models", sample.role, "parametrization"), code="R10",
            message=f"the model {sample.role!r} is no denoiser and cannot be sampled",
            fix="name a backbone that has a parametrization",
        )  # fmt: skip
        return
    owner = next((n for n, p in draft.players.items() if sample.role in p.models), None)
    kept = len(draft.players[owner].ema) if owner else 0
    if sample.ema >= kept and draft.knows_players:
        yield Problem(
            path=("sample", "ema"), other=("players", owner, "ema") if owner else None, code="R10",
            message=f"average {sample.ema} of {sample.role!r} is wanted, {kept} are kept",
            fix=f"write a number below {kept}" if kept else "write -1 for the raw weights",
        )  # fmt: skip


def _numbers(draft: Draft) -> Iterator[Problem]:
    """Pairs of numbers that must be in order."""
    run, data = draft.run, draft.data
    if run and isinstance(run.micro_batch, int) and run.micro_batch > run.batch:
        message = f"a micro-batch of {run.micro_batch} is above the batch of {run.batch}"
        yield Problem(
            path=("run", "micro_batch"), other=("run", "batch"), code="R10", message=message,
            fix=f"write at most {run.batch}",
        )  # fmt: skip
    if data and data.domain and data.domain[0] >= data.domain[1]:
        low, high = data.domain
        message = f"the domain begins at {low:g} and ends at {high:g}"
        yield Problem(path=("data", "domain"), code="R10", message=message, fix="write [low, high]")
    for name, term in draft.terms.items():
        if term.until is not None and term.until <= term.after:
            message = f"the term ends at {term.until} images and begins at {term.after}"
            yield Problem(
                path=("terms", name, "until"), other=("terms", name, "after"), code="R10",
                message=message, fix="let it end later",
            )  # fmt: skip
    yield from _steps(draft)
    yield from _kinds(draft)
    yield from _norms(draft)


def _steps(draft: Draft) -> Iterator[Problem]:
    """A sampler has no more steps than a discrete schedule has times."""
    steps = _setting(draft.sample, "steps")
    times = _setting(draft.schedule, "num_steps")
    if isinstance(steps, int) and isinstance(times, int) and 0 < times < steps:
        yield Problem(
            path=("sample", "steps"), other=("schedule", "num_steps"), code="R10",
            message=f"{steps} steps over a schedule of {times} times",
            fix=f"write at most {times}",
        )  # fmt: skip


def _setting(table: Sample | Schedule | None, name: str) -> Any:
    return getattr(table.spec.settings, name, None) if table else None


def _kinds(draft: Draft) -> Iterator[Problem]:
    """Only backbones have a parametrization."""
    for role, model in draft.models.items():
        if model.kind != "backbone" and model.parametrization != "none":
            yield Problem(
                path=("models", role, "parametrization"), other=("models", role, "kind"),
                code="R10", message=f"found {described(model.parametrization)} on a {model.kind}",
                fix='take it out, or write "none"',
            )  # fmt: skip


def _norms(draft: Draft) -> Iterator[Problem]:
    """An attack inside a perturbation searches in the ball the perturbation projects onto."""
    for name, view in draft.views.items():
        yield from _nested_norms(view.perturb, ("views", name, "perturb"))


def _nested_norms(spec: Spec, path: Key) -> Iterator[Problem]:
    outer = getattr(spec.settings, "norm", None)
    for one in attrs.fields(type(spec.settings)):
        inner = getattr(spec.settings, one.name)
        if not isinstance(inner, Spec):
            continue
        here = (*path, one.alias)
        norm = getattr(inner.settings, "norm", None)
        if norm is not None and outer is not None and norm != outer:
            yield Problem(
                path=(*here, "norm"), other=(*path, "norm"), code="R10",
                message=f"found {described(norm)}, the perturbation projects with {outer!r}",
                fix="use one norm",
            )  # fmt: skip
        yield from _nested_norms(inner, here)
