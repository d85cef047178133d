"""A stranger's plugin: one file, one entry point, pip-installed, listed, used, removed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli

from advdiff_core.recipe import check_recipe, load_recipe, lock_text

PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "stranger-attack"
version = "0.3.1"
dependencies = ["advdiff-core"]

[project.entry-points."advdiff.v1.loss_term"]
cube = "stranger_attack:Cube"

[tool.hatch.build.targets.wheel]
only-include = ["stranger_attack.py"]
"""

MODULE = '''\
"""The whole plugin."""

from torch import Tensor

from advdiff_core import Build, EpsHat, LossTerm, Step, View, setting, settings


class Cube(LossTerm):
    """Cubed error of the noise."""

    @settings
    class Settings:
        """Keys of `use = "cube"`."""

        role: str = setting("student", ref="role", help="denoiser that is trained")
        power: float = setting(3.0, gt=0.0, le=8.0, help="exponent")

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        self.hat, self.noised = EpsHat(settings.role, "clean"), View("clean")
        self.needs = (self.hat, self.noised)

    def forward(self, step: Step) -> Tensor:
        """The loss of each sample [B]."""
        error = step.get(self.hat) - step.get(self.noised).eps
        return error.abs().pow(self.settings.power).flatten(1).mean(1)
'''

RECIPE = """\
[data]
use = "two-moons"
[models.student]
use = "mlp"
[terms.cube]
use = "cube"
power = {power}
"""


def run(*command: str | Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command with a folder in front of Python's path."""
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    if path is not None:
        environ["PYTHONPATH"] = str(path)
    return subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, env=environ,
        check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that pip has installed the plugin into."""
    source = tmp_path_factory.mktemp("stranger")
    (source / "pyproject.toml").write_text(PROJECT)
    (source / "stranger_attack.py").write_text(MODULE)
    folder = tmp_path_factory.mktemp("installed")
    done = run(
        "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
        "--target", folder, source,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def cli(target: Path | None, *arguments: str | Path) -> tuple[int, Any]:
    """Exit code of `advdiff` and the object on its last line."""
    done = run("-m", "advdiff_core", *arguments, "--json", path=target)
    assert "Traceback" not in done.stderr
    return done.returncode, json.loads(done.stdout.strip().split("\n")[-1])


def offered(target: Path) -> list[tuple[str, str, str]]:
    """What `advdiff plugins` lists under the plugin's name."""
    listed = cli(target, "plugins")[1]
    return [(e["kind"], e["distribution"], e["version"]) for e in listed if e["name"] == "cube"]


def test_a_strangers_plugin_is_found_listed_used_and_removed(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """One file and one entry point are a plugin: nothing to register, no trace after removal."""
    assert offered(target) == [("loss_term", "stranger-attack", "0.3.1")]

    recipe = tmp_path / "r.toml"
    with monkeypatch.context() as patch:
        patch.syspath_prepend(target)
        recipe.write_text(RECIPE.format(power=2.5))
        spec = load_recipe(recipe).terms["cube"].spec
        assert (spec.settings.power, spec.distribution) == (2.5, "stranger-attack")
        assert spec.component.__module__ == "stranger_attack"
        lock = tomli.loads(lock_text(load_recipe(recipe)))["lock"]
        assert lock["plugins"]["stranger-attack"] == "0.3.1"

        recipe.write_text(RECIPE.format(power=99))
        (fault,) = check_recipe(recipe)
        assert (fault.code, fault.line) == ("R08", 7)
        assert (fault.key, fault.plugin) == ("terms.cube.power", "stranger-attack")
    sys.modules.pop("stranger_attack", None)

    for path in target.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert offered(target) == []
    (fault,) = check_recipe(recipe)
    assert (fault.code, fault.key) == ("R11", "terms.cube.use")
    assert "install the distribution that offers it" in fault.fix
