"""The folder of checkpoints: how one becomes visible, which ones stay, what leftovers are removed.

A checkpoint is written under a temporary name beside its place, synced, then renamed, so that a
folder named by a number is always complete. Free of torch; `advdiff_core.engine.checkpoint` makes
the content.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from attrs import asdict, define, field, frozen

from advdiff_core.engine import manifest as layout
from advdiff_core.engine import strict_json
from advdiff_core.engine.fsio import Chunk, FileSystem, check_free, make_dirs, reported
from advdiff_core.engine.manifest import FileEntry, Manifest, TensorEntry
from advdiff_core.engine.owner import TAG_PATTERN, is_dead, unique_tag
from advdiff_core.engine.ranks import Ranks
from advdiff_core.errors import DataError, StorageError

__all__ = ["Content", "Payload", "Saved", "Store"]

_OURS = re.compile(
    r"shared\.safetensors|rank-[0-9]{4,}\.safetensors|state\.json|manifest\.json|COMMIT"
)
_LEFTOVER = re.compile(rf"\.(tmp|del|old)-([0-9]+)-({TAG_PATTERN})")


@frozen(kw_only=True)
class Payload:
    """Content of one file, made piece by piece while it is written.

    Attributes:
        chunks: The bytes, in order.
        size: Their number.
        tensors: Dtype and shape by name.
    """

    chunks: Iterable[Chunk]
    size: int
    tensors: Mapping[str, TensorEntry]


@frozen(kw_only=True)
class Content:
    """What one process contributes to a checkpoint.

    Attributes:
        files: Its files by name: `rank_file(rank)`, and on rank 0 the shared one.
        rank_tree: Its part of `state.json`, as JSON.
        state: The rest of `state.json`; only that of rank 0 counts.
        finite: Whether the state is all finite: others never displace a finite checkpoint.
    """

    files: Mapping[str, Payload]
    rank_tree: Any
    state: Mapping[str, Any]
    finite: bool = True


@frozen(kw_only=True)
class Saved:
    """A checkpoint that is on the disk.

    Attributes:
        path: Its folder.
        nimg: Images seen.
        size: Bytes in all its files.
        notes: What went wrong without harm to it, for the log: old checkpoints that cannot be
            removed.
    """

    path: Path
    nimg: int
    size: int
    notes: tuple[str, ...] = ()


@define(kw_only=True)
class _Work:
    """One save in progress on this process."""

    nimg: int
    pinned: frozenset[int] = frozenset()
    content: Content | None = None
    temp: Path | None = None


@frozen(kw_only=True)
class Store:
    """The checkpoints of one run.

    Attributes:
        root: Their folder, `<run>/checkpoints`.
        keep: How many to keep of the newest, and as many of the newest finite ones; 0 keeps all, 1
            is taken as 2, since a single one may turn out damaged.
        ranks: The processes that save together.
        fs: The disk.
    """

    root: Path
    keep: int = 2
    ranks: Ranks = field(factory=Ranks)
    fs: FileSystem = field(factory=lambda: FileSystem("save"))

    def commit(
        self, nimg: int, make: Callable[[], Content], *, pinned: frozenset[int] = frozenset()
    ) -> Saved:
        """Write a checkpoint: visible and durable when this returns, invisible if it raises.

        Called by all processes. Should only the last sync fail, it is visible but was not promised.

        Args:
            nimg: Images seen: the name of the folder. A checkpoint of that name is replaced.
            make: Gives the content; an error it raises is raised by all processes.
            pinned: Images of checkpoints that stay, however old.

        Raises:
            StorageError: S03 or S04, the same on all processes; the temporary folder is removed.
        """
        work = _Work(nimg=nimg, pinned=pinned)
        try:
            work.temp = self.root / self.ranks.agree(lambda: self._begin(work, make))[0]
            notes = self.ranks.agree(lambda: self._write_payloads(work))
            ended = self.ranks.agree(lambda: self._finish(work, notes))[0]
        except BaseException:
            if work.temp is not None:
                self._remove(work.temp)
            raise
        return Saved(path=self.root / str(nimg), nimg=nimg, size=ended[0], notes=tuple(ended[1]))

    def discard_newer(self, nimg: int) -> list[Path]:
        """Remove the checkpoints of more than `nimg` images, before going on from an older one.

        Without this the next resume would follow the abandoned branch.

        Returns:
            The folders removed.

        Raises:
            StorageError: S04.
        """
        found = [entry for entry in layout.candidates(self.root) if entry[0] > nimg]
        newer = [(count, path) for count, path in found if self._is_ours(path)]
        for count, path in newer:
            self._discard(count, path)
        return [path for _, path in newer]

    def _begin(self, work: _Work, make: Callable[[], Content]) -> str:
        """Make the content, and on rank 0 the temporary folder, whose name is returned."""
        work.content = make()
        if self.ranks.rank:
            return ""
        make_dirs(self.root, fs=self.fs)
        self._sweep()
        size = sum(payload.size for payload in work.content.files.values())
        check_free(self.root, size * self.ranks.world, fs=self.fs)
        temp = self.root / f".tmp-{work.nimg}-{unique_tag()}"
        with reported(temp, fs=self.fs):
            self.fs.make_dir(temp)
        # Known before the others answer: should one of them have failed, it is removed.
        work.temp = temp
        return temp.name

    def _write_payloads(self, work: _Work) -> dict[str, Any]:
        """Write the files of this process; returns what others must know of them."""
        assert work.temp is not None
        assert work.content is not None
        written: dict[str, Any] = {}
        for name, payload in work.content.files.items():
            with reported(work.temp / name, need=payload.size, fs=self.fs):
                done = self.fs.write_file(work.temp / name, payload.chunks)
            written[name] = asdict(FileEntry(done.size, done.sha256, payload.tensors))
        return {"files": written, "tree": work.content.rank_tree}

    def _finish(self, work: _Work, notes: list[dict[str, Any]]) -> tuple[int, list[str]]:
        """Seal and publish on rank 0, then remove what is too old."""
        if self.ranks.rank:
            return 0, []
        assert work.temp is not None
        assert work.content is not None
        state = {
            **work.content.state,
            "format": layout.FORMAT,
            "nimg": work.nimg,
            "ranks": [note["tree"] for note in notes],
            "world": self.ranks.world,
        }
        entries = {name: entry for note in notes for name, entry in note["files"].items()}
        size = self._seal(work.temp, state, entries, finite=work.content.finite)
        problems = self._publish(work.temp, self.root / str(work.nimg))
        return size, problems + self._rotate(work.pinned)

    def _seal(
        self, temp: Path, state: dict[str, Any], entries: dict[str, Any], *, finite: bool
    ) -> int:
        """Write `state.json`, `manifest.json` and `COMMIT`, and sync the folder."""
        entries[layout.STATE] = self._write_small(temp / layout.STATE, strict_json.dumps(state))
        manifest = Manifest(nimg=state["nimg"], world=state["world"], finite=finite, files=entries)
        data = manifest.to_bytes()
        self._write_small(temp / layout.MANIFEST, data)
        self._write_small(temp / layout.COMMIT, layout.commit_text(data))
        with reported(temp, fs=self.fs):
            self.fs.sync_dir(temp)
        return sum(int(entry["size"]) for entry in entries.values()) + len(data)

    def _write_small(self, path: Path, data: bytes) -> dict[str, Any]:
        with reported(path, need=len(data), fs=self.fs):
            done = self.fs.write_file(path, [data])
        return asdict(FileEntry(done.size, done.sha256, {}))

    def _publish(self, temp: Path, target: Path) -> list[str]:
        """Rename `temp` to `target`; a checkpoint already there is set aside until then."""
        aside = None
        if target.is_symlink() or target.exists():
            if not self._is_ours(target):
                raise StorageError(
                    "something that is not a checkpoint is in the way",
                    code="S10",
                    where=str(target),
                    fix="move it elsewhere",
                )
            aside = self.root / f".old-{target.name}-{unique_tag()}"
        with reported(target, fs=self.fs):
            if aside:
                self.fs.rename(target, aside)
            try:
                self.fs.rename(temp, target)
            except OSError:
                if aside:
                    with suppress(OSError):  # it counts as a checkpoint under that name too.
                        self.fs.rename(aside, target)
                raise
            self.fs.sync_dir(self.root)
        return self._remove(aside) if aside else []

    def _rotate(self, pinned: frozenset[int]) -> list[str]:
        """Remove those neither among the newest nor among the newest finite ones, nor pinned."""
        if self.keep < 1:
            return []
        keep = max(2, self.keep)
        known: list[tuple[int, Path, bool]] = []
        for nimg, path in layout.candidates(self.root):
            with suppress(DataError):  # damaged or not ours: neither counted nor touched.
                known.append((nimg, path, layout.read_manifest(path).finite))
        stay = {path for _, path, _ in known[:keep]}
        stay.update([path for _, path, finite in known if finite][:keep])
        problems: list[str] = []
        for nimg, path, _ in known:
            if path not in stay and nimg not in pinned:
                try:
                    problems += self._discard(nimg, path)
                except StorageError as error:
                    problems.append(f"cannot remove an old checkpoint: {error}")
        return problems

    def _discard(self, nimg: int, path: Path) -> list[str]:
        """Hide a checkpoint in one step, then delete it: a kill between leaves a hidden folder."""
        hidden = self.root / f".del-{nimg}-{unique_tag()}"
        with reported(path, fs=self.fs):
            self.fs.rename(path, hidden)
            self.fs.sync_dir(self.root)
        return self._remove(hidden)

    def _sweep(self) -> None:
        """Remove what dead processes left: temporary, half-deleted and replaced checkpoints."""
        with suppress(OSError):
            for path in sorted(self.root.iterdir()):
                match = _LEFTOVER.fullmatch(path.name)
                if match is None or not is_dead(match[3]):
                    continue
                plain = self.root / match[2]
                if match[1] == "old" and not plain.exists():
                    # Its process died before the successor was in place: it is still the newest.
                    self.fs.rename(path, plain)
                else:
                    self._remove(path)

    def _remove(self, folder: Path) -> list[str]:
        """Delete our own files of a folder and the folder, as far as possible; nothing else."""
        if self.ranks.rank:
            return []
        try:
            for path in sorted(folder.iterdir()):
                if _OURS.fullmatch(path.name):
                    self.fs.unlink(path)
            self.fs.rmdir(folder)
        except FileNotFoundError:
            return []
        except OSError as error:
            return [f"cannot remove {folder}: {error.strerror or error}"]
        return []

    def _is_ours(self, path: Path) -> bool:
        with suppress(OSError):
            return path.is_dir() and any(_OURS.fullmatch(item.name) for item in path.iterdir())
        return False
