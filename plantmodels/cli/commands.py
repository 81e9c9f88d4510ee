"""The commands of `plantmodels`, all of which work without MLflow.

Each command checks the paths it was given before it imports anything slow. The exit status is 0 if the command
succeeded, 1 if a gate failed or an expected error was met, and 2 if the command was used wrongly.
"""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from plantmodels import __version__
from plantmodels.bundle.layout import GATE_REPORT_FILE, Precision
from plantmodels.cli import next_steps
from plantmodels.cli.errors import KnownErrors
from plantmodels.cli.options import (
    PATH,
    bundle_option,
    checkpoint_option,
    data_option,
    distill_options,
    field_option,
    format_option,
    html_option,
    hyper_parameters_option,
    non_plants_option,
    one_file_fp16_option,
    output_option,
    policy_option,
    precision_option,
    private_key_option,
    public_key_option,
    reference_checkpoint_option,
    runtime_option,
    seed_option,
    serve_options,
    top_k_option,
    train_options,
    unseen_plants_option,
    weights_option,
)
from plantmodels.data.inputs import check_checkpoint, check_data, check_field, check_image_folder
from plantmodels.data.progress import log_step, log_to_terminal
from plantmodels.errors import PlantModelsError
from plantmodels.training.requests import DistillRequest, TrainRequest

if TYPE_CHECKING:
    from plantmodels.compare.model import Comparison


@click.group(cls=KnownErrors)
@click.version_option(__version__)
def main() -> None:
    """Turn a trained hierarchical plant classifier into one verified bundle, and classify images with it.

    None of these commands needs MLflow. To waive, audit, compare and check registered versions, use
    plantmodels-registry.
    """
    log_to_terminal()


@main.command()
@checkpoint_option
@data_option
@non_plants_option
@bundle_option
@seed_option
@hyper_parameters_option
@weights_option
@one_file_fp16_option
def export(
    checkpoint: Path,
    data: Path,
    non_plants: Path | None,
    bundle: Path,
    seed: int,
    hyper_parameters: Path | None,
    weights: str,
    one_file_fp16: bool,
) -> None:
    """Turn a checkpoint into a bundle.

    A bundle is one folder with the species models, the disease heads, the detector and a manifest. An older bundle in
    the folder is replaced when the new one is complete.
    """
    from plantmodels.export.staging import check_replaceable

    check_checkpoint(checkpoint, hyper_parameters)
    check_data(data, "train")
    if non_plants is not None:
        check_image_folder(non_plants, "non-plants")
    check_replaceable(bundle)
    from plantmodels.export.bundle import export_bundle

    was_verified = (bundle / GATE_REPORT_FILE).exists()
    summary = export_bundle(
        checkpoint,
        data,
        bundle,
        non_plants=non_plants,
        seed=seed,
        hyper_parameters=hyper_parameters,
        weights=weights,
        one_file_fp16=one_file_fp16,
    )
    click.echo(summary.describe())
    if was_verified:
        click.echo(f"\n{next_steps.LOST_REPORT}")
    click.echo(next_steps.suggest_verify(bundle, data, checkpoint, non_plants, hyper_parameters))


@main.command()
@click.argument("checkpoint", type=PATH)
@click.option("--write", type=PATH, default=None, help="New YAML file for the hyper-parameters to complete.")
def describe(checkpoint: Path, write: Path | None) -> None:
    """Say what a checkpoint holds, and which hyper-parameters it lacks.

    Prints its networks, shapes, candidates for heads and species, and a file of hyper-parameters to complete for
    export's option --hyper-parameters. Nothing in the checkpoint is run.
    """
    check_checkpoint(checkpoint)
    from plantmodels.checkpoint.describe import describe_checkpoint, write_template

    click.echo(describe_checkpoint(checkpoint))
    if write is not None:
        write_template(checkpoint, write)
        click.echo(f"\nwrote {write}")


@main.command()
@bundle_option
@data_option
@reference_checkpoint_option
@non_plants_option
@unseen_plants_option
@field_option
@policy_option
@hyper_parameters_option
def verify(
    bundle: Path,
    data: Path,
    checkpoint: Path | None,
    non_plants: Path | None,
    unseen_plants: Path | None,
    field: Path | None,
    policy: Path | None,
    hyper_parameters: Path | None,
) -> None:
    """Measure every gate and write the report into the bundle.

    The exit status is 1 if a gate was not passed; the report is written all the same.
    """
    from plantmodels.bundle.manifest import read_manifest
    from plantmodels.report.policy import read_policy

    read_manifest(bundle)
    check_data(data, "val")
    if checkpoint is not None:
        check_checkpoint(checkpoint, hyper_parameters)
    if non_plants is not None:
        check_image_folder(non_plants, "non-plants")
    if unseen_plants is not None:
        check_image_folder(unseen_plants, "unseen plants")
    if field is not None:
        check_field(field)
    limits = read_policy(policy)
    from plantmodels.verify.run import verify_bundle

    report = verify_bundle(
        bundle,
        data,
        checkpoint=checkpoint,
        non_plants=non_plants,
        unseen_plants=unseen_plants,
        field=field,
        policy=limits,
        hyper_parameters=hyper_parameters,
    )
    click.echo(report.table())
    click.echo(next_steps.suggest_register(report, bundle))
    sys.exit(0 if report.passed else 1)


@main.command()
@bundle_option
@public_key_option
@runtime_option
def inspect(bundle: Path, public_key: Path | None, runtime: bool) -> None:
    """Check a bundle's digests and describe what it contains.

    With a public key, its signature is checked as well.
    """
    from plantmodels.report.describe import describe_bundle
    from plantmodels.report.gate_report import read_report

    click.echo(describe_bundle(bundle, public_key))
    if runtime:
        from plantmodels.cli.runtime import describe_runtime

        click.echo(f"\n{describe_runtime(bundle, public_key)}")
    if (bundle / GATE_REPORT_FILE).exists():
        click.echo(next_steps.suggest_register(read_report(bundle), bundle))
    else:
        click.echo(next_steps.suggest_verify(bundle))


@main.command()
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@html_option
@format_option
def compare(a: Path, b: Path, html: Path | None, output_format: str) -> None:
    """Say what is better or worse in bundle B than in A.

    Both must be verified: their gate reports are compared, and differences within noise are not counted. The comparison
    only informs; the exit status is 0 whatever it finds.
    """
    from plantmodels.compare.compare import compare_bundles

    show_comparison(compare_bundles(a, b), html, output_format)


def show_comparison(comparison: "Comparison", html: Path | None, output_format: str) -> None:
    """Print a comparison and, given a file, write it as an HTML page.

    Raises:
        PlantModelsError: the page cannot be written.
    """
    from plantmodels.bundle.files import write_bytes
    from plantmodels.compare.render import render_page, render_text

    if html is not None:
        try:
            write_bytes(html, render_page(comparison).encode())
        except OSError as error:
            raise PlantModelsError(f"{html}: cannot be written ({error.strerror})") from error
    document = json.dumps(comparison.to_dict(), ensure_ascii=False, indent=1)
    click.echo(document if output_format == "json" else render_text(comparison))


@main.command()
@click.argument("images", type=PATH, nargs=-1, required=True)
@bundle_option
@precision_option
@top_k_option
@public_key_option
@output_option
def predict(
    images: tuple[Path, ...],
    bundle: Path,
    precision: Precision,
    top_k: int,
    public_key: Path | None,
    output: Path | None,
) -> None:
    """Classify images on all cores and print a JSON object for each, or write a file of scores.

    IMAGES are files, folders (searched at any depth), quoted patterns such as 'incoming/**/*.jpg', and Parquet tables
    with a column image. An image that cannot be read gives an object whose "error" says why. The exit status is 1 if no
    image could be classified.
    """
    from plantmodels.cli.bulk import check_output, classify, find_images, write_scores
    from plantmodels.serve.classifier import PlantClassifier

    if output is not None:
        check_output(output)
    found = find_images(images)
    for note in found.notes:
        click.echo(note, err=True)
    classifier = PlantClassifier.load(
        bundle, precision=precision, threads=None if found.count == 1 else 1, allow_paths=True, public_key=public_key
    )
    rows = classify(classifier, found.images, top_k=top_k)
    if output is None:
        errors = 0
        for row in rows:
            errors += row["error"] is not None
            click.echo(json.dumps(row, ensure_ascii=False))
    else:
        with log_step("classify", total=found.count, unit="image") as advance:
            counts = write_scores(output, rows, advance)
        errors = counts.errors
        images_word = "image" if counts.images == 1 else "images"
        click.echo(f"{output}: {counts.images:,} {images_word}; {errors:,} bad, {counts.rejected:,} rejected")
    sys.exit(1 if errors == found.count else 0)


@main.command()
@click.argument("model")
@serve_options
def serve(
    model: str,
    host: str,
    port: int,
    workers: int,
    interval_s: float,
    precision: Precision,
    threads: int | None,
    public_key: Path | None,
    max_body: int,
    max_held: int,
    max_requests: int,
    max_images: int,
    body_timeout: float,
) -> None:
    """Answer images over HTTP.

    MODEL is a bundle's folder, or models:/NAME@ALIAS in the registry that MLFLOW_TRACKING_URI names. With an alias, the
    service switches to each promoted version without a pause, and waits if nothing was promoted yet. POST an image to
    /predict, or several as multipart/form-data.
    """
    from plantmodels.service.run import run_service
    from plantmodels.service.settings import MEGABYTE, Limits, Settings

    try:
        limits = Limits(
            body_bytes=max_body * MEGABYTE,
            held_bytes=max_held * MEGABYTE,
            requests=max_requests,
            images=max_images,
            body_timeout_s=body_timeout,
        )
        settings = Settings(model, interval_s, precision, threads, public_key, limits)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    run_service(settings, host=host, port=port, workers=workers)


@main.command()
@bundle_option
@private_key_option
def sign(bundle: Path, private_key: Path) -> None:
    """Sign a bundle with your own key.

    Sign after verify, which rewrites the manifest, and before registering. If the key is encrypted, its password is
    read from PLANTMODELS_KEY_PASSWORD or asked for. Signing needs the package model-signing.
    """
    from plantmodels.bundle.signature import is_encrypted, sign_bundle

    password = None
    if is_encrypted(private_key):
        password = os.environ.get("PLANTMODELS_KEY_PASSWORD") or click.prompt("Password of the key", hide_input=True)
    click.echo(f"wrote {sign_bundle(bundle, private_key, password=password)}")
    click.echo(next_steps.suggest_register_signed(bundle))


@main.command()
@train_options
def train(**options: Any) -> None:
    """Train a network from scratch on leaf images.

    Only the split train is read; a part of it is held out to choose the best epoch.
    """
    request = TrainRequest(**options)
    request.check_paths()
    from plantmodels.training.train import run_train

    click.echo(run_train(request).describe())
    click.echo(next_steps.suggest_export(request.out, request.data))


@main.command()
@distill_options
def distill(**options: Any) -> None:
    """Train a small student of a teacher, within a size limit.

    The student keeps the teacher's classes, embedding size and disease heads.
    """
    request = DistillRequest(**options)
    request.check_paths()
    from plantmodels.training.distill import run_distill

    click.echo(run_distill(request).describe())
    click.echo(next_steps.suggest_export(request.out, request.data))
