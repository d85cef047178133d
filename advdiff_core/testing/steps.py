"""One training step without an engine, for the tests of terms, perturbations and queries.

    stage = build_stage(
        data=DataInfo(shape=(3,), count=100),
        models={"student": Model(MLP)},
        views={"adv": Moved("clean", RayFGSM)},
    )
    denoise = stage.make(Denoise, path="terms.denoise")
    result = run_step(stage, [Turn("student", {"denoise": denoise})], x0)
    assert result.counted == result.planned

Weights are drawn in float32 under keyed seeds and cast to the dtype of `x0`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
from attrs import define, evolve, field, frozen
from torch import Tensor

from advdiff_core.draws import keyed_generator
from advdiff_core.interfaces.alignment_target import AlignmentTarget
from advdiff_core.interfaces.backbone import Backbone
from advdiff_core.interfaces.component import BUILD_ORDER, Build, Component, ModelInfo, ViewInfo
from advdiff_core.interfaces.module import ModuleComponent
from advdiff_core.interfaces.noise_schedule import NoiseSchedule
from advdiff_core.schedules import VPLinear
from advdiff_core.settings import Spec
from advdiff_core.step.denoiser import Wear
from advdiff_core.step.frozen import FrozenRole
from advdiff_core.step.plan import Phase, Plan, rehearse
from advdiff_core.step.scene import ROOTS, Density, Role, Scene, ViewDecl
from advdiff_core.step.step import Place, TrainStep
from advdiff_core.testing.declared import Drawn, Model, Moved, Turn
from advdiff_core.types import Cost, DataInfo

__all__ = ["Drawn", "Model", "Moved", "Stage", "StepResult", "Turn", "build_stage", "run_step"]

C = TypeVar("C", bound=Component)


@frozen
class Stage:
    """What `build_stage` made.

    Attributes:
        scene: Roles, views and schedule.
        build: What further components are told.
    """

    scene: Scene
    build: Build

    def make(self, component: type[C], settings: Any = None, *, path: str = "terms.tested") -> C:
        """Build a term, or another component, as a recipe would at `path`."""
        return _make(component, settings, evolve(self.build, path=path))

    def plan(self, turns: Sequence[Turn]) -> Plan:
        """The plan of the players' shared step."""
        return Plan([turn.phase() for turn in turns if not turn.fresh], self.scene)

    def step(self, plan: Plan, x0: Tensor, y: Tensor | None = None, **place: Any) -> TrainStep:
        """A step over all of `x0` [B, ...]; `place` overrides index, start, total, stream."""
        size = x0.shape[0]
        where = {"index": 0, "nimg": 0, "start": 0, "total": size, **place}
        return TrainStep(self.scene, plan, x0, y, Place(size=size, **where))


def build_stage(  # noqa: PLR0913 - the tables of a recipe.
    *,
    data: DataInfo,
    models: Mapping[str, Model],
    views: Mapping[str, Moved] | None = None,
    schedule: NoiseSchedule | None = None,
    density: Density | None = None,
    times: Drawn | None = None,
    images: int = 1_000_000,
    terms: Mapping[str, Spec] | None = None,
    seed: int = 0,
) -> Stage:
    """Build what a recipe's tables of the same names would.

    Args:
        data: Description of the samples.
        models: Model roles; each not frozen is trained by the player of its own name, unless a
            `Turn` lists it.
        views: Perturbed views; a base comes before what is made from it.
        schedule: The noise schedule; `vp-linear` if None.
        density: Law of training times; uniform, stratified if None.
        times: What draws them instead.
        images: Length of the run.
        terms: Terms as a recipe names them, for those that look at each other's settings.
        seed: Seed of weights and draws.
    """
    build = Build(seed=seed, images=images, data=data, terms=terms or {}, make=_nested)
    known = schedule if schedule is not None else VPLinear(VPLinear.Settings(), build)
    build = evolve(build, schedule=known, c_noise=known.c_noise_range())
    if times is not None:
        told = evolve(build, path="schedule.density.sampler")
        build = evolve(build, times=_make(times.component, times.settings, told))
    roles: dict[str, Role] = {}
    # In the order of a run: discriminators and targets may run the others.
    for name, model in sorted(models.items(), key=lambda one: BUILD_ORDER.index(one[1].kind)):
        roles[name] = _role(name, model, build, known)
        build = evolve(build, models={n: role.info for n, role in roles.items()})
        if model.frozen and model.kind == "backbone":
            build = evolve(build, networks={**build.networks, name: FrozenRole(roles[name])})
    for role in roles.values():
        if role.info.follows:
            role.module.load_state_dict(roles[role.info.follows].module.state_dict())
    declared = {name: ViewDecl(name) for name in ROOTS}
    infos = {name: ViewInfo(base=None, root=name) for name in ROOTS}
    for name, view in (views or {}).items():
        root = infos[view.base].root
        infos[name] = ViewInfo(base=view.base, root=root)
        told = evolve(build, views=dict(infos), path=f"views.{name}.perturb")
        perturbation = _make(view.component, view.settings, told)
        infos[name] = ViewInfo(base=view.base, root=root, follows=perturbation.follows)
        declared[name] = ViewDecl(root, view.base, perturbation)
    build = evolve(build, views=infos)
    scene = Scene(
        roles=roles, views=declared, schedule=known, density=density or Density(), data=data,
        times=build.times, seed=seed,
    )  # fmt: skip
    return Stage(scene, build)


def _role(name: str, model: Model, build: Build, schedule: NoiseSchedule) -> Role:
    module = _make(model.component, model.settings, evolve(build, path=f"models.{name}"))
    denoiser = model.kind == "backbone" and model.parametrization != "none"
    frozen = model.frozen or bool(model.follows)
    module.train(model.train)
    if frozen:
        # Else a network decides itself which of its weights are trained.
        module.requires_grad_(requires_grad=False)
    info = ModelInfo(
        kind=model.kind,
        frozen=frozen,
        parametrization=model.parametrization if denoiser else "none",
        sigma_data=model.sigma_data if denoiser else None,
        taps=module.taps if isinstance(module, Backbone) else {},
        width=module.width if isinstance(module, AlignmentTarget) else 0,
        classes=module.classes if isinstance(module, Backbone) else 0,
        guided=isinstance(module, Backbone) and module.guided,
        learns_sigma=isinstance(module, Backbone) and module.learns_sigma,
        follows=model.follows,
        double_backward=module.supports_double_backward,
    )
    wear = Wear(
        schedule=schedule, parametrization=model.parametrization, sigma_data=model.sigma_data
    )
    return Role(
        name=name, info=info, module=module, owner=None if frozen else name,
        wear=wear if denoiser else None, random=module.draws_random, recompute=model.recompute,
    )  # fmt: skip


def _make(component: type[C], settings: Any, build: Build) -> C:
    keys = settings if settings is not None else component.Settings()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed_generator(build.seed, build.path, "init").initial_seed())
        return component(keys, evolve(build, make=lambda spec: _make_nested(spec, build)))


def _nested(spec: Spec) -> Component:
    return _make_nested(spec, Build())


def _make_nested(spec: Spec, build: Build) -> Component:
    return cast("Component", spec.component(spec.settings, evolve(build, path=spec.path)))


@define
class StepResult:
    """What a step did.

    Attributes:
        losses: Loss of each sample [B] by term, of its last pass.
        grads: Gradient of each parameter by name, as `models.<role>.<parameter>` or
            `terms.<term>.<parameter>`, summed over passes; none for what no backward reached.
        counted: Passes by role, counted as they happened.
        planned: Passes by role, as the plan foretold them.
        steps: The steps that were run, in order.
    """

    losses: dict[str, Tensor] = field(factory=dict)
    grads: dict[str, Tensor] = field(factory=dict)
    counted: dict[str, Cost] = field(factory=dict)
    planned: dict[str, Cost] = field(factory=dict)
    steps: list[TrainStep] = field(factory=list)


def run_step(  # noqa: PLR0913 - the coordinates of a step.
    stage: Stage,
    turns: Sequence[Turn],
    x0: Tensor,
    y: Tensor | None = None,
    *,
    index: int = 0,
    start: int = 0,
    total: int = 0,
    micro: int = 0,
) -> StepResult:
    """Run every due player on one batch, as an engine does, and record all of it.

    Args:
        stage: Models, views and schedule.
        turns: Players in the order they act.
        x0: Clean samples of this process [B, ...]; models and terms are cast to its dtype.
        y: Labels [B] or None.
        index: Number of the step: players with `every` take part or not, and draws depend on it.
        start: First row of `x0` in the global batch.
        total: Rows of the global batch; those of `x0` if 0.
        micro: Rows per micro-batch; all at once if 0.
    """
    due = [turn for turn in turns if index % turn.every == 0]
    shared = [turn for turn in due if not turn.fresh]
    result, counters = StepResult(), _count_backwards(stage)
    for turn in turns:
        for term in turn.terms.values():
            term.to(x0.dtype)
    for role in stage.scene.roles.values():
        role.module.to(x0.dtype)
        role.cost = Cost()
    place = {"index": index, "nimg": index * (total or len(x0)), "total": total or len(x0)}
    plans = [stage.plan(turns)] + [Plan([t.phase()], stage.scene) for t in due if t.fresh]
    groups = [shared] + [[turn] for turn in due if turn.fresh]
    for plan, group in zip(plans, groups, strict=True):
        stream = group[0].player if group and group[0].fresh else ""
        steps = _steps(stage, plan, x0, y, micro, {**place, "start": start, "stream": stream})
        for number, turn in enumerate(group):
            later = [other.phase() for other in group[number + 1 :]]
            _run_turn(stage, turn, steps, later, result)
        result.steps += steps
        _add_planned(result, plan, [turn.player for turn in group], share=len(steps) == 1)
    for name, role in stage.scene.roles.items():
        backwards = counters[name].close()
        result.counted[name] = role.cost + Cost(parameter_backwards=backwards)
    return result


def _steps(  # noqa: PLR0913 - a batch, its parts and their place.
    stage: Stage, plan: Plan, x0: Tensor, y: Tensor | None, micro: int, place: dict[str, Any]
) -> list[TrainStep]:
    steps = []
    for low in range(0, len(x0), micro or len(x0)):
        rows = slice(low, low + (micro or len(x0)))
        labels = None if y is None else y[rows]
        where = {**place, "start": place["start"] + low}
        steps.append(stage.step(plan, x0[rows], labels, **where))
        steps[-1].share = not micro or micro >= len(x0)
    return steps


def _run_turn(
    stage: Stage, turn: Turn, steps: list[TrainStep], later: list[Phase], result: StepResult
) -> None:
    phase = turn.phase()
    for step in steps:
        step.enter(phase, later)
    for number in range(turn.passes):
        last = number + 1 == turn.passes
        parts: dict[str, list[Tensor]] = {name: [] for name in turn.terms}
        for step in steps:
            total = torch.zeros((), dtype=step.x0.dtype)
            step.prepare(phase.needs)
            for name, term in turn.terms.items():
                loss = term(step)
                parts[name].append(loss.detach())
                total = total + turn.weights.get(name, 1.0) * loss.sum() / step.place.total
            (total if turn.moves else total / turn.passes).backward()  # type: ignore[no-untyped-call]
            step.ascend()
            step.leave(phase, last=last)
        result.losses |= {name: torch.cat(losses) for name, losses in parts.items()}
        if last or turn.moves:
            _take_gradients(stage, turn, result)


def _take_gradients(stage: Stage, turn: Turn, result: StepResult) -> None:
    """Record and clear the gradients of every parameter, and move the player's own."""
    own = {f"models.{role}" for role in turn.models or (turn.player,)}
    own |= {f"terms.{name}" for name in turn.terms}
    named: dict[str, torch.nn.Module] = {
        **{f"models.{name}": role.module for name, role in stage.scene.roles.items()},
        **{f"terms.{name}": term for name, term in turn.terms.items()},
    }
    for name, module in named.items():
        for key, parameter in module.named_parameters():
            if parameter.grad is None:
                continue
            place = f"{name}.{key}"
            result.grads[place] = result.grads.get(place, 0.0) + parameter.grad
            if name in own and turn.rate:
                parameter.data.sub_(turn.rate * parameter.grad)
            parameter.grad = None
    if turn.rate:
        with torch.no_grad():
            for name in sorted(own):
                cast("ModuleComponent", named[name]).updated()


def _add_planned(result: StepResult, plan: Plan, due: list[str], *, share: bool) -> None:
    for role in plan.setup.models:
        result.planned.setdefault(role, Cost())
    for role, cost in rehearse(plan, due, share=share).roles.items():
        result.planned[role] += cost


class _Backwards:
    """Counts the backward passes that reach a network's parameters."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.counts: list[list[int]] = []
        self.handles = []
        for parameter in module.parameters():
            if parameter.requires_grad:
                count = [0]
                self.counts.append(count)
                register: Any = parameter.register_post_accumulate_grad_hook
                self.handles.append(register(self._counter(count)))

    def _counter(self, count: list[int]) -> Any:
        def add(_: Tensor) -> None:
            count[0] += 1

        return add

    def close(self) -> int:
        """Remove the hooks; backwards seen by the parameter that saw most."""
        for handle in self.handles:
            handle.remove()
        return max((count[0] for count in self.counts), default=0)


def _count_backwards(stage: Stage) -> dict[str, _Backwards]:
    return {name: _Backwards(role.module) for name, role in stage.scene.roles.items()}
