"""Checkpoints: layout, exact return, rotation, and messages."""

import hashlib
import json
import os
import shutil
import threading

import pytest
import safetensors.torch
import torch

from advdiff_core.engine import fsio, strict_json
from advdiff_core.engine.checkpoint import (
    Ranks,
    Store,
    find_checkpoint,
    load,
    match_state,
    newest_valid,
    read_weights,
    save,
)
from advdiff_core.engine.manifest import COMMIT, MANIFEST, commit_text
from advdiff_core.errors import AdvdiffError, DataError, StorageError

META = {"health": {"finite": True, "loss": 0.5}}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Real syncs are slow, and what they promise is tested elsewhere."""
    monkeypatch.setattr(fsio.os, "fsync", lambda descriptor: None)


def shared(value=1.0):
    """A state with a role, two averages and an optimizer."""
    weight = torch.full((2, 3), value)
    return {
        "models": {"student": {"w": weight}, "critic": {"w": -weight}},
        "ema": {"student": [{"w": weight + 1}, {"w": weight + 2}]},
        "optimizers": {"student": {"state": {"w": {"step": torch.tensor(value)}}}},
        "nimg": 10,
    }


@pytest.fixture
def store(tmp_path):
    """An empty folder of checkpoints that keeps two."""
    return Store(root=tmp_path / "checkpoints")


def put(store, nimg, *, finite=True, value=None):
    """Save a state that tells its `nimg`."""
    state = shared(float(nimg if value is None else value))
    meta = {"health": {"finite": finite}}
    return save(store, nimg, shared=state, rank_state={"r": torch.tensor(nimg)}, meta=meta)


def names(root):
    """What a folder holds."""
    return sorted(os.listdir(root))


def test_checkpoint_returns_every_bit_and_every_fact(store):
    """Shared state, rank state, meta, count and world come back."""
    saved = save(store, 10, shared=shared(0.1), rank_state={"r": [1, 2]}, meta=META)
    assert saved.path == store.root / "10"
    found = load(saved.path)
    assert (found.nimg, found.world, found.rank_state, found.meta) == (10, 1, {"r": [1, 2]}, META)
    assert torch.equal(found.shared["ema"]["student"][1]["w"], torch.full((2, 3), 0.1) + 2)
    assert found.shared["optimizers"]["student"]["state"]["w"]["step"].shape == ()
    assert saved.notes == ()


def test_checkpoint_has_the_documented_layout(store):
    """Five files; names by path; sizes add up; any safetensors reader opens the weights."""
    saved = put(store, 10)
    assert names(saved.path) == sorted(
        [COMMIT, MANIFEST, "rank-0000.safetensors", "shared.safetensors", "state.json"]
    )
    tensors = safetensors.torch.load_file(saved.path / "shared.safetensors")
    assert sorted(tensors) == [
        "ema.student.0.w",
        "ema.student.1.w",
        "models.critic.w",
        "models.student.w",
        "optimizers.student.state.w.step",
    ]
    manifest = json.loads((saved.path / MANIFEST).read_text())
    entry = manifest["files"]["shared.safetensors"]
    assert entry["size"] == (saved.path / "shared.safetensors").stat().st_size
    assert entry["tensors"]["models.student.w"] == {"dtype": "F32", "shape": [2, 3]}
    assert manifest["format"] == 1
    size = sum(path.stat().st_size for path in saved.path.iterdir() if path.name != COMMIT)
    assert saved.size == size


def test_same_state_gives_the_same_digest(store):
    """Equal checkpoints can be told by one number; another bit gives another."""
    one, same, other = put(store, 10, value=1), put(store, 20, value=1), put(store, 30, value=2)
    digests = [load(saved.path).digest for saved in (one, same, other) if saved.path.exists()]
    assert len(set(digests)) == len(digests)  # the count is part of it
    again = put(store, 30, value=2)
    assert load(again.path).digest == digests[-1]


def test_saving_changes_nothing_that_is_saved(store):
    """N11: live tensors keep values, versions and gradients."""
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    version = parameter._version
    save(store, 1, shared={"models": {"a": {"w": parameter}}}, rank_state={}, meta={})
    assert parameter._version == version
    assert parameter.grad is not None
    assert parameter.requires_grad


def test_rotation_keeps_the_newest(store):
    """Two stay by default; each save removes the oldest after it is committed."""
    for nimg in (10, 20, 30, 40):
        put(store, nimg)
    assert names(store.root) == ["30", "40"]


@pytest.mark.parametrize(("keep", "left"), [(0, 5), (1, 2), (2, 2), (3, 3), (9, 5)])
def test_rotation_counts_as_asked_but_never_below_two(tmp_path, keep, left):
    """0 keeps all; a single checkpoint would leave nothing when it is damaged."""
    store = Store(root=tmp_path, keep=keep)
    for nimg in range(5):
        put(store, nimg)
    assert len(names(tmp_path)) == left


def test_rotation_never_gives_a_finite_checkpoint_for_one_that_is_not(store):
    """N07: states with NaN come and go beside the last good ones."""
    for nimg in (10, 20):
        put(store, nimg)
    for nimg in (30, 40, 50):
        put(store, nimg, finite=False)
    assert names(store.root) == ["10", "20", "40", "50"]
    put(store, 60)
    assert names(store.root) == ["20", "50", "60"]


def test_rotation_leaves_foreign_folders_alone(store):
    """S10: a folder of a matching name without our files is neither counted, moved nor removed."""
    put(store, 10)
    for name in ("5", "best", ".tmp-5-abc", "0010", "15.bak"):
        (store.root / name).mkdir()
        (store.root / name / "notes.txt").write_text("mine")
    for nimg in (20, 30, 40):
        put(store, nimg)
    assert names(store.root) == [".tmp-5-abc", "0010", "15.bak", "30", "40", "5", "best"]
    assert (store.root / "5" / "notes.txt").read_text() == "mine"


def test_rotation_leaves_files_it_did_not_write(store):
    """S10: notes put into a checkpoint outlive it, in a hidden folder."""
    put(store, 20)
    (store.root / "20" / "notes.txt").write_text("mine")
    assert store.discard_newer(0) == [store.root / "20"]
    [hidden] = names(store.root)
    assert hidden.startswith(".del-20-")
    assert names(store.root / hidden) == ["notes.txt"]


def test_save_refuses_a_foreign_folder_in_its_way(store):
    """S10: what is not ours is never replaced."""
    (store.root / "10").mkdir(parents=True)
    (store.root / "10" / "thesis.tex").write_text("mine")
    with pytest.raises(StorageError, match="not a checkpoint is in the way") as caught:
        put(store, 10)
    assert (caught.value.code, caught.value.where) == ("S10", str(store.root / "10"))
    assert names(store.root) == ["10"]


@pytest.mark.parametrize("damage", ["flip", "no-commit", "none"])
def test_save_replaces_a_checkpoint_of_the_same_count(store, damage):
    """After falling back past a damaged checkpoint, training passes its count again."""
    put(store, 5)
    put(store, 10, value=1)
    if damage == "flip":
        (store.root / "10" / "state.json").write_text("{}")
    elif damage == "no-commit":
        (store.root / "10" / COMMIT).unlink()
    saved = put(store, 10, value=2)
    assert names(store.root) == ["10", "5"]
    assert torch.equal(load(saved.path).shared["models"]["student"]["w"], torch.full((2, 3), 2.0))


def test_discard_newer_drops_an_abandoned_branch(tmp_path):
    """Going on from 20 removes 30 and 40, so that no later resume follows them."""
    store = Store(root=tmp_path, keep=0)
    for nimg in (10, 20, 30, 40):
        put(store, nimg)
    (tmp_path / "50").mkdir()
    assert store.discard_newer(20) == [tmp_path / "40", tmp_path / "30"]
    assert names(tmp_path) == ["10", "20", "50"]


def test_newest_valid_falls_back_and_says_why(store):
    """S01: the damaged one is named with its reason; the one before it is used."""
    put(store, 10)
    put(store, 20)
    with (store.root / "20" / "shared.safetensors").open("r+b") as file:
        file.seek(200)
        file.write(b"\xff")
    path, skipped = newest_valid(store.root)
    assert path == store.root / "10"
    [(bad, reason)] = skipped
    assert bad == store.root / "20"
    assert "20/shared.safetensors: is damaged: its SHA-256 is not the one" in reason


def test_newest_valid_finds_none_in_an_empty_or_missing_folder(tmp_path):
    """A run without checkpoints begins at the beginning."""
    assert newest_valid(tmp_path / "missing") == (None, [])
    assert newest_valid(tmp_path) == (None, [])


def test_newest_valid_does_not_believe_a_renamed_checkpoint(store):
    """S02: a copy of 10 under the name 99 is not newer than 20."""
    put(store, 10)
    put(store, 20)
    shutil.copytree(store.root / "10", store.root / "99")
    path, skipped = newest_valid(store.root)
    assert path == store.root / "20"
    assert "is the checkpoint of 10 images under another name" in skipped[0][1]


def test_load_works_from_a_copy_at_any_place(store, tmp_path):
    """S09: moved, renamed, read-only, behind a link, in a path with spaces and letters."""
    put(store, 10)
    place = tmp_path / "copié of a run" / ("x" * 255)
    shutil.copytree(store.root / "10", place)
    for path in place.iterdir():
        path.chmod(0o444)
    place.chmod(0o555)
    link = tmp_path / "link"
    link.symlink_to(place)
    assert load(link).nimg == 10
    place.chmod(0o755)


def test_load_refuses_a_place_without_checkpoint(tmp_path):
    """S02: a wrong path is one line."""
    with pytest.raises(DataError, match="there is no checkpoint here") as caught:
        load(tmp_path / "10")
    assert (caught.value.code, caught.value.exit_code) == ("S02", 4)


def test_load_refuses_another_format(store):
    """S11: a checkpoint of a later advdiff says so, rather than "damaged"."""
    path = put(store, 10).path
    text = commit_text((path / MANIFEST).read_bytes()).replace(b"format 1", b"format 2")
    (path / COMMIT).write_bytes(text)
    with pytest.raises(DataError, match="has format 2; this advdiff reads format 1") as caught:
        load(path)
    assert caught.value.code == "S11"


def test_load_refuses_a_rank_that_was_not_saved(store):
    """S11: the state of process 1 of a run of one is not made up."""
    path = put(store, 10).path
    with pytest.raises(DataError, match="saved by 1 processes and has no state of process 1") as e:
        load(path, rank=1)
    assert e.value.code == "S11"


def reseal(path, change):
    """Change the manifest and make COMMIT fit: a forgery, which hashes cannot notice."""
    manifest = json.loads((path / MANIFEST).read_text())
    change(manifest)
    data = strict_json.dumps(manifest)
    (path / MANIFEST).write_bytes(data)
    (path / COMMIT).write_bytes(commit_text(data))


@pytest.mark.parametrize(
    ("change", "code", "why"),
    [
        (lambda m: m.pop("files"), "S15", "is not a manifest: KeyError('files')"),
        (lambda m: m.update(files=[]), "S15", "is not a manifest"),
        (lambda m: m.update(nimg="10"), "S15", "'10' is not a int"),
        (lambda m: m.update(finite=1), "S15", "1 is not a bool"),
        (lambda m: m.update(world=0), "S15", "world is 0"),
        (lambda m: m.update(world=10**9), "S15", "world is 1000000000"),
        (lambda m: m["files"].pop("state.json"), "S15", "other files than a checkpoint has"),
        (lambda m: m["files"].update({"../x": m["files"]["state.json"]}), "S15", "other files"),
        (lambda m: m["files"]["state.json"].update(size=None), "S15", "None is not a int"),
        (
            lambda m: m["files"]["shared.safetensors"]["tensors"].pop("models.student.w"),
            "S12",
            "its tensors are not those of the manifest",
        ),
        (
            lambda m: m["files"]["shared.safetensors"]["tensors"]["models.student.w"].update(
                shape=[6]
            ),
            "S12",
            "its tensors are not those of the manifest",
        ),
    ],
)
def test_load_refuses_a_malformed_manifest_that_fits_its_commit(store, change, code, why):
    """S15, S12: even where all hashes fit, nothing is assumed of the content."""
    path = put(store, 10).path
    reseal(path, change)
    with pytest.raises(DataError) as caught:
        load(path)
    assert caught.value.code == code
    assert why in caught.value.message


@pytest.mark.parametrize(
    ("state", "code"),
    [
        ({}, "S15"),
        ([], "S15"),
        ({"shared": {}, "ranks": [], "meta": {}}, "S15"),
        ({"shared": {}, "ranks": {}, "meta": {}}, "S15"),
        ({"shared": {"a": {"$tensor": "no"}}, "ranks": [{}], "meta": {}}, "S12"),
        ({"shared": {}, "ranks": [{"$x": 1}], "meta": {}}, "S15"),
    ],
)
def test_load_refuses_a_malformed_state_that_fits_its_hash(store, state, code):
    """S15, S12: hand-made JSON gets a line, not a traceback."""
    path = put(store, 10).path
    data = strict_json.dumps(state)
    (path / "state.json").write_bytes(data)

    def fit(manifest):
        entry = manifest["files"]["state.json"]
        entry.update(size=len(data), sha256=hashlib.sha256(data).hexdigest())

    reseal(path, fit)
    with pytest.raises(DataError) as caught:
        load(path)
    assert caught.value.code == code


def test_save_names_the_value_that_cannot_be_stored(store):
    """S12: the path leads to the culprit, and nothing is left on the disk."""
    with pytest.raises(DataError, match="tuple is none of") as caught:
        save(store, 1, shared={"players": {"a": (1,)}}, rank_state={}, meta={})
    assert caught.value.where == "players.a"
    with pytest.raises(DataError, match="holds a tensor") as caught:
        save(store, 1, shared={}, rank_state={}, meta={"x": torch.ones(1)})
    assert caught.value.where == "meta.x"
    assert not store.root.exists()


def test_match_state_lists_all_differences_at_once():
    """S12: missing, unexpected and different tensors, by name, with found and wanted."""
    expected = {"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(1), "d": torch.zeros(1)}
    found = {
        "b": torch.zeros(4),
        "c": torch.zeros(1).half(),
        "d": torch.zeros(1),
        "e": torch.zeros(1),
    }
    with pytest.raises(DataError) as caught:
        match_state(expected, found, where="10: models.student")
    assert (caught.value.code, caught.value.where) == ("S12", "10: models.student")
    assert caught.value.message == (
        "the tensors do not fit the model: missing: a; unexpected: e; different: "
        "b is float32 [4] instead of float32 [3], c is float16 [1] instead of float32 [1]"
    )


def test_match_state_shortens_long_lists():
    """A wholly different model is told by five names and a count."""
    expected = {f"layer{i}": torch.zeros(1) for i in range(9)}
    with pytest.raises(DataError, match="layer4 and 4 more"):
        match_state(expected, {}, where="x")
    match_state(expected, dict(expected), where="x")


@pytest.mark.parametrize("place", ["run", "checkpoints", "checkpoint"])
def test_weights_are_read_from_run_or_checkpoint(tmp_path, place):
    """A role's raw weights and each average, by name, from any of three folders."""
    store = Store(root=tmp_path / "checkpoints")
    put(store, 10)
    path = {"run": tmp_path, "checkpoints": store.root, "checkpoint": store.root / "10"}[place]
    base = torch.full((2, 3), 10.0)
    cases = [({}, base), ({"ema": -1}, base), ({"ema": 0}, base + 1), ({"ema": 1}, base + 2)]
    for options, expected in cases:
        weights = read_weights(str(path), "student", **options)
        assert torch.equal(weights.tensors["w"], expected)
        assert (weights.path, weights.nimg, weights.skipped) == (store.root / "10", 10, ())
    assert torch.equal(read_weights(path, "critic").tensors["w"], -base)


def test_weights_say_which_newer_checkpoints_were_skipped(store):
    """S01: falling back is told."""
    put(store, 10)
    put(store, 20)
    (store.root / "20" / COMMIT).unlink()
    weights = read_weights(store.root, "student")
    assert weights.nimg == 10
    assert weights.skipped[0][0] == store.root / "20"


@pytest.mark.parametrize(
    ("role", "ema", "message", "fix"),
    [
        ("studnet", None, "holds no model named 'studnet'", "did you mean 'student'?"),
        ("zzz", None, "holds no model named 'zzz'", "it has critic, student"),
        ("critic", 0, "holds no average of a model named 'critic'", "it has student"),
        ("student", 2, "student has 2 averages, numbered from 0, and no number 2", ""),
    ],
)
def test_weights_name_what_is_not_there(store, role, ema, message, fix):
    """S12: a misspelt role or a missing average, with what there is."""
    put(store, 10)
    with pytest.raises(DataError) as caught:
        read_weights(store.root, role, ema=ema)
    assert caught.value.code == "S12"
    assert message in caught.value.message
    assert fix in caught.value.fix


def test_find_checkpoint_tells_why_there_is_none(store, tmp_path):
    """S02: no checkpoint at all, or every one with its reason."""
    with pytest.raises(DataError, match="no usable checkpoint: there is none") as caught:
        find_checkpoint(tmp_path)
    assert caught.value.code == "S02"
    put(store, 10)
    (store.root / "10" / "state.json").unlink()
    with pytest.raises(
        DataError, match=r"no usable checkpoint: .*10/state.json: the file is missing"
    ):
        find_checkpoint(tmp_path)


class Threads:
    """Processes played by threads that gather through a barrier."""

    def __init__(self, world):
        self.texts = [""] * world
        self.barrier = threading.Barrier(world, timeout=20)

    def ranks(self, rank):
        """What one of them is given."""

        def gather(text):
            self.texts[rank] = text
            self.barrier.wait()
            texts = list(self.texts)
            self.barrier.wait()
            return texts

        return Ranks(rank=rank, world=len(self.texts), gather=gather)


def save_together(root, world, state_of, shared_state=None):
    """Save by `world` threads; gives what each returned or raised."""
    threads = Threads(world)
    results = [None] * world

    def work(rank):
        store = Store(root=root, ranks=threads.ranks(rank))
        try:
            results[rank] = save(
                store, 10, shared=shared_state or shared(), rank_state=state_of(rank), meta=META
            )
        except AdvdiffError as error:
            results[rank] = error

    workers = [threading.Thread(target=work, args=(rank,)) for rank in range(world)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return results


def test_processes_save_one_checkpoint_together(tmp_path):
    """Each writes its own state; the shared one is written once; all learn the path."""
    results = save_together(tmp_path, 3, lambda rank: {"r": torch.tensor(rank), "n": rank})
    assert {result.path for result in results} == {tmp_path / "10"}
    assert len(names(tmp_path / "10")) == 7
    for rank in range(3):
        found = load(tmp_path / "10", rank=rank)
        assert (found.world, found.rank_state["n"], int(found.rank_state["r"])) == (3, rank, rank)


@pytest.mark.parametrize("culprit", [0, 1, 2])
def test_processes_all_report_the_failure_of_one(tmp_path, culprit):
    """X04: one cannot save, so none has; each says whose fault it is; nothing is left."""
    results = save_together(
        tmp_path / "c", 3, lambda rank: {"bad": object()} if rank == culprit else {}
    )
    for rank, error in enumerate(results):
        assert isinstance(error, DataError)
        assert error.code == "S12"
        assert error.where == ("bad" if rank == culprit else f"process {culprit}: bad")
    assert not (tmp_path / "c").exists() or names(tmp_path / "c") == []


def test_a_bug_in_one_process_reaches_the_others(tmp_path):
    """An unforeseen exception is raised where it happened and told to the rest, who do not hang."""

    def gather(text):
        return [text, json.dumps({"ok": 1})]

    def broken():
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        Ranks(rank=0, world=2, gather=gather).agree(broken)
    note = {
        "error": {"exit": 70, "message": "RuntimeError('boom')", "code": "", "where": "", "fix": ""}
    }
    other = Ranks(rank=1, world=2, gather=lambda text: [json.dumps(note), text])
    with pytest.raises(AdvdiffError, match=r"process 0: RuntimeError\('boom'\)") as caught:
        other.agree(lambda: 1)
    assert caught.value.exit_code == 70


def test_rotation_spares_what_is_pinned(store):
    """The best checkpoint stays however old it is, and goes when another one is the best."""
    for nimg in (1, 2, 3, 4, 5):
        save(store, nimg, shared=shared(), rank_state={}, meta=META, pinned=frozenset({2}))
    assert names(store.root) == ["2", "4", "5"]
    save(store, 6, shared=shared(), rank_state={}, meta=META, pinned=frozenset({4}))
    assert names(store.root) == ["4", "5", "6"]
