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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from plantmodels.bundle.files import write_bytes
from plantmodels.data.progress import track
from plantmodels.errors import TrainingError
from plantmodels.export.checkpoint import READ_ERRORS
from plantmodels.export.network import HierarchicalNetwork
from plantmodels.training.augment import augment
from plantmodels.training.dataset import NO_DISEASE, Pictures
from plantmodels.training.losses import Answers
from plantmodels.training.optimizer import fast_dtype, make_optimizers, warmed_cosine
from plantmodels.training.patch_sizes import resize_patches, spec_of_size
from plantmodels.training.recipe import EpochRecord, Observer, Recipe, describe_epoch

_MAX_GRADIENT_NORM: Final = 1.0
_EVALUATION_BATCH: Final = 64
_SEEDS_PER_RUN: Final = 1_000_003
"""A seed's epochs have numbers of their own: seed times this, plus the epoch."""

_LOGGER: Final = logging.getLogger(__name__)


BatchLoss = Callable[[HierarchicalNetwork, Answers, torch.Tensor], torch.Tensor]
"""Loss of a batch, of the network, its answers and the batch's rows."""


@dataclass(frozen=True)
class Job:
    """What a training works on.

    Attributes:
        pictures: all, those held out among them.
        train: (n,) rows that are trained on.
        held_out: (m,) rows that choose the best epoch.
        loss: what is minimised.
        fingerprint: of everything that a resumed training must have in common with the one before.
    """

    pictures: Pictures
    train: torch.Tensor
    held_out: torch.Tensor
    loss: BatchLoss
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
        for step, rows in enumerate(track(torch.tensor_split(order, self._per_epoch), description)):
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
        _LOGGER.info("%s", describe_epoch(record))
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
        _LOGGER.info("%s: going on after epoch %d", self._state, len(self._records))


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
