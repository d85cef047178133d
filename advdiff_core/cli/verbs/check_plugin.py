"""`advdiff check-plugin`."""

from __future__ import annotations

import attrs
import click

from advdiff_core.cli import options
from advdiff_core.cli.output import emit, emit_json
from advdiff_core.errors import PluginError, escape
from advdiff_core.hooks.terminal import say


@click.command("check-plugin")
@click.argument("plugin", metavar="PLUGIN")
@click.option(
    "--record", is_flag=True,
    help="Keep the numbers of the first steps of its recipes in tests/golden.json.",
)  # fmt: skip
@options.as_json
@click.pass_context
def command(ctx: click.Context, plugin: str, record: bool, as_json: bool) -> None:
    """Examine a plugin: all that its users could stumble over.

    PLUGIN is the folder of its pyproject.toml, or the name of an installed distribution. Its wheel
    is built without network and unpacked into a temporary folder; it need not be installed. Looks
    at metadata, entry points, the wheel, imports against declared dependencies, docstrings,
    components, recipes and their golden numbers, types (with mypy) and laws (with pytest), each in
    a process of its own. Exits with 3 if anything has to be mended.
    """
    from advdiff_core.kit.examine import built_plugin, examine
    from advdiff_core.kit.project import open_project

    project, found = open_project(plugin), []
    say(f"advdiff: building {project.name}" if project.folder else f"advdiff: {project.name}")
    with built_plugin(project, record=record) as (built, work):
        for finding in examine(built, work, record=record):
            found.append(finding)
            if not as_json:
                fix = f" - {escape(finding.fix, limit=400)}" if finding.fix else ""
                text = escape(finding.found, limit=600)
                emit(f"{finding.status:<5} {finding.topic:<10} {text}{fix}")
    count = {status: sum(one.status == status for one in found) for status in ("ok", "note", "bad")}
    if as_json:
        rows = [attrs.asdict(finding) for finding in found]
        emit_json({"plugin": project.name, "ok": not count["bad"], "findings": rows})
    else:
        emit(f"{project.name}: {count['bad']} to mend, {count['note']} to know, {count['ok']} ok")
    ctx.exit(PluginError.exit_code if count["bad"] else 0)
