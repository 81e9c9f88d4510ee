"""Teaches a small student what a large teacher knows: same embedding size, same heads, so that nothing else changes.

The teacher is asked once about every training leaf; its answers lie beside the student's checkpoint until that is
written. The student starts with the teacher's weights where it has room for them, and learns from the leaves' labels
and the teacher's embedding and logits alike.

>>> report = distill_network(teacher, Path("DATA"), Path("student.ckpt"), recipe)  # doctest: +SKIP
>>> report.int8_bytes  # doctest: +SKIP
4049725
"""

import io
import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from plantmodels.bundle.files import write_bytes
from plantmodels.data.progress import log_step
from plantmodels.errors import TrainingError
from plantmodels.export.checkpoint import READ_ERRORS, read_checkpoint
from plantmodels.export.network import HierarchicalNetwork, load_network
from plantmodels.training.dataset import Pictures
from plantmodels.training.loop import BatchLoss, Job, pick_device, run_training
from plantmodels.training.losses import Answers, DistillWeights, Lesson, label_loss, lesson_loss
from plantmodels.training.patch_sizes import resize_patches, spec_of_size
from plantmodels.training.recipe import Observer, Recipe
from plantmodels.training.students import (
    MAX_INT8_BYTES,
    check_fits,
    find_student,
    fit_projection_,
    inherit_weights_,
    student_spec,
)
from plantmodels.training.train import (
    TrainingSet,
    TrainReport,
    check_writable,
    digest_of,
    finish,
    read_training_set,
    state_of,
    take_labels,
)

LESSON_SUFFIX: Final = ".lesson"
"""The file of the teacher's answers is called as the student's checkpoint, and this."""

_TEACHER_BATCH: Final = 16

_LOGGER: Final = logging.getLogger(__name__)


@dataclass(frozen=True)
class DistillReport:
    """What a distillation did.

    Attributes:
        training: of the student.
        int8_bytes: size of its INT8 file when every product is INT8.
        inherited: backbone tensors that came from the teacher.
    """

    training: TrainReport
    int8_bytes: int
    inherited: int

    def describe(self) -> str:
        """A few lines for terminals."""
        return (
            f"INT8 species file: {self.int8_bytes:,} bytes; {self.inherited} backbone tensors of the teacher's\n"
            + self.training.describe()
        )


def distill_network(
    teacher: Path,
    data: Path,
    out: Path,
    recipe: Recipe,
    *,
    student: str = "swin",
    weights: DistillWeights | None = None,
    max_bytes: int = MAX_INT8_BYTES,
    observer: Observer | None = None,
) -> DistillReport:
    """Trains a student of `teacher` on `data/train` and writes its checkpoint, which has a projection.

    An existing `out` is replaced only by a complete checkpoint; a killed call goes on as `train_network` does, and
    does not ask the teacher again.

    Args:
        teacher: checkpoint of contract 1.
        data: leaf folders or a manifest (contract 2), of the teacher's classes.
        out: the student's checkpoint.
        recipe: how it is trained; whether patches are scaled is the student's own.
        student: one of `STUDENTS`, or a timm backbone.
        weights: of the parts of the loss.
        max_bytes: what the INT8 species file must be below.
        observer: is told of every epoch.

    Raises:
        TrainingError: no such student, or its INT8 file is too large, which is found before any training; or as
            `train_network`.
        DataError, CheckpointError, ExportError: as `train_network` and an export.
    """
    check_writable(out)
    checkpoint = read_checkpoint(teacher)
    tutor = load_network(checkpoint).requires_grad_(False)
    architecture = find_student(student)
    recipe = replace(recipe, scale_patches=architecture.scale_patches)
    weights = weights or DistillWeights()
    spec = student_spec(architecture, checkpoint.spec)
    with torch.random.fork_rng(devices=[]):
        size = check_fits(spec, max_bytes)
        torch.manual_seed(recipe.seed)
        network = HierarchicalNetwork(spec, projection=True)
    _LOGGER.info("student %r: %s bytes in INT8", student, f"{size:,}")
    device = pick_device()
    leaves = read_training_set(data, out, spec, recipe)
    lesson = _learn_lesson(tutor.to(device), leaves, out, checkpoint.sha256, device)
    inherited = inherit_weights_(network, tutor.cpu())
    _fit_first_projection_(network, leaves, recipe, lesson, device)
    loss = _make_loss(tutor.to(device), leaves, lesson, recipe, weights)
    fingerprint = digest_of(checkpoint.sha256, asdict(recipe), asdict(weights), student, leaves.digest)
    job = Job(leaves.pictures, leaves.train, leaves.held_out, loss, fingerprint)
    report = finish(run_training(network, job, recipe, state=state_of(out), observer=observer), leaves, out)
    _lesson_file(out).unlink(missing_ok=True)
    return DistillReport(report, size, inherited)


def _lesson_file(out: Path) -> Path:
    return out.with_name(out.name + LESSON_SUFFIX)


def _learn_lesson(
    tutor: HierarchicalNetwork, leaves: TrainingSet, out: Path, teacher_sha256: str, device: torch.device
) -> Lesson:
    """The teacher's answers to every picture, from the file that an earlier call left, else from the teacher."""
    path, fingerprint = _lesson_file(out), digest_of(teacher_sha256, leaves.digest)
    if path.exists():
        return _read_lesson(path, fingerprint)
    side = tutor.spec.preprocessing.image_size
    answers = []
    batches = torch.split(torch.arange(len(leaves.pictures)), _TEACHER_BATCH)
    with torch.inference_mode(), log_step("ask the teacher", total=len(batches), unit="batch") as advance:
        for rows in batches:
            answers.append([answer.cpu() for answer in tutor(leaves.pictures.batch(rows, side, device))])
            advance()
    species_logits, embedding = (torch.cat(parts).clone() for parts in zip(*answers, strict=True))
    buffer = io.BytesIO()
    torch.save({"fingerprint": fingerprint, "species_logits": species_logits, "embedding": embedding}, buffer)
    write_bytes(path, buffer.getvalue())
    return Lesson(species_logits, embedding)


def _read_lesson(path: Path, fingerprint: str) -> Lesson:
    try:
        document: Any = torch.load(path, map_location="cpu", weights_only=True)
    except READ_ERRORS as error:
        raise TrainingError(f"{path}: not a teacher's answers ({error}); delete it") from error
    if not isinstance(document, dict) or document.get("fingerprint") != fingerprint:
        raise TrainingError(f"{path}: answers of another teacher or to other leaves; delete it or name another output")
    return Lesson(document["species_logits"], document["embedding"])


def _fit_first_projection_(
    network: HierarchicalNetwork, leaves: TrainingSet, recipe: Recipe, lesson: Lesson, device: torch.device
) -> None:
    """Fits it on pictures of the first stage, which are the cheapest."""
    spec = spec_of_size(network.spec, recipe.stages[0].image_size, recipe.scale_patches)
    small = HierarchicalNetwork(spec, projection=True).eval()
    small.load_state_dict(resize_patches(network.state_dict(), small.state_dict()))
    fit_projection_(small.to(device), leaves.pictures, leaves.train, lesson.embedding, device)
    network.projection.load_state_dict({name: tensor.cpu() for name, tensor in small.projection.state_dict().items()})


def _make_loss(
    tutor: HierarchicalNetwork, leaves: TrainingSet, lesson: Lesson, recipe: Recipe, weights: DistillWeights
) -> BatchLoss:
    """The labels' loss and the distance from the teacher."""
    pictures: Pictures = leaves.pictures
    weight = pictures.weights(leaves.train, recipe.balance)
    deviation = lesson.embedding[leaves.train].std(dim=0).clamp(min=1e-6)

    def loss(network: HierarchicalNetwork, answers: Answers, rows: torch.Tensor) -> torch.Tensor:
        device = answers.embedding.device
        labels = take_labels(pictures, weight, rows, answers)
        taught = Lesson(lesson.species_logits[rows].to(device), lesson.embedding[rows].to(device))
        distance = lesson_loss(network, tutor, answers, taught, labels, deviation.to(device), weights)
        return distance + weights.labels * label_loss(network, answers, labels, recipe.smoothing)

    return loss
