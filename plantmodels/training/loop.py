"""Runs the epochs of a training: stages of growing images, averaged weights, early stop, and a state to resume from.

The order of the images and their augmentation follow from the seed and the number of the epoch alone. A training that
was killed and resumed therefore ends with the same bytes as one that was not.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from plantmodels.data.progress import track
from plantmodels.errors import TrainingError
from plantmodels.export.network import HierarchicalNetwork
from plantmodels.training.augment import augment
from plantmodels.training.dataset import NO_DISEASE, DecodedImages, LeafImages
from plantmodels.training.losses import ExposedNetwork, NetworkOutputs, exposure_loss
from plantmodels.training.optimizer import make_optimizers, pick_dtype, schedule_rate
from plantmodels.training.patch_sizes import resize_patches, resize_spec
from plantmodels.training.recipe import EpochRecord, Observer, Recipe, Stage, describe_epoch
from plantmodels.training.state import TrainingState, load_state, save_state

_MAX_GRADIENT_NORM: Final = 1.0
_EVALUATION_BATCH: Final = 64
_SEEDS_PER_RUN: Final = 1_000_003
"""An epoch's random numbers start from `seed * _SEEDS_PER_RUN + epoch`, so that no two seeds share an epoch."""

_LOGGER: Final = logging.getLogger(__name__)


BatchLoss = Callable[[HierarchicalNetwork, NetworkOutputs, torch.Tensor], torch.Tensor]
"""Computes the loss of a batch from the network, its outputs, and the batch's rows in the training set."""


@dataclass(frozen=True)
class TrainingTask:
    """The data and the loss of a training.

    Attributes:
        images: all leaves, including those held out.
        train: (n,) rows to train on.
        held_out: (m,) rows that choose the best epoch.
        loss: function to minimize.
        fingerprint: digest of everything that must be the same when the training resumes.
        non_plants: images to tell from leaves, or None. With them the network must be an `ExposedNetwork`.
    """

    images: LeafImages
    train: torch.Tensor
    held_out: torch.Tensor
    loss: BatchLoss
    fingerprint: str
    non_plants: DecodedImages | None = None


@dataclass(frozen=True)
class TrainingResult:
    """The trained network.

    Attributes:
        network: averaged weights after the best epoch of the last stage, on the CPU, in evaluation mode.
        records: one record per epoch, including those before the training was resumed.
        best: record of the best epoch of the last stage.
    """

    network: HierarchicalNetwork
    records: tuple[EpochRecord, ...]
    best: EpochRecord


def pick_device() -> torch.device:
    """Return CUDA if it is available, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def run_training(
    network: HierarchicalNetwork, task: TrainingTask, recipe: Recipe, *, state: Path, observer: Observer | None = None
) -> TrainingResult:
    """Train a network, and save the state after each epoch so that the next call can resume.

    The global random generators of PyTorch are left as they were.

    Args:
        network: network of the last stage's size, with its initial weights; not changed.
        task: data and loss.
        recipe: how to train.
        state: file of the state; if it exists, training resumes from it. The caller deletes it once the result is
            safe.
        observer: function that is called with the record of each epoch, including those before a resumption.

    Raises:
        TrainingError: the stages do not fit the network, `state` belongs to a different training, or the loss is not
            finite.
        CheckpointError: timm cannot build the backbone for the images of a stage.
    """
    side = network.spec.preprocessing.image_size
    if recipe.stages[-1].image_size != side:
        raise TrainingError(
            f"the last stage must have the network's image size {side}, got {recipe.stages[-1].image_size}"
        )
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        return _TrainingRun(network, task, recipe, state, observer).run()


class _TrainingRun:
    """One training in progress. A trailing underscore marks methods that change it."""

    def __init__(
        self,
        network: HierarchicalNetwork,
        task: TrainingTask,
        recipe: Recipe,
        state: Path,
        observer: Observer | None,
    ) -> None:
        self._task, self._recipe, self._state = task, recipe, state
        self._observer = observer or (lambda _: None)
        self._device = pick_device()
        self._projection = isinstance(network.projection, nn.Linear)
        self._spec, self._kind = network.spec, type(network)
        self._steps_per_epoch = -(-len(task.train) // recipe.batch_size)
        self._records: list[EpochRecord] = []
        self._best: Mapping[str, torch.Tensor] = {}
        self._start_stage_(0, network.state_dict())

    def run(self) -> TrainingResult:
        self._resume_()
        for record in self._records:
            self._observer(record)
        while not self._is_finished():
            if self._is_stage_over():
                self._start_stage_(self._stage_index + 1, self._average.state_dict())
            self._observer(self._run_epoch_())
        network = self._build_network(self._recipe.stages[-1])
        network.load_state_dict(self._best)
        return TrainingResult(network.eval(), tuple(self._records), self._best_record())

    @property
    def _stage(self) -> Stage:
        return self._recipe.stages[self._stage_index]

    def _start_stage_(self, index: int, weights: Mapping[str, torch.Tensor]) -> None:
        """Start a stage with fresh optimizers, from weights whose patches may have another size."""
        self._stage_index = index
        self._network, self._average = self._build_network(self._stage), self._build_network(self._stage)
        for network in (self._network, self._average):
            network.load_state_dict(resize_patches(weights, network.state_dict()))
            network.to(self._device)
        self._average.eval().requires_grad_(False)
        self._optimizers = make_optimizers(self._network, self._recipe.learning_rate, self._device)
        self._highest_rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self._optimizers]

    def _build_network(self, stage: Stage) -> HierarchicalNetwork:
        spec = resize_spec(self._spec, stage.image_size, self._recipe.scale_patches)
        return self._kind(spec, projection=self._projection)

    def _stage_records(self) -> list[EpochRecord]:
        return [record for record in self._records if record.image_size == self._stage.image_size]

    def _best_record(self) -> EpochRecord:
        return max(self._stage_records(), key=lambda record: record.end_to_end_accuracy)

    def _is_stage_over(self) -> bool:
        records = self._stage_records()
        if len(records) >= self._stage.epochs:
            return True
        epochs_since_best = len(records) - 1 - records.index(self._best_record()) if records else 0
        return 0 < self._recipe.patience <= epochs_since_best

    def _is_finished(self) -> bool:
        return self._stage_index == len(self._recipe.stages) - 1 and self._is_stage_over()

    def _run_epoch_(self) -> EpochRecord:
        started = time.perf_counter()
        loss, factor = self._train_epoch_()
        record = EpochRecord(
            epoch=len(self._records) + 1,
            image_size=self._stage.image_size,
            loss=loss,
            learning_rate=self._recipe.learning_rate * factor,
            **measure_accuracies(self._average, self._task.images, self._task.held_out, self._device),
            seconds=time.perf_counter() - started,
        )
        self._records.append(record)
        if self._best_record() is record:
            self._best = {name: tensor.cpu().clone() for name, tensor in self._average.state_dict().items()}
        self._save()
        _LOGGER.info("%s", describe_epoch(record))
        return record

    def _train_epoch_(self) -> tuple[float, float]:
        """Return the mean loss, and the last factor on the learning rate."""
        number, seed = len(self._records), self._recipe.seed * _SEEDS_PER_RUN + len(self._records)
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        order = self._task.train[torch.randperm(len(self._task.train), generator=generator)]
        total, factor = 0.0, 0.0
        self._network.train()
        description = f"epoch {number + 1} of {self._recipe.epochs}, {self._stage.image_size} pixels"
        for step, rows in enumerate(track(torch.tensor_split(order, self._steps_per_epoch), description)):
            factor = self._set_rates_(step)
            total += self._train_step_(rows, generator) * len(rows)
        mean_loss = total / len(order)
        if not math.isfinite(mean_loss):
            raise TrainingError(
                f"epoch {number + 1}: the loss is {mean_loss}; a learning rate below {self._recipe.learning_rate:g} "
                "may help"
            )
        return mean_loss, factor

    def _set_rates_(self, step: int) -> float:
        """Set the learning rates of a step and return their factor.

        The schedule spans all stages. A stage that ends early does not move the schedule of the next one.
        """
        before = sum(stage.epochs for stage in self._recipe.stages[: self._stage_index]) + len(self._stage_records())
        factor = schedule_rate(before * self._steps_per_epoch + step, self._recipe.epochs * self._steps_per_epoch)
        for optimizer, highest in zip(self._optimizers, self._highest_rates, strict=True):
            for group, rate in zip(optimizer.param_groups, highest, strict=True):
                group["lr"] = rate * factor
        return factor

    def _train_step_(self, rows: torch.Tensor, generator: torch.Generator) -> float:
        images = augment(self._load_images(rows, generator), generator)
        dtype = pick_dtype(self._device)
        with torch.autocast(self._device.type, dtype, enabled=dtype != torch.float32):
            species_logits, embedding = self._network(images)
        species_logits, embedding = species_logits.float(), embedding.float()
        plants, others = embedding[: len(rows)], embedding[len(rows) :]
        loss = self._task.loss(self._network, NetworkOutputs(species_logits[: len(rows)], plants), rows)
        if isinstance(self._network, ExposedNetwork):
            loss = loss + self._recipe.exposure * exposure_loss(self._network, plants, others)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._network.parameters(), _MAX_GRADIENT_NORM)
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self._update_average_()
        return float(loss.detach())

    def _load_images(self, rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return the leaves of a step, and after them random parts of random non-plants."""
        leaves = self._task.images.load_batch(rows, self._stage.image_size, self._device)
        others = self._task.non_plants
        if others is None:
            return leaves
        count = max(1, round(self._recipe.non_plants_per_leaf * len(rows)))
        drawn = torch.randint(len(others), (count,), generator=generator)
        return torch.cat([leaves, others.load_crops(drawn, self._stage.image_size, self._device, generator)])

    @torch.no_grad()
    def _update_average_(self) -> None:
        """Move the average toward the network: faster at first, so that early epochs can be measured on it."""
        steps = len(self._stage_records()) * self._steps_per_epoch
        decay = min(self._recipe.average, (1 + steps) / (10 + steps))
        weights = self._network.state_dict()
        for name, tensor in self._average.state_dict().items():
            if tensor.is_floating_point():
                tensor.lerp_(weights[name], 1 - decay)
            else:
                tensor.copy_(weights[name])

    def _save(self) -> None:
        state = TrainingState(
            fingerprint=self._task.fingerprint,
            stage=self._stage_index,
            records=tuple(self._records),
            network=self._network.state_dict(),
            average=self._average.state_dict(),
            best=self._best,
            optimizers=tuple(optimizer.state_dict() for optimizer in self._optimizers),
        )
        save_state(self._state, state)

    def _resume_(self) -> None:
        state = load_state(self._state, self._task.fingerprint, self._device)
        if state is None:
            return
        self._records = list(state.records)
        self._start_stage_(state.stage, state.average)
        self._network.load_state_dict(state.network)
        for optimizer, values in zip(self._optimizers, state.optimizers, strict=True):
            optimizer.load_state_dict(values)
        self._best = state.best
        _LOGGER.info("%s: resuming after epoch %d", self._state, len(self._records))


@torch.inference_mode()
def measure_accuracies(
    network: HierarchicalNetwork, images: LeafImages, rows: torch.Tensor, device: torch.device
) -> dict[str, Any]:
    """Return the three accuracies of an `EpochRecord` by their names.

    Args:
        network: on the device, in evaluation mode.
        images: labelled leaves.
        rows: (n,) rows to measure on.
        device: device of the network.
    """
    species_right, disease_right, both_right, diseased = 0, 0, 0, 0
    side = network.spec.preprocessing.image_size
    for batch in torch.split(rows, _EVALUATION_BATCH):
        species_logits, embedding = network(images.load_batch(batch, side, device))
        for species, disease, logits, features in zip(
            images.species[batch].tolist(), images.disease[batch].tolist(), species_logits, embedding, strict=True
        ):
            right = int(logits.argmax()) == species
            species_right += right
            if disease == NO_DISEASE:
                both_right += right
                continue
            head = network.disease_heads[network.spec.taxonomy.slugs[species]]
            answer = int(head(features).argmax()) == disease
            diseased, disease_right, both_right = diseased + 1, disease_right + answer, both_right + (answer and right)
    return {
        "species_accuracy": species_right / len(rows),
        "disease_accuracy": disease_right / diseased if diseased else None,
        "end_to_end_accuracy": both_right / len(rows),
    }
