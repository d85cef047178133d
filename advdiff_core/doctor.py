"""Examines an installation and the machine: what is there, what is broken, and what to do about it.

Nothing it prints comes from the environment but the few variables named here; no secrets.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from attrs import frozen

import advdiff_core
from advdiff_core.discovery import HOOKS, Catalogue, scan
from advdiff_core.discovery.loading import isolated
from advdiff_core.errors import AdvdiffError, DataError, PluginError, StorageError, escape
from advdiff_core.hooks.manager import Hooks

__all__ = ["Finding", "examine"]

Status = Literal["ok", "note", "bad"]

#: Distributions of which two copies on the path cause the oddest failures.
TWICE = ("torch", "torchvision", "numpy", "safetensors", "advdiff-core")
VARIABLES = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "ADVDIFF_PLUGINS")
LITTLE_SPACE = 2 * 2**30


@frozen(kw_only=True)
class Finding:
    """One thing examined.

    Attributes:
        topic: What was looked at, one word.
        status: "ok", "note" (works, but you may want to know) or "bad".
        found: What was found.
        fix: What to do about it.
        exit_code: Exit code of the problem's family; 0 unless bad.
    """

    topic: str
    status: Status
    found: str
    fix: str = ""
    exit_code: int = 0


def examine(folder: Path = Path("runs")) -> list[Finding]:
    """Look at everything; a check that fails itself is a finding and stops no other.

    Args:
        folder: Where runs will be written.
    """
    checks: list[Callable[[], Iterator[Finding]]] = [
        _python, _packages, _duplicates, _torch, _torchvision, _processor, _devices, _threads,
        lambda: _disk(folder), _plugins, _environment,
    ]  # fmt: skip
    return [finding for check in checks for finding in _survive(check)]


def _survive(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from check()
    except (Exception, SystemExit) as error:
        cause = f"{type(error).__name__}: {escape(error)}"
        name = getattr(check, "__name__", "check").strip("_<>")
        yield _bad(name, f"could not be examined: {cause}", "reinstall it", DataError)


def _ok(topic: str, found: str) -> Finding:
    return Finding(topic=topic, status="ok", found=found)


def _note(topic: str, found: str, fix: str = "") -> Finding:
    return Finding(topic=topic, status="note", found=found, fix=fix)


def _bad(topic: str, found: str, fix: str, family: type[AdvdiffError]) -> Finding:
    return Finding(topic=topic, status="bad", found=found, fix=fix, exit_code=family.exit_code)


def _python() -> Iterator[Finding]:
    found = (
        f"{platform.python_implementation()} {platform.python_version()} on {platform.platform()}"
    )
    yield _ok("python", found)
    yield _ok("advdiff", f"{advdiff_core.__version__} in {Path(advdiff_core.__file__).parent}")


def _packages() -> Iterator[Finding]:
    missing = [name for name in _required() if _version(name) is None]
    if missing:
        fix = f"pip install {' '.join(missing)}"
        yield _bad("packages", f"missing: {', '.join(missing)}", fix, PluginError)
    else:
        yield _ok("packages", f"all {len(_required())} that the core needs")


def _required() -> list[str]:
    lines = metadata.requires("advdiff-core") or []
    needed = [line for line in lines if "extra ==" not in line]
    return [_leading_name(line) for line in needed]


def _leading_name(requirement: str) -> str:
    end = next((i for i, ch in enumerate(requirement) if not (ch.isalnum() or ch in "-_.")), None)
    return requirement[:end]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _duplicates() -> Iterator[Finding]:
    """Several copies of a distribution: the first on the path hides the others."""
    copies: dict[str, list[str]] = {}
    for distribution in metadata.distributions():
        # Metadata too broken to have a name are the business of the plugins check.
        with suppress(Exception):
            name = distribution.metadata["Name"].lower().replace("_", "-")
            if name in TWICE or name.startswith("advdiff-"):
                place = f"{distribution.version} in {distribution.locate_file('')}"
                copies.setdefault(name, []).append(place)
    for name, places in sorted(copies.items()):
        if len(set(places)) > 1:
            found = f"{name} is installed {len(places)} times: {'; '.join(places)}"
            yield _bad(
                "duplicates", found, f"pip uninstall {name}, then install it again", PluginError
            )


def _torch() -> Iterator[Finding]:
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    yield _ok("torch", f"{torch.__version__} ({build} build)")


def _torchvision() -> Iterator[Finding]:
    """A torchvision made for another torch fails at import with a message that names neither."""
    version = _version("torchvision")
    if version is None:
        yield _note("torchvision", "not installed; only plugins that ask for it need it")
        return
    wanted = _pinned_torch()
    installed = _version("torch") or "none"
    if wanted and wanted != installed.partition("+")[0]:
        found = f"{version} is made for torch {wanted}, torch {installed} is installed"
        yield _bad("torchvision", found, "pip install --upgrade torch torchvision", PluginError)
        return
    try:
        import torchvision  # type: ignore[import-untyped,unused-ignore] # noqa: F401
    except Exception as error:
        found = f"{version} cannot be imported: {type(error).__name__}: {escape(error)}"
        yield _bad("torchvision", found, "pip install --upgrade torch torchvision", PluginError)
        return
    yield _ok("torchvision", f"{version}, matches torch")


def _pinned_torch() -> str:
    """The torch version torchvision asks for, "" if it names none exactly."""
    for line in metadata.requires("torchvision") or []:
        if _leading_name(line) == "torch" and "==" in line:
            return line.partition("==")[2].strip(" ;)").split(";")[0].strip()
    return ""


def _processor() -> Iterator[Finding]:
    import torch

    from advdiff_core.engine.compute import multiplies_bf16

    capability = torch.backends.cpu.get_cpu_capability()
    fast = multiplies_bf16(torch.device("cpu"))
    words = "multiplies bfloat16 (precision auto uses it)" if fast else "no fast bfloat16 (fp32)"
    yield _ok("cpu", f"{_processor_name()}, {capability}, {words}")


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return escape(next(names, platform.machine()))


def _devices() -> Iterator[Finding]:
    import torch

    if not torch.cuda.is_available():
        if torch.version.cuda and Path("/dev/nvidia0").exists():
            fix = "nvidia-smi says whether the driver is new enough for this torch"
            yield _note("devices", "there is a GPU that torch cannot use", fix)
        else:
            yield _ok("devices", "no GPU; training uses the CPU")
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        memory = f"{facts.total_memory / 2**30:.0f} GiB"
        yield _ok("devices", f"cuda:{index} {facts.name}, {memory}, sm_{facts.major}{facts.minor}")


def _threads() -> Iterator[Finding]:
    import torch

    usable = _usable_cores()
    threads = torch.get_num_threads()
    found = f"torch uses {threads} of {usable} cores"
    if threads > usable:
        yield _note("threads", found + "; more threads than cores are slow", "set run.threads")
    else:
        yield _ok("threads", found)


def _usable_cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _disk(folder: Path) -> Iterator[Finding]:
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    try:
        with tempfile.TemporaryDirectory(prefix=".advdiff-doctor-", dir=place) as trial:
            _try_to_write(Path(trial))
    except OSError as error:
        fix = "choose another folder with --out"
        yield _bad("disk", f"{folder} cannot be written: {error.strerror}", fix, StorageError)
        return
    free = shutil.disk_usage(place).free
    found = f"{free / 2**30:.1f} GiB free for {folder}, which can be written"
    little = free < LITTLE_SPACE
    yield _note("disk", found, "checkpoints may need more") if little else _ok("disk", found)


def _try_to_write(folder: Path) -> None:
    """What a checkpoint does: write, sync, rename."""
    with (folder / "a").open("wb") as file:
        file.write(b"advdiff")
        file.flush()
        os.fsync(file.fileno())
    (folder / "a").rename(folder / "b")


def _plugins() -> Iterator[Finding]:
    catalogue = scan()
    broken = [*_declared_broken(catalogue), *_load_all(catalogue)]
    good = sum(not entry.error for entry in catalogue.entries) - len(broken)
    owners = sorted({entry.owner for entry in catalogue.entries if not entry.error})
    yield _ok("plugins", f"{max(good, 0)} components of {', '.join(owners)}")
    for text in broken:
        yield _bad("plugins", text, "upgrade or uninstall its distribution", PluginError)
    for entry in catalogue.entries:
        if entry.warning:
            yield _note("plugins", entry.warning)


def _declared_broken(catalogue: Catalogue) -> list[str]:
    return [
        f"{entry.kind} {entry.name} of {entry.owner}: {entry.error}".strip()
        for entry in catalogue.entries
        if entry.error
    ]


def _load_all(catalogue: Catalogue) -> list[str]:
    """Import everything that is installed; the complaints."""
    complaints: list[str] = []
    for entry in catalogue.entries:
        if entry.error or entry.kind == HOOKS:
            continue
        try:
            catalogue.load(entry)
        except PluginError as error:
            complaints.append(error.message)
    Hooks.load(catalogue.of_kind(HOOKS), warn=complaints.append, guard=isolated)
    return [text.removeprefix("advdiff: warning: ") for text in complaints]


def _environment() -> Iterator[Finding]:
    values: dict[str, Any] = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    listed = ", ".join(f"{name}={escape(value, limit=80)}" for name, value in values.items())
    yield _ok("environment", listed or f"none of {', '.join(VARIABLES)} is set")
    yield _ok("encoding", f"{sys.getfilesystemencoding()} file names, {sys.stdout.encoding} output")
