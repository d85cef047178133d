"""Environments of their own that borrow the big packages, made in a moment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import venv
from collections.abc import Mapping
from pathlib import Path

from attrs import frozen


@frozen
class Environment:
    """A virtual environment that sees everything installed where the tests run.

    What is installed into it lies in it alone, and can be uninstalled again. pip finds no network.

    Attributes:
        folder: Where it lies.
    """

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Environment:
        """Make one; a line in a `.pth` file lends it the packages of this interpreter."""
        venv.EnvBuilder(with_pip=False, symlinks=os.name != "nt").create(folder)
        made = cls(folder)
        lent = sysconfig.get_paths()["purelib"]
        (made.packages / "lent.pth").write_text(f"import site; site.addsitedir({lent!r})\n")
        # Scripts of lent packages name the interpreter they were installed for.
        made._script("advdiff", "import sys; from advdiff_core.cli import main; sys.exit(main())")
        made._script("pip", "import sys; from pip import main; sys.exit(main())")
        return made

    @property
    def packages(self) -> Path:
        """Where distributions are installed to."""
        return next(self.folder.glob("lib/python*/site-packages"))

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    def variables(self) -> dict[str, str]:
        """Environment variables of a shell in which it is active and there is no network."""
        dropped = {"PYTHONPATH", "PYTHONHOME", "ADVDIFF_PLUGINS"}
        return {
            **{key: value for key, value in os.environ.items() if key not in dropped},
            "VIRTUAL_ENV": str(self.folder),
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "100",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_NO_INDEX": "1",
            # pip reads this variable the wrong way round: 0 is `--no-build-isolation`.
            "PIP_NO_BUILD_ISOLATION": "0",
            "PIP_NO_DEPS": "1",
            "PIP_QUIET": "1",
        }

    def run(
        self, *words: str | Path, cwd: Path, extra: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in it, stdout and stderr together."""
        return subprocess.run(
            list(map(str, words)), cwd=cwd, env={**self.variables(), **(extra or {})},
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip

    def _script(self, name: str, code: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(f"#!{self.python}\n{code}\n")
        path.chmod(0o755)


def copy_source(source: Path, target: Path) -> Path:
    """A copy of a project folder without what building and testing left there."""
    ignored = shutil.ignore_patterns("__pycache__", ".pytest_cache", ".hypothesis", "dist", "build")
    return Path(shutil.copytree(source, target, ignore=ignored))
