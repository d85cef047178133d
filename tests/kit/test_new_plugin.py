"""`advdiff new-plugin`: what it makes, what it refuses, and that it never half-makes anything."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from helpers_dists import Site

from advdiff_core.cli import environment, main
from advdiff_core.discovery import HOOKS, KINDS, scan
from advdiff_core.kit import scaffold
from advdiff_core.kit.naming import MAX_LENGTH
from advdiff_core.recipe import check_recipe

LONGEST = "advdiff-" + "m" * (MAX_LENGTH - len("advdiff-"))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tests run in an empty folder."""
    made = tmp_path / "work"
    made.mkdir()
    monkeypatch.chdir(made)
    environment.catalogue.cache_clear()
    return made


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What is said on stderr to a wrong command line."""
    assert main(["new-plugin", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.strip()


def test_every_kind_has_an_example() -> None:
    """A kind that is added to the contract needs a template, and an entry in PARTS."""
    assert sorted(scaffold.PARTS) == sorted([*KINDS, HOOKS])


def test_new_plugin_is_a_whole_distribution(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Entry points, package, recipe, tests, CI, licence: and the words that lead on."""
    assert main(["new-plugin", "advdiff-mine", "--kind", "perturbation"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "advdiff-mine: advdiff-mine, 12 files",
        "next: cd advdiff-mine && pip install -e '.[test]' && python -m pytest",
    ]
    files = {str(p.relative_to(folder / "advdiff-mine")) for p in folder.rglob("*") if p.is_file()}
    assert files == {
        ".github/workflows/ci.yml", ".gitignore", "LICENSE", "README.md", "pyproject.toml",
        "src/advdiff_mine/__init__.py", "src/advdiff_mine/perturbations.py",
        "src/advdiff_mine/py.typed", "src/advdiff_mine/recipes/mine.toml", "tests/test_laws.py",
        "tests/test_perturbations.py", "tests/test_recipe.py",
    }  # fmt: skip
    project = tomllib.loads((folder / "advdiff-mine/pyproject.toml").read_text())["project"]
    assert project["entry-points"] == {
        "advdiff.v1.perturbation": {"mine": "advdiff_mine.perturbations:GapStep"}
    }
    assert list(folder.iterdir()) == [folder / "advdiff-mine"]


def test_new_plugin_says_as_json_what_it_made(capsys: pytest.CaptureFixture[str]) -> None:
    """Folder, name and components; a discriminator brings the terms that train it."""
    assert main(["new-plugin", "Advdiff_Two", "--kind", "discriminator", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["folder"], made["name"]) == ("advdiff-two", "advdiff-two")
    assert [(row["kind"], row["name"]) for row in made["components"]] == [
        ("discriminator", "two"), ("loss_term", "two-fool"), ("loss_term", "two-judge"),
    ]  # fmt: skip


def test_every_kind_alone_is_formatted_linted_and_trainable(folder: Path, site: Site) -> None:
    """Ruff has nothing to say of any one kind, whatever the length of the name; recipes check."""
    for number, kind in enumerate([*KINDS, HOOKS, "all"]):
        name = f"advdiff-k{number}"
        assert main(["new-plugin", name, "--kind", kind, "--licence", "mit"]) == 0
        add(site, folder / name)
    for name in ("a", "advdiff-2fast", LONGEST):
        assert main(["new-plugin", name, "--kind", "all", "--author", 'Zoe "Q" M\u00fcller']) == 0
    for command in (["format", "--check"], ["check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", "."], cwd=folder,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
    catalogue = scan([*sys.path, str(site.folder)], environ={})
    for recipe in sorted(folder.glob("advdiff-k*/src/*/recipes/*.toml")):
        assert [fault.as_line() for fault in check_recipe(recipe, (), catalogue)] == []
    author = tomllib.loads((folder / LONGEST / "pyproject.toml").read_text(encoding="utf-8"))
    assert author["project"]["authors"] == [{"name": 'Zoe "Q" M\u00fcller'}]


def add(site: Site, project: Path) -> None:
    """Put a new plugin on Python's path, as an editable installation would."""
    table = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    site.dist(table["name"], table["entry-points"])
    package = project / "src" / table["name"].replace("-", "_")
    (site.folder / package.name).symlink_to(package)


def test_no_text_of_a_template_is_left_over(folder: Path) -> None:
    """Every file is filled in, ends in one line end, and the Python files parse."""
    assert main(["new-plugin", "advdiff-all", "--kind", "all"]) == 0
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "py.typed":
            text = path.read_text()
            assert not any(mark in text for mark in ("<%", "%>", "<<", ">>", "<#")), path
            assert text.endswith("\n"), path
            assert not text.endswith("\n\n"), path
            if path.suffix == ".py":
                assert ast.get_docstring(ast.parse(text)), path


@pytest.mark.parametrize(
    ("licence", "spdx", "words"),
    [
        ("apache-2.0", "Apache-2.0", "Version 2.0, January 2004"),
        ("MIT", "MIT", "Copyright (c) Jo"),
        ("bsd-3-clause", "BSD-3-Clause", "Neither the name of the copyright holder"),
    ],
)
def test_licence_is_the_one_chosen(folder: Path, licence: str, spdx: str, words: str) -> None:
    """Its text lies in LICENSE, and its identifier in the metadata."""
    command = ["new-plugin", "advdiff-mine", "--kind", "metric", "--author", "Jo"]
    assert main([*command, "--licence", licence]) == 0
    assert words in (folder / "advdiff-mine/LICENSE").read_text()
    project = tomllib.loads((folder / "advdiff-mine/pyproject.toml").read_text())["project"]
    assert (project["license"], project["authors"]) == (spdx, [{"name": "Jo"}])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["bad name", "--kind", "metric"],
            "advdiff: error NAME: 'bad name' is no name of a distribution, wanted ASCII letters, "
            "digits, '-', '_' and '.', with a letter or digit at both ends (PEP 508) - "
            "for example advdiff-mine",
        ),
        (
            ["a" * 41, "--kind", "metric"],
            f"advdiff: error NAME: '{'a' * 41}' has 41 characters, wanted at most 40 - "
            "choose a shorter one",
        ),
        (
            ["3d", "--kind", "metric"],
            "advdiff: error NAME: '3d', the package of '3d', is no name that can be imported - "
            "for example advdiff-3d",
        ),
        (
            ["class", "--kind", "metric"],
            "advdiff: error NAME: 'class', the package of 'class', is no name that can be imported "
            "- for example advdiff-class",
        ),
        (
            ["json", "--kind", "metric"],
            "advdiff: error NAME: 'json', the package of 'json', is a module of Python itself - "
            "for example advdiff-json",
        ),
        (
            ["Torch", "--kind", "metric"],
            "advdiff: error NAME: a distribution 'torch' is installed already (version {torch}) - "
            "choose another, or pip uninstall torch",
        ),
        (
            ["_pytest", "--kind", "metric"],
            "advdiff: error NAME: '_pytest' is no name of a distribution, wanted ASCII letters, "
            "digits, '-', '_' and '.', with a letter or digit at both ends (PEP 508) - "
            "for example advdiff-mine",
        ),
        (
            ["functorch", "--kind", "metric"],
            "advdiff: error NAME: 'functorch', the package of 'functorch', exists already and "
            "would hide it - for example advdiff-functorch",
        ),
        (
            ["advdiff-mine", "--kind", "pertubation"],
            "advdiff: error --kind: there is no kind 'pertubation' - did you mean 'perturbation'?",
        ),
        (
            ["advdiff-mine", "--kind", "metric", "--licence", "gpl"],
            "advdiff: error --licence: there is no licence 'gpl' - "
            "there are apache-2.0, bsd-3-clause, mit",
        ),
        (
            ["advdiff-mine", "--kind", "metric", "--author", "a\nb"],
            "advdiff: error --author: 'a\\nb' holds characters that cannot be printed - "
            "write a plain name",
        ),
        (
            ["advdiff-mine", "--kind", "metric", "--component", "a b"],
            "advdiff: error --component: 'a b' is no name of a component - "
            "use up to 40 ASCII letters, digits and _ . + -, the first no sign",
        ),
        (
            ["advdiff-heun", "--kind", "sampler"],
            "advdiff: error --component: advdiff-core {core} offers a sampler 'heun' already - "
            "name yours: --component heun-2, or choose another NAME",
        ),
        (
            ["advdiff-mine"],
            "advdiff: error advdiff new-plugin: missing option '--kind' - "
            "see 'advdiff new-plugin --help'",
        ),
    ],
)
def test_new_plugin_refuses(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    """A wrong name or option in one line with its mend; nothing is written."""
    from importlib.metadata import version

    wanted = message.replace("{torch}", version("torch")).replace("{core}", version("advdiff-core"))
    assert refused(capsys, *arguments) == wanted
    assert list(folder.iterdir()) == []


def test_component_may_have_a_name_of_its_own(folder: Path) -> None:
    """What recipes write is independent of the distribution."""
    command = ["new-plugin", "advdiff-heun", "--kind", "sampler", "--component", "heun-3"]
    assert main(command) == 0
    project = tomllib.loads((folder / "advdiff-heun/pyproject.toml").read_text())["project"]
    assert list(project["entry-points"]["advdiff.v1.sampler"]) == ["heun-3"]


def test_folder_that_holds_something_stays_as_it_is(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither a folder with a file in it nor a file is ever replaced."""
    (folder / "advdiff-mine").mkdir()
    (folder / "advdiff-mine/notes.txt").write_text("mine")
    assert refused(capsys, "advdiff-mine", "--kind", "metric") == (
        "advdiff: error advdiff-mine: this folder is not empty - name another folder with --out"
    )
    (folder / "file").write_text("mine")
    assert refused(capsys, "advdiff-mine", "--kind", "metric", "--out", "file") == (
        "advdiff: error file: this is no folder - name another folder with --out"
    )
    (folder / "link").symlink_to("nowhere")
    assert "this is no folder" in refused(
        capsys, "advdiff-mine", "--kind", "metric", "--out", "link"
    )
    assert sorted(p.name for p in folder.rglob("*")) == [
        "advdiff-mine",
        "file",
        "link",
        "notes.txt",
    ]


def test_empty_folder_is_filled(folder: Path) -> None:
    """Also the one we are in, and one in a folder that does not exist yet."""
    assert main(["new-plugin", "advdiff-mine", "--kind", "metric", "--out", "."]) == 0
    assert (folder / "pyproject.toml").exists()
    assert main(["new-plugin", "advdiff-mine", "--kind", "metric", "--out", "new/folder"]) == 0
    assert (folder / "new/folder/pyproject.toml").exists()
    assert not list(folder.rglob(".advdiff-*"))


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("fails", ["write_text", "rename"])
def test_failed_write_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    fails: str, exists: bool,
) -> None:  # fmt: skip
    """A disk that fills up in the middle: no half plugin, no scratch folder, exit code 5."""
    if exists:
        (folder / "advdiff-mine").mkdir()
    plain, calls = getattr(Path, fails), []

    def failing(path: Path, *arguments: object, **how: object) -> object:
        calls.append(path)
        # The third file, or the third part that is moved; what is moved back is moved.
        if len(calls) == (3 if fails == "write_text" or exists else 1):
            raise OSError(28, "No space left on device")
        return plain(path, *arguments, **how)

    monkeypatch.setattr(Path, fails, failing)
    assert main(["new-plugin", "advdiff-mine", "--kind", "metric"]) == 5
    assert capsys.readouterr().err == (
        "advdiff: error advdiff-mine: cannot be written: No space left on device - "
        "name another --out\n"
    )
    left = [folder / "advdiff-mine"] if exists else []
    assert list(folder.rglob("*")) == left
