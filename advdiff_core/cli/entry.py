"""Runs a command line and turns whatever happens into one line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress

import click
from click import shell_completion

from advdiff_core.cli.app import PROGRAM, Site, app
from advdiff_core.engine.launched import deliver, follow_parent, is_launched
from advdiff_core.errors import (
    AdvdiffError,
    Interrupted,
    LostPeerError,
    PluginError,
    StorageError,
    UnsoundError,
    UsageError,
    one_line,
)
from advdiff_core.hooks.terminal import cause_of, say, shown

__all__ = ["main"]

BUG = 70
#: As shells report a process ended by SIGINT.
INTERRUPTED = 130


def main(args: Sequence[str] | None = None) -> int:
    """Run `advdiff` with these arguments; returns the exit code and never raises.

    Args:
        args: Arguments without the program's name; `sys.argv[1:]` if None.
    """
    _prepare_streams()
    follow_parent()
    site = Site(args=tuple(sys.argv[1:] if args is None else args))
    try:
        code = _run(list(site.args), site)
        _flush()
    except BrokenPipeError:
        # The reader has all it wanted; the work is done.
        _forget_stdout()
        return 0
    except BaseException as error:
        _forget_unwritten()
        return _explain(error, site)
    return code


def _run(args: list[str], site: Site) -> int:
    instruction = os.environ.get("_ADVDIFF_COMPLETE")
    if instruction:
        return shell_completion.shell_complete(app, {}, PROGRAM, "_ADVDIFF_COMPLETE", instruction)
    with app.make_context(PROGRAM, args, obj=site) as context:
        app.invoke(context)
    return 0


def _explain(error: BaseException, site: Site) -> int:
    """Print what happened; returns the exit code."""
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, KeyboardInterrupt | click.Abort):
        say("advdiff: interrupted")
        return INTERRUPTED
    if isinstance(error, click.ClickException):
        error = _usage(error)
    elif isinstance(error, OSError):
        error = _storage(error)
    return _explain_known(error, site) if isinstance(error, AdvdiffError) else _bug(error, site)


def _explain_known(error: AdvdiffError, site: Site) -> int:
    lines = error.lines()
    if isinstance(error, Interrupted):
        # Stopping on request is no error; the line says how to go on.
        lines = [line.replace("advdiff: error ", "advdiff: ", 1) for line in lines]
    if isinstance(error, PluginError | UnsoundError) and error.__cause__ is not None:
        lines.append(_crash_log(error, site))
    if isinstance(error, LostPeerError) and error.run and not is_launched():
        # A launcher of ours says so for all; another one knows nothing of checkpoints.
        lines.append(f"advdiff: go on with: {PROGRAM} train --resume {shown(error.run)}")
        return _say(lines, Interrupted.exit_code, error)
    return _say(lines, error.exit_code, error)


def _say(lines: list[str], code: int, error: BaseException) -> int:
    """Say it, or leave that to the launcher, which speaks for all processes of a run."""
    if not deliver(lines, code, error):
        for line in lines:
            say(line)
    return code


def _bug(error: BaseException, site: Site) -> int:
    message = f"this is a bug in advdiff: {cause_of(error)}"
    line = one_line(message, code=str(BUG), fix="please report it with this file:")
    return _say([line, _crash_log(error, site)], BUG, error)


def _crash_log(error: BaseException, site: Site) -> str:
    from advdiff_core.cli.crash import write_crash_log

    return shown(write_crash_log(error, site.folder))


def _usage(error: click.ClickException) -> UsageError:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else PROGRAM
    near = getattr(error, "possibilities", None)
    hint = f"did you mean {near[0]}? " if near else ""
    plain = error.message if near is not None else error.format_message()
    message = " ".join(plain.split()).rstrip(".")
    message = message[:1].lower() + message[1:]
    where = "" if path == PROGRAM else path
    return UsageError(message, where=where, fix=f"{hint}see '{path} --help'")


def _storage(error: OSError) -> StorageError:
    return StorageError(
        error.strerror or str(error),
        where=str(error.filename or ""),
        fix="check that the path exists, is writable and has space",
    )


def _prepare_streams() -> None:
    """Make stdin, stdout and stderr safe to write to, whatever the caller closed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # Or the next file opened takes this number, and prints end up inside it.
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def _forget_unwritten() -> None:
    """Flush what can be flushed, so that the interpreter does not complain at its end."""
    try:
        _flush()
    except (OSError, ValueError):
        _forget_stdout()


def _forget_stdout() -> None:
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
