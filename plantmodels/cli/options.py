"""Every option of the command lines, once: its name, type, default and help sentence.

Defaults come from the library (`TrainRequest`, `DEFAULT_BUNDLE`, ...); nothing imported here loads torch.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from plantmodels.bundle.layout import DEFAULT_BUNDLE, DEFAULT_PRECISION, ONE_FILES, PRECISIONS
from plantmodels.data.inputs import TRAINED_WEIGHTS
from plantmodels.data.sampling import DEFAULT_SEED
from plantmodels.service.settings import MEGABYTE, Limits, Settings
from plantmodels.training.requests import DistillRequest, TrainRequest

_Command = TypeVar("_Command", bound=Callable[..., Any])

PATH: Final = click.Path(path_type=Path)


class OptionalPath(click.ParamType):  # type: ignore[type-arg] # click before 8.4 takes no type here
    """A path, or None when the text is empty: `mlflow run` passes every declared parameter."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | None:
        """Return the path, or None for empty text."""
        return Path(value) if str(value) else None


def _combine(*options: Callable[[Any], Any]) -> Callable[[_Command], _Command]:
    """Return one decorator for several options, which `--help` lists in this order."""

    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


checkpoint_option = click.option(
    "--checkpoint", type=PATH, required=True, help="The training checkpoint: a file, or a folder of weights."
)
hyper_parameters_option = click.option(
    "--hyper-parameters",
    type=OptionalPath(),
    default="",
    help="JSON or YAML file with hyper-parameters; they replace those in the checkpoint.",
)
weights_option = click.option(
    "--weights",
    default=TRAINED_WEIGHTS,
    show_default=True,
    help='Which weights of the checkpoint: "model", "ema" for the averaged copy, or the prefix of a network.',
)
one_file_fp16_option = click.option(
    "--one-file-fp16",
    type=bool,
    default=False,
    show_default=True,
    help=f"Also write {ONE_FILES['fp16']}, the one file in FP16, for GPUs and large batches.",
)
reference_checkpoint_option = click.option(
    "--checkpoint",
    type=OptionalPath(),
    default="",
    help="The checkpoint that the bundle was exported from; without it parity and heads_complete are not measured.",
)
teacher_option = click.option("--teacher", type=PATH, required=True, help="The checkpoint of the teacher.")
data_option = click.option(
    "--data",
    type=PATH,
    required=True,
    help="Folder with train/ and val/ of leaf images, or a CSV or Parquet manifest.",
)
non_plants_option = click.option(
    "--non-plants",
    type=OptionalPath(),
    default="",
    help="Folder of images that show no plant; each sub-folder is a source.",
)
unseen_plants_option = click.option(
    "--unseen-plants",
    type=OptionalPath(),
    default="",
    help="Folder of plants of unknown species; the report says how many are rejected, and no gate depends on it.",
)
field_option = click.option(
    "--field",
    type=OptionalPath(),
    default="",
    help="Labelled leaves from another place: a folder of class folders without train/ and val/, or a manifest; the "
    "report shows them beside the validation leaves.",
)
bundle_option = click.option(
    "--bundle", type=PATH, default=DEFAULT_BUNDLE, show_default=True, help="Folder of the bundle."
)
policy_option = click.option(
    "--policy",
    type=OptionalPath(),
    default="",
    help="TOML file with gate limits; without it the built-in limits apply.",
)
seed_option = click.option(
    "--seed",
    type=int,
    default=DEFAULT_SEED,
    show_default=True,
    help="Seed of the folds in which detectors are compared.",
)
public_key_option = click.option(
    "--public-key", type=PATH, default=None, help="EC public key (PEM); refuse a bundle that this key did not sign."
)
runtime_option = click.option(
    "--runtime",
    is_flag=True,
    help="Also run the bundle on its reference images, and print how far this machine's answers are from those at "
    "verification.",
)
private_key_option = click.option(
    "--private-key", type=PATH, required=True, help="EC private key (PEM) that signs the bundle."
)
html_option = click.option(
    "--html", type=PATH, default=None, help="Also write the comparison as an HTML page, replacing the file."
)
format_option = click.option(
    "--format",
    "output_format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Print tables, or one JSON object with every number.",
)
output_option = click.option(
    "--output",
    type=PATH,
    default=None,
    help="Write the scores into this .parquet, .csv or .jsonl file, with a progress bar, instead of printing them.",
)
precision_option = click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default=DEFAULT_PRECISION,
    show_default=True,
    help="The species model that answers.",
)
top_k_option = click.option(
    "--top-k", type=click.IntRange(min=0), default=0, show_default=True, help="Number of candidate species to print."
)

_LIMITS: Final = Limits()

serve_options: Callable[[Any], Any] = _combine(
    click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all."),
    click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="Port to listen on."),
    click.option(
        "--workers",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Number of processes. One uses all cores; each loads the model and has limits of its own.",
    ),
    click.option(
        "--interval",
        "interval_s",
        type=click.FloatRange(min=0, min_open=True),
        default=Settings.interval_s,
        show_default=True,
        help="Seconds between two checks of which version the alias names.",
    ),
    precision_option,
    click.option(
        "--threads",
        type=click.IntRange(min=1),
        default=None,
        show_default="OMP_NUM_THREADS, or else one for a species model of up to 10 MB and all cores for a larger one",
        help="Number of threads inside an operator.",
    ),
    public_key_option,
    click.option(
        "--max-body",
        type=click.IntRange(min=1),
        default=_LIMITS.body_bytes // MEGABYTE,
        show_default=True,
        help="Size of the largest body in MB (2^20 bytes); a larger one is refused with status 413.",
    ),
    click.option(
        "--max-held",
        type=click.IntRange(min=1),
        default=_LIMITS.held_bytes // MEGABYTE,
        show_default=True,
        help="Size of all bodies together in MB; a request beyond it is refused with status 503.",
    ),
    click.option(
        "--max-requests",
        type=click.IntRange(min=1),
        default=_LIMITS.requests,
        show_default=True,
        help="Number of requests that wait or compute at once; a further one is refused with status 503.",
    ),
    click.option(
        "--max-images",
        type=click.IntRange(min=1),
        default=_LIMITS.images,
        show_default=True,
        help="Number of images in one request; a request with more is refused with status 413.",
    ),
    click.option(
        "--body-timeout",
        type=click.FloatRange(min=0, min_open=True),
        default=_LIMITS.body_timeout_s,
        show_default=True,
        help="Seconds in which a body must arrive; a slower one is refused with status 408.",
    ),
)
"""The options of `serve`: the fields of `Settings` and `Limits`, and where to listen."""

_checkpoint_file_option = click.option(
    "--out", type=PATH, required=True, help="The checkpoint to write; run a stopped command again to resume it."
)
_stages_option = click.option(
    "--stages",
    default=TrainRequest.stages,
    show_default=True,
    help="Stages of growing images as SIDE:EPOCHS, separated by commas; the last side is the network's.",
)
_batch_size_option = click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=TrainRequest.batch_size,
    show_default=True,
    help="Number of images in a training step.",
)
_learning_rate_option = click.option(
    "--learning-rate",
    type=click.FloatRange(min=0, min_open=True),
    default=TrainRequest.learning_rate,
    show_default=True,
    help="Highest learning rate of the hidden weight matrices; all other weights use a quarter of it.",
)
_patience_option = click.option(
    "--patience",
    type=click.IntRange(min=0),
    default=TrainRequest.patience,
    show_default=True,
    help="Number of epochs without progress after which a stage ends early; 0 never ends one early.",
)
_training_seed_option = click.option(
    "--seed",
    type=int,
    default=TrainRequest.seed,
    show_default=True,
    help="Seed of first weights, order, augmentation and held-out leaves.",
)
_exposure_option = click.option(
    "--non-plants",
    type=OptionalPath(),
    default="",
    help="Folder of images that show no plant; the network learns to tell their selection half from leaves.",
)
_training_options: Callable[[Any], Any] = _combine(
    data_option,
    _checkpoint_file_option,
    _exposure_option,
    _stages_option,
    _batch_size_option,
    _learning_rate_option,
    _patience_option,
    _training_seed_option,
)

train_options: Callable[[Any], Any] = _combine(
    _training_options,
    click.option("--backbone", default=TrainRequest.backbone, show_default=True, help="Name of a timm backbone."),
    click.option(
        "--backbone-kwargs",
        default=TrainRequest.backbone_kwargs,
        show_default=True,
        help="Arguments of the backbone as a JSON object.",
    ),
    click.option(
        "--embedding-dim",
        type=click.IntRange(min=1),
        default=TrainRequest.embedding_dim,
        show_default=True,
        help="Size of the embedding that the disease heads read.",
    ),
    click.option(
        "--scale-patches",
        type=bool,
        default=TrainRequest.scale_patches,
        show_default=True,
        help="Whether patches grow with the images, so that every stage costs what the first does.",
    ),
)
"""The fields of `TrainRequest`."""

distill_options: Callable[[Any], Any] = _combine(
    teacher_option,
    _training_options,
    click.option(
        "--student",
        default=DistillRequest.student,
        show_default=True,
        help='The student: "swin", "swin-64" or the name of a timm backbone.',
    ),
    click.option(
        "--max-bytes",
        type=click.IntRange(min=1),
        default=DistillRequest.max_bytes,
        show_default=True,
        help="Size in bytes that the student's INT8 species file must stay below.",
    ),
    click.option(
        "--labels-only",
        type=bool,
        default=DistillRequest.labels_only,
        show_default=True,
        help="Whether the student learns from the labels alone, and has only its first weights from the teacher.",
    ),
)
"""The fields of `DistillRequest`."""
