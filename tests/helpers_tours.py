"""Runs the blocks of a page in order, in a folder of its own and an environment of its own."""

from __future__ import annotations

import fnmatch
import itertools
import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from helpers_pages import ROOT, SHELL, Block, Command, commands_of, shows
from helpers_venv import Environment, copy_source

#: Added to every `advdiff train`: the same code, on few images.
SHORT_RUN = ("run.images=32", "run.batch=16", "run.log_every=16", "run.device=cpu")
SHORT_SAMPLE = ("sample.images=4", "sample.steps=2", "evaluate.num=16")
#: A run that goes on does so by one batch; its other keys are frozen.
SHORT_RESUME = ("run.images=48",)
#: Read by pytest: laws are tried on one witness, without the one that starts a process each time.
PYTEST = {"PYTEST_ADDOPTS": "-q -p no:cacheprovider --advdiff-examples 1 -k 'not import-is-clean'"}

#: Verbs that may run in a fork; others start processes of their own.
FORKED = {
    "check", "plan", "explain", "plugins", "new", "train", "evaluate", "sample", "show", "report"
}  # fmt: skip

#: What a fragment of a recipe is laid over before it is checked.
BASE = """\
[data]
use = "digits"
[models.student]
use = "unet"
[views.adv]
from = "clean"
perturb = { use = "ray-fgsm" }
[terms.denoise]
use = "denoise"
"""
TABLES = {
    "advdiff", "extends", "run", "data", "schedule", "models", "views", "terms", "players",
    "sample", "validate", "evaluate", "hooks",
}  # fmt: skip


@cache
def not_run() -> dict[str, str]:
    """Commands that are not run, as patterns, with the reasons."""
    path = ROOT / "tests" / "docs" / "not_run.toml"
    listed = tomllib.loads(path.read_text(encoding="utf-8"))["command"]
    return {entry["line"]: entry["reason"] for entry in listed}


def left_out(command: Command) -> str | None:
    """The pattern of `not_run.toml` that a command matches."""
    return next((line for line in not_run() if fnmatch.fnmatchcase(command.text, line)), None)


class Server:
    """The process that runs command lines; see `docs/server.py`."""

    def __init__(self) -> None:
        script = ROOT / "tests" / "docs" / "server.py"
        self.process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip

    def run(self, argv: Sequence[str], *, cwd: Path, environment: Environment) -> tuple[int, str]:
        """Exit code and output of a command line."""
        out = environment.folder / "output"
        out.write_text("")
        job = {
            "argv": list(argv), "cwd": str(cwd), "out": str(out),
            "packages": [str(environment.packages)], "env": {**environment.variables(), **PYTEST},
        }  # fmt: skip
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the server has ended"
        return int(answer), out.read_text(encoding="utf-8", errors="replace")

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.process.stdout.close()


class Tour:
    """One page on its way.

    Args:
        page: The page.
        folder: An empty folder.
        server: Runs command lines.
    """

    def __init__(self, page: Path, folder: Path, server: Server) -> None:
        self.server = server
        self.environment = Environment.make(folder / "environment")
        self.cwd = folder / "work"
        self.numbers = itertools.count()
        if (page.parent / "pyproject.toml").exists() and "third_party" in page.parts:
            copy_source(page.parent, self.cwd)
            return
        self.cwd.mkdir()
        # Pages name files from the repository's root.
        for name in ("README.md", "advdiff_core", "docs", "examples", "plugins", "tests"):
            (self.cwd / name).symlink_to(ROOT / name)

    def run(self, block: Block) -> None:
        """Do what a block says; an AssertionError says what went wrong."""
        if "skip" in block.notes:
            return
        if "file" in block.notes:
            path = self.cwd / block.notes["file"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        if block.language in SHELL:
            self._console(block)
        elif block.language == "toml":
            self._toml(block)
        elif block.language == "python" and "file" not in block.notes:
            self._python(block)

    def _console(self, block: Block) -> None:
        commands = [one for one in commands_of(block) if left_out(one) is None]
        for command in commands:
            wanted = int(block.notes.get("fails", 0)) if command is commands[-1] else 0
            code, output = self.command(command)
            assert code == wanted, f"{block.where}: {command.text}\nexit {code}\n{output}"
            told = f"{block.where}: {command.text}\nprints\n{output}"
            assert shows(command.shown, output), told

    def command(self, command: Command) -> tuple[int, str]:
        """Exit code and output of a command, shortened where it trains."""
        words = command.words
        if words == ["source", ".venv/bin/activate"]:
            return 0, ""
        if words[0] == "cd":
            self.cwd = (self.cwd / words[1]).resolve()
            return (0, "") if self.cwd.is_dir() else (1, f"no folder {self.cwd}")
        if words[0] == "advdiff" and (words[1] in FORKED or words[1].startswith("-")):
            return self._advdiff(words[1:])
        script = words[0] == "python" and words[1].endswith(".py")
        if script or words[:3] == ["python", "-m", "pytest"]:
            return self._server(words)
        done = self.environment.run("bash", "-c", command.text, cwd=self.cwd, extra=PYTEST)
        return done.returncode, done.stdout

    def _advdiff(self, words: list[str]) -> tuple[int, str]:
        return self._server(["advdiff", *words, *self._shortened(words)])

    def _shortened(self, words: list[str]) -> list[str]:
        if words[0] != "train" or "--help" in words:
            return []
        if "--resume" in words:
            return _set(SHORT_RESUME)
        # A classifier's recipe draws no samples and refuses to be told how.
        whole, less = (_set(keys) for keys in ((*SHORT_RUN, *SHORT_SAMPLE), SHORT_RUN))
        recipe = ["advdiff", "check", words[1], *_overrides(words)]
        return whole if self._server([*recipe, *whole])[0] == 0 else less

    def _server(self, words: Sequence[str]) -> tuple[int, str]:
        return self.server.run(words, cwd=self.cwd, environment=self.environment)

    def _toml(self, block: Block) -> None:
        """Check a recipe, whole or laid over a least one; other tables only have to parse."""
        tables = tomllib.loads(block.text)
        if not tables or not set(tables) <= TABLES or "project" in tables:
            return
        whole = {"data", "models"} <= set(tables) or "extends" in tables
        name = block.notes.get("file", f"block-{next(self.numbers)}.toml")
        if not whole:
            (self.cwd / "page-base.toml").write_text(BASE)
            (self.cwd / name).write_text(f'extends = "page-base.toml"\n{block.text}')
        elif "file" not in block.notes:
            (self.cwd / name).write_text(block.text)
        code, output = self._server(["advdiff", "check", name])
        assert code == 0, f"{block.where}: advdiff check\n{output}"

    def _python(self, block: Block) -> None:
        name = f"block_{next(self.numbers)}.py"
        (self.cwd / name).write_text(block.text, encoding="utf-8")
        code, output = self._server(["python", name])
        assert code == 0, f"{block.where}\n{output}"


def _set(keys: Sequence[str]) -> list[str]:
    return [word for key in keys for word in ("-s", key)]


def _overrides(words: Sequence[str]) -> list[str]:
    pairs = itertools.pairwise(words)
    return _set([value for option, value in pairs if option in ("-s", "--set")])


def clear(folder: Path) -> None:
    """Remove what a page left: runs of many pages would fill a disk."""
    shutil.rmtree(folder, ignore_errors=True)
