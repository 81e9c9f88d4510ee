"""`plantmodels export | verify | sign | inspect | compare | predict | train | distill`: every job without MLflow.

Exit status: 0 passed, 1 a gate or a known error, 2 wrong usage.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from traceback import walk_tb
from typing import TYPE_CHECKING, Any, TypeVar

import click

from plantmodels import __version__
from plantmodels.bundle.layout import PRECISIONS, Precision
from plantmodels.data.progress import log_to_terminal
from plantmodels.errors import PlantModelsError, is_out_of_memory

if TYPE_CHECKING:
    from plantmodels.compare.model import Comparison

_F = TypeVar("_F", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)


class OptionalPath(click.ParamType[Path | None]):
    """A path, or nothing when it is empty: `mlflow run` always passes declared parameters."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | None:
        """Empty text is None."""
        return Path(value) if str(value) else None


class KnownErrors(click.Group):
    """Turns `PlantModelsError` and lack of memory into one line on stderr and exit status 1; bugs keep their traceback.

    Where a thread of a library's own gets no memory, the library ends the process, and nothing can be said.
    """

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except PlantModelsError as error:
            prefix = "memory ran out: " if is_out_of_memory(error) else ""
            raise click.ClickException(prefix + " ".join(str(error).split())) from error
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = " ".join(str(error).split()) or type(error).__name__
            place = f"{ctx.invoked_subcommand}, in {_find_place(error)}"
            raise click.ClickException(f"memory ran out: {place} ({reason[:300]})") from error


def _find_place(error: BaseException) -> str:
    """The innermost function of ours that an error came through."""
    frames = (frame for frame, _ in walk_tb(error.__traceback__))
    places = [f"{frame.f_globals.get('__name__', '')}.{frame.f_code.co_name}" for frame in frames]
    return [__name__, *(place for place in places if place.startswith(("plantmodels.", "mlflow_plugins.")))][-1]


checkpoint_option = click.option("--checkpoint", type=PATH, required=True, help="Training checkpoint (contract 1).")
data_option = click.option(
    "--data",
    type=PATH,
    required=True,
    help="Folder with train/ and val/ leaves, or a CSV or Parquet manifest.",
)
non_plants_option = click.option(
    "--non-plants",
    type=OptionalPath(),
    default="",
    help="Folder of images of no plant; each sub-folder is a source.",
)
unseen_plants_option = click.option(
    "--unseen-plants",
    type=OptionalPath(),
    default="",
    help="Folder of plants of no known species; how many are rejected is reported, not gated.",
)
out_option = click.option(
    "--out", type=PATH, default=Path("public/models"), show_default=True, help="Folder of the bundle."
)
policy_option = click.option(
    "--policy", type=OptionalPath(), default="", help="Gate limits (TOML); the built-in ones when not given."
)
seed_option = click.option(
    "--seed", type=int, default=0, show_default=True, help="Of the folds that choose the detector."
)
public_key_option = click.option(
    "--public-key", type=PATH, default=None, help="Refuse a bundle that is not signed by this EC key (PEM)."
)
html_option = click.option(
    "--html", type=PATH, default=None, help="Also write the comparison as a page of its own, replacing the file."
)
format_option = click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="What is printed: tables, or one JSON object with every number.",
)


def _training_options(command: _F) -> _F:
    """What `train` and `distill` share."""
    for option in (
        click.option(
            "--seed", type=int, default=0, show_default=True, help="Of weights, order, augmentation, held-out leaves."
        ),
        click.option(
            "--patience",
            type=click.IntRange(min=0),
            default=0,
            show_default=True,
            help="Epochs without progress that end a stage early; 0 for never.",
        ),
        click.option(
            "--learning-rate",
            type=click.FloatRange(min=0, min_open=True),
            default=4e-3,
            show_default=True,
            help="The highest, of the hidden matrices.",
        ),
        click.option(
            "--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="Pictures a step."
        ),
        click.option(
            "--stages",
            default="112:15,224:5",
            show_default=True,
            help="SIDE:EPOCHS of growing pictures, comma between; the last side is the network's.",
        ),
        click.option(
            "--out", type=PATH, required=True, help="The checkpoint; a stopped training goes on by the same command."
        ),
        data_option,
    ):
        command = option(command)
    return command


def train_options(command: _F) -> _F:
    """Options of `train`, which are the fields of `TrainRequest`."""
    for option in (
        click.option(
            "--scale-patches", type=bool, default=False, show_default=True, help="Patches grow with pictures."
        ),
        click.option(
            "--embedding-dim", type=click.IntRange(min=1), default=768, show_default=True, help="Heads' input."
        ),
        click.option("--backbone-kwargs", default="{}", show_default=True, help="Arguments of it, a JSON object."),
        click.option("--backbone", default="swin_tiny_patch4_window7_224", show_default=True, help="A timm backbone."),
        _training_options,
    ):
        command = option(command)
    return command


def distill_options(command: _F) -> _F:
    """Options of `distill`, which are the fields of `DistillRequest`."""
    for option in (
        click.option(
            "--max-bytes",
            type=click.IntRange(min=1),
            default=5_000_000,
            show_default=True,
            help="What the student's INT8 species file must be below.",
        ),
        click.option("--student", default="swin", show_default=True, help="swin, swin-64 or a timm backbone."),
        _training_options,
        click.option("--teacher", type=PATH, required=True, help="Its checkpoint (contract 1)."),
    ):
        command = option(command)
    return command


@click.group(cls=KnownErrors)
@click.version_option(__version__)
def main() -> None:
    """Turns a trained hierarchical plant classifier into one verified bundle, and asks it."""
    log_to_terminal()


@main.command()
@checkpoint_option
@data_option
@non_plants_option
@out_option
@seed_option
def export(checkpoint: Path, data: Path, non_plants: Path | None, out: Path, seed: int) -> None:
    """Write the bundle of a checkpoint: species model, disease heads, detector, manifests."""
    from plantmodels.export.bundle import export_bundle

    summary = export_bundle(checkpoint, data, out, non_plants=non_plants, seed=seed)
    click.echo(summary.describe())


@main.command()
@click.option("--bundle", type=PATH, default=Path("public/models"), show_default=True, help="The bundle to measure.")
@data_option
@click.option("--checkpoint", type=OptionalPath(), default="", help="Measures parity against it.")
@non_plants_option
@unseen_plants_option
@policy_option
def verify(
    bundle: Path,
    data: Path,
    checkpoint: Path | None,
    non_plants: Path | None,
    unseen_plants: Path | None,
    policy: Path | None,
) -> None:
    """Measure every gate on real images and write the report into the bundle."""
    from plantmodels.report.policy import read_policy
    from plantmodels.verify.run import verify_bundle

    limits = read_policy(policy)
    report = verify_bundle(
        bundle, data, checkpoint=checkpoint, non_plants=non_plants, unseen_plants=unseen_plants, policy=limits
    )
    click.echo(report.table())
    sys.exit(0 if report.passed else 1)


@main.command()
@train_options
def train(**options: Any) -> None:
    """Train a hierarchical network from scratch on the leaves of split train."""
    from plantmodels.training.requests import TrainRequest, run_train

    click.echo(run_train(TrainRequest(**options)).describe())


@main.command()
@distill_options
def distill(**options: Any) -> None:
    """Train a small student of a teacher: the same embedding size and heads in a file that fits a budget."""
    from plantmodels.training.requests import DistillRequest, run_distill

    click.echo(run_distill(DistillRequest(**options)).describe())


@main.command()
@click.argument("bundle", type=PATH, default=Path("public/models"))
@click.option("--private-key", type=PATH, required=True, help="EC key (PEM) that signs; its public half checks.")
def sign(bundle: Path, private_key: Path) -> None:
    """Sign a bundle's manifest with a key of your own, after `verify` (which rewrites it) and before registering.

    The password of an encrypted key is PLANTMODELS_KEY_PASSWORD, or is asked for. Needs the package model-signing.
    """
    from plantmodels.bundle.signature import is_encrypted, sign_bundle

    password = None
    if is_encrypted(private_key):
        password = os.environ.get("PLANTMODELS_KEY_PASSWORD") or click.prompt("Password of the key", hide_input=True)
    click.echo(f"wrote {sign_bundle(bundle, private_key, password=password)}")


@main.command()
@click.argument("bundle", type=PATH, default=Path("public/models"))
@public_key_option
def inspect(bundle: Path, public_key: Path | None) -> None:
    """Check a bundle's digests, and its signature where a key is given, and say what is in it."""
    from plantmodels.report.describe import describe_bundle

    click.echo(describe_bundle(bundle, public_key))


@main.command()
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@html_option
@format_option
def compare(a: Path, b: Path, html: Path | None, form: str) -> None:
    """Say what is better or worse in bundle B than in A beyond noise, by their gate reports.

    It informs, the gates decide: the exit status is 0 whatever it finds.
    """
    from plantmodels.compare.compare import compare_bundles

    show_comparison(compare_bundles(a, b), html, form)


def show_comparison(comparison: "Comparison", html: Path | None, form: str) -> None:
    """Prints a comparison, and writes its page where one is wanted.

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
    click.echo(document if form == "json" else render_text(comparison))


@main.command()
@click.argument("images", type=PATH, nargs=-1, required=True)
@click.option("--bundle", type=PATH, default=Path("public/models"), show_default=True, help="The bundle that answers.")
@click.option("--precision", type=click.Choice(PRECISIONS), default="int8", show_default=True, help="Species model.")
@click.option("--top-k", type=click.IntRange(min=0), default=0, show_default=True, help="Candidates to add.")
@public_key_option
def predict(images: tuple[Path, ...], bundle: Path, precision: Precision, top_k: int, public_key: Path | None) -> None:
    """Classify image files; prints one JSON object a line."""
    from plantmodels.serve.classifier import PlantClassifier

    classifier = PlantClassifier.load(bundle, precision=precision, allow_paths=True, public_key=public_key)
    for path in images:
        (prediction,) = classifier.predict([path], top_k=top_k)
        row = {name: value for name, value in dataclasses.asdict(prediction).items() if name != "embedding"}
        click.echo(json.dumps({"path": str(path), **row}, ensure_ascii=False))
