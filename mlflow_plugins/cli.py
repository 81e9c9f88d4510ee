"""`plantmodels-registry`: commands for people who promote versions in a gated registry.

The exit status is 0 if the command succeeded, 1 for an expected error and 2 if the command was used wrongly.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from mlflow_plugins.required import check_mlflow
from plantmodels import __version__
from plantmodels.cli.commands import show_comparison
from plantmodels.cli.errors import KnownErrors
from plantmodels.cli.options import (
    PATH,
    data_option,
    field_option,
    format_option,
    html_option,
    non_plants_option,
    public_key_option,
    reference_checkpoint_option,
    unseen_plants_option,
)
from plantmodels.data.inputs import check_checkpoint, check_data, check_field, check_image_folder
from plantmodels.data.progress import log_to_terminal


class _AskingCommand(click.Command):
    """A command that says within ten seconds if the registry is down, and that makes no database."""

    def invoke(self, ctx: click.Context) -> Any:
        """Ask the servers for a sign of life, then run the command."""
        from mlflow_plugins.servers import check_servers

        check_servers()
        return super().invoke(ctx)


class _Registry(KnownErrors):
    """Commands that need the registry."""

    command_class = _AskingCommand
    extra = "registry"


@click.group(cls=_Registry)
@click.version_option(__version__)
def main() -> None:
    """Waive gates, and audit, compare and check model versions in a gated MLflow registry.

    Versions are promoted in MLflow's UI or through its client; the registry refuses those that fail a gate. The
    registry is MLFLOW_REGISTRY_URI, or else MLFLOW_TRACKING_URI: the address of a server, or plantmodels:DATABASE. To
    make, measure and use bundles, use plantmodels.
    """
    log_to_terminal()
    check_mlflow()


@main.command()
@click.argument("name")
@click.argument("a")
@click.argument("b")
@html_option
@format_option
def compare(name: str, a: str, b: str, html: Path | None, output_format: str) -> None:
    """Say what is better or worse in version B of NAME than in A.

    A and B are version numbers, aliases (@production) or stages (Production). Their gate reports are compared, and
    differences within noise are not counted; no model is downloaded. The comparison only informs; the exit status is 0
    whatever it finds.
    """
    from mlflow_plugins.jobs.compare import compare_versions

    show_comparison(compare_versions(name, a, b), html, output_format)


@main.command("load-check", cls=click.Command)
@click.argument("uri")
@click.option(
    "--copy-to", type=PATH, default=None, help="Keep the checked copy as this new folder, for pyfunc to load."
)
@public_key_option
def load_check(uri: str, copy_to: Path | None, public_key: Path | None) -> None:
    """Check a version's files before its code runs, then load it.

    URI is models:/NAME/VERSION, models:/NAME@ALIAS or a model folder. When every file is checked, the version is loaded
    and classifies a grey image. Prints one line for each check, and ends with exit status 1 at the first that fails.
    """
    from mlflow_plugins.checking.load_check import check_version

    if uri.startswith("models:"):
        from mlflow_plugins.servers import check_servers

        check_servers()
    for line in check_version(uri, copy_to=copy_to, public_key=public_key):
        click.echo(line)


@main.command()
@click.argument("name")
@click.argument("version")
@data_option
@reference_checkpoint_option
@non_plants_option
@unseen_plants_option
@field_option
def remeasure(
    name: str,
    version: str,
    data: Path,
    checkpoint: Path | None,
    non_plants: Path | None,
    unseen_plants: Path | None,
    field: Path | None,
) -> None:
    """Measure a VERSION of NAME again and compare with its report.

    The version's own files are copied from the registry and measured on the images that you give: those that its report
    was made on. The exit status is 1 if an image has another answer or is not in both. Nothing in the registry changes.
    """
    check_data(data, "val")
    if non_plants is not None:
        check_image_folder(non_plants, "non-plants")
    if unseen_plants is not None:
        check_image_folder(unseen_plants, "unseen plants")
    if field is not None:
        check_field(field)
    if checkpoint is not None:
        check_checkpoint(checkpoint)
    from mlflow_plugins.checking.remeasure import remeasure_version

    uri = f"models:/{name}{'' if version.startswith('@') else '/'}{version}"
    found = remeasure_version(
        uri, data, non_plants=non_plants, unseen_plants=unseen_plants, field=field, checkpoint=checkpoint
    )
    click.echo(found.describe())
    sys.exit(0 if found.is_same else 1)


def _parse_time(is_end: bool) -> Callable[[click.Context, click.Parameter, str | None], str | None]:
    """Return what turns an option's text into the audit's form of a time."""

    def parse(context: click.Context, parameter: click.Parameter, text: str | None) -> str | None:
        from mlflow_plugins.registry.commands.history import parse_time

        try:
            return None if text is None else parse_time(text, is_end=is_end)
        except ValueError as error:
            raise click.BadParameter(str(error), context, parameter) from error

    return parse


@main.command()
@click.argument("name")
@click.argument("version")
@click.argument("gate")
@click.option("--reason", required=True, help="Why this version may be used although the gate failed.")
@click.option("--until", metavar="TIME", callback=_parse_time(True), help="When the waiver ends; default: never.")
def waive(name: str, version: str, gate: str, reason: str, until: str | None) -> None:
    """Waive one failed GATE of one VERSION, with a reason.

    The waiver holds for the version's files and the measured value as they are now, and becomes void if either changes.
    After its end the version cannot be promoted any more; one that is in Production then stays there. A TIME is
    2026-12-31 or 2026-12-31T18:00, in UTC unless it names a zone.
    """
    from mlflow_plugins.registry.commands.admin import waive_gate

    click.echo(waive_gate(name, version, gate, reason, until))
    click.echo(
        f"\nNext: promote the version. Give it the alias production in MLflow's UI, or in Python:\n"
        f'  MlflowClient().set_registered_model_alias("{name}", "production", "{version}")'
    )


@main.command()
@click.argument("name")
@click.argument("version")
def check(name: str, version: str) -> None:
    """Say whether the registry would promote VERSION of NAME now.

    Checks the files, the gates by the limits of the server, and the waivers, as a promotion does, but changes nothing.
    The exit status is 1 if it would refuse. Who may promote, and how many must ask, is not part of it.
    """
    from mlflow_plugins.registry.commands.admin import check_version

    reason = check_version(name, version)
    if reason is not None:
        click.echo(f"{name} version {version} would be refused: {reason}")
        sys.exit(1)
    click.echo(f"{name} version {version} would be promoted")


@main.command()
@click.argument("name")
@click.argument("version")
@click.option("--force", is_flag=True, help="Take the version out of Production first, if it is there.")
def delete(name: str, version: str, force: bool) -> None:
    """Delete a VERSION of NAME.

    A version in Production is not deleted, so that no service loses what it loads. With --force it is taken out of
    Production first. Each step is in the audit.
    """
    from mlflow_plugins.registry.commands.admin import delete_version

    click.echo(delete_version(name, version, force=force))


@main.command()
@click.argument("name")
@click.option("--version", type=click.IntRange(1), default=None, help="Only decisions about this version.")
@click.option("--since", metavar="TIME", callback=_parse_time(False), help="Only decisions at this time or later.")
@click.option("--until", metavar="TIME", callback=_parse_time(True), help="Only decisions at this time or earlier.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list with every field of each decision.")
def audit(name: str, version: int | None, since: str | None, until: str | None, as_json: bool) -> None:
    """Print every decision of the registry about NAME.

    The oldest decision comes first. Decisions about deleted versions, and about the model under former names, are
    included; NAME may itself have been deleted. A TIME is 2026-11-24T10:00 or 2026-11-24, in UTC unless it names a
    zone.
    """
    from mlflow_plugins.registry.commands.history import list_decisions

    number = None if version is None else str(version)
    decisions = list_decisions(name, version=number, since=since, until=until)
    if as_json:
        click.echo(json.dumps([asdict(decision) for decision in decisions], indent=2))
        return
    for decision in decisions:
        click.echo(decision.to_sentence())


@main.command()
@click.argument("name")
@click.option("--at", metavar="TIME", callback=_parse_time(True), help="The time in question; default: now.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def production(name: str, at: str | None, as_json: bool) -> None:
    """Say which version of NAME was in Production at a time.

    Prints the version, since when, who promoted it, and its gates and waivers. A TIME is 2026-11-24T10:00 or
    2026-11-24, in UTC unless it names a zone.
    """
    from mlflow_plugins.registry.audit import read_clock
    from mlflow_plugins.registry.commands.history import find_production

    found = find_production(name, at or read_clock())
    click.echo(json.dumps(asdict(found), indent=2) if as_json else "\n".join(found.to_lines()))


@main.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
def doctor(names: tuple[str, ...]) -> None:
    """Examine every guarded model, or only those named.

    For the versions in Production and Staging: whether stage and alias agree, whether the files are whole, whether the
    run and the logged model still exist, whether waivers hold, and whether the gates would let the version in today.
    Prints what is wrong and what mends it. The exit status is 1 if anything is wrong. Nothing is changed.
    """
    from mlflow_plugins.registry.commands.history import examine_models

    findings = examine_models(names)
    for name, found in findings.items():
        click.echo(f"{name}: {'nothing is wrong' if not found else ''}".rstrip())
        for finding in found:
            click.echo(f"  {finding['problem']}\n    → {finding['advice']}")
    if any(findings.values()):
        sys.exit(1)


@main.command()
@click.argument("name")
def reconcile(name: str) -> None:
    """Make stage and alias of NAME agree again after a crash.

    If a server dies while it changes them, the stage Production and the alias production may name different versions.
    """
    from mlflow_plugins.registry.commands.admin import reconcile_model

    click.echo(reconcile_model(name))


if __name__ == "__main__":
    main()
