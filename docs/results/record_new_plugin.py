"""Record a plugin's first minutes: `python docs/results/record_new_plugin.py PAGE.md`.

Types the commands of COMMANDS in an empty folder, edits the one file in between, and writes what
was said and how long it took as a page. A test types the same commands with a shorter run.

Everything happens in an environment of its own that sees what is installed here, so that the new
plugin is installed nowhere else; nothing is fetched.
"""

from __future__ import annotations

import difflib
import os
import platform
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from pathlib import Path

from attrs import frozen

#: What a newcomer types. "EDIT" is when the one file is edited.
COMMANDS = (
    "advdiff new-plugin advdiff-mine --kind perturbation",
    "cd advdiff-mine",
    "pip install -e '.[test]'",
    "EDIT",
    "python -m pytest -q",
    "advdiff check-plugin .",
    "advdiff train src/advdiff_mine/recipes/mine.toml",
)
#: The edit: two steps instead of one, the second from where the first one ended.
FILE = "src/advdiff_mine/perturbations.py"
EDITS = (
    (
        '        """One probe, and one backward towards the input."""\n'
        "        return SearchCost(1, 1)\n",
        '        """One probe, and one backward towards the input, per step."""\n'
        "        return SearchCost(STEPS, STEPS)\n",
    ),
    ('__all__ = ["GapStep"]\n', '__all__ = ["GapStep"]\n\nSTEPS = 2\n'),
    (
        '        """One step of the size of the radius; see `Perturbation.search`."""\n',
        '        """Steps of half the radius; see `Perturbation.search`."""\n',
    ),
    (
        "        start = (self.settings.start * radius * inside).to(noised.x_t)\n"
        "        delta = start.requires_grad_()\n"
        "        gap = probe.at(delta).get(query) - probe.step.get(query)\n"
        "        # Summed over a sample, never averaged over the batch: samples do not know each "
        "other.\n"
        "        gradient = probe.gradient(gap.square().flatten(1).sum(1), delta)\n"
        "        return start.detach() + radius * norms.steepest_ascent(gradient, budget.norm)\n",
        "        delta = (self.settings.start * radius * inside).to(noised.x_t)\n"
        "        for _ in range(STEPS):\n"
        "            delta = delta.detach().requires_grad_()\n"
        "            gap = probe.at(delta).get(query) - probe.step.get(query)\n"
        "            # Summed over a sample: samples do not know each other.\n"
        "            gradient = probe.gradient(gap.square().flatten(1).sum(1), delta)\n"
        "            ahead = radius / STEPS * norms.steepest_ascent(gradient, budget.norm)\n"
        "            delta = delta.detach() + ahead\n"
        "        return delta\n",
    ),
)

#: For the tests of the pages, which would run this page without its edit.
NOTE = "<!-- test: skip=tests/kit/test_first_minutes.py types the same commands -->"
#: Where packages lie is no part of what was said.
HERE = re.compile(r"\S*(?=site-packages/)")


@frozen
class Typed:
    """A command and what came of it.

    Attributes:
        command: What was typed; "EDIT" for the edit.
        code: Exit code.
        text: What was said, both streams together, without the lines that come and go.
        seconds: How long it took.
    """

    command: str
    code: int
    text: str
    seconds: float


def environment(folder: Path) -> dict[str, str]:
    """A new virtual environment that sees the packages of this one; its variables.

    Args:
        folder: Where it is made.
    """
    venv.create(folder, symlinks=True)
    code = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    target = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    (target / "packages_of_the_outer_environment.pth").write_text(code)
    for name, module in (("advdiff", "advdiff_core"), ("pip", "pip")):
        script = folder / "bin" / name
        script.write_text(f'#!/bin/sh\nexec "{folder}/bin/python" -m {module} "$@"\n')
        script.chmod(0o755)
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith("PYTHON")},
        "PATH": os.pathsep.join([str(folder / "bin"), os.environ["PATH"]]),
        # Nothing is fetched: what a plugin needs is installed already.
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_QUIET": "1",
        "COLUMNS": "100",
    }


def run(folder: Path, more: str = "") -> list[Typed]:
    """Type all commands in an empty folder; stops at the first that fails.

    Args:
        folder: The folder.
        more: Options that are added to the training run.
    """
    typed, place, variables = [], folder, environment(folder / ".venv")
    for command in COMMANDS:
        begin = time.monotonic()
        if command == "EDIT":
            code, text = 0, edit(place / FILE)
        elif command.startswith("cd "):
            code, text, place = 0, "", place / command.removeprefix("cd ")
        else:
            line = f"{command} {more}" if command.startswith("advdiff train") else command
            done = subprocess.run(
                ["bash", "-c", line], cwd=place, env=variables, text=True, check=False,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            code, text = done.returncode, done.stdout
        typed.append(Typed(command, code, text, time.monotonic() - begin))
        if code:
            break
    return typed


def edit(file: Path) -> str:
    """Make the edit; what changed, as a difference."""
    before = file.read_text()
    after = before
    for old, new in EDITS:
        assert after.count(old) == 1, f"the template has changed: {old}"
        after = after.replace(old, new)
    file.write_text(after)
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm="")
    return "\n".join(line for line in lines if not line.startswith(("---", "+++", "@@")))


def page(typed: list[Typed]) -> str:
    """The page of a recorded session."""
    count = sum(one.command != "EDIT" for one in typed)
    whole = sum(one.seconds for one in typed)
    lines = [
        "# new plugin transcript",
        "",
        "Written by `docs/results/record_new_plugin.py`, which typed this in an empty folder: a",
        "new plugin, an edit of one file, its laws and a training run. What it needs was installed",
        f"before. {count} commands, {whole:.0f} seconds on {platform.machine()} with"
        f" {os.environ.get('OMP_NUM_THREADS', 'all')} threads, Python {platform.python_version()}.",
        "",
    ]
    for one in typed:
        took = [f"{one.seconds:.0f} s.", ""] if one.seconds >= 1 else []
        if one.command == "EDIT":
            lines += [f"Edit `{FILE}`:", "", "```diff", one.text, "```", ""]
        else:
            said = [HERE.sub("", line.rstrip()) for line in one.text.strip().splitlines()]
            lines += [NOTE, "```console", f"$ {one.command}", *said, "```", "", *took]
    return "\n".join(lines)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        session = run(Path(scratch))
    Path(sys.argv[1]).write_text(page(session))
    sys.exit(session[-1].code)
