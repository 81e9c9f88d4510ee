"""Saves a training after each epoch, and loads it again, so that a stopped training can resume."""

import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from plantmodels.bundle.files import write_bytes
from plantmodels.checkpoint.reading import READ_ERRORS
from plantmodels.errors import TrainingError
from plantmodels.foreign_text import quote_error
from plantmodels.training.recipe import EpochRecord


@dataclass(frozen=True)
class TrainingState:
    """Everything that a training needs to go on after its last complete epoch.

    Attributes:
        fingerprint: digest of everything that must be the same when the training resumes.
        stage: index of the present stage.
        records: one record per epoch so far.
        network: `state_dict` of the network that is trained.
        average: `state_dict` of the running average of its weights.
        best: `state_dict` of the average after the best epoch of this stage, on the CPU.
        optimizers: `state_dict` of each optimizer.
    """

    fingerprint: str
    stage: int
    records: tuple[EpochRecord, ...]
    network: Mapping[str, torch.Tensor]
    average: Mapping[str, torch.Tensor]
    best: Mapping[str, torch.Tensor]
    optimizers: tuple[dict[str, Any], ...]


def save_state(path: Path, state: TrainingState) -> None:
    """Write a state; an existing file is replaced only by a complete one."""
    buffer = io.BytesIO()
    document = {
        "fingerprint": state.fingerprint,
        "stage": state.stage,
        "records": [asdict(record) for record in state.records],
        "network": state.network,
        "average": state.average,
        "best": state.best,
        "optimizers": list(state.optimizers),
    }
    torch.save(document, buffer)
    write_bytes(path, buffer.getvalue())


def load_state(path: Path, fingerprint: str, device: torch.device) -> TrainingState | None:
    """Return the saved state; None if there is no such file.

    Args:
        path: the file.
        fingerprint: fingerprint of the training that wants to resume.
        device: where the tensors are needed.

    Raises:
        TrainingError: the file is not a state, or belongs to a different training.
    """
    if not path.exists():
        return None
    try:
        document: Any = torch.load(path, map_location=device, weights_only=True)
    except READ_ERRORS as error:
        raise TrainingError(f"{path}: not the state of a training ({quote_error(error)}); delete it") from error
    if not isinstance(document, dict) or document.get("fingerprint") != fingerprint:
        raise TrainingError(
            f"{path}: belongs to a training with another recipe, other data or another teacher; delete it or "
            "name another output"
        )
    return TrainingState(
        fingerprint=fingerprint,
        stage=document["stage"],
        records=tuple(EpochRecord(**record) for record in document["records"]),
        network=document["network"],
        average=document["average"],
        best={name: tensor.cpu() for name, tensor in document["best"].items()},
        optimizers=tuple(document["optimizers"]),
    )
