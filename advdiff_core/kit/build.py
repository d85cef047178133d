"""A plugin as its users get it: its wheel, built without network and unpacked into a folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from attrs import field, frozen

from advdiff_core.errors import DataError, escape
from advdiff_core.kit.project import Project

__all__ = ["Built", "build"]

#: Folders of a project that are not part of it.
LEFT_OUT = (".git", ".venv", "venv", "runs", "build", "dist", ".mypy_cache", ".tox", ".nox")


@frozen(kw_only=True)
class Built:
    """An installed plugin.

    Attributes:
        project: Where it comes from.
        path: Folder to put on Python's path; None if the environment has it already.
        info: Its metadata.
        files: What the wheel holds, as paths with slashes, `*.dist-info` left out.
        packages: Top-level packages and modules by name: where their sources are.
    """

    project: Project
    path: Path | None
    info: metadata.Distribution
    files: tuple[str, ...]
    packages: dict[str, Path] = field(factory=dict)

    @property
    def version(self) -> str:
        """Its version."""
        return self.info.version

    def sources(self) -> list[Path]:
        """Every Python file of its packages, sorted."""
        found = []
        for place in self.packages.values():
            found += sorted(place.rglob("*.py")) if place.is_dir() else [place]
        return found

    def shown(self, path: Path) -> str:
        """A source file as an author names it."""
        folder = self.project.folder
        inside = folder is not None and path.is_relative_to(folder)
        return str(path.relative_to(folder)) if inside and folder is not None else str(path)


def build(project: Project, scratch: Path) -> Built:
    """Build and unpack a plugin, or find it where it is installed.

    Args:
        project: The plugin.
        scratch: Folder to build in.

    Raises:
        DataError: If the build fails.
    """
    if project.folder is None:
        info = metadata.distribution(project.name)
        files = _files(str(path) for path in info.files or ())
        base = Path(str(info.locate_file("")))
        return _built(project, None, info, files, base)
    wheel, target = _wheel(project.folder, scratch), scratch / "installed"
    with zipfile.ZipFile(wheel) as archive:
        files = _files(archive.namelist())
        archive.extractall(target)
    info = next(iter(metadata.distributions(path=[str(target)])))
    return _built(project, target, info, files, target)


def _files(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(n for n in names if ".dist-info/" not in n and not n.startswith("..")))


def _built(
    project: Project,
    path: Path | None,
    info: metadata.Distribution,
    files: tuple[str, ...],
    base: Path,
) -> Built:
    names = dict.fromkeys(file.partition("/")[0] for file in files if file.endswith(".py"))
    packages = {name.removesuffix(".py"): _source(project, name, base) for name in names}
    return Built(project=project, path=path, info=info, files=files, packages=packages)


def _source(project: Project, name: str, base: Path) -> Path:
    """Where a top-level package or module is kept by its author; else where it is installed."""
    if project.folder is not None:
        for place in (project.folder / "src" / name, project.folder / name):
            if place.exists():
                return place
    return base / name


def _wheel(folder: Path, scratch: Path) -> Path:
    # A copy: some backends leave files of their own beside the sources.
    copy, out = scratch / "source", scratch / "wheel"
    shutil.copytree(folder, copy, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
    done = subprocess.run(
        [
            sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps",
            "--no-build-isolation", "--no-index", "--wheel-dir", str(out), str(copy),
        ],
        capture_output=True, text=True, check=False, cwd=scratch,
    )  # fmt: skip
    wheels = sorted(out.glob("*.whl")) if done.returncode == 0 else []
    if len(wheels) != 1:
        said = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        message = f"its wheel cannot be built: {escape(_cause(said))}"
        fix = f"see: pip wheel --no-deps --no-build-isolation {folder}"
        raise DataError(message, where=str(folder / "pyproject.toml"), fix=fix)
    return wheels[0]


def _cause(said: list[str]) -> str:
    """The line of pip's output that says most: the last exception, else the last error."""
    for mark in ("Error: ", "ModuleNotFoundError", "error: ", "ERROR: "):
        told = [line for line in said if mark in line and "subprocess-exited" not in line]
        if told:
            return told[-1]
    return said[-1] if said else "pip said nothing"
