"""From a checked recipe to the objects of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from attrs import define, evolve, field
from torch import nn

from advdiff_core.engine.augment import Pipeline, check_roles
from advdiff_core.engine.compute import choose_compute
from advdiff_core.engine.displaced import Displacement
from advdiff_core.engine.distributed import World
from advdiff_core.engine.ema import Ema, EmaRule
from advdiff_core.engine.feed import Feed
from advdiff_core.engine.followers import Follower
from advdiff_core.engine.initial import load_init
from advdiff_core.engine.lr import LearningRate
from advdiff_core.engine.parts import DataParts, Maker, data_parts, make
from advdiff_core.engine.players import Player, Term
from advdiff_core.engine.sharding import share_out
from advdiff_core.engine.source import Source
from advdiff_core.engine.switches import compiled
from advdiff_core.engine.trained import trained_as, trained_on
from advdiff_core.errors import Fault, RecipeError
from advdiff_core.interfaces.alignment_target import AlignmentTarget
from advdiff_core.interfaces.backbone import Backbone
from advdiff_core.interfaces.component import BUILD_ORDER, Build, Component, ModelInfo, ViewInfo
from advdiff_core.interfaces.loss_term import LossTerm
from advdiff_core.interfaces.module import ModuleComponent
from advdiff_core.interfaces.noise_schedule import NoiseSchedule
from advdiff_core.interfaces.optimizer import Optimizer
from advdiff_core.interfaces.perturbation import Perturbation
from advdiff_core.recipe import Recipe
from advdiff_core.settings import Spec
from advdiff_core.step.denoiser import Wear
from advdiff_core.step.frozen import FrozenRole
from advdiff_core.step.plan import Plan
from advdiff_core.step.scene import ROOTS, Density, Role, Scene, ViewDecl
from advdiff_core.types import DataInfo

__all__ = ["Experiment", "assemble", "bare_role"]


@define(kw_only=True, eq=False)
class Experiment:
    """The objects of a run.

    Attributes:
        recipe: The recipe they were made from.
        source: The data.
        augment: Random changes of the samples in training.
        scene: Roles, views, schedule, device.
        players: Players in the recipe's order.
        plan: Plan of the players that share a step.
        fresh_plans: Plan of each player with a step of its own.
        build: What further components (sampler, metrics) are told.
        inits: What identifies the initial weights of a role, by role; see `initial.load_init`.
    """

    recipe: Recipe
    source: Source
    augment: Pipeline
    scene: Scene
    players: tuple[Player, ...]
    plan: Plan
    fresh_plans: dict[str, Plan]
    build: Build
    inits: dict[str, dict[str, str]] = field(factory=dict)

    def feed(self) -> Feed:
        """The data in the run's keyed order."""
        return Feed(
            self.source, seed=self.scene.seed, place=self.scene.compute.place,
            workers=self.recipe.data.workers, augment=self.augment,
            stage=self.scene.compute.stage if self.scene.compute.pinned else None,
        )  # fmt: skip

    def make(self, spec: Spec, *, data: DataInfo | None = None) -> Component:
        """Build a further component: sampler, metric.

        Args:
            spec: The component.
            data: Description of the data it is told, if not the run's.
        """
        return make(spec, self.build if data is None else evolve(self.build, data=data))


def assemble(
    recipe: Recipe,
    *,
    world: World | None = None,
    device: str | None = None,
    shards: bool = False,
) -> Experiment:
    """Build everything a recipe names, in the order: data, schedule, models, views, terms, players.

    Args:
        recipe: The checked recipe.
        world: The processes of the run; alone if None.
        device: Overrides `run.device`.
        shards: Share roles out that ask for it, to be trained; else every process has them whole.

    Raises:
        UsageError: If a batch cannot be cut into equal shares, which shared roles need.
        PluginError: If a component cannot be built or queries do not fit.
        DataError: If data or initial weights are missing or damaged.
    """
    maker = Maker.of(recipe)
    parts = data_parts(maker)
    source, augment, schedule = parts.source, parts.augment, parts.schedule
    compute = choose_compute(recipe.run, source.info, world or World(), device=device)
    roles = _roles(maker, parts)
    check_roles(augment, roles, source.info)
    _check_guidance(recipe, roles)
    for role in roles.values():
        _place(role.module, compute.device, channels_last=compute.channels_last)
    if shards and world is not None and world.size > 1:
        share_out(recipe, roles, world.size, compute.device)
    views = _views(maker)
    density = recipe.schedule.density
    scene = Scene(
        roles=roles,
        views=views,
        schedule=schedule,
        density=Density(
            law=density.law, mean=density.mean, std=density.std, stratified=density.stratified
        ),
        times=None if parts.times is None else parts.times.to(compute.device),
        data=source.info,
        compute=compute,
        seed=recipe.run.seed,
    )
    players = _players(maker, scene, _followers(recipe, scene))
    shared = Plan([player.phase() for player in players if not player.fresh], scene)
    fresh = {p.name: Plan([p.phase()], scene) for p in players if p.fresh}
    _check_readers(scene, [shared, *fresh.values()])
    return Experiment(
        recipe=recipe, source=source, augment=augment, scene=scene, players=players,
        plan=shared, fresh_plans=fresh, build=maker.build, inits=maker.inits,
    )  # fmt: skip


def _check_readers(scene: Scene, plans: Sequence[Plan]) -> None:
    """Tell each perturbation which models look at its view."""
    for name, view in scene.views.items():
        readers = {
            role
            for plan in plans
            for query, views in plan.views.items()
            if name in views
            for role in query.forwards(scene)
        }
        if view.perturbation is not None and readers:
            infos = {role: scene.roles[role].info for role in sorted(readers)}
            view.perturbation.check_readers(infos)


def _roles(maker: Maker, parts: DataParts) -> dict[str, Role]:
    roles: dict[str, Role] = {}
    recipe, schedule = maker.recipe, parts.schedule
    owners = {role: name for name, player in recipe.players.items() for role in player.models}
    for name, model in _in_order(recipe.models):
        owner = None if model.frozen else owners.get(name)
        wear = _wear(model, schedule)
        c_noise = _c_noise_range(wear, schedule) if wear else (0.0, 1000.0)
        data = parts.source.pictures if model.sees == "pictures" else parts.source.info
        built = make(model.spec, evolve(maker.build, c_noise=c_noise, data=data))
        module = cast("ModuleComponent", built)
        taps = module.taps if isinstance(module, Backbone) else {}
        info = ModelInfo(
            kind=model.kind, frozen=owner is None, taps=taps,
            parametrization=model.parametrization if wear else "none",
            sigma_data=wear.sigma_data if wear else None,
            width=module.width if isinstance(module, AlignmentTarget) else 0,
            classes=module.classes if isinstance(module, Backbone) else 0,
            guided=isinstance(module, Backbone) and module.guided,
            learns_sigma=isinstance(module, Backbone) and module.learns_sigma,
            follows=model.follow.role if model.follow else "",
            # Compiled networks have no second derivatives (pytorch's AOTAutograd).
            double_backward=module.supports_double_backward and not model.compile,
        )  # fmt: skip
        if model.init:
            maker.inits[name] = load_init(module, name, model.init, data)
        # A target network shares the masks of the role that it averages.
        module.train(owner is not None or model.follow is not None)
        if owner is None:
            module.requires_grad_(False)
        roles[name] = Role(
            name=name,
            info=info,
            module=module,
            owner=owner,
            wear=wear,
            run=compiled(module, model.compile),
            recompute=model.checkpointing,
            norm_start=model.norm_start,
            random=module.draws_random,
            augment_dim=module.augment_dim if isinstance(module, Backbone) else 0,
        )
        models = {**maker.build.models, name: info}
        networks = {**maker.build.networks, **_frozen(roles[name], model.init)}
        maker.build = evolve(maker.build, models=models, c_noise=c_noise, networks=networks)
    return roles


def _in_order(models: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Backbones first: discriminators and alignment targets may run those that are frozen."""
    return sorted(models.items(), key=lambda item: BUILD_ORDER.index(item[1].kind))


def _frozen(role: Role, init: Path | None) -> dict[str, FrozenRole]:
    """The role by its name, if it is a backbone whose weights never change; else nothing."""
    if role.info.kind != "backbone" or not role.info.frozen or role.info.follows:
        return {}
    if init is None:
        return {role.name: FrozenRole(role)}
    return {role.name: FrozenRole(role, trained_on(init), trained_as(init, role.name))}


def _check_guidance(recipe: Recipe, roles: dict[str, Role]) -> None:
    """Refuse guidance of a network that knows no labels.

    Raises:
        RecipeError: R10.
    """
    if recipe.sample is None or not recipe.sample.guidance:
        return
    name = recipe.sample.role
    if not (roles[name].info.guided or roles[name].info.classes):
        message = f"{recipe.sample.guidance:g}, but model {name!r} ignores labels"
        fix = "set it to 0, or give that model conditional = true"
        raise RecipeError([Fault(code="R10", key="sample.guidance", message=message, fix=fix)])


def bare_role(recipe: Recipe, role: str) -> tuple[nn.Module, Build]:
    """The module of one role, on the CPU, without initial weights, and what it was told.

    Args:
        recipe: The checked recipe.
        role: One of its roles.

    Raises:
        AdvdiffError: If the data, the schedule or the module cannot be built.
    """
    model: Any = recipe.models[role]
    alone = evolve(model, init=None, compile=False)
    maker = Maker.of(evolve(recipe, models={role: alone}))
    module = _roles(maker, data_parts(maker))[role].module
    return module, maker.build


def _wear(model: Any, schedule: NoiseSchedule) -> Wear | None:
    if model.kind != "backbone" or model.parametrization == "none":
        return None
    edm = model.parametrization == "edm"
    c_noise = model.c_noise if model.c_noise != "auto" else ("log-sigma" if edm else "index")
    sigma_data = model.sigma_data if model.sigma_data is not None else (0.5 if edm else 1.0)
    return Wear(
        schedule=schedule,
        parametrization=model.parametrization,
        sigma_data=sigma_data,
        c_noise=c_noise,
    )


def _c_noise_range(wear: Wear, schedule: NoiseSchedule) -> tuple[float, float]:
    if wear.c_noise == "index":
        return schedule.c_noise_range()
    ends = wear.noise_input(torch.tensor([schedule.t_min, schedule.t_max], dtype=torch.float64))
    finite = ends.clamp(-4.0, 4.0)
    return float(finite.min()), float(finite.max())


def _place(module: nn.Module, device: torch.device, *, channels_last: bool) -> None:
    module.to(device)
    if channels_last:
        module.to(memory_format=torch.channels_last)


def _views(maker: Maker) -> dict[str, ViewDecl]:
    declared = {name: ViewDecl(name) for name in ROOTS}
    infos = {name: ViewInfo(base=None, root=name) for name in ROOTS}
    waiting = dict(maker.recipe.views)
    while waiting:
        ready = [name for name, view in waiting.items() if view.base in declared]
        assert ready, "the recipe loader refuses views that chain in a circle"
        for name in ready:
            view = waiting.pop(name)
            root = infos[view.base].root
            infos[name] = ViewInfo(base=view.base, root=root)
            maker.build = evolve(maker.build, views=infos)
            perturbation = cast("Perturbation", maker.make(view.perturb))
            infos = {
                **infos,
                name: ViewInfo(base=view.base, root=root, follows=perturbation.follows),
            }
            declared[name] = ViewDecl(root, view.base, perturbation)
    maker.build = evolve(maker.build, views=infos)
    return declared


def _followers(recipe: Recipe, scene: Scene) -> list[Follower]:
    """Target networks, with the weights of the roles that they follow."""
    found = []
    for name, model in recipe.models.items():
        if model.follow is None:
            continue
        leader = model.follow.role
        ours, theirs = scene.roles[name].module, scene.roles[leader].module
        rate, levels = model.follow.rate, model.follow.levels
        one = Follower(
            name=name, leader=leader, module=ours, source=theirs, rate=rate, levels=levels
        )
        one.start(scene.times)
        found.append(one)
    return found


def _players(maker: Maker, scene: Scene, followers: Sequence[Follower]) -> tuple[Player, ...]:
    players = []
    for name, player in maker.recipe.players.items():
        terms = tuple(_term(maker, key, scene) for key in sorted(player.terms))
        roles = tuple(scene.roles[role] for role in player.models)
        parameters = _parameters(roles, terms)
        optimizer = cast("Optimizer", maker.make(player.optimizer))
        rules = [_ema_rule(rule) for rule in player.ema]
        emas = {role.name: [Ema(role.module, rule) for rule in rules] for role in roles if rules}
        lr = player.lr_schedule
        players.append(
            Player(
                name=name, roles=roles, terms=terms, parameters=parameters,
                optimizer=optimizer.make(parameters),
                displacement=Displacement(component=optimizer, parameters=parameters),
                lr=LearningRate(
                    law=lr.law, warmup=lr.warmup, images=maker.recipe.run.images,
                    final=lr.final, reference=lr.reference, first=lr.first, peak=lr.peak,
                    stairs=lr.stairs, momentum=lr.momentum,
                ),
                every=player.every, passes=player.passes, moves=player.update == "pass",
                fresh=player.fresh, clip=player.clip, emas=emas,
                followers=tuple(one for one in followers if one.leader in player.models),
            )
        )  # fmt: skip
    return tuple(players)


def _term(maker: Maker, name: str, scene: Scene) -> Term:
    declared = maker.recipe.terms[name]
    module = cast("LossTerm", maker.make(declared.spec))
    module.to(scene.compute.device)
    if not declared.weight:
        # It is only watched: nothing of it may reach an optimizer or a gradient's norm.
        module.requires_grad_(False)
    return Term(
        name=name, module=module, weight=declared.weight, after=declared.after,
        until=declared.until, ramp=declared.ramp,
    )  # fmt: skip


def _parameters(roles: tuple[Role, ...], terms: tuple[Term, ...]) -> list[tuple[str, nn.Parameter]]:
    """What an optimizer moves: all that the networks themselves do not keep fixed (adapters)."""
    owned: list[tuple[str, nn.Module]] = [(f"models.{role.name}", role.module) for role in roles]
    owned += [(f"terms.{term.name}", term.module) for term in terms]
    return [
        (f"{prefix}.{name}", parameter)
        for prefix, module in owned
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    ]


def _ema_rule(rule: Any) -> EmaRule:
    return EmaRule(rate=rule.rate, power=rule.power, halflife=rule.halflife, after=rule.after)
