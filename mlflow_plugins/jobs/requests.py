"""What a person may ask of the jobs, with every default; importing it loads neither MLflow nor torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from plantmodels.bundle.layout import DEFAULT_BUNDLE
from plantmodels.data.inputs import (
    TRAINED_WEIGHTS,
    Split,
    check_checkpoint,
    check_data,
    check_field,
    check_image_folder,
)
from plantmodels.data.sampling import DEFAULT_SEED
from plantmodels.report.policy import read_policy
from plantmodels.serve.routing import Routing

DEFAULT_NAME: Final = "plant-disease"
"""The registered model of every command that is not told another one."""


@dataclass(frozen=True)
class JobRequest:
    """What a person asks of the main job, and of its parts `export` and `verify`.

    Attributes:
        checkpoint: the training checkpoint (contract 1).
        data: leaf folders or a manifest (contract 2).
        non_plants: folder of images that show no plant; without it the rejection gates are not measured.
        unseen_plants: folder of plants of unknown species; reported, not gated.
        field: labelled leaves from another place, without split; gated only where the policy asks.
        bundle: folder of the bundle.
        policy: TOML file with gate limits; None for the built-in limits.
        name: the registered model.
        seed: seed of the export.
        hyper_parameters: JSON or YAML file whose entries replace the checkpoint's hyper-parameters.
        weights: "model", "ema" or the prefix of a network in the checkpoint.
        one_file_fp16: whether the export writes the one file in FP16 too.
    """

    checkpoint: Path
    data: Path
    non_plants: Path | None = None
    unseen_plants: Path | None = None
    field: Path | None = None
    bundle: Path = DEFAULT_BUNDLE
    policy: Path | None = None
    name: str = DEFAULT_NAME
    seed: int = DEFAULT_SEED
    hyper_parameters: Path | None = None
    weights: str = TRAINED_WEIGHTS
    one_file_fp16: bool = False

    def check_paths(self, *splits: Split) -> None:
        """Refuse paths that do not exist; takes no time and imports no torch.

        Args:
            splits: names of the data's splits that the job reads, "train" or "val".

        Raises:
            CheckpointError: no such checkpoint.
            DataError: no such data, split or image folder.
            PolicyError: no such policy file, or a malformed one.
        """
        read_policy(self.policy)
        check_checkpoint(self.checkpoint, self.hyper_parameters)
        check_data(self.data, *splits)
        if self.non_plants is not None:
            check_image_folder(self.non_plants, "non-plants")
        if self.unseen_plants is not None:
            check_image_folder(self.unseen_plants, "unseen plants")
        if self.field is not None:
            check_field(self.field)


@dataclass(frozen=True)
class ScoreRequest:
    """What a person asks of the job `score`.

    Attributes:
        model: `models:/` URI; an alias or stage means the version that it names when the job starts.
        images: folder of image files, or a Parquet table (a name that ends in .parquet) with the binary column
            `image`, whose other columns are copied to the scores. A path, or a URI that the cluster's Hadoop knows.
        output: folder of Parquet files; if a stopped job left it, it is completed.
        spark_master: where Spark runs, such as "local[*]" or "spark://host:7077".
        partition_by: columns of the scores that become folders, outermost first.
        images_per_batch: number of image files in a batch, or of Parquet files of a table; a stopped job loses at
            most two batches.
        routing: how the disease head is chosen, "hard" or "soft".
    """

    model: str
    images: str
    output: str
    spark_master: str = "local[*]"
    partition_by: tuple[str, ...] = ()
    images_per_batch: int = 2000
    routing: Routing = "hard"
