"""Trains a hierarchical network from scratch on leaf folders and writes a checkpoint of contract 1.

A plain trainer: it reads split "train" alone, holds a part of it out to choose the best epoch, and can be killed and
resumed. The same seed, data, machine and number of threads give the same weights.

>>> recipe = Recipe((Stage(112, 15), Stage(224, 5)), seed=0)  # doctest: +SKIP
>>> report = train_network(Path("DATA"), Path("leaves.ckpt"), spec, recipe)  # doctest: +SKIP
>>> report.best.end_to_end_accuracy  # doctest: +SKIP
0.97
"""

import hashlib
import io
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch

from plantmodels.bundle.files import write_bytes
from plantmodels.data.digests import digest_leaves
from plantmodels.data.leaves import LeafSet, read_leaves, split_by_name
from plantmodels.data.streaming import UnreadableImage
from plantmodels.errors import CheckpointError, DataError
from plantmodels.export.checkpoint import NetworkSpec
from plantmodels.export.network import HierarchicalNetwork
from plantmodels.training.dataset import Pictures, load_pictures
from plantmodels.training.loop import BatchLoss, Job, Outcome, pick_device, run_training
from plantmodels.training.losses import Answers, Labels, label_loss
from plantmodels.training.optimizer import fast_dtype
from plantmodels.training.recipe import EpochRecord, Observer, Recipe, describe_epoch

STATE_SUFFIX: Final = ".state"
"""The file that a stopped training resumes from is called as its checkpoint, and this."""


@dataclass(frozen=True)
class TrainReport:
    """What a training did.

    Attributes:
        records: of every epoch.
        best: the one whose weights were written, judged on held-out training leaves.
        dtype: in which the network was trained, "bfloat16" or "float32".
        device: "cpu" or "cuda".
        train_images: pictures trained on.
        held_out_images: pictures that chose the best epoch.
        unreadable: files that were skipped.
    """

    records: tuple[EpochRecord, ...]
    best: EpochRecord
    dtype: str
    device: str
    train_images: int
    held_out_images: int
    unreadable: tuple[UnreadableImage, ...]

    @property
    def train_seconds(self) -> float:
        """Wall-clock time of all epochs."""
        return sum(record.seconds for record in self.records)

    def describe(self) -> str:
        """A few lines for terminals."""
        lines = [
            f"{len(self.records)} epochs on {self.train_images:,} leaves ({self.device}, {self.dtype}) in "
            f"{self.train_seconds:.0f} s; {self.held_out_images:,} leaves of split train were held out",
            f"written: {describe_epoch(self.best)}",
        ]
        return "\n".join([*lines, *(f"skipped {image.path}: {image.reason}" for image in self.unreadable)])


@dataclass(frozen=True)
class TrainingSet:
    """Decoded training leaves, divided.

    Attributes:
        pictures: all of them.
        train: (n,) rows to train on.
        held_out: (m,) rows that choose the best epoch.
        digest: SHA-256 of names, labels and contents of all leaves.
        unreadable: files that were skipped.
    """

    pictures: Pictures
    train: torch.Tensor
    held_out: torch.Tensor
    digest: str
    unreadable: tuple[UnreadableImage, ...]


def train_network(
    data: Path,
    out: Path,
    spec: NetworkSpec,
    recipe: Recipe,
    *,
    projection: bool = True,
    observer: Observer | None = None,
) -> TrainReport:
    """Trains on `data/train` and writes the checkpoint.

    An existing `out` is replaced only by a complete checkpoint. After each epoch `out` + ".state" holds all that the
    same call needs to go on after a kill.

    Args:
        data: leaf folders or a manifest (contract 2).
        out: the checkpoint file.
        spec: network, preprocessing and classes.
        recipe: how it is trained.
        projection: whether a linear layer maps backbone features to the embedding.
        observer: is told of every epoch.

    Raises:
        DataError: no split "train", an unknown class, too many unreadable files, or too few to hold some out.
        CheckpointError: timm cannot build the backbone, or `out` lies in no folder that can be written to.
        TrainingError: stages that do not fit the network, a loss that is not finite, or a state to resume from that
            is of another training.
    """
    check_writable(out)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = HierarchicalNetwork(spec, projection=projection)
    leaves = read_training_set(data, out, spec, recipe)
    weight = leaves.pictures.weights(leaves.train, recipe.balance)
    loss = _make_loss(leaves.pictures, weight, recipe.smoothing)
    fingerprint = digest_of(_hyper_parameters(spec), asdict(recipe), leaves.digest, projection)
    job = Job(leaves.pictures, leaves.train, leaves.held_out, loss, fingerprint)
    return finish(run_training(network, job, recipe, state=state_of(out), observer=observer), leaves, out)


def check_writable(out: Path) -> None:
    """Finds out before the training, not after it.

    Raises:
        CheckpointError: `out` lies in no folder that can be written to.
    """
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK | os.X_OK):
        raise CheckpointError(f"{out}: {out.parent} is not a folder that can be written to")


def state_of(out: Path) -> Path:
    """The file that a stopped training of this checkpoint resumes from."""
    return out.with_name(out.name + STATE_SUFFIX)


def read_training_set(data: Path, out: Path, spec: NetworkSpec, recipe: Recipe) -> TrainingSet:
    """Decodes split "train" and holds a part of it out.

    Who is held out follows from names and seed (`split_by_name`).

    Args:
        data: leaf folders or a manifest.
        out: the decoded pictures take room on the disk that it lies on, until they are no longer used.
        spec: classes and preprocessing.
        recipe: its share held out, and seed.

    Raises:
        DataError: no such split, an unknown class, too many unreadable files, too few to hold some out, or no room.
    """
    leaves = read_leaves(data, "train", spec.taxonomy)
    loaded = load_pictures(leaves, spec.preprocessing, out.parent)
    samples = loaded.samples
    kept = LeafSet(leaves.root, leaves.split, samples)
    _, held_out = split_by_name(kept, recipe.held_out, len(samples), recipe.seed)
    chosen = set(held_out.samples)
    is_held_out = torch.tensor([sample in chosen for sample in samples])
    if is_held_out.all() or not is_held_out.any():
        raise DataError(
            f"{data}: {len(samples)} training leaves cannot be divided into those to train on and a share of "
            f"{recipe.held_out:g} to choose the best epoch"
        )
    rows = torch.arange(len(samples))
    return TrainingSet(loaded.pictures, rows[~is_held_out], rows[is_held_out], digest_leaves(leaves), loaded.unreadable)


def _make_loss(pictures: Pictures, weight: torch.Tensor, smoothing: float) -> BatchLoss:
    def loss(network: HierarchicalNetwork, answers: Answers, rows: torch.Tensor) -> torch.Tensor:
        return label_loss(network, answers, take_labels(pictures, weight, rows, answers), smoothing)

    return loss


def take_labels(pictures: Pictures, weight: torch.Tensor, rows: torch.Tensor, answers: Answers) -> Labels:
    """Labels of a batch, on the device of the answers to it."""
    device = answers.embedding.device
    return Labels(pictures.species[rows].to(device), pictures.disease[rows].to(device), weight[rows].to(device))


def digest_of(*parts: Any) -> str:
    """SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def finish(outcome: Outcome, leaves: TrainingSet, out: Path) -> TrainReport:
    """Writes the checkpoint, deletes the state, and reports."""
    write_bytes(out, serialise(outcome.network))
    state_of(out).unlink(missing_ok=True)
    device = pick_device()
    return TrainReport(
        records=outcome.records,
        best=outcome.best,
        dtype=str(fast_dtype(device)).removeprefix("torch."),
        device=device.type,
        train_images=len(leaves.train),
        held_out_images=len(leaves.held_out),
        unreadable=leaves.unreadable,
    )


def serialise(network: HierarchicalNetwork) -> bytes:
    """A checkpoint of contract 1; the same weights give the same bytes."""
    buffer = io.BytesIO()
    torch.save({"state_dict": network.state_dict(), "hyper_parameters": _hyper_parameters(network.spec)}, buffer)
    return buffer.getvalue()


def _hyper_parameters(spec: NetworkSpec) -> dict[str, Any]:
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
