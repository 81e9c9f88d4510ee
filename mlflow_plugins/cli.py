"""`plantmodels-registry`: the jobs that `MLproject` names, and what people ask of the gated registry.

Exit status: 0 done (a version whose gates failed is registered and says so), 1 a known error, 2 wrong usage.
"""

from pathlib import Path
from typing import Any

import click

from plantmodels.cli import (
    PATH,
    KnownErrors,
    OptionalPath,
    checkpoint_option,
    data_option,
    distill_options,
    format_option,
    html_option,
    non_plants_option,
    out_option,
    policy_option,
    public_key_option,
    seed_option,
    show_comparison,
    train_options,
    unseen_plants_option,
)
from plantmodels.data.progress import log_to_terminal
from plantmodels.serve.routing import ROUTINGS, Routing

name_option = click.option("--name", default="plant-disease", show_default=True, help="Registered model.")


@click.group(cls=KnownErrors)
def main() -> None:
    """Registers verified bundles as MLflow model versions, and governs their promotion.

    The registry is MLFLOW_REGISTRY_URI, else MLFLOW_TRACKING_URI: a server's address, or plantmodels:DATABASE.
    """
    log_to_terminal()


@main.command("run")
@checkpoint_option
@data_option
@non_plants_option
@unseen_plants_option
@name_option
@out_option
@policy_option
@seed_option
def run_all(
    checkpoint: Path,
    data: Path,
    non_plants: Path | None,
    unseen_plants: Path | None,
    name: str,
    out: Path,
    policy: Path | None,
    seed: int,
) -> None:
    """The main job: export, verify and register one model version."""
    from mlflow_plugins.jobs.main import Request, run_main_job
    from plantmodels.report.gate_report import read_report

    version = run_main_job(Request(checkpoint, data, non_plants, unseen_plants, out, policy, name, seed))
    click.echo(read_report(out).table())
    click.echo(f"registered models:/{version.name}/{version.version}")


@main.command()
@checkpoint_option
@data_option
@non_plants_option
@out_option
@seed_option
def export(checkpoint: Path, data: Path, non_plants: Path | None, out: Path, seed: int) -> None:
    """Write a bundle inside an MLflow run."""
    from mlflow_plugins.jobs.main import Request, run_export

    click.echo(run_export(Request(checkpoint, data, non_plants, out=out, seed=seed)).describe())


@main.command()
@checkpoint_option
@data_option
@non_plants_option
@unseen_plants_option
@out_option
@policy_option
def verify(
    checkpoint: Path,
    data: Path,
    non_plants: Path | None,
    unseen_plants: Path | None,
    out: Path,
    policy: Path | None,
) -> None:
    """Measure every gate of a bundle inside an MLflow run."""
    from mlflow_plugins.jobs.main import Request, run_verify

    click.echo(run_verify(Request(checkpoint, data, non_plants, unseen_plants, out, policy)).table())


@main.command()
@out_option
@name_option
@click.option("--example", type=OptionalPath(), default="", help="Photograph that becomes the input example.")
def register(out: Path, name: str, example: Path | None) -> None:
    """Register a bundle that was verified before."""
    from mlflow_plugins.jobs.main import run_register

    version = run_register(out, name, example)
    click.echo(f"registered models:/{version.name}/{version.version}")


@main.command()
@click.option("--model", required=True, help="models:/ URI of a version, an alias or a stage.")
@click.option("--images", required=True, help="Folder of image files, or a .parquet table with a binary column image.")
@click.option("--output", required=True, help="Folder of Parquet files; one that a stopped job left is completed.")
@click.option("--spark-master", default="local[*]", show_default=True, help="Where Spark runs, or spark://HOST:PORT.")
@click.option("--partition-by", default="", help="Columns of the scores that become folders, comma between.")
@click.option(
    "--images-per-batch",
    type=click.IntRange(min=1),
    default=2000,
    show_default=True,
    help="What a stop loses at most; files of a table.",
)
@click.option("--routing", type=click.Choice(ROUTINGS), default="hard", show_default=True, help="Of the disease.")
def score(
    model: str, images: str, output: str, spark_master: str, partition_by: str, images_per_batch: int, routing: Routing
) -> None:
    """Score any number of images on Spark; resumes after a stop without scoring an image twice."""
    from mlflow_plugins.jobs.scoring import ScoreRequest, run_score

    columns = tuple(name.strip() for name in partition_by.split(",") if name.strip())
    scores = run_score(ScoreRequest(model, images, output, spark_master, columns, images_per_batch, routing))
    click.echo(
        f"{output}: {scores.images:,} images, {scores.scored_now:,} of them scored now; {scores.errors:,} bad, "
        f"{scores.rejected:,} rejected"
    )


@main.command()
@train_options
def train(**options: Any) -> None:
    """Train a hierarchical network from scratch inside an MLflow run, an epoch a step."""
    from mlflow_plugins.jobs.training import run_train_job
    from plantmodels.training.requests import TrainRequest

    click.echo(run_train_job(TrainRequest(**options)).describe())


@main.command()
@distill_options
def distill(**options: Any) -> None:
    """Train a small student of a teacher inside an MLflow run, an epoch a step."""
    from mlflow_plugins.jobs.training import run_distill_job
    from plantmodels.training.requests import DistillRequest

    click.echo(run_distill_job(DistillRequest(**options)).describe())


@main.command()
@name_option
@click.option("--version", default="", help="Version number; the latest when not given.")
@click.option("--data", type=PATH, required=True, help="Leaves to ask it about: three of split val.")
@non_plants_option
def show(name: str, version: str, data: Path, non_plants: Path | None) -> None:
    """Load a version back by its URI: its gate table, and its answers to three leaves and one non-plant."""
    from mlflow_plugins.jobs.show import describe_version

    click.echo(describe_version(name, version, data, non_plants))


@main.command()
@click.argument("name")
@click.argument("a")
@click.argument("b")
@html_option
@format_option
def compare(name: str, a: str, b: str, html: Path | None, form: str) -> None:
    """Say what is better or worse in version B of NAME than in version A beyond noise, by their gate reports.

    A and B are version numbers, aliases (@production) or stages (Production). Models are not downloaded. It informs,
    the gates decide: the exit status is 0 whatever it finds.
    """
    from mlflow_plugins.jobs.compare import compare_versions

    show_comparison(compare_versions(name, a, b), html, form)


@main.command("load-check")
@click.argument("uri")
@click.option("--copy-to", type=PATH, default=None, help="Leave the copy that was checked there, for pyfunc to load.")
@public_key_option
def load_check(uri: str, copy_to: Path | None, public_key: Path | None) -> None:
    """Check everything of the version at URI before any of its code runs, then load it and ask it about a grey image.

    URI is models:/NAME/VERSION, models:/NAME@ALIAS or a model folder. One line a check; the exit status is 1 at the
    first that fails.
    """
    from mlflow_plugins.checking.load_check import check_version

    for line in check_version(uri, copy_to=copy_to, public_key=public_key):
        click.echo(line)


@main.command()
@click.argument("name")
@click.argument("version")
@click.argument("gate")
@click.option("--reason", required=True, help="Why this version may be used although the gate failed.")
def waive(name: str, version: str, gate: str, reason: str) -> None:
    """Answer for one failed GATE of one VERSION; void as soon as its files or the measured value are others."""
    from mlflow_plugins.registry.admin import waive_gate

    click.echo(waive_gate(name, version, gate, reason))


@main.command()
@click.argument("name")
def audit(name: str) -> None:
    """Every decision of the gated registry about NAME, oldest first."""
    from mlflow_plugins.registry.admin import list_decisions

    for decision in list_decisions(name):
        click.echo(decision.to_sentence())


@main.command()
@click.argument("name")
def reconcile(name: str) -> None:
    """Make stage Production and alias production of NAME agree again, after a server died between the two."""
    from mlflow_plugins.registry.admin import reconcile_model

    click.echo(reconcile_model(name))


if __name__ == "__main__":
    main()
