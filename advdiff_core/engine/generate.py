"""Samples from a trained role: one seed, one image, whatever the batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from attrs import frozen
from torch import Tensor, nn
from torch.func import functional_call

from advdiff_core.draws import SeedDraws, keyed_generator
from advdiff_core.engine.assemble import Experiment
from advdiff_core.engine.distributed import World
from advdiff_core.errors import UsageError
from advdiff_core.interfaces.sampler import Denoise, Sampler, StepCallback
from advdiff_core.step.network import guidance_told
from advdiff_core.step.scene import Role, Scene
from advdiff_core.types import Prediction

__all__ = [
    "SampleSet",
    "denoiser_of",
    "evaluated_weights",
    "evaluation_mode",
    "generate",
    "weights_of",
]


@frozen(kw_only=True)
class SampleSet:
    """Generated samples and how they were made.

    Attributes:
        x0: Samples [N, ...] on the CPU, in the data's domain.
        seeds: Seed of each.
        labels: Label of each [N], or None.
        nfe: Network evaluations per sample.
        seconds: Wall time.
        sampler: Name and settings, for the record.
    """

    x0: Tensor
    seeds: tuple[int, ...]
    labels: Tensor | None
    nfe: int
    seconds: float
    sampler: Mapping[str, Any]


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Run the body in eval mode and put back the flag of every submodule."""
    flags = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in flags:
            part.training = training


def weights_of(experiment: Experiment, role: str, ema: int | None) -> dict[str, Tensor] | None:
    """Averaged weights of a role; None for the weights as trained.

    Args:
        experiment: The run.
        role: Model role.
        ema: Number of the average in the player's list; negative for the weights as trained; None
            for the first average if there is one.

    Raises:
        UsageError: If the role has no such average.
    """
    emas = [e for p in experiment.players for r, es in p.emas.items() if r == role for e in es]
    if ema is None:
        ema = 0 if emas else -1
    if ema < 0:
        return None
    if ema >= len(emas):
        message = f"role {role!r} has {len(emas)} averages, number {ema} was asked for"
        raise UsageError(message, code="R10", where="sample.ema", fix="use -1 for the raw weights")
    wanted = {n: p.dtype for n, p in experiment.scene.roles[role].module.named_parameters()}
    return {n: v.to(wanted.get(n, v.dtype)) for n, v in emas[ema].shadow.items()}


@torch.no_grad()
def generate(  # noqa: PLR0913 - the choices of one sampling run.
    experiment: Experiment,
    seeds: Sequence[int],
    *,
    role: str | None = None,
    ema: int | None = None,
    labels: Tensor | None = None,
    batch: int = 256,
    sampler: Sampler | None = None,
    callback: StepCallback | None = None,
    world: World | None = None,
) -> SampleSet:
    """Sample one image per seed.

    Args:
        experiment: The run; its networks are left as they are.
        seeds: One per image; the image depends on its seed, the weights and the sampler alone.
        role: Model role; `sample.role` if None.
        ema: See `weights_of`; `sample.ema` if None.
        labels: Labels [N]; drawn per seed when None and the data have classes.
        batch: Images at once.
        sampler: Sampler to use instead of the recipe's.
        callback: See `Sampler.sample`; told the steps of each batch from 0 on.
        world: Processes that share the work: each calls this, and each gets all samples. The one
            that calls does it alone, if None.

    Raises:
        UsageError: If the role is not a denoiser or has no such average.
    """
    settings = experiment.recipe.sample
    if settings is None:
        raise UsageError("this recipe has no denoiser to sample", code="R10", where="sample")
    name = role or settings.role
    denoiser = _denoiser(experiment.scene, name)
    weights = weights_of(experiment, name, settings.ema if ema is None else ema)
    use = settings.spec.use if sampler is None else type(sampler).__name__
    sampler = sampler or cast("Sampler", experiment.make(settings.spec))
    if labels is None:
        labels = _labels(seeds, experiment)
    began, nfe, parts = time.monotonic(), 0, []
    world = world or World()
    mine = world.part(len(seeds))
    with evaluation_mode(denoiser.module):
        for start in range(mine.start, mine.stop, batch):
            here = slice(start, min(start + batch, mine.stop))
            chosen = None if labels is None else labels[here]
            denoise = _bound(experiment.scene, denoiser, weights, chosen, settings.guidance)
            x0, nfe = _chunk(experiment.scene, denoise, sampler, seeds[here], callback)
            parts.append(x0)
    shape = experiment.scene.data.shape if experiment.scene.data else ()
    x0, nfe = _gathered(world, torch.cat(parts) if parts else torch.empty(0, *shape), nfe, seeds)
    return SampleSet(
        x0=x0, seeds=tuple(seeds), labels=labels, seconds=time.monotonic() - began,
        nfe=nfe * _evaluations(denoiser, settings.guidance),
        sampler={"use": use, "role": name},
    )  # fmt: skip


def _gathered(world: World, x0: Tensor, nfe: int, seeds: Sequence[int]) -> tuple[Tensor, int]:
    """All samples, and the evaluations of each: a process without samples knows of none."""
    x0 = world.rows(x0, len(seeds), patient=True)
    return x0, max(int(text) for text in world.gather(str(nfe)))


def _denoiser(scene: Scene, name: str) -> Role:
    role = scene.roles.get(name)
    if role is None or role.wear is None:
        denoisers = [key for key, value in scene.roles.items() if value.wear is not None]
        message = f"{name!r} is not a denoiser of this run; it has {', '.join(denoisers) or 'none'}"
        raise UsageError(message, code="R10", where="sample.role", fix="choose one of these")
    return role


def _labels(seeds: Sequence[int], experiment: Experiment) -> Tensor | None:
    classes = experiment.source.info.classes
    if not classes:
        return None
    draws = [
        torch.randint(classes, (1,), generator=keyed_generator("image", seed, "label"))
        for seed in seeds
    ]
    return torch.cat(draws) if draws else torch.empty(0, dtype=torch.int64)


def _bound(
    scene: Scene,
    role: Role,
    weights: dict[str, Tensor] | None,
    labels: Tensor | None,
    guidance: float,
) -> Denoise:
    """The role as samplers see it, in the run's precision, for samples with these labels [B]."""
    y = None if labels is None else labels.to(scene.compute.device)

    def forward(*args: Any, **kwargs: Any) -> Any:
        with scene.compute.forward():
            if weights is None:
                return role.module(*args, **kwargs)
            return functional_call(role.module, weights, args, kwargs)

    def denoise(x_t: Tensor, t: Tensor) -> Prediction:
        return _predict(role, forward, (x_t, t, y), guidance)

    return denoise


def _evaluations(role: Role, guidance: float) -> int:
    """Network evaluations of one prediction."""
    return 1 if role.info.guided or not guidance else 2


def _predict(
    role: Role,
    forward: Callable[..., Any],
    inputs: tuple[Tensor, Tensor, Tensor | None],
    guidance: float,
    **asked: Any,
) -> Prediction:
    """A prediction with guidance inside, if there is any.

    Args:
        role: The denoiser.
        forward: Its network.
        inputs: Noised samples [B, ...], times [B], labels [B] or None.
        guidance: Strength w.
        asked: Taps, and where to stop.
    """
    x_t, t, _ = inputs
    if role.info.guided:
        told = guidance_told(role, x_t.new_full((x_t.shape[0],), guidance), x_t)
        return cast("Prediction", role.wear(partial(forward, **told), *inputs, **asked))
    found = cast("Prediction", role.wear(forward, *inputs, **asked))
    if not guidance or found.value.shape != x_t.shape:
        return found
    return found.guided(role.wear(forward, x_t, t, None), guidance)


def evaluated_weights(experiment: Experiment, role: str, ema: int | None) -> dict[str, Tensor]:
    """The weights of a denoiser by name, detached, averaged where `ema` says so.

    Args:
        experiment: The run.
        role: Model role.
        ema: See `weights_of`.

    Raises:
        UsageError: If the role is not a denoiser or has no such average.
    """
    owner = _denoiser(experiment.scene, role)
    found = weights_of(experiment, role, ema) or {}
    return {name: p.detach() for name, p in owner.module.named_parameters()} | found


def denoiser_of(  # noqa: PLR0913 - one way of running a network.
    experiment: Experiment,
    role: str,
    ema: int | None,
    labels: Tensor | None,
    *,
    taps: tuple[str, ...] = (),
    stop_at: str | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> Denoise:
    """A role as a denoiser with fixed weights, in eval mode and full precision.

    A prediction has a graph to the input, if that wants one, and none to the parameters but those
    in `weights`; it has the guidance of `sample` inside, if that is the role that is sampled.

    Args:
        experiment: The run; its network is left as it is.
        role: Model role.
        ema: See `weights_of`.
        labels: Labels [B] of what it is called with.
        taps: Features that predictions hold.
        stop_at: Tap at which the network stops; predictions then hold nothing but features.
        weights: Weights that take the place of its own, by name.

    Raises:
        UsageError: If the role is not a denoiser or has no such average.
    """
    owner = _denoiser(experiment.scene, role)
    used = evaluated_weights(experiment, role, ema) | dict(weights or {})
    device = experiment.scene.compute.device
    sample = experiment.recipe.sample
    guidance = sample.guidance if sample is not None and sample.role == role else 0.0

    def forward(*args: Any, **kwargs: Any) -> Any:
        with evaluation_mode(owner.module):
            return functional_call(owner.module, used, args, kwargs)

    def denoise(x_t: Tensor, t: Tensor) -> Prediction:
        y = None if labels is None else labels.to(device)
        inputs = (x_t.to(device), t.to(device), y)
        return _predict(owner, forward, inputs, guidance, taps=taps, stop_at=stop_at)

    return denoise


def _chunk(
    scene: Scene,
    denoise: Denoise,
    sampler: Sampler,
    seeds: Sequence[int],
    callback: StepCallback | None,
) -> tuple[Tensor, int]:
    device = scene.compute.device
    assert scene.schedule is not None
    assert scene.data is not None
    first = sampler.grid()[0].to(device=device, dtype=torch.float32)
    noise = SeedDraws(seeds, stream="start", device=device).normal((len(seeds), *scene.data.shape))
    x_T = scene.compute.place(noise) * scene.schedule.sigma(first)
    draws = SeedDraws(seeds, stream="steps", device=device)
    samples = sampler.sample(denoise, x_T, draws, callback=callback)
    return samples.x0.float().cpu().contiguous(), samples.nfe
