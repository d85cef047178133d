"""The keys of a recipe that are the core's own, table by table. Free of torch.

A table that names a component (`use = ...`) mixes these keys with the component's own settings;
here the component is the attribute `spec`, and the other attributes are the core's.
Documentation, `explain` and the loader read the same metadata.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import attrs
from attrs import frozen

from advdiff_core.recipe.measuring import MAX_COUNT, Evaluate, Validate
from advdiff_core.settings import Spec, setting, settings

__all__ = [
    "ROOT_VIEWS",
    "TABLES",
    "Data",
    "Density",
    "Ema",
    "Evaluate",
    "Follow",
    "Hooks",
    "LrSchedule",
    "Model",
    "Player",
    "Run",
    "Sample",
    "Schedule",
    "Table",
    "Term",
    "Validate",
    "View",
    "common_keys",
    "key_of",
]

#: Views every recipe has: the noised sample and the image itself.
ROOT_VIEWS = ("clean", "image")

OnOff = bool | Literal["auto"]
#: On or off, or the modes of `torch.compile` that record CUDA graphs.
Compiled = bool | Literal["reduce-overhead", "max-autotune"]


@settings
class Run:
    """`[run]`: length, seed and machine of a run."""

    name: str = setting(
        "run",
        ref="run",
        help="name of the run folder; the file's name if left out",
        safe=True,
    )
    seed: int = setting(0, ge=0, lt=2**63, help="seed of every random number")
    images: int = setting(
        400_000, ge=1, le=MAX_COUNT, unit="images", safe=True, help="length of the training"
    )
    batch: int = setting(128, ge=1, le=2**31, unit="images", help="images per optimizer step")
    micro_batch: int | Literal["auto"] = setting(
        "auto", ge=1, le=2**31, unit="images", safe=True,
        help="images per forward; auto takes what memory allows",
    )  # fmt: skip
    precision: Literal["auto", "fp32", "bf16"] = setting(
        "auto", help="auto is bf16 where the hardware multiplies it"
    )
    channels_last: OnOff = setting("auto", help="memory format of convolutions")
    tf32: OnOff = setting(
        "auto",
        help="on a GPU, multiply float32 matrices with 10 bits of mantissa; auto does with bf16",
    )
    pinned: OnOff = setting(
        "auto", safe=True,
        help="to a GPU, copy batches that workers have read from pinned memory, beside the step",
    )  # fmt: skip
    device: Literal["auto", "cpu", "cuda"] = setting("auto", help="where to train")
    checkpoint_every: int = setting(
        100_000, ge=1, le=MAX_COUNT, unit="images", safe=True, help="images between checkpoints"
    )
    log_every: int = setting(
        5_000, ge=1, le=MAX_COUNT, unit="images", safe=True, help="images between metric lines"
    )
    keep: int = setting(3, ge=2, le=10_000, safe=True, help="checkpoints kept")
    deterministic: bool = setting(
        True, help="refuse operations that do not repeat exactly; if false, cuDNN tries for speed"
    )
    threads: int = setting(0, ge=0, le=4096, help="CPU threads; 0 leaves torch's choice")
    check_finite: bool = setting(True, help="stop before the optimizer moves on NaN or infinity")
    timeout: float = setting(
        300.0, gt=0.0, le=86_400.0, unit="s", safe=True,
        help="how long the processes of a run wait for one that does not answer",
    )  # fmt: skip


@settings
class Data:
    """`[data]`: the training samples."""

    KIND: ClassVar[str] = "dataset"
    spec: Spec = setting(help="the dataset", key="use")
    corrupt: tuple[Spec, ...] = setting(
        (), kind="corruption", help="damage done to a fraction of the samples, in this order"
    )
    augment: tuple[Spec, ...] = setting(
        (),
        kind="augmentation",
        help="random changes in training, in this order, other ones each time",
    )
    domain: tuple[float, float] | None = setting(
        None, help="valid range the samples are scaled to; [-1, 1] for images if left out"
    )
    workers: int = setting(
        0, ge=0, le=1024, safe=True, help="threads that read the next batch meanwhile; 0: none"
    )
    on_bad: Literal["stop", "skip"] = setting("stop", help="what to do with an unreadable sample")
    max_bad: int = setting(10, ge=0, le=2**31, help="samples that may be skipped before stopping")


@settings
class Density:
    """`schedule.density`: how training times are drawn."""

    law: Literal["uniform", "log-normal"] = setting(
        "uniform", help="uniform in t, or log-normal in sigma / alpha"
    )
    mean: float = setting(-1.2, help="mean of log(sigma / alpha)", applies=("law", ("log-normal",)))
    std: float = setting(
        1.2,
        gt=0.0,
        help="standard deviation of log(sigma / alpha)",
        applies=("law", ("log-normal",)),
    )
    stratified: bool = setting(True, help="spread the times of a batch evenly over the law")
    sampler: Spec | None = setting(
        None, kind="time_sampler", help="draws the times instead of the law: one that learns"
    )


@settings
class Schedule:
    """`[schedule]`: how much noise there is at a time."""

    KIND: ClassVar[str] = "noise_schedule"
    spec: Spec = setting(help="the noise schedule; vp-linear if left out", key="use")
    density: Density = setting(factory=Density, help="law of training times")


@settings
class Follow:
    """`models.<role>.follow`: a target network, which is an average of another role's weights."""

    role: str = setting(ref="role", help="the role it follows, of the same kind of network")
    rate: float = setting(
        0.95, ge=0.0, lt=1.0, help="decay per optimizer update of that role; 0 copies its weights"
    )
    levels: int = setting(
        0, ge=0, le=2**31,
        help="with N levels of the density's sampler, decay rate^(levels / N); 0: always rate",
    )  # fmt: skip


@settings
class Model:
    """`[models.<role>]`: a network."""

    KIND: ClassVar[str] = "backbone"
    spec: Spec = setting(help="the network", key="use")
    kind: Literal["backbone", "discriminator", "alignment_target"] = setting(
        "backbone", help="kind of component that `use` names"
    )
    parametrization: Literal["eps", "x0", "v", "flow", "edm", "none"] = setting(
        "eps", help="what the network predicts; none for classifiers and other kinds than backbone"
    )
    sigma_data: float | None = setting(
        None, gt=0.0, help="standard deviation of the data; 0.5 for edm and 1 otherwise if left out"
    )
    c_noise: Literal["auto", "index", "log-sigma"] = setting(
        "auto", help="noise-level input: time scaled to [0, 1000], or log(sigma / alpha) / 4"
    )
    norm_start: Literal["standard", "first-step"] = setting(
        "standard",
        help="running statistics of batch norms begin at mean 0 and variance 1, or as those of"
        " the first step",
    )
    init: Path | None = setting(None, help="run, checkpoint, imported model or safetensors file")
    sees: Literal["samples", "pictures"] = setting(
        "samples",
        help="what it is built for: samples of the data, or the pictures that latents stand for",
    )
    frozen: bool = setting(False, help="never trained")
    follow: Follow | None = setting(
        None, help="not trained but an average of the weights of another role"
    )
    compile: Compiled = setting(
        False, safe=True,
        help="compile the network with torch.compile, by its default or in one of its modes",
    )  # fmt: skip
    checkpointing: bool = setting(False, help="recompute activations in the backward", safe=True)
    shard: bool = setting(
        False, safe=True,
        help="of several processes, each keeps a part of its weights, gradients, averages and"
        " optimizer state (FSDP2)",
    )  # fmt: skip


@settings
class View:
    """`[views.<name>]`: a perturbed input that terms can look at."""

    base: str = setting("clean", ref="view", key="from", help="the view that is perturbed")
    perturb: Spec = setting(kind="perturbation", help="what perturbs it")


@settings
class Term:
    """`[terms.<name>]`: a loss term."""

    KIND: ClassVar[str] = "loss_term"
    spec: Spec = setting(help="the loss term", key="use")
    weight: float = setting(1.0, help="factor in the player's objective")
    after: int = setting(
        0, ge=0, le=MAX_COUNT, unit="images", help="images before the term begins to count"
    )
    until: int | None = setting(
        None, ge=1, le=MAX_COUNT, unit="images", help="images after which it no longer counts"
    )
    ramp: int = setting(
        0, ge=0, le=MAX_COUNT, unit="images",
        help="images over which its weight rises from 0, once it has begun",
    )  # fmt: skip


@settings
class Ema:
    """An entry of `players.<name>.ema`: a number (the rate), or a table with one of three rules."""

    SHORTHAND: ClassVar[str] = "rate"
    EXCLUSIVE: ClassVar[tuple[str, ...]] = ("rate", "power", "halflife")
    rate: float | None = setting(None, ge=0.0, lt=1.0, help="decay per step, for example 0.999")
    power: float | None = setting(
        None, gt=0.0, lt=0.288, help="relative width of a power-function average (EDM2), as 0.1"
    )
    halflife: float | None = setting(
        None, gt=0.0, unit="images", help="images after which an old value weighs half"
    )
    after: int = setting(
        0, ge=0, le=MAX_COUNT, unit="images",
        help="images before averaging begins; until then it is the weights themselves",
    )  # fmt: skip


@settings
class LrSchedule:
    """`players.<name>.lr_schedule`: factor on the learning rate, a function of the images seen."""

    law: Literal["constant", "linear", "cosine", "inverse-sqrt", "one-cycle"] = setting(
        "constant", help="shape after the warm-up"
    )
    warmup: int = setting(
        0, ge=0, le=MAX_COUNT, unit="images", help="images over which the rate rises from 0"
    )
    final: float = setting(
        0.0, ge=0.0, le=1.0, help="factor at the end",
        applies=("law", ("linear", "cosine", "one-cycle")),
    )  # fmt: skip
    reference: int = setting(
        0, ge=0, le=MAX_COUNT, unit="images", applies=("law", ("inverse-sqrt",)),
        help="images at which the rate begins to fall; 0 is the end of the warm-up",
    )  # fmt: skip
    first: float = setting(
        0.04, ge=0.0, le=1.0, applies=("law", ("one-cycle",)), help="factor at the start"
    )
    peak: float = setting(
        0.3, gt=0.0, lt=1.0, applies=("law", ("one-cycle",)),
        help="share of the run after which the rate is at its peak",
    )  # fmt: skip
    stairs: int = setting(
        0, ge=0, le=2**31, applies=("law", ("one-cycle",)),
        help="steps of equal length (epochs) that the rate is held for; 0: none, it moves always",
    )  # fmt: skip
    momentum: tuple[float, float] | None = setting(
        None, ge=0.0, lt=1.0, applies=("law", ("one-cycle",)),
        help="momentum (the first beta) at the peak and at both ends, as torch's OneCycleLR cycles"
        " it; the optimizer's own throughout if left out",
    )  # fmt: skip


@settings
class Player:
    """`[players.<name>]`: who is optimised, and how. Players act in order of their names."""

    models: tuple[str, ...] = setting(
        (), ref="role", help="roles it trains; the one of its own name if left out"
    )
    terms: tuple[str, ...] = setting(
        (), ref="term", help="its loss terms; all, if there is one player and it lists none"
    )
    optimizer: Spec = setting(kind="optimizer", help="the optimizer; adamw if left out")
    ema: tuple[Ema, ...] = setting(
        (), help="averages of its weights; [0.999] for denoisers if left out, [] for none"
    )
    every: int = setting(1, ge=1, le=2**31, unit="steps", help="acts on every n-th step")
    passes: int = setting(1, ge=1, le=10_000, help="forward and backward passes on one batch")
    update: Literal["pass", "batch"] = setting(
        "batch", help="move the weights after every pass, or once with the mean gradient"
    )
    fresh: bool = setting(False, help="draw a batch of its own")
    clip: float | None = setting(
        None, gt=0.0, help="largest norm of its gradient; no limit if left out"
    )
    lr_schedule: LrSchedule = setting(factory=LrSchedule, help="the learning rate over time")


@settings
class Sample:
    """`[sample]`: images drawn during the run and at its end."""

    KIND: ClassVar[str] = "sampler"
    spec: Spec = setting(help="the sampler; ddim if left out", key="use")
    role: str = setting("student", ref="role", help="the denoiser that is sampled")
    ema: int = setting(0, ge=-1, le=1000, help="which of its averages; -1 for the raw weights")
    guidance: float = setting(
        0.0, ge=0.0, le=1000.0,
        help="strength w of classifier-free guidance, cond + w (cond - uncond): told to a network "
        "that is `guided`, else by a second evaluation without labels",
    )  # fmt: skip
    images: int = setting(64, ge=1, le=2**31, unit="images", safe=True, help="samples per grid")
    every: int = setting(
        0, ge=0, le=MAX_COUNT, unit="images", safe=True, help="images between grids; 0: at the end"
    )


@settings
class Hooks:
    """`[hooks]`: listeners; a table `[hooks.<name>]` is handed to the listener of that name."""

    off: tuple[str, ...] = setting((), safe=True, help="names of listeners to leave out")
    options: Mapping[str, Mapping[str, Any]] = setting(
        factory=dict, safe=True, help="options by the name of the listener"
    )


@frozen
class Table:
    """How a table of a recipe is laid out.

    Attributes:
        cls: Class of its common keys.
        kind: Registry kind of its component; "" for tables without one.
        named: True if the table holds one such table per name.
        default: Component used if `use` is left out.
    """

    cls: type[Any]
    kind: str = ""
    named: bool = False
    default: str = ""


TABLES: Mapping[str, Table] = MappingProxyType({
    "run": Table(Run),
    "data": Table(Data, "dataset"),
    "schedule": Table(Schedule, "noise_schedule", default="vp-linear"),
    "models": Table(Model, "backbone", named=True),
    "views": Table(View, named=True),
    "terms": Table(Term, "loss_term", named=True),
    "players": Table(Player, named=True),
    "sample": Table(Sample, "sampler", default="ddim"),
    "evaluate": Table(Evaluate),
    "validate": Table(Validate),
})  # fmt: skip


def key_of(one: attrs.Attribute[Any]) -> str:
    """What a recipe calls a field."""
    return str(one.metadata.get("key") or one.alias)


def common_keys(path: tuple[str | int, ...]) -> frozenset[str]:
    """Keys of the table at `path` that are the core's own, `use` included.

    Args:
        path: Place of the table; nested component tables have no key but `use` in common.
    """
    table = TABLES.get(str(path[0])) if path else None
    if table is None or len(path) != 1 + table.named:
        return frozenset({"use"})
    return frozenset(key_of(one) for one in attrs.fields(table.cls))
