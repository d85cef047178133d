"""The doctor finds what is broken, says what to do, and gives no secret away."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers_dists import Site

from advdiff_core import doctor
from advdiff_core.cli import main
from advdiff_core.doctor import Finding, examine


@pytest.fixture(autouse=True)
def allowed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Only the core and what a test writes; torchvision takes seconds to import."""
    monkeypatch.setenv("ADVDIFF_PLUGINS", "advdiff-odd")
    monkeypatch.setitem(sys.modules, "torchvision", sys)
    return


def found(topic: str, folder: Path = Path("runs")) -> list[Finding]:
    """The findings of one topic."""
    return [finding for finding in examine(folder) if finding.topic == topic]


def test_doctor_covers_what_bug_reports_need(tmp_path: Path) -> None:
    """Versions, devices, threads, disk, plugins: each at least once."""
    topics = {finding.topic for finding in examine(tmp_path / "runs")}
    assert {
        "python", "advdiff", "packages", "torch", "torchvision", "cpu", "devices", "threads",
        "disk", "plugins", "environment",
    } <= topics  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_doctor_names_a_broken_plugin_with_its_cause(site: Site, tmp_path: Path) -> None:
    """The distribution and the exception, with the exit code of plugins."""
    groups = {
        "advdiff.v1.attack": {"odd": "odd_doctor_parts:Gone"},
        "advdiff.v1.hooks": {"odd-hook": "odd_doctor_parts:Gone"},
    }
    site.dist("advdiff-odd", groups, modules={"odd_doctor_parts": "1 / 0"})
    bad = [one for one in found("plugins", tmp_path) if one.status == "bad" and "odd" in one.found]
    assert len(bad) == 2
    assert all("advdiff-odd" in one.found and "ZeroDivisionError" in one.found for one in bad)
    assert all(one.exit_code == 3 and one.fix for one in bad)


def test_doctor_sees_a_distribution_installed_twice(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both places are named."""
    other = Site(tmp_path / "other")
    (tmp_path / "other").mkdir(exist_ok=True)
    for one in (site, other):
        one.dist("advdiff-odd", {"advdiff.v1.attack": {"odd": "odd_parts:Odd"}})
    monkeypatch.syspath_prepend(other.folder)
    texts = [one.found for one in found("duplicates", tmp_path) if "advdiff-odd" in one.found]
    assert len(texts) == 1
    assert str(site.folder) in texts[0]
    assert str(other.folder) in texts[0]


def test_doctor_sees_a_torchvision_made_for_another_torch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its own message at import names neither; ours names both versions and the command."""
    versions = {"torchvision": "0.20.0", "torch": "2.15.0+cpu"}
    monkeypatch.setattr(doctor, "_version", versions.get)
    monkeypatch.setattr(doctor, "_pinned_torch", lambda: "2.5.0")
    (one,) = found("torchvision", tmp_path)
    assert (one.status, one.exit_code) == ("bad", 3)
    assert one.found == "0.20.0 is made for torch 2.5.0, torch 2.15.0+cpu is installed"
    monkeypatch.setattr(doctor, "_pinned_torch", lambda: "2.15.0")
    assert found("torchvision", tmp_path)[0].status == "ok"


def test_doctor_tries_to_write_where_runs_will_go(tmp_path: Path) -> None:
    """A file in the place of a folder cannot hold runs."""
    (tmp_path / "file").write_text("")
    (one,) = found("disk", tmp_path / "file" / "runs")
    assert (one.status, one.exit_code) == ("bad", 5)
    assert "--out" in one.fix


def test_doctor_survives_a_check_that_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What cannot be examined is a finding, and the rest is examined all the same."""

    def _torch() -> Iterator[Finding]:
        raise OSError("libtorch_cpu.so: cannot open shared object file")

    monkeypatch.setattr(doctor, "_torch", _torch)
    (one,) = found("torch", tmp_path)
    assert one.status == "bad"
    assert "libtorch_cpu.so" in one.found
    assert found("disk", tmp_path)


def test_doctor_gives_no_secret_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Of the environment only the variables that matter are shown (Q08)."""
    monkeypatch.chdir(tmp_path)
    for name in ("API_TOKEN", "AWS_SECRET_ACCESS_KEY", "HTTPS_PROXY", "HF_TOKEN"):
        monkeypatch.setenv(name, "canary-7f3a")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    main(["doctor", "--json"])
    main(["doctor"])
    text = "".join(capsys.readouterr())
    assert "canary" not in text
    assert "OMP_NUM_THREADS=1" in text


def test_doctor_exits_with_the_first_problem(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """0 without one; JSON has the same findings as the text."""
    good = Finding(topic="a", status="ok", found="fine")
    bad = Finding(topic="b", status="bad", found="no\x1b[2J", fix="mend", exit_code=5)
    monkeypatch.setattr(doctor, "examine", lambda: [good])
    assert main(["doctor"]) == 0
    monkeypatch.setattr(doctor, "examine", lambda: [good, bad])
    assert main(["doctor"]) == 5
    assert capsys.readouterr().out.splitlines()[-1] == "bad   b            no\\x1b[2J - mend"
    assert main(["doctor", "--json"]) == 5
    assert [one["topic"] for one in json.loads(capsys.readouterr().out)] == ["a", "b"]
