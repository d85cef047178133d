"""The worked example of a stranger's plugin: built, installed, found, tested, used, uninstalled."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from helpers_venv import Environment, copy_source

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.parent for path in ROOT.glob("examples/third_party/*/pyproject.toml"))
SHORT = (
    "-s", "run.images=64", "-s", "run.batch=32", "-s", "run.log_every=32", "-s", "run.device=cpu",
    "-s", "models.student.channels=8", "-s", "sample.images=4", "-s", "sample.steps=2",
    "-s", "evaluate.num=16",
)  # fmt: skip

pytestmark = pytest.mark.skipif(not EXAMPLES, reason="the examples are not in this checkout")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder outside the repository."""
    return tmp_path_factory.mktemp("stranger")


@pytest.fixture(scope="module")
def wheel(home: Path) -> Path:
    """The example built as a wheel, from a copy, without network and build isolation."""
    source = copy_source(EXAMPLES[0], home / "source")
    builder = Environment.make(home / "builder")
    done = builder.run("pip", "wheel", "--wheel-dir", home / "wheels", source, cwd=home)
    assert done.returncode == 0, done.stdout
    (built,) = (home / "wheels").iterdir()
    return built


@pytest.fixture(scope="module")
def environment(home: Path, wheel: Path) -> Environment:
    """An environment that the wheel is installed in."""
    made = Environment.make(home / "clean")
    assert "advdiff-spectral" not in plugins(made, home)
    done = made.run("pip", "install", wheel, cwd=home)
    assert done.returncode == 0, done.stdout
    return made


def plugins(environment: Environment, cwd: Path) -> dict[str, list[str]]:
    """Names of components by distribution, as `advdiff plugins` lists them."""
    done = environment.run("advdiff", "plugins", "--json", cwd=cwd)
    found: dict[str, list[str]] = {}
    for entry in json.loads(done.stdout.strip().splitlines()[-1]):
        found.setdefault(entry["distribution"], []).append(entry["name"])
    return found


def result(done: Any) -> Any:
    """The object on the last line of a command that went well."""
    assert done.returncode == 0, done.stdout
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_the_wheel_holds_what_a_plugin_needs(wheel: Path) -> None:
    """Code, types, recipe and licence; no tests; one requirement, the core."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read("advdiff_spectral-0.1.0.dist-info/METADATA").decode()
    package = {name.partition("/")[2] for name in names if name.startswith("advdiff_spectral/")}
    assert package == {
        "__init__.py", "fourier.py", "perturbations.py", "py.typed", "recipes/digits.toml"
    }  # fmt: skip
    assert "advdiff_spectral-0.1.0.dist-info/licenses/LICENSE" in names
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist")]
    assert [line for line in required if "extra ==" not in line] == [
        "Requires-Dist: advdiff-core>=0.1"
    ]


def test_its_own_tests_pass_where_it_is_installed(environment: Environment, home: Path) -> None:
    """The laws of perturbations among them."""
    tests = copy_source(EXAMPLES[0] / "tests", home / "tests")
    command = ("python", "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider")
    done = environment.run(*command, "--advdiff-examples", "4", tests, cwd=home)
    assert done.returncode == 0, done.stdout[-3000:]


def test_a_recipe_of_three_distributions_trains_until_one_is_gone(
    environment: Environment, home: Path
) -> None:
    """Found, planned, trained; uninstalled, recipe and lock say in one line what to install."""
    assert plugins(environment, home)["advdiff-spectral"] == ["spectral-fgsm"]
    environment.run("advdiff", "new", "advdiff-spectral:digits", "mine.toml", cwd=home)
    roles = result(environment.run("advdiff", "plan", "mine.toml", "--json", cwd=home))["roles"]
    assert (roles["student"]["forwards"], roles["student"]["input_backwards"]) == (3, 1)

    trained = result(environment.run("advdiff", "train", "mine.toml", *SHORT, "--json", cwd=home))
    assert trained["nimg"] == 64
    lines = (home / trained["run"] / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["loss/equivariance"] > 0

    gone = environment.run("pip", "uninstall", "--yes", "advdiff-spectral", cwd=home)
    assert gone.returncode == 0, gone.stdout
    assert "advdiff-spectral" not in plugins(environment, home)
    for recipe, wanted in (
        ("mine.toml", "'advdiff-spectral' is no installed distribution: pip install"),
        (f"{trained['run']}/recipe.lock.toml", "pip install advdiff-spectral==0.1.0, which"),
    ):
        done = environment.run("advdiff", "train", recipe, cwd=home)
        (line,) = done.stdout.strip().splitlines()
        assert (done.returncode, line.startswith("advdiff: error[R11] ")) == (2, True), line
        assert "perturb.use: no installed distribution offers a perturbation" in line
        assert wanted in line
