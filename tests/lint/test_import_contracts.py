"""The import contracts of pyproject.toml hold every package and do fail when they are broken."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
    "importlinter"
]
PLUGINS = sorted(
    path.name for path in ROOT.glob("plugins/*/src/*") if (path / "__init__.py").exists()
)
LINT = "from importlinter.cli import lint_imports_command as main; main()"
TORCH_FREE = ("cli", "discovery", "errors", "hooks.specs", "recipe", "settings")

# What breaks each contract: file to append to, line to append.
VIOLATIONS = {
    "Core: imports point down": ("advdiff_core/math/norms.py", "import advdiff_core.types"),
    "Core: components use public modules alone": (
        "advdiff_core/backbones/unet.py", "import advdiff_core.step.plan",
    ),
    "Core: settings, recipes and discovery know no torch": (
        "advdiff_core/errors.py", "import torch",
    ),
    "Core: nothing imports the test helpers": (
        "advdiff_core/draws.py", "import advdiff_core.testing",
    ),
    "Core: knows no plugin": ("advdiff_core/draws.py", "import {first}"),
    "Plugins: public modules of the core alone": (
        "{first}/__init__.py", "import advdiff_core.step.plan",
    ),
    "Plugins: do not know each other": ("{first}/__init__.py", "import {last}"),
}  # fmt: skip


def lint(folder: Path) -> str:
    """Output of lint-imports over the packages in `folder`."""
    done = subprocess.run(
        [sys.executable, "-c", LINT, "--no-cache", "--config", str(folder / "pyproject.toml")],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


def test_every_plugin_is_under_contract() -> None:
    """A plugin package is a root package, under the plugin contract, and independent."""
    contracts = {contract["name"]: contract for contract in CONFIG["contracts"]}
    assert sorted(CONFIG["root_packages"]) == sorted(["advdiff_core", *PLUGINS])
    assert sorted(contracts["Core: knows no plugin"]["forbidden_modules"]) == PLUGINS
    assert (
        sorted(contracts["Plugins: public modules of the core alone"]["source_modules"]) == PLUGINS
    )
    assert sorted(contracts["Plugins: do not know each other"]["modules"]) == PLUGINS


def test_every_contract_fails_on_a_planted_violation(tmp_path: Path) -> None:
    """Each contract is broken by the import it forbids."""
    assert {contract["name"] for contract in CONFIG["contracts"]} == set(VIOLATIONS)
    ignore = shutil.ignore_patterns("__pycache__")
    for package in (ROOT / "advdiff_core", *ROOT.glob("plugins/*/src/advdiff_*")):
        if (package / "__init__.py").exists():
            shutil.copytree(package, tmp_path / package.name, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    names = {"first": PLUGINS[0], "last": PLUGINS[-1]}
    for file, line in VIOLATIONS.values():
        with (tmp_path / file.format(**names)).open("a", encoding="utf-8") as stream:
            stream.write("\n" + line.format(**names) + "\n")
    output = lint(tmp_path)
    kept = [name for name in VIOLATIONS if f"{name} BROKEN" not in output]
    assert kept == [], output


def test_listing_and_checking_load_no_torch() -> None:
    """Command line, discovery and recipes import neither torch nor a plugin, not even in turn."""
    imports = "\n".join(f"import advdiff_core.{name}" for name in TORCH_FREE)
    script = f"{imports}\nimport sys\nprint(*(name.split('.')[0] for name in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert not {"torch", "sklearn", *PLUGINS} & set(done.stdout.split())
