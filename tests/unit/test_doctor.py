"""The doctor finds what is broken, says what to do, and gives no secret away."""

from __future__ import annotations

import json
import sys
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers_dists import Site

from advdiff_core import doctor
from advdiff_core.cli import main
from advdiff_core.doctor import Finding, examine, installation, machine
from advdiff_core.doctor.findings import scrubbed


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
    """The distribution, the exception and its traceback, with the exit code of plugins."""
    groups = {
        "advdiff.v1.attack": {"odd": "odd_doctor_parts:Gone"},
        "advdiff.v1.hooks": {"odd-hook": "odd_doctor_parts:Gone"},
    }
    site.dist("advdiff-odd", groups, modules={"odd_doctor_parts": "1 / 0"})
    bad = [one for one in found("plugins", tmp_path) if one.status == "bad" and "odd" in one.found]
    assert len(bad) == 2
    assert all("advdiff-odd" in one.found and "ZeroDivisionError" in one.found for one in bad)
    assert all(one.exit_code == 3 and one.fix for one in bad)
    for one in bad:
        assert one.traceback.startswith("Traceback (most recent call last):")
        assert one.traceback.endswith("ZeroDivisionError: division by zero")
        assert "odd_doctor_parts.py" in one.traceback


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
    monkeypatch.setattr(installation, "version_of", versions.get)
    monkeypatch.setattr(installation, "_pinned_torch", lambda: "2.5.0")
    (one,) = found("torchvision", tmp_path)
    assert (one.status, one.exit_code) == ("bad", 3)
    assert one.found == "0.20.0 is made for torch 2.5.0, torch 2.15.0+cpu is installed"
    monkeypatch.setattr(installation, "_pinned_torch", lambda: "2.15.0")
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

    monkeypatch.setattr(machine, "torch_build", _torch)
    (one,) = found("torch", tmp_path)
    assert one.status == "bad"
    assert "libtorch_cpu.so" in one.found
    assert found("disk", tmp_path)


def test_doctor_sees_a_file_in_the_place_of_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A `safetensors.py` beside a script would be imported; a copy on the path as well."""
    assert found("shadowed", tmp_path) == []
    (tmp_path / "safetensors.py").write_text("raise RuntimeError('never run')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "safetensors", raising=False)
    (one,) = found("shadowed", tmp_path)
    assert (one.status, one.exit_code) == ("bad", 3)
    assert one.found.startswith(f"import safetensors finds {tmp_path / 'safetensors.py'}, ")
    assert "safetensors is installed in " in one.found


def test_doctor_names_what_the_core_needs_and_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the command that installs it; else every version is listed."""
    assert f"torch {torch.__version__}".partition("+")[0] in found("packages", tmp_path)[0].found
    wanted = ["advdiff-nowhere>=1", "numpy>=1.26", "odd; extra == 'test'"]
    monkeypatch.setattr(installation.metadata, "requires", lambda name: wanted)
    (one,) = found("packages", tmp_path)
    assert (one.status, one.exit_code) == ("bad", 3)
    assert (one.found, one.fix) == ("missing: advdiff-nowhere", "pip install advdiff-nowhere")


def test_doctor_sees_a_torchvision_that_cannot_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built against another torch although the versions fit."""
    monkeypatch.setattr(installation, "version_of", {"torchvision": "1", "torch": "2"}.get)
    monkeypatch.setattr(installation, "_pinned_torch", lambda: "2")
    monkeypatch.setitem(sys.modules, "torchvision", None)
    (one,) = found("torchvision", tmp_path)
    assert (one.status, one.exit_code) == ("bad", 3)
    assert one.found.startswith("1 cannot be imported: ModuleNotFoundError")


def test_doctor_says_what_each_gpu_is_and_multiplies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory, architecture and bfloat16 of every device; hardware that only emulates it is told."""

    class Facts:
        name, total_memory, major, minor = "Old Card", 8 * 2**30, 7, 5

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Facts)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert [one.found for one in machine.devices()] == [
        f"cuda:{index} Old Card, 8 GiB, sm_75, no fast bfloat16 (fp32)" for index in (0, 1)
    ]


def test_doctor_says_whether_the_processor_multiplies_bfloat16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As precision auto decides it."""
    for capabilities, words in (
        ({"amx_bf16": True}, "multiplies bfloat16 (precision auto uses it)"),
        ({"avx512_bf16": False}, "no fast bfloat16 (fp32)"),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda made=capabilities: made)
        assert found("cpu", tmp_path)[0].found.endswith(words)


def test_doctor_warns_of_more_threads_than_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads that wait for each other are slower than fewer."""
    monkeypatch.setattr(machine, "_usable_cores", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    (one,) = found("threads", tmp_path)
    assert (one.status, one.fix) == ("note", "set run.threads")
    assert one.found.startswith("torch uses 64 of 2 cores")


def test_doctor_warns_of_little_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Less than two checkpoints of a usual network."""
    usage = namedtuple("usage", "total used free")(2**40, 2**40, 2**20)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda place: usage)
    (one,) = found("disk", tmp_path)
    assert (one.status, one.fix) == ("note", "checkpoints may need more")


def test_doctor_gives_no_secret_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, site: Site
) -> None:
    """No value of the environment but plain numbers, no home folder, no token (Q08)."""
    monkeypatch.chdir(tmp_path)
    for name in ("API_TOKEN", "AWS_SECRET_ACCESS_KEY", "HTTPS_PROXY", "HF_TOKEN"):
        monkeypatch.setenv(name, "canary-7f3a")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("ADVDIFF_PLUGINS", "advdiff-odd,canary-plugin")
    monkeypatch.setenv("HOME", str(tmp_path))
    leak = "raise OSError('https://me:canary-pass@host/x?token=canary-query password=canary-word')"
    groups = {"advdiff.v1.attack": {"odd": "odd_leaky_parts:Gone"}}
    site.dist("advdiff-odd", groups, modules={"odd_leaky_parts": leak})
    main(["doctor", "--json"])
    main(["doctor", "--traceback"])
    text = "".join(capsys.readouterr())
    assert "OSError: https://***@host/x?***" in text
    assert "canary" not in text.replace("canary-7f3a", "canary")
    assert str(tmp_path) not in text
    assert "~/site/odd_leaky_parts.py" in text
    assert "OMP_NUM_THREADS=1, ADVDIFF_PLUGINS is set" in text


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("at /home/ann/x and /home/anna/y", "at ~/x and /home/anna/y"),
        ("https://u:p@h.org/a?b=c#d e", "https://***@h.org/a?*** e"),
        ("HF_TOKEN=abc api-key: 'xyz', rest", "HF_TOKEN=*** api-key: ***', rest"),
        ("Authorization: Bearer abc.def", "Authorization: ***"),
        ("hf_abcdefgh1234 and sk-abcdefgh1234", "hf_*** and sk-***"),
        ("2 tokens of [B, N, D]; what is that? fine", "2 tokens of [B, N, D]; what is that? fine"),
    ],
)
def test_scrubbing_takes_secrets_and_leaves_the_rest(
    text: str, clean: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Home folder, names in addresses, their queries, and what follows a telling word."""
    monkeypatch.setenv("HOME", "/home/ann")
    assert scrubbed(text) == clean


def test_doctor_prints_tracebacks_on_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Indented below their finding, control characters escaped; always in the JSON."""
    one = Finding(topic="plugins", status="bad", found="no", exit_code=3, traceback="a\n  b\x1b")
    monkeypatch.setattr(doctor, "examine", lambda: [one])
    assert main(["doctor"]) == 3
    assert capsys.readouterr().out == "bad   plugins      no\n"
    assert main(["doctor", "--traceback"]) == 3
    assert capsys.readouterr().out == "bad   plugins      no\n      a\n        b\\x1b\n"
    main(["doctor", "--json"])
    assert json.loads(capsys.readouterr().out)[0]["traceback"] == "a\n  b\x1b"


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
