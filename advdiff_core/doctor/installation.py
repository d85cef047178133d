"""Is what is installed whole, does it fit together, and is it what would be imported?"""

from __future__ import annotations

import importlib.util
import json
import platform
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlparse

import advdiff_core
from advdiff_core.doctor.findings import Finding, bad, note, ok
from advdiff_core.errors import PluginError, escape

__all__ = ["duplicates", "packages", "python", "shadowed", "torchvision", "version_of"]

#: Distributions of which two copies on the path cause the oddest failures.
TWICE = ("torch", "torchvision", "numpy", "safetensors", "advdiff-core")
UPGRADE = "pip install --upgrade torch torchvision"


def python() -> Iterator[Finding]:
    """The interpreter, the system, and this package."""
    name = platform.python_implementation()
    yield ok("python", f"{name} {platform.python_version()} on {platform.platform()}")
    yield ok("advdiff", f"{advdiff_core.__version__} in {Path(advdiff_core.__file__).parent}")


def packages() -> Iterator[Finding]:
    """What the core needs is there, with its versions."""
    needed = _required()
    versions = {name: version_of(name) for name in needed}
    missing = [name for name, version in versions.items() if version is None]
    if missing:
        fix = f"pip install {' '.join(missing)}"
        yield bad("packages", f"missing: {', '.join(missing)}", fix, PluginError)
    else:
        yield ok("packages", ", ".join(f"{name} {version}" for name, version in versions.items()))


def _required() -> list[str]:
    lines = metadata.requires("advdiff-core") or []
    return [_leading_name(line) for line in lines if "extra ==" not in line]


def _leading_name(requirement: str) -> str:
    end = next((i for i, ch in enumerate(requirement) if not (ch.isalnum() or ch in "-_.")), None)
    return requirement[:end]


def version_of(name: str) -> str | None:
    """Version of an installed distribution; None if it is not there."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def duplicates() -> Iterator[Finding]:
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
            fix = f"pip uninstall {name}, then install it again"
            yield bad("duplicates", found, fix, PluginError)


def shadowed() -> Iterator[Finding]:
    """A file or folder that would be imported in place of what is installed."""
    for name in TWICE:
        package = name.replace("-", "_")
        place, homes = _origin(package), _homes(name)
        if place is None or not homes or any(place.is_relative_to(home) for home in homes):
            continue
        found = f"import {package} finds {place}, {name} is installed in {homes[0]}"
        fix = "rename that file or folder, or start elsewhere"
        yield bad("shadowed", found, fix, PluginError)


def _origin(package: str) -> Path | None:
    """Where an import would find a package; its code is not run."""
    with suppress(ImportError, ValueError, AttributeError):
        spec = importlib.util.find_spec(package)
        if spec is None:
            return None
        own = [spec.origin] if spec.has_location else []
        places = [*own, *(spec.submodule_search_locations or ())]
        return next((Path(one).resolve() for one in places if one), None)
    return None


def _homes(name: str) -> list[Path]:
    """The folders a distribution's code may be in: its own, and its sources if editable."""
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return []
    homes = [Path(str(found.locate_file("")))]
    with suppress(ValueError, KeyError, TypeError):
        record = json.loads(found.read_text("direct_url.json") or "{}")
        homes.append(Path(unquote(urlparse(str(record["url"])).path)))
    return [home.resolve() for home in homes]


def torchvision() -> Iterator[Finding]:
    """A torchvision made for another torch fails at import with a message that names neither."""
    version = version_of("torchvision")
    if version is None:
        yield note("torchvision", "not installed; only plugins that ask for it need it")
        return
    wanted, installed = _pinned_torch(), version_of("torch") or "none"
    if wanted and wanted != installed.partition("+")[0]:
        found = f"{version} is made for torch {wanted}, torch {installed} is installed"
        yield bad("torchvision", found, UPGRADE, PluginError)
        return
    try:
        import torchvision  # type: ignore[import-untyped,unused-ignore] # noqa: F401
    except Exception as error:
        found = f"{version} cannot be imported: {type(error).__name__}: {escape(error)}"
        yield bad("torchvision", found, UPGRADE, PluginError)
        return
    yield ok("torchvision", f"{version}, matches torch")


def _pinned_torch() -> str:
    """The torch version torchvision asks for, "" if it names none exactly."""
    for line in metadata.requires("torchvision") or []:
        if _leading_name(line) == "torch" and "==" in line:
            return line.partition("==")[2].strip(" ;)").split(";")[0].strip()
    return ""
