"""Distills a large teacher into a small student with the same embedding size and the same heads.

The teacher runs once on every training leaf; its outputs are kept beside the student's checkpoint until that is
written. The student starts with as many of the teacher's weights as fit. It learns from the labels of the leaves, and
from the teacher's embedding and logits.
"""

import io
import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from plantmodels.bundle.files import write_bytes
from plantmodels.checkpoint.reading import READ_ERRORS, read_checkpoint
from plantmodels.data.progress import log_step
from plantmodels.errors import TrainingError
from plantmodels.export.network import HierarchicalNetwork, load_network
from plantmodels.foreign_text import quote_error
from plantmodels.training.curves import curves_path, draw_curves
from plantmodels.training.dataset import LeafImages
from plantmodels.training.loop import BatchLoss, TrainingTask, pick_device, run_training
from plantmodels.training.losses import DistillWeights, NetworkOutputs, distillation_loss, label_loss
from plantmodels.training.patch_sizes import resize_patches, resize_spec
from plantmodels.training.recipe import Observer, Recipe
from plantmodels.training.requests import DistillRequest, check_writable
from plantmodels.training.students import (
    check_size,
    find_student,
    fit_projection_,
    inherit_weights_,
    make_student_spec,
)
from plantmodels.training.train import (
    TrainingSet,
    TrainReport,
    digest_values,
    make_network,
    read_training_set,
    select_labels,
    state_path,
    write_result,
)

TEACHER_SUFFIX: Final = ".teacher"
"""Added to the name of the student's checkpoint, it names the file of the teacher's outputs."""

_TEACHER_BATCH: Final = 16

_LOGGER: Final = logging.getLogger(__name__)


@dataclass(frozen=True)
class DistillReport:
    """The result of a distillation.

    Attributes:
        training: report on the training of the student.
        int8_bytes: size in bytes of the student's INT8 species file if every product is INT8.
        inherited: number of backbone tensors that were copied from the teacher.
    """

    training: TrainReport
    int8_bytes: int
    inherited: int

    def describe(self) -> str:
        """Return a few lines for a terminal."""
        return (
            f"INT8 species file: {self.int8_bytes:,} bytes; {self.inherited} backbone tensors copied from the teacher\n"
            + self.training.describe()
        )


def run_distill(request: DistillRequest, observer: Observer | None = None) -> DistillReport:
    """Distill a teacher into a student, and draw the curves beside the checkpoint.

    Args:
        request: options of the command.
        observer: function that is called with the record of each epoch.

    Raises:
        TrainingError: stages cannot be parsed or do not end with the teacher's image size, or as in `distill_network`.
        DataError, CheckpointError, ExportError: as in `distill_network`.
    """
    report = distill_network(
        request.teacher,
        request.data,
        request.out,
        request.make_recipe(),
        student=request.student,
        weights=DistillWeights(embedding=0, logits=0) if request.labels_only else None,
        max_bytes=request.max_bytes,
        non_plants=request.non_plants,
        observer=observer,
    )
    write_bytes(curves_path(request.out), draw_curves(report.training.records, report.training.best))
    return report


def distill_network(
    teacher: Path,
    data: Path,
    out: Path,
    recipe: Recipe,
    *,
    student: str = DistillRequest.student,
    weights: DistillWeights | None = None,
    max_bytes: int = DistillRequest.max_bytes,
    non_plants: Path | None = None,
    observer: Observer | None = None,
) -> DistillReport:
    """Train a student of `teacher` on the split "train", and write its checkpoint, which has a projection.

    An existing `out` is replaced only by a complete checkpoint. A call that was killed can be repeated: it resumes
    after the last complete epoch, and does not run the teacher again.

    Args:
        teacher: checkpoint of the teacher (contract 1).
        data: leaf folders or a manifest (contract 2) with the teacher's classes.
        out: checkpoint to write.
        recipe: how to train. Its `scale_patches` is ignored; the student's architecture decides it.
        student: one of `STUDENTS`, or a timm backbone.
        weights: weights of the parts of the loss.
        max_bytes: the INT8 species file must be smaller than this number of bytes.
        non_plants: folder of images that show no plant. The student learns to tell their selection half from leaves.
        observer: function that is called with the record of each epoch.

    Raises:
        TrainingError: the student is unknown or its INT8 file is too large, which is found before any training; or
            as in `train_network`.
        DataError, CheckpointError, ExportError: as in `train_network` and in an export.
    """
    check_writable(out)
    checkpoint = read_checkpoint(teacher)
    teacher_network = load_network(checkpoint).requires_grad_(False)
    architecture = find_student(student)
    recipe = replace(recipe, scale_patches=architecture.scale_patches)
    weights = weights or DistillWeights()
    spec = make_student_spec(architecture, checkpoint.spec)
    with torch.random.fork_rng(devices=[]):
        size = check_size(spec, max_bytes)
        torch.manual_seed(recipe.seed)
        network = make_network(spec, projection=True, exposed=non_plants is not None)
    _LOGGER.info("student %r: %s bytes in INT8", student, f"{size:,}")
    device = pick_device()
    leaves = read_training_set(data, out, spec, recipe, non_plants)
    teacher_outputs = _ask_teacher(teacher_network.to(device), leaves, out, checkpoint.sha256, device)
    inherited = inherit_weights_(network, teacher_network.cpu())
    _fit_first_projection_(network, leaves, recipe, teacher_outputs, device)
    loss = _make_loss(teacher_network.to(device), leaves, teacher_outputs, recipe, weights)
    fingerprint = digest_values(
        checkpoint.sha256, asdict(recipe), asdict(weights), student, leaves.digest, leaves.seen_non_plants
    )
    task = TrainingTask(leaves.images, leaves.train, leaves.held_out, loss, fingerprint, leaves.non_plants)
    report = write_result(run_training(network, task, recipe, state=state_path(out), observer=observer), leaves, out)
    _teacher_path(out).unlink(missing_ok=True)
    return DistillReport(report, size, inherited)


def _teacher_path(out: Path) -> Path:
    return out.with_name(out.name + TEACHER_SUFFIX)


def _ask_teacher(
    teacher_network: HierarchicalNetwork, leaves: TrainingSet, out: Path, teacher_sha256: str, device: torch.device
) -> NetworkOutputs:
    """Return the teacher's outputs for every image, from the file that an earlier call left or from the teacher."""
    path, fingerprint = _teacher_path(out), digest_values(teacher_sha256, leaves.digest)
    if path.exists():
        return _read_teacher_outputs(path, fingerprint)
    side = teacher_network.spec.preprocessing.image_size
    outputs = []
    batches = torch.split(torch.arange(len(leaves.images)), _TEACHER_BATCH)
    with torch.inference_mode(), log_step("ask the teacher", total=len(batches)) as advance:
        for rows in batches:
            outputs.append([output.cpu() for output in teacher_network(leaves.images.load_batch(rows, side, device))])
            advance()
    species_logits, embedding = (torch.cat(parts).clone() for parts in zip(*outputs, strict=True))
    buffer = io.BytesIO()
    torch.save({"fingerprint": fingerprint, "species_logits": species_logits, "embedding": embedding}, buffer)
    write_bytes(path, buffer.getvalue())
    return NetworkOutputs(species_logits, embedding)


def _read_teacher_outputs(path: Path, fingerprint: str) -> NetworkOutputs:
    try:
        document: Any = torch.load(path, map_location="cpu", weights_only=True)
    except READ_ERRORS as error:
        raise TrainingError(f"{path}: not the outputs of a teacher ({quote_error(error)}); delete it") from error
    if not isinstance(document, dict) or document.get("fingerprint") != fingerprint:
        raise TrainingError(f"{path}: belongs to another teacher or other leaves; delete it or name another output")
    return NetworkOutputs(document["species_logits"], document["embedding"])


def _fit_first_projection_(
    network: HierarchicalNetwork,
    leaves: TrainingSet,
    recipe: Recipe,
    teacher_outputs: NetworkOutputs,
    device: torch.device,
) -> None:
    """Fit the projection on images of the first stage, which are the cheapest."""
    spec = resize_spec(network.spec, recipe.stages[0].image_size, recipe.scale_patches)
    small = type(network)(spec, projection=True).eval()
    small.load_state_dict(resize_patches(network.state_dict(), small.state_dict()))
    fit_projection_(small.to(device), leaves.images, leaves.train, teacher_outputs.embedding, device)
    network.projection.load_state_dict({name: tensor.cpu() for name, tensor in small.projection.state_dict().items()})


def _make_loss(
    teacher_network: HierarchicalNetwork,
    leaves: TrainingSet,
    teacher_outputs: NetworkOutputs,
    recipe: Recipe,
    weights: DistillWeights,
) -> BatchLoss:
    """Return the loss: cross-entropies with the labels, plus the distance from the teacher."""
    images: LeafImages = leaves.images
    weight = images.weigh(leaves.train, recipe.balance)
    deviation = teacher_outputs.embedding[leaves.train].std(dim=0).clamp(min=1e-6)

    def loss(network: HierarchicalNetwork, outputs: NetworkOutputs, rows: torch.Tensor) -> torch.Tensor:
        device = outputs.embedding.device
        labels = select_labels(images, weight, rows, outputs)
        taught = NetworkOutputs(
            teacher_outputs.species_logits[rows].to(device), teacher_outputs.embedding[rows].to(device)
        )
        distance = distillation_loss(network, teacher_network, outputs, taught, labels, deviation.to(device), weights)
        return distance + weights.labels * label_loss(network, outputs, labels, recipe.smoothing)

    return loss
