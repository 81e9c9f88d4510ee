"""The epochs of a training: stages of growing pictures, averaged weights, early stop, and a file to resume from.

Every epoch draws its order and augmentation from seed and number alone, so that a training that was killed and
resumed ends with the same bytes as one that was not.

>>> outcome = run_training(network, job, recipe, state=Path("out.ckpt.state"))  # doctest: +SKIP
>>> outcome.best.end_to_end_accuracy  # doctest: +SKIP
0.93
"""

import io
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import timm
import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from plantmodels.build.augment import augment
from plantmodels.build.checkpoint import READ_ERRORS, NetworkSpec
from plantmodels.build.network import HierarchicalNetwork
from plantmodels.build.objectives import Answers
from plantmodels.build.optimizer import fast_dtype, make_optimizers, warmed_cosine
from plantmodels.build.pictures import NO_DISEASE, Pictures
from plantmodels.bundle.documents import write_bytes
from plantmodels.errors import TrainingError

_MAX_GRADIENT_NORM: Final = 1.0
_EVALUATION_BATCH: Final = 64
_SEEDS_PER_RUN: Final = 1_000_003
"""A seed's epochs have numbers of their own: seed times this, plus the epoch."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """Some epochs on pictures of one size.

    Attributes:
        image_size: side of the pictures, at most the network's; the last stage's must be the network's.
        epochs: how many at most.
    """

    image_size: int
    epochs: int


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        stages: pictures grow from one to the next.
        batch_size: pictures a step, at most: an epoch's steps are alike, for none may be of a single picture.
        learning_rate: the highest, of the hidden matrices; a quarter of it moves all else.
        seed: of weights, order, augmentation and which leaves are held out.
        scale_patches: a stage of smaller pictures has smaller patches, as many as the last; afterwards each patch
            kernel is spread out, so that the network sees large pictures exactly as it saw their averages. Every
            stage then costs what the cheapest does, and a large patch learns from few numbers first.
        patience: epochs without a better end-to-end accuracy after which a stage ends; 0 never ends one early.
        held_out: share of the training leaves that choose the best epoch and are not trained on.
        average: decay a step of the running average of the weights, which is what is judged and kept.
        balance: 0 counts every picture alike, 1 every class.
        smoothing: of the labels.
    """

    stages: tuple[Stage, ...]
    batch_size: int = 32
    learning_rate: float = 4e-3
    seed: int = 0
    scale_patches: bool = False
    patience: int = 0
    held_out: float = 0.1
    average: float = 0.99
    balance: float = 0.5
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        """Refuses what cannot be a recipe.

        Raises:
            ValueError: a number out of its range, or stages that shrink.
        """
        sides = [stage.image_size for stage in self.stages]
        if not sides or sides != sorted(set(sides)):
            raise ValueError(f"stages must be pictures of growing size, at least one, got {sides}")
        numbers = [("batch_size", self.batch_size), *(("epochs", stage.epochs) for stage in self.stages)]
        for name, value in (*numbers, *(("image_size", side) for side in sides)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.learning_rate <= 0 or self.patience < 0:
            raise ValueError(
                f"learning_rate must be above 0 and patience at least 0, got {self.learning_rate} and {self.patience}"
            )
        for name in ("held_out", "average", "balance", "smoothing"):
            value = getattr(self, name)
            if not 0 <= value <= 1 or (value == 1 and name != "balance") or (value == 0 and name == "held_out"):
                raise ValueError(f"{name} must be a share, got {value}")

    @property
    def epochs(self) -> int:
        """Of all stages, at most."""
        return sum(stage.epochs for stage in self.stages)


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch did; accuracies are of the averaged weights on the held-out leaves.

    Attributes:
        epoch: from 1.
        image_size: side of its pictures.
        loss: mean training loss.
        learning_rate: at its end.
        species_accuracy: share whose species is right.
        disease_accuracy: share whose disease is right given the true species, of those that have a disease; None
            when none has.
        end_to_end_accuracy: share whose species and disease are both right.
        seconds: wall-clock time.
    """

    epoch: int
    image_size: int
    loss: float
    learning_rate: float
    species_accuracy: float
    disease_accuracy: float | None
    end_to_end_accuracy: float
    seconds: float


Observer = Callable[[EpochRecord], None]


@dataclass(frozen=True)
class Job:
    """What a training works on.

    Attributes:
        pictures: all, those held out among them.
        train: (n,) rows that are trained on.
        held_out: (m,) rows that choose the best epoch.
        loss: loss of a batch, of the network, its answers and the batch's rows.
        fingerprint: of everything that a resumed training must have in common with the one before.
    """

    pictures: Pictures
    train: torch.Tensor
    held_out: torch.Tensor
    loss: Callable[[HierarchicalNetwork, Answers, torch.Tensor], torch.Tensor]
    fingerprint: str


@dataclass(frozen=True)
class Outcome:
    """What a training ended with.

    Attributes:
        network: averaged weights of the best epoch of the last stage, on the CPU, in evaluation mode.
        records: of every epoch, those before a resumption included.
        best: the record of the network.
    """

    network: HierarchicalNetwork
    records: tuple[EpochRecord, ...]
    best: EpochRecord


def pick_device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def run_training(
    network: HierarchicalNetwork, job: Job, recipe: Recipe, *, state: Path, observer: Observer | None = None
) -> Outcome:
    """Trains, and keeps the epochs done in a file, from which the next call goes on.

    Args:
        network: of the last stage's size, with its first weights; left as it is.
        job: pictures, rows and loss.
        recipe: how.
        state: that file. It stays, for the caller to delete once the result is safe.
        observer: is told of every epoch, those before a resumption included.

    Raises:
        TrainingError: the last stage is not of the network's size, patches cannot be scaled by a stage's, `state` is
            of another training, or the loss is not finite.
        CheckpointError: timm cannot build the backbone for a stage's pictures.
    """
    side = network.spec.preprocessing.image_size
    if recipe.stages[-1].image_size != side:
        raise TrainingError(f"the last stage must have the network's pictures of {side}, got {recipe.stages[-1]}")
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        return _Run(network, job, recipe, state, observer).run()


class _Run:
    """One training in progress."""

    def __init__(
        self, network: HierarchicalNetwork, job: Job, recipe: Recipe, state: Path, observer: Observer | None
    ) -> None:
        self._job, self._recipe, self._state = job, recipe, state
        self._observer = observer or (lambda _: None)
        self._device = pick_device()
        self._projection = isinstance(network.projection, nn.Linear)
        self._spec = network.spec
        self._per_epoch = -(-len(job.train) // recipe.batch_size)
        self._records: list[EpochRecord] = []
        self._best: dict[str, torch.Tensor] = {}
        self._enter_(0, network.state_dict())

    def run(self) -> Outcome:
        self._resume_()
        for record in self._records:
            self._observer(record)
        while not self._is_finished():
            if self._is_stage_over():
                self._enter_(self._stage + 1, self._average.state_dict())
            self._observer(self._run_epoch_())
        network = self._new_network(len(self._recipe.stages) - 1)
        network.load_state_dict(self._best)
        return Outcome(network.eval(), tuple(self._records), self._best_record())

    def _enter_(self, stage: int, weights: dict[str, torch.Tensor]) -> None:
        """Starts a stage from weights of any size, with fresh optimizers."""
        self._stage = stage
        self._network, self._average = self._new_network(stage), self._new_network(stage)
        for network in (self._network, self._average):
            network.load_state_dict(resize_patches(weights, network.state_dict()))
            network.to(self._device)
        self._average.eval().requires_grad_(False)
        self._optimizers = make_optimizers(self._network, self._recipe.learning_rate, self._device)
        self._rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self._optimizers]

    def _new_network(self, stage: int) -> HierarchicalNetwork:
        spec = spec_of_size(self._spec, self._recipe.stages[stage].image_size, self._recipe.scale_patches)
        return HierarchicalNetwork(spec, projection=self._projection)

    def _stage_records(self) -> list[EpochRecord]:
        """Of the present stage."""
        side = self._recipe.stages[self._stage].image_size
        return [record for record in self._records if record.image_size == side]

    def _best_record(self) -> EpochRecord:
        return max(self._stage_records(), key=lambda record: record.end_to_end_accuracy)

    def _is_stage_over(self) -> bool:
        records = self._stage_records()
        if len(records) >= self._recipe.stages[self._stage].epochs:
            return True
        idle = len(records) - 1 - records.index(self._best_record()) if records else 0
        return 0 < self._recipe.patience <= idle

    def _is_finished(self) -> bool:
        return self._stage == len(self._recipe.stages) - 1 and self._is_stage_over()

    def _run_epoch_(self) -> EpochRecord:
        started = time.perf_counter()
        number = len(self._records)
        torch.manual_seed(self._recipe.seed * _SEEDS_PER_RUN + number)
        generator = torch.Generator().manual_seed(self._recipe.seed * _SEEDS_PER_RUN + number)
        order = self._job.train[torch.randperm(len(self._job.train), generator=generator)]
        total, factor = 0.0, 0.0
        self._network.train()
        side = self._recipe.stages[self._stage].image_size
        description = f"epoch {number + 1} of {self._recipe.epochs}, {side} pixels"
        with tqdm(torch.tensor_split(order, self._per_epoch), desc=description, unit="step", leave=False) as batches:
            for step, rows in enumerate(batches):
                factor = self._set_rates_(step)
                total += self._step_(rows, generator) * len(rows)
        mean_loss = total / len(order)
        if not math.isfinite(mean_loss):
            raise TrainingError(
                f"epoch {number + 1}: the loss is {mean_loss}; a learning rate below {self._recipe.learning_rate:g} "
                "may help"
            )
        judged = judge(self._average, self._job.pictures, self._job.held_out, self._device)
        record = EpochRecord(
            epoch=number + 1,
            image_size=side,
            loss=mean_loss,
            learning_rate=self._recipe.learning_rate * factor,
            **judged,
            seconds=time.perf_counter() - started,
        )
        self._records.append(record)
        if self._best_record() is record:
            self._best = {name: tensor.cpu().clone() for name, tensor in self._average.state_dict().items()}
        self._save()
        _log.info("%s", describe_epoch(record))
        return record

    def _set_rates_(self, step: int) -> float:
        """Cosine over all stages' steps; a stage that ended early does not move the next."""
        before = sum(stage.epochs for stage in self._recipe.stages[: self._stage]) + len(self._stage_records())
        factor = warmed_cosine(before * self._per_epoch + step, self._recipe.epochs * self._per_epoch)
        for optimizer, highest in zip(self._optimizers, self._rates, strict=True):
            for group, rate in zip(optimizer.param_groups, highest, strict=True):
                group["lr"] = rate * factor
        return factor

    def _step_(self, rows: torch.Tensor, generator: torch.Generator) -> float:
        side = self._recipe.stages[self._stage].image_size
        images = augment(self._job.pictures.batch(rows, side, self._device), generator)
        dtype = fast_dtype(self._device)
        with torch.autocast(self._device.type, dtype, enabled=dtype != torch.float32):
            species_logits, embedding = self._network(images)
        loss = self._job.loss(self._network, Answers(species_logits.float(), embedding.float()), rows)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._network.parameters(), _MAX_GRADIENT_NORM)
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self._average_()
        return float(loss.detach())

    @torch.no_grad()
    def _average_(self) -> None:
        """Moves the running average; it follows fast at first, so that early epochs can be judged."""
        steps = len(self._stage_records()) * self._per_epoch
        decay = min(self._recipe.average, (1 + steps) / (10 + steps))
        mine = self._network.state_dict()
        for name, tensor in self._average.state_dict().items():
            if tensor.is_floating_point():
                tensor.lerp_(mine[name], 1 - decay)
            else:
                tensor.copy_(mine[name])

    def _save(self) -> None:
        buffer = io.BytesIO()
        document = {
            "fingerprint": self._job.fingerprint,
            "stage": self._stage,
            "records": [asdict(record) for record in self._records],
            "network": self._network.state_dict(),
            "average": self._average.state_dict(),
            "best": self._best,
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
        }
        torch.save(document, buffer)
        write_bytes(self._state, buffer.getvalue())

    def _resume_(self) -> None:
        if not self._state.exists():
            return
        try:
            document: dict[str, Any] = torch.load(self._state, map_location=self._device, weights_only=True)
        except READ_ERRORS as error:
            raise TrainingError(f"{self._state}: not the state of a training ({error}); delete it") from error
        if not isinstance(document, dict) or document.get("fingerprint") != self._job.fingerprint:
            raise TrainingError(
                f"{self._state}: is of a training with another recipe, other data or another teacher; delete it or "
                "name another output"
            )
        self._records = [EpochRecord(**record) for record in document["records"]]
        self._enter_(document["stage"], document["average"])
        self._network.load_state_dict(document["network"])
        for optimizer, values in zip(self._optimizers, document["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        self._best = {name: tensor.cpu() for name, tensor in document["best"].items()}
        _log.info("%s: going on after epoch %d", self._state, len(self._records))


def describe_epoch(record: EpochRecord) -> str:
    """One line for people."""
    disease = "" if record.disease_accuracy is None else f", disease {record.disease_accuracy:.3f}"
    return (
        f"epoch {record.epoch} ({record.image_size} pixels, {record.seconds:.0f} s): loss {record.loss:.3f}; held out: "
        f"species {record.species_accuracy:.3f}{disease}, both {record.end_to_end_accuracy:.4f}"
    )


def spec_of_size(spec: NetworkSpec, side: int, scale_patches: bool) -> NetworkSpec:
    """The same network for pictures of another size.

    Args:
        spec: of the full size.
        side: of the pictures.
        scale_patches: whether patches shrink with the pictures, so that there are as many.

    Raises:
        TrainingError: sizes whose ratio patches cannot be scaled by.
    """
    full = spec.preprocessing.image_size
    if side == full:
        return spec
    kwargs = dict(spec.backbone_kwargs)
    if scale_patches:
        patch = kwargs.get("patch_size")
        if not isinstance(patch, int) or full % side or patch % (full // side):
            raise TrainingError(
                f"patches shrink by whole numbers only: image_size {full} / {side} must be one that divides "
                f"backbone_kwargs['patch_size'] {patch!r}"
            )
        kwargs["patch_size"] = patch // (full // side)
    if getattr(timm.get_pretrained_cfg(spec.backbone, allow_unregistered=True), "fixed_input_size", False):
        kwargs["img_size"] = side
    return replace(spec, backbone_kwargs=kwargs, preprocessing=replace(spec.preprocessing, image_size=side))


def resize_patches(weights: dict[str, torch.Tensor], like: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Brings patch kernels to the size in `like`, a whole multiple or part of theirs.

    A kernel that grows is spread out, and answers to a picture as it did to its averages; one that shrinks is the
    sum of its blocks, which undoes that.
    """
    resized = {}
    for name, tensor in weights.items():
        side, wanted = (t.shape[-1] if t.ndim == 4 else 1 for t in (tensor, like.get(name, tensor)))
        if wanted > side and wanted % side == 0:
            factor = wanted // side
            tensor = tensor.repeat_interleave(factor, 2).repeat_interleave(factor, 3) / factor**2
        elif wanted < side and side % wanted == 0:
            tensor = functional.avg_pool2d(tensor, side // wanted) * (side // wanted) ** 2
        resized[name] = tensor
    return resized


@torch.inference_mode()
def judge(network: HierarchicalNetwork, pictures: Pictures, rows: torch.Tensor, device: torch.device) -> dict[str, Any]:
    """The three accuracies of an `EpochRecord` by their names."""
    species_right, disease_right, given = 0, 0, 0
    both = 0
    side = network.spec.preprocessing.image_size
    for batch in torch.split(rows, _EVALUATION_BATCH):
        species_logits, embedding = network(pictures.batch(batch, side, device))
        for species, disease, logits, features in zip(
            pictures.species[batch].tolist(), pictures.disease[batch].tolist(), species_logits, embedding, strict=True
        ):
            right = int(logits.argmax()) == species
            species_right += right
            if disease == NO_DISEASE:
                both += right
                continue
            head = network.disease_heads[network.spec.taxonomy.slugs[species]]
            answer = int(head(features).argmax()) == disease
            given, disease_right, both = given + 1, disease_right + answer, both + (answer and right)
    return {
        "species_accuracy": species_right / len(rows),
        "disease_accuracy": disease_right / given if given else None,
        "end_to_end_accuracy": both / len(rows),
    }
