"""Trains a hierarchical network from scratch on leaf folders, and writes its checkpoint (contract 1).

Only the split "train" is read; a part of it is held out to choose the best epoch. A training that was killed can
resume. The same seed, data, machine and number of threads give the same weights.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch

from plantmodels.bundle.files import write_bytes
from plantmodels.bundle.metadata import Preprocessing
from plantmodels.checkpoint.spec import HELD_OUT, SEEN_NON_PLANTS, NetworkSpec
from plantmodels.data.digests import UNREADABLE
from plantmodels.data.image_files import printable_name
from plantmodels.data.leaves import (
    digest_leaves,
    group_leaves,
    list_classes,
    read_leaves,
    split_by_name,
)
from plantmodels.data.listing import log_left_out
from plantmodels.data.streaming import UnreadableImage
from plantmodels.errors import DataError
from plantmodels.export.network import HierarchicalNetwork
from plantmodels.training.curves import curves_path, draw_curves
from plantmodels.training.dataset import LeafImages, NonPlantImages, load_images, load_non_plants
from plantmodels.training.loop import BatchLoss, TrainingResult, TrainingTask, pick_device, run_training
from plantmodels.training.losses import BatchLabels, ExposedNetwork, NetworkOutputs, label_loss
from plantmodels.training.optimizer import pick_dtype
from plantmodels.training.recipe import EpochRecord, Observer, Recipe, describe_epoch
from plantmodels.training.requests import TrainRequest, check_writable

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)

MAX_HELD_OUT: Final = 20_000
"""Digests that a checkpoint holds, 70 bytes each. An export calibrates with half as many."""

STATE_SUFFIX: Final = ".state"
"""Added to the name of a checkpoint, it names the file from which a stopped training resumes."""


@dataclass(frozen=True)
class TrainReport:
    """The result of a training.

    Attributes:
        records: one record per epoch.
        best: record of the epoch whose weights were written.
        dtype: dtype in which the network was trained, "bfloat16" or "float32".
        device: "cpu" or "cuda".
        train_images: number of images trained on.
        held_out_images: number of training images that were held out to choose the best epoch.
        unreadable: files that were skipped.
        non_plants: number of non-plants that the network learned to tell from leaves.
    """

    records: tuple[EpochRecord, ...]
    best: EpochRecord
    dtype: str
    device: str
    train_images: int
    held_out_images: int
    unreadable: tuple[UnreadableImage, ...]
    non_plants: int = 0

    @property
    def train_seconds(self) -> float:
        """Return the wall-clock time of all epochs in seconds."""
        return sum(record.seconds for record in self.records)

    def describe(self) -> str:
        """Return a few lines for a terminal."""
        lines = [
            f"{len(self.records)} epochs on {self.train_images:,} leaves ({self.device}, {self.dtype}) in "
            f"{self.train_seconds:.0f} s; {self.held_out_images:,} leaves of the split train were held out",
            *([f"told apart from {self.non_plants:,} non-plants of the selection half"] if self.non_plants else []),
            f"written: {describe_epoch(self.best)}",
        ]
        return "\n".join(
            [*lines, *(f"skipped {printable_name(str(image.path))}: {image.reason}" for image in self.unreadable)]
        )


@dataclass(frozen=True)
class TrainingSet:
    """Decoded training leaves, divided into leaves to train on and leaves held out.

    Attributes:
        images: all leaves.
        train: (n,) rows to train on.
        held_out: (m,) rows that choose the best epoch.
        held_out_sha256: digests of the contents of the leaves held out, ascending; without those of leaves that occur
            among the leaves to train on, too.
        digest: SHA-256 of names, labels and contents of all leaves.
        unreadable: files that were skipped, non-plants included.
        non_plants: the selection half of the non-plants, or None.
    """

    images: LeafImages
    train: torch.Tensor
    held_out: torch.Tensor
    held_out_sha256: tuple[str, ...]
    digest: str
    unreadable: tuple[UnreadableImage, ...]
    non_plants: NonPlantImages | None

    @property
    def seen_non_plants(self) -> tuple[str, ...]:
        """Return the SHA-256 of the content of each non-plant, sorted; empty without non-plants."""
        return () if self.non_plants is None else self.non_plants.digests


def run_train(request: TrainRequest, observer: Observer | None = None) -> TrainReport:
    """Train on the classes of the split "train" in alphabetical order, and draw the curves beside the checkpoint.

    Args:
        request: options of the command.
        observer: function that is called with the record of each epoch.

    Raises:
        TrainingError: stages or backbone arguments cannot be parsed, or as in `train_network`.
        DataError, TaxonomyError, CheckpointError: as in `train_network` and `list_classes`.
    """
    recipe = request.make_recipe()
    spec = NetworkSpec(
        backbone=request.backbone,
        backbone_kwargs=request.parse_backbone_kwargs(),
        embedding_dim=request.embedding_dim,
        preprocessing=Preprocessing(recipe.stages[-1].image_size, IMAGENET_MEAN, IMAGENET_STD),
        taxonomy=list_classes(request.data),
    )
    report = train_network(request.data, request.out, spec, recipe, non_plants=request.non_plants, observer=observer)
    write_bytes(curves_path(request.out), draw_curves(report.records, report.best))
    return report


def train_network(
    data: Path,
    out: Path,
    spec: NetworkSpec,
    recipe: Recipe,
    *,
    projection: bool = True,
    non_plants: Path | None = None,
    observer: Observer | None = None,
) -> TrainReport:
    """Train a network on the split "train", and write its checkpoint.

    An existing `out` is replaced only by a complete checkpoint. After each epoch the file `out` + ".state" holds
    everything that the same call needs to resume after a kill.

    Args:
        data: leaf folders or a manifest (contract 2).
        out: checkpoint to write.
        spec: network, preprocessing and classes.
        recipe: how to train.
        projection: whether a linear layer maps the features of the backbone to the embedding.
        non_plants: folder of images that show no plant. The network learns to tell their selection half from leaves.
        observer: function that is called with the record of each epoch.

    Raises:
        DataError: there is no split "train", a class is unknown, too many files are unreadable, there are too few
            leaves to hold some out, or as in `load_non_plants`.
        CheckpointError: timm cannot build the backbone, or the folder of `out` is not writable.
        TrainingError: the stages do not fit the network, the loss is not finite, or the state to resume from belongs
            to a different training.
    """
    check_writable(out)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = make_network(spec, projection=projection, exposed=non_plants is not None)
    leaves = read_training_set(data, out, spec, recipe, non_plants)
    weight = leaves.images.weigh(leaves.train, recipe.balance)
    loss = _make_loss(leaves.images, weight, recipe.smoothing)
    fingerprint = digest_values(
        _list_hyper_parameters(spec), asdict(recipe), leaves.digest, projection, leaves.seen_non_plants
    )
    task = TrainingTask(leaves.images, leaves.train, leaves.held_out, loss, fingerprint, leaves.non_plants)
    return write_result(run_training(network, task, recipe, state=state_path(out), observer=observer), leaves, out)


def make_network(spec: NetworkSpec, *, projection: bool, exposed: bool) -> HierarchicalNetwork:
    """Return a network with random weights, with a logit for non-plants if it is exposed to them."""
    return (ExposedNetwork if exposed else HierarchicalNetwork)(spec, projection=projection)


def state_path(out: Path) -> Path:
    """Return the file from which a stopped training of this checkpoint resumes."""
    return out.with_name(out.name + STATE_SUFFIX)


def read_training_set(
    data: Path, out: Path, spec: NetworkSpec, recipe: Recipe, non_plants: Path | None = None
) -> TrainingSet:
    """Decode the split "train" and the selection half of the non-plants, and hold a part of the leaves out.

    Which leaves are held out depends only on their names and on the seed (`split_by_name`). Leaves that belong together
    are held out together (`group_leaves`).

    Args:
        data: leaf folders or a manifest.
        out: checkpoint; the decoded images are stored on its disk while they are used.
        spec: classes and preprocessing.
        recipe: share of the leaves to hold out, and the seed.
        non_plants: folder of images that show no plant, or None.

    Raises:
        DataError: there is no such split, a class is unknown, too many files are unreadable, there are too few leaves
            to hold some out, the disk is full, or as in `load_non_plants`.
    """
    leaves = read_leaves(data, "train", spec.taxonomy)
    log_left_out({"train": leaves})
    loaded = load_images(leaves, spec.preprocessing, out.parent)
    samples = loaded.samples
    groups = group_leaves(leaves)
    _, held_out = split_by_name(leaves, recipe.held_out, len(leaves.samples), recipe.seed, groups)
    chosen = set(held_out.samples)
    is_held_out = torch.tensor([sample in chosen for sample in samples])
    if is_held_out.all() or not is_held_out.any():
        together = f"; {groups.describe_largest()}" if groups.largest[1] > 1 else ""
        raise DataError(
            f"{data}: {len(samples)} training leaves cannot be divided: a share of {recipe.held_out:g} is held out to "
            f"choose the best epoch, and neither part may be empty{together}"
        )
    rows, digests = torch.arange(len(samples)), dict(zip(leaves.paths, groups.digests, strict=True))
    kept, learned = ({digests[s.path] for s in samples if (s in chosen) == is_kept} for is_kept in (True, False))
    others = None if non_plants is None else load_non_plants(non_plants, leaves, spec.preprocessing, out.parent)
    return TrainingSet(
        images=loaded.images,
        train=rows[~is_held_out],
        held_out=rows[is_held_out],
        held_out_sha256=tuple(sorted(kept - learned - {UNREADABLE})),
        digest=digest_leaves(leaves, digests),
        unreadable=loaded.unreadable + (() if others is None else others.unreadable),
        non_plants=others,
    )


def _make_loss(images: LeafImages, weight: torch.Tensor, smoothing: float) -> BatchLoss:
    def loss(network: HierarchicalNetwork, outputs: NetworkOutputs, rows: torch.Tensor) -> torch.Tensor:
        return label_loss(network, outputs, select_labels(images, weight, rows, outputs), smoothing)

    return loss


def select_labels(images: LeafImages, weight: torch.Tensor, rows: torch.Tensor, outputs: NetworkOutputs) -> BatchLabels:
    """Return the labels of a batch, on the device of its outputs.

    Args:
        images: labelled leaves.
        weight: (N,) weight of each leaf in the loss.
        rows: (B,) rows of the batch.
        outputs: outputs of the network for the batch.
    """
    device = outputs.embedding.device
    return BatchLabels(images.species[rows].to(device), images.disease[rows].to(device), weight[rows].to(device))


def digest_values(*parts: Any) -> str:
    """Return the SHA-256 digest of values that JSON can hold, in hexadecimal."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def write_result(result: TrainingResult, leaves: TrainingSet, out: Path) -> TrainReport:
    """Write the checkpoint, which names the leaves held out; delete the state, and return the report.

    Args:
        result: the trained network.
        leaves: leaves that it was trained on.
        out: checkpoint to write.
    """
    write_bytes(out, serialize_checkpoint(result.network, leaves.held_out_sha256, leaves.seen_non_plants))
    state_path(out).unlink(missing_ok=True)
    device = pick_device()
    return TrainReport(
        records=result.records,
        best=result.best,
        dtype=str(pick_dtype(device)).removeprefix("torch."),
        device=device.type,
        train_images=len(leaves.train),
        held_out_images=len(leaves.held_out),
        non_plants=len(leaves.seen_non_plants),
        unreadable=leaves.unreadable,
    )


def serialize_checkpoint(
    network: HierarchicalNetwork, held_out_sha256: Sequence[str] = (), seen_non_plants: Sequence[str] = ()
) -> bytes:
    """Return the bytes of a checkpoint (contract 1); the same weights and images give the same bytes.

    Args:
        network: network with its weights. Its logit for non-plants is left out.
        held_out_sha256: SHA-256 of each leaf that was held out; the first `MAX_HELD_OUT` are written.
        seen_non_plants: SHA-256 of each non-plant that it was trained on.
    """
    state = network.network_state() if isinstance(network, ExposedNetwork) else network.state_dict()
    parameters = _list_hyper_parameters(network.spec)
    if held_out_sha256:
        parameters[HELD_OUT] = list(held_out_sha256[:MAX_HELD_OUT])
    if seen_non_plants:
        parameters[SEEN_NON_PLANTS] = list(seen_non_plants)
    buffer = io.BytesIO()
    torch.save({"state_dict": state, "hyper_parameters": parameters}, buffer)
    return buffer.getvalue()


def _list_hyper_parameters(spec: NetworkSpec) -> dict[str, Any]:
    return {
        "backbone": spec.backbone,
        "backbone_kwargs": dict(spec.backbone_kwargs),
        "embedding_dim": spec.embedding_dim,
        "image_size": spec.preprocessing.image_size,
        "mean": list(spec.preprocessing.mean),
        "std": list(spec.preprocessing.std),
        "interpolation": spec.preprocessing.interpolation,
        "crop_pct": spec.preprocessing.crop_pct,
        **spec.taxonomy.to_dict(),
    }
