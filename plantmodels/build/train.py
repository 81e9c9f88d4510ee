"""Trains a hierarchical network from scratch on leaf folders and writes a checkpoint of contract 1.

Small and plain: all pictures are held in memory as bytes. The same seed, data, machine and number of threads
give the same weights.

>>> report = train_network(Path("DATA"), Path("demo.ckpt"), spec, epochs=20, batch_size=64, seed=0)  # doctest: +SKIP
>>> report.species_accuracy  # doctest: +SKIP
0.97
"""

import io
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from plantmodels.build.augment import augment
from plantmodels.build.checkpoint import NetworkSpec
from plantmodels.build.data import LeafSample, LeafSet, UnreadableImage, read_leaves, stream_images
from plantmodels.build.network import HierarchicalNetwork
from plantmodels.build.optimizer import Muon, warmed_cosine
from plantmodels.bundle.documents import write_bytes
from plantmodels.errors import CheckpointError

_WEIGHT_DECAY: Final = 0.05
_OTHER_RATE: Final = 0.25
"""Learning rate of AdamW, which moves all that is no hidden matrix, as a share of Muon's."""
_MAX_GRADIENT_NORM: Final = 1.0
_EVALUATION_BATCH: Final = 50
_NO_DISEASE: Final = -1


@dataclass(frozen=True)
class TrainReport:
    """What a training did.

    Attributes:
        epoch_losses: mean training loss of each epoch.
        train_seconds: wall-clock time of the epochs.
        dtype: in which the network was trained, "bfloat16" or "float32".
        train_images: pictures trained on.
        val_images: pictures that the accuracies were measured on.
        unreadable: files that were skipped.
        species_accuracy: share of val pictures whose species is right.
        disease_accuracy: share whose disease is right given the true species, of those that have a disease; None
            when none has.
        end_to_end_accuracy: share whose species and disease are both right.
    """

    epoch_losses: tuple[float, ...]
    train_seconds: float
    dtype: str
    train_images: int
    val_images: int
    unreadable: tuple[UnreadableImage, ...]
    species_accuracy: float
    disease_accuracy: float | None
    end_to_end_accuracy: float


@dataclass(frozen=True)
class _Pictures:
    """Training pictures (N, 3, S, S) uint8 and labels (N,) int64; disease −1 where there is none."""

    pixels: torch.Tensor
    species: torch.Tensor
    disease: torch.Tensor


def train_network(
    data: Path,
    out: Path,
    spec: NetworkSpec,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    learning_rate: float = 8e-3,
    coarsening: int = 1,
    projection: bool = True,
) -> TrainReport:
    """Trains on `data/train`, measures on `data/val`, and writes the checkpoint.

    An existing `out` is replaced only by a complete checkpoint.

    Args:
        data: leaf folders or a manifest (contract 2).
        out: the checkpoint file.
        spec: network, preprocessing and classes.
        epochs: passes over the training pictures.
        batch_size: pictures a step.
        seed: of weights, order and augmentation.
        learning_rate: the highest, of the hidden matrices.
        coarsening: train on pictures whose sides are divided by this, with patches of the backbone that are
            smaller by the same factor; afterwards each patch kernel is spread out again, so that the network
            sees full-sized pictures exactly as it saw the averaged small ones. A large patch learns little
            from noisy pixels (measured: 0.22 of species after 15 epochs), a small one does. The backbone must
            take `patch_size` and `img_size`.
        projection: whether a linear layer maps backbone features to the embedding.

    Raises:
        ValueError: a number below 1, or sizes that `coarsening` does not divide.
        DataError: no such split, an unknown class, or too many unreadable files.
        CheckpointError: timm cannot build the backbone, or `out` lies in no folder that can be written to.
    """
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("coarsening", coarsening)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    coarse_spec = _coarse_spec(spec, coarsening)
    _check_writable(out)
    train, val = (read_leaves(data, split, spec.taxonomy) for split in ("train", "val"))
    skipped_train: list[UnreadableImage] = []
    skipped_val: list[UnreadableImage] = []
    pictures = _load_pictures(train, spec, coarsening, skipped_train)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = HierarchicalNetwork(coarse_spec, projection=projection)
        started = time.perf_counter()
        losses = _run_epochs(network, pictures, epochs, batch_size, learning_rate, seed)
        seconds = time.perf_counter() - started
        network = _refined(network, spec, coarsening, projection)
    judged = list(_judge(network, val, skipped_val))
    write_bytes(out, _serialise(network))
    given = [right for _, right in judged if right is not None]
    return TrainReport(
        epoch_losses=losses,
        train_seconds=seconds,
        dtype=str(_fast_dtype()).removeprefix("torch."),
        train_images=len(pictures.species),
        val_images=len(judged),
        unreadable=(*skipped_train, *skipped_val),
        species_accuracy=sum(species for species, _ in judged) / len(judged),
        disease_accuracy=sum(given) / len(given) if given else None,
        end_to_end_accuracy=sum(species and disease is not False for species, disease in judged) / len(judged),
    )


def _check_writable(out: Path) -> None:
    """Finds out before the training, not after it."""
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK | os.X_OK):
        raise CheckpointError(f"{out}: {out.parent} is not a folder that can be written to")


def _load_pictures(leaves: LeafSet, spec: NetworkSpec, coarsening: int, unreadable: list[UnreadableImage]) -> _Pictures:
    """Decodes all pictures once, averaged over squares of `coarsening` pixels."""
    side = spec.preprocessing.image_size // coarsening
    pixels = torch.empty(len(leaves.samples), 3, side, side, dtype=torch.uint8)
    mean, std = _statistics(spec)
    kept: list[LeafSample] = []
    for index, values in stream_images(
        leaves.paths, spec.preprocessing, unreadable=unreadable, description="reading train"
    ):
        small = functional.avg_pool2d(torch.from_numpy(values), coarsening)
        pixels[len(kept)] = ((small * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        kept.append(leaves.samples[index])
    species = torch.tensor([sample.species_index for sample in kept])
    disease = torch.tensor([_NO_DISEASE if s.disease_index is None else s.disease_index for s in kept])
    return _Pictures(pixels[: len(kept)], species, disease)


def _statistics(spec: NetworkSpec) -> tuple[torch.Tensor, torch.Tensor]:
    mean, std = spec.preprocessing.mean, spec.preprocessing.std
    return torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]


def _coarse_spec(spec: NetworkSpec, coarsening: int) -> NetworkSpec:
    if coarsening == 1:
        return spec
    side, patch = spec.preprocessing.image_size, spec.backbone_kwargs.get("patch_size")
    if not isinstance(patch, int) or patch % coarsening or side % coarsening:
        raise ValueError(
            f"coarsening must divide image_size {side} and backbone_kwargs['patch_size'] {patch!r}, got {coarsening}"
        )
    smaller = {"patch_size": patch // coarsening, "img_size": side // coarsening}
    return replace(
        spec,
        backbone_kwargs={**spec.backbone_kwargs, **smaller},
        preprocessing=replace(spec.preprocessing, image_size=side // coarsening),
    )


def _refined(network: HierarchicalNetwork, spec: NetworkSpec, coarsening: int, projection: bool) -> HierarchicalNetwork:
    """The same function of pictures that are larger by `coarsening`."""
    if coarsening == 1:
        return network.eval()
    state = network.state_dict()
    kernel = state["backbone.patch_embed.proj.weight"]
    spread = kernel.repeat_interleave(coarsening, 2).repeat_interleave(coarsening, 3) / coarsening**2
    refined = HierarchicalNetwork(spec, projection=projection)
    refined.load_state_dict({**state, "backbone.patch_embed.proj.weight": spread})
    return refined.eval()


def _fast_dtype() -> torch.dtype:
    """bfloat16 where the CPU multiplies matrices of it in hardware (AMX), else float32."""
    return torch.bfloat16 if torch.cpu.get_capabilities().get("amx_bf16") else torch.float32


def _run_epochs(
    network: HierarchicalNetwork, pictures: _Pictures, epochs: int, batch_size: int, learning_rate: float, seed: int
) -> tuple[float, ...]:
    generator = torch.Generator().manual_seed(seed)
    optimizers = _make_optimizers(network, learning_rate)
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    per_epoch = -(-len(pictures.species) // batch_size)
    losses = []
    network.train()
    with tqdm(total=epochs * per_epoch, desc="training", unit="step") as progress:
        for _ in range(epochs):
            total = 0.0
            for rows in torch.split(torch.randperm(len(pictures.species), generator=generator), batch_size):
                factor = warmed_cosine(progress.n, epochs * per_epoch)
                for optimizer, highest in zip(optimizers, rates, strict=True):
                    for group, rate in zip(optimizer.param_groups, highest, strict=True):
                        group["lr"] = rate * factor
                total += _step(network, pictures, rows, optimizers, generator) * len(rows)
                progress.update()
            losses.append(total / len(pictures.species))
            progress.set_postfix(loss=f"{losses[-1]:.3f}")
    return tuple(losses)


def _make_optimizers(network: HierarchicalNetwork, learning_rate: float) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the matrices inside the backbone, AdamW for all else; biases and position tables do not decay."""
    backbone: Any = network.backbone
    exempt = (
        {f"backbone.{name}" for name in backbone.no_weight_decay()} if hasattr(backbone, "no_weight_decay") else set()
    )
    groups: dict[str, list[nn.Parameter]] = {"hidden": [], "decayed": [], "plain": []}
    for name, parameter in network.named_parameters():
        if parameter.ndim < 2 or name in exempt or name.endswith("relative_position_bias_table"):
            groups["plain"].append(parameter)
        elif parameter.ndim == 2 and name.startswith("backbone."):
            groups["hidden"].append(parameter)
        else:
            groups["decayed"].append(parameter)
    rate = learning_rate * _OTHER_RATE
    others = [
        {"params": groups["decayed"], "weight_decay": _WEIGHT_DECAY},
        {"params": groups["plain"], "weight_decay": 0},
    ]
    adam = torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98))
    if not groups["hidden"]:
        return (adam,)
    return Muon(groups["hidden"], learning_rate=learning_rate, dtype=_fast_dtype()), adam


def _step(
    network: HierarchicalNetwork,
    pictures: _Pictures,
    rows: torch.Tensor,
    optimizers: tuple[torch.optim.Optimizer, ...],
    generator: torch.Generator,
) -> float:
    mean, std = _statistics(network.spec)
    images = augment((pictures.pixels[rows].float() / 255 - mean) / std, generator)
    dtype = _fast_dtype()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        species_logits, embedding = network(images)
    loss = _loss(network, species_logits.float(), embedding.float(), pictures.species[rows], pictures.disease[rows])
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(network.parameters(), _MAX_GRADIENT_NORM)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return float(loss.detach())


def _loss(
    network: HierarchicalNetwork,
    species_logits: torch.Tensor,
    embedding: torch.Tensor,
    species: torch.Tensor,
    disease: torch.Tensor,
) -> torch.Tensor:
    """Cross-entropy of the species, plus that of the disease by the true species' head alone.

    Args:
        network: for its heads.
        species_logits: (B, species).
        embedding: (B, D).
        species: (B,) true species.
        disease: (B,) true disease, −1 where there is none.
    """
    loss = functional.cross_entropy(species_logits, species)
    for index in torch.unique(species[disease != _NO_DISEASE]).tolist():
        mine = (species == index) & (disease != _NO_DISEASE)
        logits = network.disease_heads[network.spec.taxonomy.slugs[index]](embedding[mine])
        loss = loss + functional.cross_entropy(logits, disease[mine], reduction="sum") / len(species)
    return loss


@torch.inference_mode()
def _judge(
    network: HierarchicalNetwork, leaves: LeafSet, unreadable: list[UnreadableImage]
) -> Iterator[tuple[bool, bool | None]]:
    """Yields for each picture whether the species is right, and the disease given the true species (or None)."""
    images = stream_images(leaves.paths, network.spec.preprocessing, unreadable=unreadable, description="measuring val")
    slugs = network.spec.taxonomy.slugs
    while batch := list(islice(images, _EVALUATION_BATCH)):
        species_logits, embedding = network(torch.from_numpy(np.stack([pixels for _, pixels in batch])))
        for row, (index, _) in enumerate(batch):
            sample = leaves.samples[index]
            species_right = int(species_logits[row].argmax()) == sample.species_index
            if sample.disease_index is None:
                yield species_right, None
                continue
            logits = network.disease_heads[slugs[sample.species_index]](embedding[row])
            yield species_right, int(logits.argmax()) == sample.disease_index


def _serialise(network: HierarchicalNetwork) -> bytes:
    """Contract 1; the same weights give the same bytes."""
    spec = network.spec
    hyper_parameters = {
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
    buffer = io.BytesIO()
    torch.save({"state_dict": network.state_dict(), "hyper_parameters": hyper_parameters}, buffer)
    return buffer.getvalue()
