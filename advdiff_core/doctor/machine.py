"""What the machine has: processor, GPUs, threads, disk; what the environment sets."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from advdiff_core.doctor.findings import Finding, bad, note, ok
from advdiff_core.errors import StorageError, escape

__all__ = ["devices", "disk", "environment", "processor", "threads", "torch_build"]

#: Variables that matter; of their values only plain numbers are shown.
VARIABLES = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "ADVDIFF_PLUGINS")
LITTLE_SPACE = 2 * 2**30


def torch_build() -> Iterator[Finding]:
    """Version of torch, and what it was built for."""
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    yield ok("torch", f"{torch.__version__} ({build} build)")


def processor() -> Iterator[Finding]:
    """The processor, and whether its hardware multiplies bfloat16."""
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    words = _bf16_words(torch.device("cpu"))
    yield ok("cpu", f"{_processor_name()}, {capability}, {words}")


def _bf16_words(device: object) -> str:
    from advdiff_core.engine.compute import multiplies_bf16

    fast = multiplies_bf16(device)  # type: ignore[arg-type]
    return "multiplies bfloat16 (precision auto uses it)" if fast else "no fast bfloat16 (fp32)"


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return escape(next(names, platform.machine()))


def devices() -> Iterator[Finding]:
    """Each GPU: memory, architecture, whether this torch was built for it, bfloat16."""
    import torch

    if not torch.cuda.is_available():
        if torch.version.cuda and Path("/dev/nvidia0").exists():
            fix = "nvidia-smi says whether the driver is new enough for this torch"
            yield note("devices", "there is a GPU that torch cannot use", fix)
        else:
            yield ok("devices", "no GPU; training uses the CPU")
        return
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        memory = f"{facts.total_memory / 2**30:.0f} GiB"
        words = _bf16_words(torch.device("cuda", index))
        name = f"cuda:{index} {escape(facts.name)}"
        yield ok("devices", f"{name}, {memory}, sm_{facts.major}{facts.minor}, {words}")


def threads() -> Iterator[Finding]:
    """How many threads torch uses, against the cores this process may use."""
    import torch

    usable = _usable_cores()
    number = torch.get_num_threads()
    found = f"torch uses {number} of {usable} cores"
    if number > usable:
        yield note("threads", found + "; more threads than cores are slow", "set run.threads")
    else:
        yield ok("threads", found)


def _usable_cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def disk(folder: Path) -> Iterator[Finding]:
    """Whether runs can be written to a folder as checkpoints are, and how much space is left."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    try:
        with tempfile.TemporaryDirectory(prefix=".advdiff-doctor-", dir=place) as trial:
            _try_to_write(Path(trial))
    except OSError as error:
        fix = "choose another folder with --out"
        yield bad("disk", f"{folder} cannot be written: {error.strerror}", fix, StorageError)
        return
    free = shutil.disk_usage(place).free
    found = f"{free / 2**30:.1f} GiB free for {folder}, which can be written"
    little = free < LITTLE_SPACE
    yield note("disk", found, "checkpoints may need more") if little else ok("disk", found)


def _try_to_write(folder: Path) -> None:
    """What a checkpoint does: write, sync, rename."""
    with (folder / "a").open("wb") as file:
        file.write(b"advdiff")
        file.flush()
        os.fsync(file.fileno())
    (folder / "a").rename(folder / "b")


def environment() -> Iterator[Finding]:
    """Variables that change what happens; no value that might say something of its owner."""
    listed = ", ".join(_shown(name) for name in VARIABLES if name in os.environ)
    yield ok("environment", listed or f"none of {', '.join(VARIABLES)} is set")
    yield ok("encoding", f"{sys.getfilesystemencoding()} file names, {sys.stdout.encoding} output")


def _shown(name: str) -> str:
    value = os.environ[name]
    return f"{name}={value}" if re.fullmatch(r"[0-9,]{0,40}", value) else f"{name} is set"
