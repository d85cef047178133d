"""Whatever becomes of the streams and signals around `advdiff`: one line, the right code."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers_dists import Site

import advdiff_core.cli.verbs.completion as victim
from advdiff_core.cli import environment, main
from advdiff_core.errors import DataError, Interrupted, NumericsError, StorageError

PYTHON = shlex.quote(sys.executable)
ADVDIFF = f"{PYTHON} -m advdiff_core"

RECIPE = """
advdiff = 1
[run]
images = 64
[data]
use = "two-moons"
[models.student]
use = "{net}"
[terms.denoise]
use = "denoise"
"""


def shell(command: str, folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash with only the core's components."""
    variables = {**os.environ, "ADVDIFF_PLUGINS": "", "OMP_NUM_THREADS": "1", **environ}
    variables.pop("PYTHONUNBUFFERED", None)
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True, text=True, check=False, cwd=folder, env=variables,
    )  # fmt: skip


@pytest.mark.parametrize(
    "command",
    ["explain recipe | head -1", "plugins --json | true", "plugins >&-", "--help >&-",
     "plugins >&- 2>&- <&-"],
)  # fmt: skip
def test_a_reader_that_leaves_is_no_failure(tmp_path: Path, command: str) -> None:
    """A closed pipe or stdout: exit code 0, no complaint (K07)."""
    done = shell(f"{ADVDIFF} {command}", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_full_disk_under_stdout_is_told(tmp_path: Path) -> None:
    """What could not be delivered is a storage failure, never a silent success."""
    done = shell(f"{ADVDIFF} plugins --json > /dev/full", tmp_path)
    assert done.returncode == 5
    assert done.stderr == (
        "advdiff: error No space left on device - "
        "check that the path exists, is writable and has space\n"
    )


def test_closed_streams_are_never_taken_by_other_files(tmp_path: Path) -> None:
    """Or what native code prints would end up inside a checkpoint."""
    script = (
        "import sys; from advdiff_core.cli import main; main(['--version']); "
        "sys.exit(open('x', 'w').fileno() <= 2)"
    )
    done = shell(f'{PYTHON} -c "{script}" <&- >&- 2>&-', tmp_path)
    assert done.returncode == 0


def test_a_verb_that_leaves_text_unwritten_is_flushed(site: Site, tmp_path: Path) -> None:
    """What a plugin's verb printed is either delivered or told of, before the exit code is."""
    code = """
import click
from advdiff_core.hooks.specs import hookimpl

class Hook:
    @hookimpl
    def cli_commands(self):
        return [click.Command("greet", callback=lambda: print("hello"))]
"""
    groups = {"advdiff.v1.hooks": {"greeter": "printing_hooks:Hook"}}
    site.dist("advdiff-greet", groups, modules={"printing_hooks": code})
    environ = {"PYTHONPATH": str(site.folder), "ADVDIFF_PLUGINS": "advdiff-greet"}
    done = shell(f"{ADVDIFF} greet > /dev/full", tmp_path, **environ)
    assert done.returncode == 5
    assert done.stderr.startswith("advdiff: error No space left on device")
    assert shell(f"{ADVDIFF} greet", tmp_path, **environ).stdout == "hello\n"


def test_a_closed_stderr_keeps_the_exit_code(tmp_path: Path) -> None:
    """The error cannot be printed; the code still tells."""
    assert shell(f"{ADVDIFF} plugns 2>&-", tmp_path).returncode == 2


def test_an_encoding_without_the_character_is_survived(tmp_path: Path) -> None:
    """A terminal that says it knows ASCII alone is no reason for a traceback (R17)."""
    (tmp_path / "a.toml").write_text("[run]\nname = '\u00e9'\n", encoding="utf-8")
    done = shell(f"{ADVDIFF} show a.toml", tmp_path, PYTHONIOENCODING="ascii", LC_ALL="C")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("[run]\nname = ")
    done = shell(f"{ADVDIFF} show '\u00e9.toml'", tmp_path, PYTHONIOENCODING="ascii", LC_ALL="C")
    assert done.returncode == 2
    assert done.stderr.startswith("advdiff: error[R01]")


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[BaseException], None]]:
    """Make `advdiff completion bash` raise something."""

    def use(error: BaseException) -> None:
        def fail(text: str) -> None:
            raise error

        monkeypatch.setattr(victim, "emit", fail)

    return use


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (DataError("is damaged", code="S01", where="a/b", fix="mend"), 4,
         "advdiff: error[S01] a/b: is damaged - mend"),
        (StorageError("the disk is full", code="S03"), 5, "advdiff: error[S03] the disk is full"),
        (NumericsError("loss is nan", code="N01"), 6, "advdiff: error[N01] loss is nan"),
        (Interrupted("stopped at 5", where="r", fix="go on with: x"), 75,
         "advdiff: r: stopped at 5 - go on with: x"),
        (PermissionError(13, "Permission denied", "/x"), 5,
         "advdiff: error /x: Permission denied - check that the path exists, is writable and has "
         "space"),
        (KeyboardInterrupt(), 130, "advdiff: interrupted"),
    ],
)  # fmt: skip
def test_every_error_has_its_code_and_one_line(
    broken: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str],
    error: BaseException, code: int, line: str,
) -> None:  # fmt: skip
    """The class of the error decides the code; nothing else is printed."""
    broken(error)
    assert main(["completion", "bash"]) == code
    assert capsys.readouterr() == ("", f"{line}\n")


def test_a_bug_leaves_its_traceback_in_a_file(
    broken: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Code 70, one line, and where the traceback is; none on the terminal."""
    broken(RuntimeError("oh \x1b[2J no"))
    assert main(["completion", "bash"]) == 70
    first, second = capsys.readouterr().err.splitlines()
    assert first == (
        "advdiff: error[70] this is a bug in advdiff: RuntimeError: oh \\x1b[2J no - "
        "please report it with this file:"
    )
    log = Path(second)
    assert "Traceback (most recent call last)" in log.read_text()
    assert log.stat().st_mode & 0o077 == 0
    log.unlink()


def test_a_crash_log_goes_into_the_run_folder(tmp_path: Path) -> None:
    """With a run, the traceback stays with it; a second one is added."""
    from advdiff_core.cli.crash import write_crash_log

    for number in range(2):
        assert write_crash_log(RuntimeError(f"no {number}"), tmp_path) == tmp_path / "crash.log"
    text = (tmp_path / "crash.log").read_text()
    assert "no 0" in text
    assert "no 1" in text
    unwritable = write_crash_log(RuntimeError("no"), tmp_path / "missing")
    assert isinstance(unwritable, Path)
    unwritable.unlink()


NET = """
import os, signal
{line}
"""


def plugin(site: Site, line: str) -> None:
    """Write a distribution whose only network runs a line when it is imported."""
    groups = {"advdiff.v1.backbone": {"odd-net": "odd_parts:Net"}}
    site.dist("advdiff-odd", groups, modules={"odd_parts": NET.format(line=line)})


def test_ctrl_c_before_the_first_step_leaves_nothing(site: Site, tmp_path: Path) -> None:
    """SIGINT while components are imported: 130, one line, no run folder (K03)."""
    plugin(site, "os.kill(os.getpid(), signal.SIGINT)")
    (tmp_path / "a.toml").write_text(RECIPE.format(net="odd-net"))
    done = shell(
        f"{ADVDIFF} train a.toml", tmp_path,
        PYTHONPATH=str(site.folder), ADVDIFF_PLUGINS="advdiff-odd",
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "advdiff: interrupted\n")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("line", "cause"),
    [("raise SystemExit(0)", "SystemExit: 0"), ("raise KeyboardInterrupt", "KeyboardInterrupt"),
     ("import no_such_module", "No module named 'no_such_module'"), ("(", "SyntaxError")],
)  # fmt: skip
def test_a_plugin_that_fails_to_import_is_named(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], line: str, cause: str,
) -> None:  # fmt: skip
    """Only the verb that needs it fails, with 3; listing it does not even import it (P02)."""
    plugin(site, line)
    monkeypatch.setenv("ADVDIFF_PLUGINS", "advdiff-odd")
    environment.catalogue.cache_clear()
    try:
        assert main(["plugins", "--kind", "backbone", "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)
        assert [row["error"] for row in rows if row["name"] == "odd-net"] == [None]
        assert main(["explain", "backbone", "odd-net"]) == 3
    finally:
        environment.catalogue.cache_clear()
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("advdiff: error[P02] backbone 'odd-net' of advdiff-odd 1.0 fails")
    assert cause in first
    log = Path(second)
    assert "odd_parts" in log.read_text()
    log.unlink()


def test_a_hook_that_fails_to_import_costs_a_warning(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Even one that raises KeyboardInterrupt: it is named and left out, the verb goes on."""
    groups = {"advdiff.v1.hooks": {"odd-hook": "odd_hooks:Hook"}}
    site.dist("advdiff-odd", groups, modules={"odd_hooks": "raise KeyboardInterrupt"})
    monkeypatch.setenv("ADVDIFF_PLUGINS", "advdiff-odd")
    environment.catalogue.cache_clear()
    try:
        assert main(["nosuchverb"]) == 2
    finally:
        environment.catalogue.cache_clear()
    warning, error = capsys.readouterr().err.splitlines()
    assert warning.startswith(
        "advdiff: warning: hook 'odd-hook' of advdiff-odd 1.0 fails to import: KeyboardInterrupt"
    )
    assert "no such command 'nosuchverb'" in error


def test_a_verb_may_come_from_a_plugin(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`cli_commands` of a listener answers a verb that is not advdiff's own."""
    code = """
import click
from advdiff_core.hooks.specs import hookimpl

class Hook:
    @hookimpl
    def cli_commands(self):
        return [click.Command("greet", callback=lambda: click.echo("hello"))]
"""
    groups = {"advdiff.v1.hooks": {"greeter": "greeting_hooks:Hook"}}
    site.dist("advdiff-greet", groups, modules={"greeting_hooks": code})
    monkeypatch.setenv("ADVDIFF_PLUGINS", "advdiff-greet")
    environment.catalogue.cache_clear()
    try:
        assert main(["greet"]) == 0
    finally:
        environment.catalogue.cache_clear()
    assert capsys.readouterr().out == "hello\n"
