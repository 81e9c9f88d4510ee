"""Runs trainings and distillations from the options of the command line, which are texts and numbers.

>>> parse_stages("112:15,224:5")
(Stage(image_size=112, epochs=15), Stage(image_size=224, epochs=5))
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plantmodels.bundle.files import write_bytes
from plantmodels.bundle.metadata import Preprocessing
from plantmodels.bundle.serialization import parse_json_text
from plantmodels.data.leaves import list_classes
from plantmodels.errors import TrainingError
from plantmodels.export.checkpoint import NetworkSpec
from plantmodels.training.curves import draw_curves
from plantmodels.training.distill import DistillReport, distill_network
from plantmodels.training.recipe import Observer, Recipe, Stage
from plantmodels.training.students import MAX_INT8_BYTES
from plantmodels.training.train import TrainReport, train_network

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class TrainRequest:
    """Options of `plantmodels train`, with the same names."""

    data: Path
    out: Path
    backbone: str = "swin_tiny_patch4_window7_224"
    backbone_kwargs: str = "{}"
    embedding_dim: int = 768
    scale_patches: bool = False
    stages: str = "112:15,224:5"
    batch_size: int = 32
    learning_rate: float = 4e-3
    patience: int = 0
    seed: int = 0


@dataclass(frozen=True)
class DistillRequest:
    """Options of `plantmodels distill`, with the same names."""

    teacher: Path
    data: Path
    out: Path
    student: str = "swin"
    max_bytes: int = MAX_INT8_BYTES
    stages: str = "112:15,224:5"
    batch_size: int = 32
    learning_rate: float = 4e-3
    patience: int = 0
    seed: int = 0


def run_train(request: TrainRequest, observer: Observer | None = None) -> TrainReport:
    """Train on the classes of the split "train" in alphabetical order, and draw the curves beside the checkpoint.

    Args:
        request: options of the command.
        observer: function that is called with the record of each epoch.

    Raises:
        TrainingError: stages or backbone arguments cannot be parsed, or as in `train_network`.
        DataError, TaxonomyError, CheckpointError: as in `train_network` and `list_classes`.
    """
    stages = parse_stages(request.stages)
    spec = NetworkSpec(
        backbone=request.backbone,
        backbone_kwargs=_parse_kwargs(request.backbone_kwargs),
        embedding_dim=request.embedding_dim,
        preprocessing=Preprocessing(stages[-1].image_size, IMAGENET_MEAN, IMAGENET_STD),
        taxonomy=list_classes(request.data),
    )
    recipe = _make_recipe(request, stages, scale_patches=request.scale_patches)
    report = train_network(request.data, request.out, spec, recipe, observer=observer)
    write_bytes(curves_path(request.out), draw_curves(report.records, report.best))
    return report


def run_distill(request: DistillRequest, observer: Observer | None = None) -> DistillReport:
    """Distill a teacher into a student, and draw the curves beside the checkpoint.

    Args:
        request: options of the command.
        observer: function that is called with the record of each epoch.

    Raises:
        TrainingError: stages cannot be parsed or do not end with the teacher's image size, or as in `distill_network`.
        DataError, CheckpointError, ExportError: as in `distill_network`.
    """
    recipe = _make_recipe(request, parse_stages(request.stages))
    report = distill_network(
        request.teacher,
        request.data,
        request.out,
        recipe,
        student=request.student,
        max_bytes=request.max_bytes,
        observer=observer,
    )
    write_bytes(curves_path(request.out), draw_curves(report.training.records, report.training.best))
    return report


def curves_path(out: Path) -> Path:
    """Return the path of the plot of a training's curves, beside its checkpoint."""
    return out.with_name(out.name + ".png")


def parse_stages(text: str) -> tuple[Stage, ...]:
    """Parse stages written as `SIDE:EPOCHS,SIDE:EPOCHS`.

    Raises:
        TrainingError: the text has another form.
    """
    try:
        pairs = [part.split(":") for part in text.split(",")]
        return tuple(Stage(int(side), int(epochs)) for side, epochs in pairs)
    except ValueError as error:
        raise TrainingError(
            f"stages must be SIDE:EPOCHS, separated by commas, such as 112:15,224:5, got {text!r}"
        ) from error


def _parse_kwargs(text: str) -> dict[str, Any]:
    try:
        document = parse_json_text(text)
    except ValueError as error:
        raise TrainingError(f"backbone_kwargs must be a JSON object, got {text!r} ({error})") from error
    if not isinstance(document, dict):
        raise TrainingError(f"backbone_kwargs must be a JSON object, got {text!r}")
    return document


def _make_recipe(
    request: TrainRequest | DistillRequest, stages: tuple[Stage, ...], *, scale_patches: bool = False
) -> Recipe:
    try:
        return Recipe(
            stages=stages,
            batch_size=request.batch_size,
            learning_rate=request.learning_rate,
            seed=request.seed,
            scale_patches=scale_patches,
            patience=request.patience,
        )
    except ValueError as error:
        raise TrainingError(f"{request.out}: {error}") from error
