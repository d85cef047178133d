"""Plugins for the tests of `advdiff check-plugin`: as they are once built, without a build."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from advdiff_core.kit.build import Built
from advdiff_core.kit.project import Project

HEAD = """\
Metadata-Version: 2.4
Name: advdiff-made
Version: 1.2
Summary: A plugin for tests.
License-Expression: MIT
License-File: LICENSE
Keywords: advdiff-plugin
Requires-Python: >=3.11
"""


def built(
    folder: Path,
    modules: Mapping[str, str],
    *,
    requires: Sequence[str] = ("advdiff-core",),
    groups: Mapping[str, Mapping[str, str]] | None = None,
    head: str = HEAD,
    readme: str = "Words.",
    files: Sequence[str] = ("advdiff_made/py.typed",),
) -> Built:
    """The plugin advdiff-made, unpacked into `folder/installed`, its sources in `folder/project`.

    Args:
        folder: An empty folder.
        modules: Source by path inside the package.
        requires: Requirements.
        groups: Entry points by group.
        head: Its metadata.
        readme: Its description.
        files: Further files that its wheel holds.
    """
    target, project = folder / "installed", folder / "project"
    info = target / "advdiff_made-1.2.dist-info"
    info.mkdir(parents=True)
    lines = "".join(f"Requires-Dist: {line}\n" for line in requires)
    (info / "METADATA").write_text(f"{head}{lines}\n{readme}\n")
    points = "".join(
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in some.items())
        for group, some in (groups or {}).items()
    )
    (info / "entry_points.txt").write_text(points)
    for root in (target / "advdiff_made", project / "src" / "advdiff_made"):
        for path, text in {"__init__.py": '"""A plugin."""\n', **modules}.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
    listed = [f"advdiff_made/{path}" for path in ("__init__.py", *modules)]
    return Built(
        project=Project(name="advdiff-made", folder=project),
        path=target,
        info=metadata.PathDistribution(info),
        files=tuple(sorted({*listed, *files})),
        packages={"advdiff_made": project / "src" / "advdiff_made"},
    )
