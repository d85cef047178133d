"""Two processes in network namespaces of their own, joined by a wire that loses what it is told to.

The wire is a pair of TUN devices, one in each namespace, and a thread that carries packets from one
to the other: unlike `tc netem`, it needs no module of the kernel, and its losses are seeded and
counted. Linux is needed, and the right to make namespaces.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import select
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pages import find
from process_runs import (
    BATCH,
    KEYS,
    RECIPE,
    SEED,
    announced,
    command,
    environment,
    same,
    saved,
    steps_of,
)

#: ioctl(2) that makes a TUN device, and its flags: whole IP packets, with nothing before them.
_TUNSETIFF, _TUN, _NO_PI = 0x400454CA, 0x0001, 0x1000
SPACES, DEVICES = ("advdiff-a", "advdiff-b"), ("advdiff0", "advdiff1")
ADDRESSES, PORT = ("10.217.0.1", "10.217.0.2"), 29_517
#: Steps of a run, steps between checkpoints, and the step after which the link goes down.
STEPS, EVERY, DOWN = 40, 10, 15
TIMEOUT, LOSS = 5, 0.01
#: Seconds after which a process is said to hang: one that lost the other, and a whole run.
HUNG, ENDLESS = 120, 1200


class Wire:
    """Carries packets between two devices, but for those that it loses.

    Args:
        ends: Open TUN devices.
        loss: Share of packets that is lost, in each direction.
    """

    def __init__(self, ends: tuple[int, int], loss: float) -> None:
        self.ends, self.loss, self.carried, self.lost = ends, loss, 0, 0
        self._draw, self._over = random.Random(SEED), threading.Event()
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    def _carry(self) -> None:
        a, b = self.ends
        while not self._over.is_set():
            for end in select.select([a, b], [], [], 0.2)[0]:
                # A device that is down takes and gives nothing.
                with suppress(OSError):
                    self._pass(os.read(end, 65_536), b if end == a else a)

    def _pass(self, packet: bytes, to: int) -> None:
        if self._draw.random() < self.loss:
            self.lost += 1
            return
        os.write(to, packet)
        self.carried += 1

    def close(self) -> None:
        """Stop, and remove the devices."""
        self._over.set()
        self._thread.join()
        for end in self.ends:
            os.close(end)


def ip(*words: str) -> None:
    """Run `ip`."""
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def device(name: str) -> int:
    """A new TUN device, open."""
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TUN | _NO_PI))
    return end


@contextmanager
def wired(loss: float = 0.0) -> Iterator[Wire]:
    """Two namespaces and the wire between them.

    Raises:
        OSError: If devices are not permitted.
        CalledProcessError: If namespaces are not.
    """
    made = []
    try:
        for space in SPACES:
            ip("netns", "add", space)
            made.append(space)
        wire = Wire((device(DEVICES[0]), device(DEVICES[1])), loss)
        try:
            for space, name, address in zip(SPACES, DEVICES, ADDRESSES, strict=True):
                ip("link", "set", name, "netns", space)
                ip("-n", space, "addr", "add", f"{address}/24", "dev", name)
                ip("-n", space, "link", "set", name, "up")
                ip("-n", space, "link", "set", "lo", "up")
            yield wire
        finally:
            wire.close()
    finally:
        for space in made:
            ip("netns", "del", space)


def refused() -> str:
    """Why there can be no wire on this machine; nothing if there can."""
    try:
        with wired():
            return ""
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", "") or str(error)
        return said.strip().splitlines()[0]


def start(out: Path, name: str, timeout: float) -> list[subprocess.Popen[bytes]]:
    """The two processes of a run, each in its namespace."""
    keys = {
        **KEYS, "run.name": name, "run.images": STEPS * BATCH,
        "run.checkpoint_every": EVERY * BATCH, "run.timeout": timeout,
    }  # fmt: skip
    started = []
    for rank, (space, interface) in enumerate(zip(SPACES, DEVICES, strict=True)):
        # Without a launcher, as on two machines.
        more = {**announced(rank, 2, ADDRESSES[0], PORT), "GLOO_SOCKET_IFNAME": interface}
        more |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        words = ["ip", "netns", "exec", space, *command([RECIPE, "--out", out], keys)]
        with (out / f"{name}-{rank}.stderr").open("w") as stderr:
            process = subprocess.Popen(
                words, env=environment(more), stdout=subprocess.DEVNULL, stderr=stderr
            )
        started.append(process)
    return started


def watched(
    processes: list[subprocess.Popen[bytes]], out: Path, name: str, patience: float
) -> tuple[list[float | None], list[float | None]]:
    """Seconds from now until each says an error, and has ended; None if it does not, or hangs."""
    began = time.monotonic()
    told: list[float | None] = [None] * len(processes)
    gone = list(told)
    while None in gone and time.monotonic() - began < patience:
        since = time.monotonic() - began
        for rank, process in enumerate(processes):
            if told[rank] is None and errors(out, name, rank):
                told[rank] = since
            if gone[rank] is None and process.poll() is not None:
                gone[rank] = since
        time.sleep(0.02)
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.wait()
    return told, gone


def errors(out: Path, name: str, rank: int) -> list[str]:
    """What a process says of an error, without the place of this machine."""
    lines = (out / f"{name}-{rank}.stderr").read_text().splitlines()
    words = ("advdiff: error", "advdiff: go on", "advdiff: nothing", "Traceback")
    return [line.replace(f"{out}/", "") for line in lines if line.startswith(words)]


def cut(out: Path, end: int) -> dict[str, Any]:
    """A run whose link goes down at one end in the middle of it.

    Args:
        out: Folder of the runs.
        end: Process at whose end it does.
    """
    name = f"down-{end}"
    with wired():
        processes = start(out, name, TIMEOUT)
        while steps_of(out, name) < DOWN and all(one.poll() is None for one in processes):
            time.sleep(0.01)
        logged = steps_of(out, name)
        ip("-n", SPACES[end], "link", "set", DEVICES[end], "down")
        told, gone = watched(processes, out, name, HUNG)
    return {
        "end": end, "step": logged, "told": told, "seconds": gone,
        "codes": [one.returncode for one in processes], "checkpoint": bool(saved(find(out, name))),
        "said": [errors(out, name, rank) for rank in range(2)],
    }  # fmt: skip


def carried(out: Path, loss: float) -> dict[str, Any]:
    """A run over a wire that loses some packets."""
    name = "lossy" if loss else "lossless"
    with wired(loss) as wire:
        began = time.monotonic()
        processes = start(out, name, 300)
        watched(processes, out, name, ENDLESS)
        seconds = time.monotonic() - began
    last = json.loads((find(out, name) / "metrics.jsonl").read_text().splitlines()[-1])
    return {
        "loss": loss, "codes": [one.returncode for one in processes], "seconds": seconds,
        "training": last["seconds"], "carried": wire.carried, "lost": wire.lost,
    }  # fmt: skip


def ended_same(out: Path) -> bool:
    """Whether packets that were lost changed anything."""
    return same(find(out, "lossy"), find(out, "lossless"))
