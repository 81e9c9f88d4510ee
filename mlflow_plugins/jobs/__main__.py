"""The jobs that `MLproject` runs: `python -m mlflow_plugins.jobs run|export|verify|register|score|train|distill|show`.

Each job works inside one MLflow run. The exit status is 0 if the job is done (a version whose gates failed is
registered, and the output says so), 1 for an expected error and 2 if the command was used wrongly.
"""

from pathlib import Path
from typing import Any

import click

from mlflow_plugins.jobs.requests import DEFAULT_NAME, JobRequest, ScoreRequest
from mlflow_plugins.required import check_mlflow
from plantmodels.bundle.layout import GATE_REPORT_FILE
from plantmodels.cli import next_steps
from plantmodels.cli.errors import KnownErrors
from plantmodels.cli.options import (
    OptionalPath,
    bundle_option,
    checkpoint_option,
    data_option,
    distill_options,
    field_option,
    hyper_parameters_option,
    non_plants_option,
    one_file_fp16_option,
    policy_option,
    seed_option,
    train_options,
    unseen_plants_option,
    weights_option,
)
from plantmodels.data.inputs import check_data, check_image_folder
from plantmodels.data.progress import log_to_terminal
from plantmodels.serve.routing import ROUTINGS, Routing
from plantmodels.training.requests import DistillRequest, TrainRequest

name_option = click.option("--name", default=DEFAULT_NAME, show_default=True, help="Name of the registered model.")


@click.group(cls=KnownErrors)
def main() -> None:
    """Run one job of MLproject, inside one MLflow run.

    Use plantmodels for the same work without MLflow, and plantmodels-registry to waive gates,
    audit and compare registered versions.
    """
    log_to_terminal()
    check_mlflow()


@main.command("run")
@checkpoint_option
@data_option
@non_plants_option
@unseen_plants_option
@field_option
@name_option
@bundle_option
@policy_option
@seed_option
@hyper_parameters_option
@weights_option
@one_file_fp16_option
def run_all(**options: Any) -> None:
    """Export, verify and register one model version.

    This is the main job. A version whose gates fail is registered too; the registry refuses to promote it.
    """
    request = JobRequest(**options)
    from mlflow_plugins.jobs.main import run_main_job
    from mlflow_plugins.jobs.registration import describe_registered
    from plantmodels.report.gate_report import read_report

    version = run_main_job(request)
    report = read_report(request.bundle)
    click.echo(report.table())
    click.echo(describe_registered(version.name, version.version, report))


@main.command()
@checkpoint_option
@data_option
@non_plants_option
@bundle_option
@seed_option
@hyper_parameters_option
@weights_option
@one_file_fp16_option
def export(**options: Any) -> None:
    """Turn a checkpoint into a bundle, and log its sizes and times."""
    request = JobRequest(**options)
    from mlflow_plugins.jobs.main import run_export

    was_verified = (request.bundle / GATE_REPORT_FILE).exists()
    click.echo(run_export(request).describe())
    if was_verified:
        click.echo(f"\n{next_steps.LOST_REPORT}")
    click.echo(
        next_steps.suggest_verify(
            request.bundle, request.data, request.checkpoint, request.non_plants, request.hyper_parameters
        )
    )


@main.command()
@checkpoint_option
@data_option
@non_plants_option
@unseen_plants_option
@field_option
@bundle_option
@policy_option
@hyper_parameters_option
def verify(**options: Any) -> None:
    """Measure every gate of a bundle, and log the report."""
    request = JobRequest(**options)
    from mlflow_plugins.jobs.main import run_verify

    report = run_verify(request)
    click.echo(report.table())
    click.echo(next_steps.suggest_register(report, request.bundle))


@main.command()
@bundle_option
@name_option
@click.option("--example", type=OptionalPath(), default="", help="Image file that becomes the version's input example.")
def register(bundle: Path, name: str, example: Path | None) -> None:
    """Register a bundle that was verified before."""
    from mlflow_plugins.jobs.main import run_register
    from mlflow_plugins.jobs.registration import describe_registered
    from plantmodels.report.gate_report import read_report

    version = run_register(bundle, name, example)
    report = read_report(bundle)
    click.echo(report.accuracy_sentence)
    click.echo(describe_registered(version.name, version.version, report))


@main.command()
@click.option("--model", required=True, help="The models:/ URI of a version, an alias or a stage.")
@click.option("--images", required=True, help="Folder of image files, or a .parquet table with a binary column image.")
@click.option("--output", required=True, help="Folder of Parquet files; if a stopped job left it, it is completed.")
@click.option(
    "--spark-master",
    default=ScoreRequest.spark_master,
    show_default=True,
    help="Where Spark runs: local[*] or spark://HOST:PORT.",
)
@click.option("--partition-by", default="", help="Columns of the scores that become folders, separated by commas.")
@click.option(
    "--images-per-batch",
    type=click.IntRange(min=1),
    default=ScoreRequest.images_per_batch,
    show_default=True,
    help="Number of files in a batch; a stopped job loses at most two batches.",
)
@click.option(
    "--routing",
    type=click.Choice(ROUTINGS),
    default=ScoreRequest.routing,
    show_default=True,
    help="How the disease head is chosen.",
)
def score(
    model: str, images: str, output: str, spark_master: str, partition_by: str, images_per_batch: int, routing: Routing
) -> None:
    """Score any number of images on Spark.

    A stopped job resumes without scoring an image twice.
    """
    from mlflow_plugins.jobs.scoring.job import run_score

    columns = tuple(name.strip() for name in partition_by.split(",") if name.strip())
    scores = run_score(ScoreRequest(model, images, output, spark_master, columns, images_per_batch, routing))
    click.echo(
        f"{output}: {scores.images:,} images, {scores.scored_now:,} of them scored now; {scores.errors:,} bad, "
        f"{scores.rejected:,} rejected"
    )


@main.command()
@train_options
def train(**options: Any) -> None:
    """Train a network from scratch; each epoch is a step of the run."""
    request = TrainRequest(**options)
    from mlflow_plugins.jobs.training import run_train_job

    click.echo(run_train_job(request).describe())
    click.echo(next_steps.suggest_export(request.out, request.data))


@main.command()
@distill_options
def distill(**options: Any) -> None:
    """Train a small student of a teacher, within a size limit; each epoch is a step of the run."""
    request = DistillRequest(**options)
    from mlflow_plugins.jobs.training import run_distill_job

    click.echo(run_distill_job(request).describe())
    click.echo(next_steps.suggest_export(request.out, request.data))


@main.command()
@name_option
@click.option("--version", default="", help="Number of the version; the latest version by default.")
@data_option
@non_plants_option
def show(name: str, version: str, data: Path, non_plants: Path | None) -> None:
    """Load a version back and ask it about a few images.

    Prints its gate table, and its answers to three validation leaves and one non-plant.
    """
    check_data(data, "val")
    if non_plants is not None:
        check_image_folder(non_plants, "non-plants")
    from mlflow_plugins.jobs.show import describe_version

    click.echo(describe_version(name, version, data, non_plants))


if __name__ == "__main__":
    main(prog_name="python -m mlflow_plugins.jobs")
