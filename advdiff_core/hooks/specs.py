"""What a listener may listen to: the events of a run, extra commands and report sections.

A plugin declares a class in the entry-point group `advdiff.v1.hooks`; it is built without arguments
and marks the methods it offers with `hookimpl`:

    from advdiff_core.hooks.specs import RunInfo, hookimpl

    class Tracker:
        @hookimpl
        def metrics_logged(self, run: RunInfo, nimg: int, metrics: Mapping[str, float]) -> None: ...

A method may leave out the arguments it does not use. No event lies inside a training step, an
event never changes a result, and a listener that fails is named and switched off. Free of torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy
from attrs import Factory, field, frozen

from advdiff_core.hooks.files import write_file

if TYPE_CHECKING:
    import click
    from torch import Tensor

    from advdiff_core.types import DataInfo

__all__ = [
    "NAMES",
    "PROJECT",
    "VALIDATED",
    "HookSpecs",
    "RunInfo",
    "Section",
    "hookimpl",
    "new_manager",
]

PROJECT = "advdiff"

#: Begins the names of what `[validate]` measured, among the numbers of `metrics_logged`.
VALIDATED = "validate/"

Function = TypeVar("Function", bound=Callable[..., Any])
_specify = pluggy.HookspecMarker(PROJECT)
_implement = pluggy.HookimplMarker(PROJECT)


def hookimpl(method: Function) -> Function:
    """Mark a method as a listener to the event of its name."""
    return _implement(method)


def _hookspec(method: Function) -> Function:
    return _specify(method)


def _write_nowhere(record: Mapping[str, object]) -> None:
    del record


def _write_inside(folder: Path, name: str, content: bytes | str) -> Path:
    return write_file(folder / name, content)


@frozen(kw_only=True)
class RunInfo:
    """What a listener may know of the run it watches.

    Attributes:
        folder: The run folder.
        name: Name of the run, for people.
        images: Images the run will have seen at its end.
        batch: Images per step.
        nimg: Images seen when this process began; above 0 in a resumed run.
        started: When this process began, seconds since the epoch.
        device: What it runs on, for example "cpu" or "cuda:0".
        data: Description of the data; None if there is none.
        recipe: The fully resolved recipe as plain tables.
        record: Appends one line to the run's `metrics.jsonl`. The run owns the file: what lies
            behind the checkpoint it resumes from is cut off, so that each line is there once.
        write: Writes a whole file inside the folder, given its relative name and content.
    """

    folder: Path
    name: str
    images: int
    batch: int
    nimg: int = 0
    started: float = 0.0
    device: str = "cpu"
    data: DataInfo | None = None
    recipe: Mapping[str, Any] = field(factory=dict, repr=False)
    record: Callable[[Mapping[str, object]], None] = field(default=_write_nowhere, repr=False)
    write: Callable[[str, bytes | str], Path] = field(
        default=Factory(lambda self: partial(_write_inside, self.folder), takes_self=True),
        repr=False,
    )


@frozen(kw_only=True)
class Section:
    """A section that a listener adds to a report.

    Attributes:
        title: Heading.
        text: Paragraphs, separated by empty lines; plain text.
        rows: A table; the first row is its head.
        images: PNG files inlined below, by caption.
    """

    title: str
    text: str = ""
    rows: Sequence[Sequence[object]] = ()
    images: Mapping[str, bytes] = field(factory=dict, repr=False)


class HookSpecs:
    """The events, with the arguments they carry."""

    @_hookspec
    def configured(self, options: Mapping[str, Any]) -> None:
        """The recipe has a table `[hooks.<name>]` for this listener; comes before all others."""

    @_hookspec
    def run_started(self, run: RunInfo) -> None:
        """The first step is about to begin; everything is built."""

    @_hookspec
    def metrics_logged(self, run: RunInfo, nimg: int, metrics: Mapping[str, float]) -> None:
        """Numbers averaged since the last log tick, by name; `nimg` images were seen so far.

        Or numbers of a measurement during the training, whose names begin with `validate/`.
        """

    @_hookspec
    def images_ready(self, run: RunInfo, nimg: int, images: Mapping[str, Tensor]) -> None:
        """Rows of images by caption, each [N, ...] on the CPU in the data's domain.

        Latents are decoded, to [-1, 1].
        """

    @_hookspec
    def checkpoint_saved(self, run: RunInfo, nimg: int, path: Path) -> None:
        """A checkpoint folder is complete and synced."""

    @_hookspec
    def run_finished(self, run: RunInfo, result: Any) -> None:
        """The run has seen all its images; `result` has run, nimg, seconds and metrics."""

    @_hookspec
    def run_closed(self) -> None:
        """The last event, also of a run that stopped early or failed; release what is held."""

    @_hookspec
    def cli_commands(self) -> list[click.Command]:  # type: ignore[empty-body]
        """Extra verbs of the command line; asked for when a verb is not one of advdiff's own."""

    @_hookspec
    def report_sections(self, run: Path) -> list[Section]:  # type: ignore[empty-body]
        """Extra sections of the report of a run folder."""


#: Names of the events.
NAMES = tuple(name for name in vars(HookSpecs) if not name.startswith("_"))


def new_manager() -> pluggy.PluginManager:
    """A pluggy manager that knows the events."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(HookSpecs)
    return manager
