"""Nothing that is read can run code, and nothing is written outside of the run."""

import ast
import hashlib
import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import advdiff_core
from advdiff_core.engine import capsule, strict_json
from advdiff_core.engine.checkpoint import Store, load, newest_valid, read_weights, save
from advdiff_core.engine.manifest import COMMIT, MANIFEST, SHARED, STATE, commit_text
from advdiff_core.engine.rundir import new_run, open_run
from advdiff_core.engine.tensor_file import load_tensors
from advdiff_core.errors import AdvdiffError, DataError, UsageError

PACKAGE = Path(advdiff_core.__file__).parent
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
CALLS = {"eval", "exec", "compile", "__import__"}
ATTRIBUTES = {
    ("torch", "load"), ("torch", "save"), ("yaml", "load"), ("yaml", "unsafe_load"),
    ("os", "system"), ("os", "popen"), ("numpy", "save"), ("np", "save"), ("tarfile", "open"),
    ("shutil", "unpack_archive"),
}  # fmt: skip

#: What looks like one of these and is none, with the reason.
ALLOWED = {
    (
        "kit/build.py",
        "archive.extractall()",
    ): "unpacks the wheel that was just built from the user's folder",
    ("advdiff_metrics/extractor.py", "extractor.extract()"): "takes features of images",
    (
        "advdiff_metrics/files.py",
        "torch.load()",
    ): "with weights_only=True written out: EfficientNet-Lite0",
    ("advdiff_datasets/webshards.py", "tarfile.open()"): "reads heads; nothing is unpacked",
    (
        "advdiff_datasets/cifar.py",
        "tarfile.open()",
    ): "reads members into memory; nothing is unpacked",
}


def allowed(path, finding):
    """Whether a finding is one of those with a reason."""
    return any(str(path).endswith(end) and finding.endswith(what) for end, what in ALLOWED)


def findings(tree):
    """What an AST holds of the things that run code from data, as `line: what`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            named = {alias.name.split(".")[0] for alias in node.names}
            yield from (f"{node.lineno}: import {name}" for name in named & MODULES)
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").split(".")[0]
            if module in MODULES or (node.module or "").startswith("torch.distributed.checkpoint"):
                yield f"{node.lineno}: from {node.module}"
        elif isinstance(node, ast.Call):
            yield from call_findings(node)


def call_findings(node):
    """The same for one call."""
    function = node.func
    if isinstance(function, ast.Name) and function.id in CALLS:
        yield f"{node.lineno}: {function.id}()"
    if isinstance(function, ast.Attribute):
        owner = ast.unparse(function.value)
        if (owner, function.attr) in ATTRIBUTES:
            yield f"{node.lineno}: {owner}.{function.attr}()"
        if function.attr in {"extract", "extractall"}:
            yield f"{node.lineno}: {owner}.{function.attr}()"
        if function.attr == "load" and owner in {"np", "numpy"} and not no_pickle(node):
            yield f"{node.lineno}: {owner}.load() without allow_pickle=False"
    for keyword in node.keywords:
        constant = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
        if keyword.arg in {"shell", "trust_remote_code", "allow_pickle"} and constant is not False:
            yield f"{node.lineno}: {keyword.arg}={ast.unparse(keyword.value)}"
        if keyword.arg == "weights_only" and constant is not True:
            yield f"{node.lineno}: weights_only={ast.unparse(keyword.value)}"


def no_pickle(node):
    """Whether a call says allow_pickle=False."""
    return any(k.arg == "allow_pickle" and ast.unparse(k.value) == "False" for k in node.keywords)


def test_the_package_runs_no_code_from_data():
    """Q02, Q05: no pickle, torch.load, eval, exec, yaml.load, shell, archive, remote code."""
    sources = [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "plugins").glob("*/src/**/*.py")]
    assert len(sources) > 20
    found = [
        f"{path}:{finding}"
        for path in sources
        for finding in findings(ast.parse(path.read_text(encoding="utf-8")))
        if not allowed(path, finding)
    ]
    assert found == []


def test_every_exception_of_the_scan_is_still_needed():
    """Q02: a reason without its line is taken out."""
    sources = [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "plugins").glob("*/src/**/*.py")]
    for end, what in ALLOWED:
        (path,) = [path for path in sources if str(path).endswith(end)]
        assert what in {f.partition(": ")[2] for f in findings(ast.parse(path.read_text()))}, end


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "import os, joblib.memory", "from pickle import loads", "eval('1')",
        "exec(text)", "torch.load(path)", "torch.load(path, weights_only=True)", "yaml.load(text)",
        "run(command, shell=True)", "run(command, shell=flag)", "pipe(trust_remote_code=True)",
        "np.load(path)", "np.load(path, allow_pickle=True)", "tarfile.open(path)",
        "os.system(command)",        "ZipFile(path).extractall(folder)",
        "from torch.distributed.checkpoint import load", "__import__(name)",
    ],
)  # fmt: skip
def test_the_scan_finds_what_it_looks_for(line):
    """Q02: the scan itself is not blind."""
    assert list(findings(ast.parse(line)))


def test_the_scan_passes_what_is_safe():
    """Q02: and it cries no wolf."""
    safe = (
        "np.load(path, allow_pickle=False)\nrun(command, shell=False)\nmodel.eval()\nre.compile(x)"
    )
    assert list(findings(ast.parse(safe))) == []


class Payload:
    """Makes a marker file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def pickled(marker):
    """Bytes of hostile files by kind."""
    files = {f"pickle-{n}": pickle.dumps(Payload(marker), protocol=n) for n in range(6)}
    torch_file, objects, archive = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save({"w": Payload(marker)}, torch_file)
    np.savez(objects, w=np.array([Payload(marker)], dtype=object))
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("data.pkl", files["pickle-2"])
    legacy = io.BytesIO()
    torch.save({"w": Payload(marker)}, legacy, _use_new_zipfile_serialization=False)
    files |= {"pt": torch_file.getvalue(), "legacy-pt": legacy.getvalue()}
    files |= {"npz": objects.getvalue(), "zip": archive.getvalue()}
    header = (1000).to_bytes(8, "little")
    return files | {"header": header + files["pickle-4"] + bytes(1000)}


KINDS = sorted(pickled("x"))


@pytest.mark.parametrize("kind", KINDS)
def test_no_payload_runs_in_place_of_any_file(tmp_path, kind):
    """Q01: as weights, state, manifest, COMMIT, capsule or log: refused with 4, nothing run."""
    marker = tmp_path / "marker"
    data = pickled(marker)[kind]
    with pytest.raises(DataError):
        load_tensors(data, where="x.safetensors")

    run = new_run(tmp_path / "runs", "q")
    run.write("recipe.lock.toml", "advdiff = 1\n")
    saved = save(Store(root=run.checkpoints), 1, shared={"models": {}}, rank_state={}, meta={})
    made = capsule.write(run, "c", {"x": torch.ones(1)}, {})
    for path in [*saved.path.iterdir(), *made.iterdir()]:
        original = path.read_bytes()
        path.write_bytes(data)
        reader = load if path.parent == saved.path else capsule.read
        with pytest.raises(DataError) as caught:
            reader(path.parent)
        assert caught.value.exit_code == 4
        assert newest_valid(run.checkpoints)[0] in {None, saved.path}
        path.write_bytes(original)
    (saved.path / ".metadata").write_bytes(data)
    with pytest.raises(DataError, match="does not belong"):
        load(saved.path)
    with pytest.raises(DataError):
        read_weights(run.path, "student")
    assert not marker.exists()


def test_the_payload_would_have_run(tmp_path):
    """Q01: the marker is real: unpickling makes it."""
    pickle.loads(pickled(tmp_path / "marker")["pickle-4"])
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", ["../../a", "/etc/passwd", "a/../../../b", "..", "~/x", "con\0"])
def test_no_name_of_a_tensor_leaves_the_checkpoint(tmp_path, name):
    """Q04: names inside a file are never paths."""
    before = sorted(tmp_path.rglob("*"))
    root = tmp_path / "run" / "checkpoints"
    saved = save(
        Store(root=root),
        1,
        shared={"models": {name: {name: torch.ones(1)}}},
        rank_state={},
        meta={},
    )
    assert torch.equal(load(saved.path).shared["models"][name][name], torch.ones(1))
    outside = [path for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "run")]
    assert outside == before


@pytest.mark.parametrize(
    "name",
    ["../x", "/tmp/x", "a/b", "", ".", "..", ".hidden", "a\0b", "a\nb", "\x1b[2J", "\u202ex",
     "x" * 81, "-x", "a\\b"],
)  # fmt: skip
def test_no_name_of_a_run_leaves_the_folder_of_runs(tmp_path, name):
    """Q04, R13: refused with 2, and nothing is made."""
    with pytest.raises(UsageError) as caught:
        new_run(tmp_path / "runs", name)
    assert (caught.value.code, caught.value.exit_code) == ("Q04", 2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/../../x", "a/../x", "", "..", "a\0b", "a\x1b"]
)
def test_no_file_of_a_run_is_written_elsewhere(tmp_path, name):
    """Q04: every write resolves inside the run folder."""
    run = new_run(tmp_path / "runs", "q")
    with pytest.raises(UsageError) as caught:
        run.write(name, b"x")
    assert caught.value.code == "Q04"
    assert list(run.path.iterdir()) == []
    assert list((tmp_path / "runs").iterdir()) == [run.path]


def test_no_link_inside_a_run_leads_a_write_out(tmp_path):
    """Q04: links planted for folders and files are refused or replaced, never written through."""
    outside = tmp_path / "outside"
    outside.mkdir()
    run = new_run(tmp_path / "runs", "q")
    for name in ("images", "checkpoints", "capsule"):
        (run.path / name).symlink_to(outside)
    (run.path / "metrics.jsonl").symlink_to(outside / "metrics.jsonl")
    attempts = [
        lambda: run.write("images/a.png", b"x"),
        lambda: run.checkpoints,
        lambda: capsule.write(run, "c", {}, {}),
        lambda: run.record({"loss": 1.0}),
        lambda: run.metrics_mark(),
    ]
    for attempt in attempts:
        with pytest.raises(UsageError, match="is not inside the run folder") as caught:
            attempt()
        assert caught.value.code == "Q04"
    assert list(outside.iterdir()) == []


def test_a_run_behind_a_link_is_a_run(tmp_path):
    """S09: a linked run folder, or one on another disk, is used as it is."""
    real = new_run(tmp_path / "disk", "q")
    real.write("recipe.lock.toml", "advdiff = 1\n")
    (tmp_path / "link").symlink_to(real.path)
    run = open_run(tmp_path / "link")
    run.write("images/a.png", b"x")
    assert (real.path / "images" / "a.png").read_bytes() == b"x"


def test_nothing_is_world_writable_whatever_the_umask(tmp_path):
    """Q11: umask 0 is the user's wish for 0666; temporary names cannot be guessed."""
    old = os.umask(0o077)
    try:
        run = new_run(tmp_path / "runs", "q")
        run.record({"a": 1})
        saved = save(Store(root=run.checkpoints), 1, shared={}, rank_state={}, meta={})
    finally:
        os.umask(old)
    modes = {path.stat().st_mode & 0o077 for path in [*run.path.rglob("*"), saved.path]}
    assert modes == {0}


def mutated(data, generator):
    """Up to three bytes changed, at a place and to a value of chance."""
    changed = bytearray(data)
    for place in generator.integers(0, len(changed), size=generator.integers(1, 4)):
        changed[place] = generator.integers(0, 256)
    return bytes(changed)


def outcome(reader, *arguments, **options):
    """Exit code of a read: 0, or that of a declared error; anything else is raised."""
    try:
        reader(*arguments, **options)
    except AdvdiffError as error:
        return error.exit_code
    return 0


def seal(path):
    """Make manifest and COMMIT fit the files, as a forger would."""
    manifest = json.loads((path / MANIFEST).read_bytes())
    for name, entry in manifest["files"].items():
        data = (path / name).read_bytes()
        entry.update(size=len(data), sha256=hashlib.sha256(data).hexdigest())
    (path / MANIFEST).write_bytes(strict_json.dumps(manifest))
    (path / COMMIT).write_bytes(commit_text((path / MANIFEST).read_bytes()))


@pytest.mark.parametrize("name", [SHARED, STATE, MANIFEST])
def test_damaged_bytes_only_ever_raise_declared_errors(tmp_path, name):
    """Q15: 300 mutations of a file whose hashes are then made to fit: 0 or 4, no traceback."""
    shared = {"models": {"m": {"w": torch.ones(2, 3).T, "n": float("nan")}}}
    saved = save(Store(root=tmp_path), 1, shared=shared, rank_state={}, meta={})
    path = saved.path / name
    original = {place: (saved.path / place).read_bytes() for place in (name, MANIFEST)}
    assert b'"stride":[1,3]' in (saved.path / STATE).read_bytes()
    generator = np.random.default_rng(0)
    codes = []
    for _ in range(300):
        (saved.path / MANIFEST).write_bytes(original[MANIFEST])
        path.write_bytes(mutated(original[name], generator))
        if name == MANIFEST:
            (saved.path / COMMIT).write_bytes(commit_text(path.read_bytes()))
        else:
            seal(saved.path)
        codes.append(outcome(load, saved.path))
    assert 4 in codes
    assert set(codes) <= {0, 4}
