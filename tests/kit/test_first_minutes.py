"""A newcomer's first minutes with a plugin: the recorded commands, typed again."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
RECORDER = ROOT / "docs" / "results" / "record_new_plugin.py"
PAGE = ROOT / "docs" / "results" / "new-plugin-transcript.md"


@pytest.fixture(scope="module")
def recorder() -> Iterator[ModuleType]:
    """The script that records the page."""
    spec = util.spec_from_file_location("record_new_plugin", RECORDER)
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_eight_commands_and_one_edited_file_are_enough(recorder: ModuleType) -> None:
    """From an empty folder to a training run with the new component."""
    commands = [one for one in recorder.COMMANDS if one != "EDIT"]
    assert len(commands) <= 8
    assert recorder.COMMANDS.count("EDIT") == 1
    assert commands[-1].startswith("advdiff train")
    text = PAGE.read_text(encoding="utf-8")
    assert [c for c in commands if f"$ {c}\n" not in text] == []


@pytest.mark.slow
def test_recorded_commands_still_work(
    recorder: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command succeeds in an environment of its own; the edited plugin keeps its laws."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MYPY_CACHE_DIR", str(ROOT / ".mypy_cache" / "plugins"))
    monkeypatch.setenv("PYTEST_ADDOPTS", "--advdiff-examples=2")
    typed = recorder.run(tmp_path, "-s run.images=2_560 -s sample.images=16 -s evaluate.num=16")
    assert [(one.command, one.code) for one in typed if one.code] == [], typed[-1].text
    assert [one.command for one in typed] == list(recorder.COMMANDS)
    said = {one.command: one.text for one in typed}
    assert "advdiff-mine: 0 to mend, 1 to know, 9 ok" in said["advdiff check-plugin ."]
    assert "next: advdiff report runs/00000-mine" in typed[-1].text
    assert str(tmp_path) not in recorder.page(typed)
