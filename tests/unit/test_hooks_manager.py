"""Listeners: each is called on its own, and a bad one is named, switched off and survived."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path

import click
import pytest
from attrs import frozen

from advdiff_core.errors import PluginError, StorageError
from advdiff_core.hooks.manager import Hooks, Listener
from advdiff_core.hooks.specs import NAMES, RunInfo, Section, hookimpl

RUN = RunInfo(folder=Path("runs/00001-a"), name="a", images=100, batch=10)


@frozen
class FakeEntry:
    """A listener as discovery lists it."""

    name: str
    value: str
    distribution: str = "some-plugin"
    version: str = "1.2"


class Noting:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, dict[str, float]]] = []

    @hookimpl
    def metrics_logged(self, nimg: int, metrics: Mapping[str, float]) -> None:
        """Note the numbers."""
        self.seen.append((nimg, dict(metrics)))


class Raising:
    """Raises what it was given, in every event it listens to."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error or ZeroDivisionError("division by zero")
        self.calls = 0

    @hookimpl
    def metrics_logged(self) -> None:
        """Raise."""
        self.calls += 1
        raise self.error

    @hookimpl
    def report_sections(self) -> list[Section]:
        """Raise."""
        raise self.error


class Unmarked:
    """Has the right method names and no mark."""

    def metrics_logged(self) -> None:
        """Never called."""


class WrongArgument:
    """Asks for an argument that the event does not carry."""

    @hookimpl
    def metrics_logged(self, loss: float) -> None:
        """Never called."""


class Writing:
    """Tries to change what others will be told."""

    @hookimpl
    def metrics_logged(self, metrics: dict[str, float]) -> None:
        """Change the numbers."""
        metrics["loss"] = 0.0


class Configured:
    """Keeps its options."""

    def __init__(self) -> None:
        self.options: Mapping[str, object] = {}

    @hookimpl
    def configured(self, options: Mapping[str, object]) -> None:
        """Keep them."""
        self.options = options


class Answering:
    """Adds a verb and a section, and something that is neither."""

    @hookimpl
    def cli_commands(self) -> list[click.Command]:
        """One verb."""
        return [click.Command("extra")]

    @hookimpl
    def report_sections(self, run: Path) -> list[object]:
        """One section, and a string by mistake."""
        return [Section(title=str(run)), "no section"]


class FailsToBuild:
    """Cannot be built."""

    def __init__(self) -> None:
        raise SystemExit(3)


def hooks_of(*plugins: object, owner: str = "some-plugin 1.2") -> tuple[Hooks, list[str]]:
    """Hooks with these listeners, and the list their warnings go to."""
    warnings: list[str] = []
    hooks = Hooks(warn=warnings.append)
    for number, plugin in enumerate(plugins):
        hooks.add(plugin, name=f"hook{number}", owner=owner)
    return hooks, warnings


def test_hooks_tell_every_listener_in_order() -> None:
    """A listener gets the arguments it asks for."""
    first, second = Noting(), Noting()
    hooks, warnings = hooks_of(first, second)
    hooks.metrics_logged(RUN, 10, {"loss": 1.5})
    assert first.seen == second.seen == [(10, {"loss": 1.5})]
    assert warnings == []


@pytest.mark.parametrize("error", [ZeroDivisionError("division by zero"), SystemExit(1)])
def test_hooks_survive_a_listener_that_raises(error: BaseException) -> None:
    """It is named once with its owner and cause, switched off, and the others go on."""
    bad, good = Raising(error), Noting()
    hooks, warnings = hooks_of(bad, good)
    hooks.metrics_logged(RUN, 10, {})
    hooks.metrics_logged(RUN, 20, {})
    assert bad.calls == 1
    assert [nimg for nimg, _ in good.seen] == [10, 20]
    assert len(warnings) == 1
    assert warnings[0].startswith(
        "advdiff: warning: advdiff hook 'hook0' (some-plugin 1.2) failed in metrics_logged: "
        f"{type(error).__name__}: {error}"
    )
    assert warnings[0].endswith("- it is switched off for this run")


class UnspeakableError(Exception):
    """Raises again when it is printed."""

    def __str__(self) -> str:
        """Raise."""
        raise ValueError("no text")


def test_hooks_survive_an_error_that_cannot_be_printed() -> None:
    """Not even its message may stop the run."""
    hooks, warnings = hooks_of(Raising(UnspeakableError()))
    hooks.metrics_logged(RUN, 10, {})
    assert "UnspeakableError: (its message cannot be shown)" in warnings[0]


def test_hooks_let_a_ctrl_c_through() -> None:
    """A KeyboardInterrupt is the user's, not the listener's."""
    hooks, _ = hooks_of(Raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        hooks.metrics_logged(RUN, 10, {})


def test_hooks_stop_the_run_when_the_core_cannot_write_its_log() -> None:
    """A full disk under the core's own log is the run's failure; under a plugin's it is not."""
    error = StorageError("the disk is full", code="S03")
    hooks, _ = hooks_of(Raising(error), owner="advdiff-core 0.1")
    with pytest.raises(StorageError, match="disk is full"):
        hooks.metrics_logged(RUN, 10, {})
    hooks, warnings = hooks_of(Raising(error))
    hooks.metrics_logged(RUN, 10, {})
    assert "the disk is full" in warnings[0]


def test_hooks_pass_tables_read_only() -> None:
    """What one listener does to its arguments, another never sees."""
    good = Noting()
    hooks, warnings = hooks_of(Writing(), good)
    hooks.metrics_logged(RUN, 10, {"loss": 1.5})
    assert good.seen == [(10, {"loss": 1.5})]
    assert "TypeError" in warnings[0]


def test_hooks_name_a_listener_that_asks_for_what_there_is_not() -> None:
    """An argument that the event does not carry is refused before the run."""
    with pytest.raises(Exception, match="loss"):
        Listener(WrongArgument(), name="wrong")


def test_hooks_refuse_a_listener_without_marks() -> None:
    """A class that forgot @hookimpl would be silent for ever."""
    with pytest.raises(TypeError, match=r"it offers none of .*metrics_logged.*@hookimpl"):
        Listener(Unmarked(), name="unmarked")


def test_hooks_collect_answers_of_the_right_kind() -> None:
    """Sections of all listeners make one list; a failing one and wrong kinds are left out."""
    hooks, _ = hooks_of(Answering(), Raising())
    assert [section.title for section in hooks.report_sections(Path("x"))] == ["x"]
    assert [command.name for command in hooks.cli_commands()] == ["extra"]


def test_hooks_load_leaves_out_what_cannot_be_loaded() -> None:
    """Each bad listener is named with its owner and cause; the good one works."""
    warnings: list[str] = []
    here = __name__
    entries = [
        FakeEntry("gone", "no_such_module_of_mine:X"),
        FakeEntry("missing", f"{here}:NoSuchClass"),
        FakeEntry("function", f"{here}:hooks_of"),
        FakeEntry("unmarked", f"{here}:Unmarked"),
        FakeEntry("exits", f"{here}:FailsToBuild"),
        FakeEntry("good", f"{here}:Noting"),
    ]
    hooks = Hooks.load(entries, warn=warnings.append)
    assert [listener.name for listener in hooks.listeners] == ["good"]
    assert [line.split("'")[1] for line in warnings] == [entry.name for entry in entries[:-1]]
    assert "ModuleNotFoundError: No module named 'no_such_module_of_mine'" in warnings[0]
    assert "is not a class" in warnings[2]
    assert all("(some-plugin 1.2) failed in loading" in line for line in warnings)
    assert all(line.endswith("- it is left out") for line in warnings)


def test_hooks_load_imports_under_the_guard() -> None:
    """What the guard makes of a failing import is what is told."""
    titles: list[tuple[str, str]] = []
    warnings: list[str] = []

    @contextmanager
    def guard(title: str, owner: str):
        titles.append((title, owner))
        try:
            yield
        except BaseException as error:
            raise PluginError(f"{title} fails to import") from error

    Hooks.load([FakeEntry("gone", "no_such_module:X")], warn=warnings.append, guard=guard)
    assert titles == [("hook 'gone' of some-plugin 1.2", "some-plugin 1.2")]
    assert warnings == [
        "advdiff: warning: hook 'gone' of some-plugin 1.2 fails to import - it is left out"
    ]


def test_hooks_configure_switches_off_and_hands_over_options() -> None:
    """`[hooks]` of the recipe rules; a name that nobody has is warned of with the nearest."""
    configured, noting = Configured(), Noting()
    hooks, warnings = hooks_of(configured, noting)
    hooks.configure(["hook1", "hok1"], {"hook0": {"project": "x"}})
    hooks.metrics_logged(RUN, 10, {})
    assert configured.options == {"project": "x"}
    assert noting.seen == []
    assert warnings == ["advdiff: warning: hooks: there is no hook 'hok1' - did you mean 'hook1'?"]


def test_hooks_know_the_documented_events() -> None:
    """The events are a contract with plugins: none goes without a new version."""
    promised = {
        "run_started", "metrics_logged", "images_ready", "checkpoint_saved", "run_finished",
        "cli_commands", "report_sections",
    }  # fmt: skip
    assert promised <= set(NAMES)


def test_run_info_writes_whole_files_inside_its_folder(tmp_path: Path) -> None:
    """Without an engine, `write` puts a file into the folder and leaves no other behind."""
    run = RunInfo(folder=tmp_path, name="a", images=1, batch=1)
    run.write("images/a.txt", "text")
    run.record({"nimg": 1})
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()] == [
        "images/a.txt"
    ]
