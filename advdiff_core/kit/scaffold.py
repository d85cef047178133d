"""A new plugin: a whole distribution from templates, written all at once or not at all."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jinja2
from attrs import frozen

import advdiff_core
from advdiff_core.discovery.kinds import HOOKS, group_of
from advdiff_core.errors import StorageError, UsageError, escape
from advdiff_core.kit.naming import Names

__all__ = ["LICENCES", "PARTS", "Licence", "components_of", "render", "write"]


@frozen(kw_only=True)
class Part:
    """What a kind adds to a plugin.

    Attributes:
        module: Module of its class, without package; its test is `test_<module>.py`.
        cls: Its class, named after what the example does.
    """

    module: str
    cls: str


#: What is made for each kind.
PARTS: Mapping[str, Part] = MappingProxyType({
    "alignment_target": Part(module="targets", cls="FourierFeatures"),
    "attack": Part(module="attacks", cls="GradientClimb"),
    "augmentation": Part(module="augmentations", cls="Jitter"),
    "backbone": Part(module="backbones", cls="ResidualMLP"),
    "corruption": Part(module="corruptions", cls="Speckle"),
    "dataset": Part(module="datasets", cls="TwoCircles"),
    "discriminator": Part(module="discriminators", cls="SmoothCritic"),
    "loss_term": Part(module="terms", cls="PseudoHuber"),
    "metric": Part(module="metrics", cls="EnergyDistance"),
    "noise_schedule": Part(module="schedules", cls="QuarterTurn"),
    "optimizer": Part(module="optimizers", cls="SignDescent"),
    "perturbation": Part(module="perturbations", cls="GapStep"),
    "sampler": Part(module="samplers", cls="PlainSteps"),
    "time_sampler": Part(module="times", cls="Tilted"),
    HOOKS: Part(module="hooks", cls="LowestLoss"),
})  # fmt: skip

#: Loss terms without which a kind cannot be trained with: end of the name, and class.
TERMS: Mapping[str, Sequence[tuple[str, str]]] = MappingProxyType({
    "alignment_target": (("align", "Align"),),
    "discriminator": (("fool", "Fool"), ("judge", "Judge")),
})  # fmt: skip

#: Terms of the recipe's player `student`, and the kind that brings each; "" for the core's.
STUDENT_TERMS = (
    ("denoise", ""),
    ("denoise-adv", "perturbation"),
    ("denoise-attacked", "attack"),
    ("own", "loss_term"),
    ("fool", "discriminator"),
    ("align", "alignment_target"),
)


@frozen(kw_only=True)
class Licence:
    """A licence to choose.

    Attributes:
        spdx: Its SPDX identifier.
        title: Its name for people.
    """

    spdx: str
    title: str


LICENCES: Mapping[str, Licence] = MappingProxyType({
    "apache-2.0": Licence(spdx="Apache-2.0", title="Apache License 2.0"),
    "bsd-3-clause": Licence(spdx="BSD-3-Clause", title="BSD 3-Clause License"),
    "mit": Licence(spdx="MIT", title="MIT License"),
})  # fmt: skip


def components_of(names: Names, kinds: Sequence[str]) -> dict[tuple[str, str], str]:
    """The new components: `module:Class` by kind and name."""
    found = {
        (kind, names.component): _value(names, PARTS[kind].module, PARTS[kind].cls)
        for kind in kinds
    }
    for kind in kinds:
        for end, cls in TERMS.get(kind, ()):
            found["loss_term", f"{names.component}-{end}"] = _value(names, "terms", cls)
    return dict(sorted(found.items()))


def _value(names: Names, module: str, cls: str) -> str:
    return f"{names.package}.{module}:{cls}"


def render(
    names: Names, kinds: Sequence[str], *, licence: str = "apache-2.0", author: str = ""
) -> dict[str, str]:
    """Every file of a new distribution: text by path.

    Args:
        names: What it is called.
        kinds: Registry kinds it offers one component each of, "hooks" for a listener.
        licence: A key of `LICENCES`.
        author: Who holds the copyright; "the authors" if "".

    Raises:
        UsageError: If the author's name cannot be printed.
    """
    if not author.isprintable():
        message = f"'{escape(author)}' holds characters that cannot be printed"
        raise UsageError(message, where="--author", fix="write a plain name")
    facts = _facts(names, sorted(set(kinds)), licence, author)
    environment = _environment()
    return {
        path: environment.get_template(template).render(facts)
        for path, template in _files(names, facts["kinds"], licence).items()
    }


def _facts(names: Names, kinds: list[str], licence: str, author: str) -> dict[str, Any]:
    """What the templates know."""
    groups: dict[str, dict[str, str]] = {}
    for (kind, name), value in components_of(names, kinds).items():
        groups.setdefault(group_of(kind), {})[name] = value
    listed = ", ".join(kind.replace("_", " ") for kind in kinds[:3])
    listed += f" and {len(kinds) - 3} kinds more" if len(kinds) > 3 else ""
    return {
        "name": names.distribution,
        "package": names.package,
        "topic": names.topic,
        "component": names.component,
        "kinds": kinds,
        "groups": groups,
        "licence": LICENCES[licence],
        "author": author,
        "holder": author or f"The authors of {names.distribution}",
        "summary": f"A plugin for advdiff: {listed}.",
        "core": ".".join(advdiff_core.__version__.split(".")[:2]),
        "student_terms": [name for name, kind in STUDENT_TERMS if not kind or kind in kinds],
    }


def _files(names: Names, kinds: list[str], licence: str) -> dict[str, str]:
    """Templates by path of the file that each makes."""
    source = f"src/{names.package}"
    files = {
        ".github/workflows/ci.yml": "ci.yml",
        ".gitignore": "gitignore",
        "LICENSE": f"licence-{licence}",
        "README.md": "README.md",
        "pyproject.toml": "pyproject.toml",
        f"{source}/__init__.py": "init.py",
        f"{source}/py.typed": "py.typed",
        f"{source}/recipes/{names.topic}.toml": "recipe.toml",
        "tests/test_recipe.py": "test_recipe.py",
    }
    if kinds != [HOOKS]:
        # Listeners have no laws.
        files["tests/test_laws.py"] = "test_laws.py"
    values = components_of(names, kinds).values()
    for module in sorted({value.partition(":")[0].rpartition(".")[2] for value in values}):
        files[f"{source}/{module}.py"] = f"{module}.py"
        files[f"tests/test_{module}.py"] = f"test_{module}.py"
    return {path: f"{template}.j2" for path, template in files.items()}


def _environment() -> jinja2.Environment:
    # Delimiters of their own: braces are plenty in TOML, YAML and Python.
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        undefined=jinja2.StrictUndefined,
        block_start_string="<%",
        block_end_string="%>",
        variable_start_string="<<",
        variable_end_string=">>",
        comment_start_string="<#",
        comment_end_string="#>",
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    # A JSON string of printable characters is a TOML string; so is an array of them.
    environment.filters["toml"] = partial(json.dumps, ensure_ascii=False)
    return environment


def _template(name: str) -> str:
    return resources.files("advdiff_core.kit").joinpath("templates", name).read_text("utf-8")


def write(files: Mapping[str, str], target: Path) -> None:
    """Write a new distribution to a folder that does not exist, or is empty.

    Whatever happens, either all files are there in the end or none.

    Args:
        files: Text by path inside the folder.
        target: The folder.

    Raises:
        UsageError: If the target holds anything, or is no folder.
        StorageError: If it cannot be written.
    """
    _refuse_full(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".advdiff-", dir=target.parent) as scratch:
            made = Path(scratch) / target.resolve().name
            for path, text in files.items():
                (made / path).parent.mkdir(parents=True, exist_ok=True)
                (made / path).write_text(text, encoding="utf-8", newline="\n")
            _move(made, target)
    except OSError as error:
        message = f"cannot be written: {error.strerror}"
        raise StorageError(message, where=str(target), fix="name another --out") from error


def _refuse_full(target: Path) -> None:
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists() or target.is_symlink():
        what = "this folder is not empty" if target.is_dir() else "this is no folder"
        raise UsageError(what, where=str(target), fix="name another folder with --out")


def _move(made: Path, target: Path) -> None:
    """Move a finished folder to its place in one step."""
    if not target.exists():
        made.rename(target)
        return
    # An empty folder stays, as it may be the one we are in; what was moved goes back on a failure.
    moved: list[Path] = []
    try:
        for part in sorted(made.iterdir()):
            part.rename(target / part.name)
            moved.append(part)
    except OSError:
        for part in moved:
            (target / part.name).rename(part)
        raise
