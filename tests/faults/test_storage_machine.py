"""A folder of checkpoints under any sequence of saves, damage, copies and rotations."""

import os
import shutil
import tempfile
from pathlib import Path

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
)

from advdiff_core.engine import store as storage
from advdiff_core.engine.checkpoint import Store, load, newest_valid, save
from advdiff_core.engine.fsio import FileSystem
from advdiff_core.errors import DataError, StorageError


class FailingDisk(FileSystem):
    """Fails at one operation; never waits for a real sync."""

    def __init__(self, fail=0):
        super().__init__("test")
        self.left = fail

    def before(self, operation, path):
        """Count down."""
        self.left -= 1
        if self.left == 0:
            raise OSError(5, "Input/output error")

    def _sync(self, descriptor, path):
        self.before("fsync", path)

    def sync_dir(self, path):
        """Only fail if it is time."""
        self.before("sync_dir", path)


class CheckpointFolder(RuleBasedStateMachine):
    """The model: what each whole checkpoint holds, and whether it was finite."""

    def __init__(self):
        super().__init__()
        self.base = Path(tempfile.mkdtemp())
        self.root = self.base / "checkpoints"
        self.whole = {}
        self.broken = set()
        self.nimg = 0
        self.alive = storage.is_dead
        storage.is_dead = lambda tag: True  # every leftover is that of a process that has ended.

    def teardown(self):
        """Leave nothing behind."""
        storage.is_dead = self.alive
        shutil.rmtree(self.base)

    def save(self, nimg, *, finite, disk, keep=2):
        """Save a state that tells its count, and keep the model in step."""
        shared = {"models": {"m": {"w": torch.tensor([float(nimg)])}}}
        meta = {"health": {"finite": finite}}
        store = Store(root=self.root, keep=keep, fs=disk)
        return save(store, nimg, shared=shared, rank_state={}, meta=meta)

    def rotate(self, keep=2):
        """The model's rotation."""
        newest = sorted(self.whole, reverse=True)
        stay = {*newest[:keep], *[nimg for nimg in newest if self.whole[nimg]][:keep]}
        self.whole = {nimg: finite for nimg, finite in self.whole.items() if nimg in stay}

    @rule(ahead=st.integers(1, 3), finite=st.booleans(), keep=st.integers(2, 3))
    def save_next(self, ahead, finite, keep):
        """A save that succeeds makes its checkpoint the newest, and rotates."""
        self.nimg += ahead
        saved = self.save(self.nimg, finite=finite, disk=FailingDisk(), keep=keep)
        assert saved.notes == ()
        self.whole[self.nimg] = finite
        self.broken.discard(self.nimg)
        self.settle(keep)

    @rule(fail=st.integers(1, 45))
    def save_on_a_failing_disk(self, fail):
        """A save that fails leaves all as it was, or the new one complete."""
        self.nimg += 1
        try:
            self.save(self.nimg, finite=True, disk=FailingDisk(fail))
        except StorageError:
            if (self.root / str(self.nimg)).exists():
                assert load(self.root / str(self.nimg)).nimg == self.nimg
                self.whole[self.nimg] = True
            return
        self.whole[self.nimg] = True
        self.settle(2)

    def settle(self, keep):
        """Rotate the model; a checkpoint whose manifest is broken is not counted nor removed."""
        self.rotate(keep)

    @precondition(lambda self: self.whole)
    @rule(data=st.data(), how=st.sampled_from(["flip", "cut", "remove", "extra"]))
    def damage(self, data, how):
        """Hurt one file of a whole checkpoint in a way its COMMIT chain cannot survive."""
        nimg = data.draw(st.sampled_from(sorted(self.whole)))
        folder = self.root / str(nimg)
        path = folder / data.draw(st.sampled_from(["COMMIT", "manifest.json"]))
        content = bytearray(path.read_bytes())
        if how == "flip":
            place = data.draw(st.integers(0, len(content) - 1))
            content[place] ^= 1 << data.draw(st.integers(0, 7))
            path.write_bytes(content)
        elif how == "cut":
            os.truncate(path, data.draw(st.integers(0, len(content) - 1)))
        elif how == "remove":
            path.unlink()
        else:
            (folder / "extra").write_text("")
        del self.whole[nimg]
        self.broken.add(nimg)

    @precondition(lambda self: self.whole)
    @rule()
    def resume_and_pass_damaged_counts_again(self):
        """Go on from the newest whole one; broken ones ahead are replaced as they are reached."""
        self.nimg = max(self.whole)
        for nimg in sorted(self.broken):
            if nimg > self.nimg and not (self.root / str(nimg) / "extra").exists():
                self.save(nimg, finite=True, disk=FailingDisk(), keep=0)
                self.broken.discard(nimg)
                self.whole[nimg] = True
                self.nimg = nimg
        self.nimg = max([self.nimg, *self.broken])

    @precondition(lambda self: self.whole)
    @rule()
    def copy_elsewhere(self):
        """A copy loads like the original; a copy beside it under a false count is refused."""
        nimg = max(self.whole)
        shutil.copytree(self.root / str(nimg), self.base / "copy")
        assert load(self.base / "copy").nimg == nimg
        (self.base / "copy").rename(self.root / "999999")
        path, skipped = newest_valid(self.root)
        assert path == self.root / str(nimg)
        assert skipped[0][0].name == "999999"
        shutil.rmtree(self.root / "999999")

    @rule(tag=st.sampled_from(["tmp", "del"]))
    def leave_half_a_folder(self, tag):
        """A process is killed while it writes or deletes."""
        if self.root.exists():
            half = self.root / f".{tag}-7-{'0' * 8}-{'0' * 8}-1-1-{'0' * 8}"
            half.mkdir(exist_ok=True)
            (half / "manifest.json").write_text("half")

    @rule()
    def put_something_foreign(self):
        """A folder of the user's in between."""
        if self.root.exists():
            (self.root / "notes").mkdir(exist_ok=True)
            (self.root / "notes" / "COMMIT").write_text("mine")

    @invariant()
    def newest_whole_one_is_found_and_true(self):
        """What is found is the newest that is whole, with its own state; all newer are told."""
        path, skipped = newest_valid(self.root)
        if not self.whole:
            assert path is None
            return
        newest = max(self.whole)
        assert path == self.root / str(newest)
        found = load(path)
        assert found.nimg == newest
        assert found.shared["models"]["m"]["w"].tolist() == [float(newest)]
        assert found.meta["health"]["finite"] == self.whole[newest]
        assert {bad for bad, _ in skipped} == {
            self.root / str(nimg) for nimg in self.broken if nimg > newest
        }

    @invariant()
    def every_whole_one_loads_and_every_broken_one_is_refused(self):
        """The folder holds just what the model says."""
        for nimg in self.whole:
            assert load(self.root / str(nimg)).nimg == nimg
        for nimg in self.broken:
            try:
                load(self.root / str(nimg))
            except DataError:
                continue
            raise AssertionError(f"{nimg} was damaged and loads")
        if (self.root / "notes").exists():
            assert (self.root / "notes" / "COMMIT").read_text() == "mine"


TestCheckpointFolder = CheckpointFolder.TestCase
TestCheckpointFolder.settings = settings(max_examples=40, stateful_step_count=20)
