"""The options of a training and of a distillation, with all defaults; importing this file does not load torch.

The fields have the names of the commands' options. `run_train` and `run_distill` carry out a request.

>>> parse_stages("112:15,224:5")
(Stage(image_size=112, epochs=15), Stage(image_size=224, epochs=5))
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from plantmodels.bundle.serialization import parse_json_text
from plantmodels.data.inputs import check_checkpoint, check_data, check_image_folder
from plantmodels.errors import CheckpointError, TrainingError
from plantmodels.report.policy import GatePolicy
from plantmodels.training.recipe import Recipe, Stage

DEFAULT_STAGES: Final = "112:15,224:5"


@dataclass(frozen=True)
class TrainRequest:
    """Options of `plantmodels train`, whose help explains the fields."""

    data: Path
    out: Path
    non_plants: Path | None = None
    backbone: str = "swin_tiny_patch4_window7_224"
    backbone_kwargs: str = "{}"
    embedding_dim: int = 768
    scale_patches: bool = Recipe.scale_patches
    stages: str = DEFAULT_STAGES
    batch_size: int = Recipe.batch_size
    learning_rate: float = Recipe.learning_rate
    patience: int = Recipe.patience
    seed: int = Recipe.seed

    def check_paths(self) -> None:
        """Raise an error for paths that cannot be used, within a second and without loading torch.

        Raises:
            DataError: the data do not exist, or have no split "train", or the non-plants do not exist.
            CheckpointError: the folder of `out` does not exist or is not writable.
        """
        check_data(self.data, "train")
        _check_non_plants(self.non_plants)
        check_writable(self.out)

    def make_recipe(self) -> Recipe:
        """Return the recipe of this request.

        Raises:
            TrainingError: the stages cannot be parsed, or a number is out of range.
        """
        return _make_recipe(self, scale_patches=self.scale_patches)

    def parse_backbone_kwargs(self) -> dict[str, Any]:
        """Return the further arguments of `timm.create_model`.

        Raises:
            TrainingError: the text is not a JSON object.
        """
        try:
            document = parse_json_text(self.backbone_kwargs)
        except ValueError as error:
            raise TrainingError(
                f"backbone_kwargs must be a JSON object, got {self.backbone_kwargs!r} ({error})"
            ) from error
        if not isinstance(document, dict):
            raise TrainingError(f"backbone_kwargs must be a JSON object, got {self.backbone_kwargs!r}")
        return document


@dataclass(frozen=True)
class DistillRequest:
    """Options of `plantmodels distill`, whose help explains the fields."""

    teacher: Path
    data: Path
    out: Path
    non_plants: Path | None = None
    student: str = "swin"
    max_bytes: int = GatePolicy.species_size_max_bytes
    labels_only: bool = False
    stages: str = DEFAULT_STAGES
    batch_size: int = Recipe.batch_size
    learning_rate: float = Recipe.learning_rate
    patience: int = Recipe.patience
    seed: int = Recipe.seed

    def check_paths(self) -> None:
        """Raise an error for paths that cannot be used, within a second and without loading torch.

        Raises:
            CheckpointError: the teacher does not exist, or the folder of `out` does not exist or is not writable.
            DataError: the data do not exist, or have no split "train", or the non-plants do not exist.
        """
        check_checkpoint(self.teacher)
        check_data(self.data, "train")
        _check_non_plants(self.non_plants)
        check_writable(self.out)

    def make_recipe(self) -> Recipe:
        """Return the recipe of this request. The student decides whether patches are scaled, not the recipe.

        Raises:
            TrainingError: the stages cannot be parsed, or a number is out of range.
        """
        return _make_recipe(self, scale_patches=False)


def _check_non_plants(folder: Path | None) -> None:
    if folder is not None:
        check_image_folder(folder, "non-plants")


def check_writable(out: Path) -> None:
    """Raise an error if the checkpoint cannot be written; called before the training.

    Raises:
        CheckpointError: the folder of `out` does not exist or is not writable.
    """
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK | os.X_OK):
        raise CheckpointError(f"{out}: {out.parent} is not a folder that can be written to")


def parse_stages(text: str) -> tuple[Stage, ...]:
    """Read stages from text such as "112:15,224:5": an image side and a number of epochs each.

    Raises:
        TrainingError: the text has another form.
    """
    try:
        pairs = [part.split(":") for part in text.split(",")]
        return tuple(Stage(int(side), int(epochs)) for side, epochs in pairs)
    except ValueError as error:
        raise TrainingError(
            f"stages must be SIDE:EPOCHS, separated by commas, such as {DEFAULT_STAGES}, got {text!r}"
        ) from error


def _make_recipe(request: TrainRequest | DistillRequest, *, scale_patches: bool) -> Recipe:
    stages = parse_stages(request.stages)
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
