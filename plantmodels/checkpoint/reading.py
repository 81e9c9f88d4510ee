"""Reads a training checkpoint (contract 1) without running the code that its pickle may contain.

>>> read_checkpoint(checkpoint).spec.backbone
'swin_tiny_patch4_window7_224'
"""

import logging
import pickle
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from plantmodels.bundle.manifest import digest_file
from plantmodels.checkpoint.archive import TensorSource
from plantmodels.checkpoint.files import Weights, open_weights
from plantmodels.checkpoint.inert_pickle import Foreign
from plantmodels.checkpoint.names import NetworkNames, find_network
from plantmodels.checkpoint.spec import (
    HELD_OUT,
    SEEN_NON_PLANTS,
    NetworkSpec,
    read_digests,
    read_parameter_file,
    read_spec,
    refuse_parameters,
)
from plantmodels.data.inputs import TRAINED_WEIGHTS, check_checkpoint
from plantmodels.errors import BundleError, CheckpointError

_FLOATS: Final = (torch.float16, torch.bfloat16, torch.float32)

READ_ERRORS: Final = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
)
"""Errors of torch's restricted unpickler for files of our own that are damaged: it takes any bytes for opcodes."""

_MAX_EXPANSION: Final = 2
"""Largest ratio of the bytes of all tensors to the bytes of the file; it exceeds 1 if tensors share a storage."""

_LOGGER: Final = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose class names and head shapes agree.

    Attributes:
        path: file or folder that was read.
        sha256: digest of the file.
        spec: description of the network.
        backbone: timm's name of each backbone tensor, and the tensor in float32; integer buffers keep their dtype.
        projection: weight (D, F) and bias (D,), or None if the features of the backbone are the embedding.
        species_head: weight (S, D) and bias (S,).
        disease_heads: index of each species with a head, and weight (N, D) and bias (N,).
        parameters_sha256: digest of the file of hyper-parameters that was given with it, or None.
        weights: which weights were read: "model", "ema" or a prefix.
        ignored: how many entries of state_dict belong to no part of the network, and which; "" if none.
        held_out: digests of the training leaves that no weight was fitted to; empty if the checkpoint names none.
        seen_non_plants: digests of the non-plants that the network learned from; empty if the checkpoint names none.
    """

    path: Path
    sha256: str
    spec: NetworkSpec
    backbone: Mapping[str, torch.Tensor]
    projection: tuple[torch.Tensor, torch.Tensor] | None
    species_head: tuple[torch.Tensor, torch.Tensor]
    disease_heads: Mapping[int, tuple[torch.Tensor, torch.Tensor]]
    parameters_sha256: str | None = None
    weights: str = TRAINED_WEIGHTS
    ignored: str = ""
    held_out: frozenset[str] = frozenset()
    seen_non_plants: frozenset[str] = frozenset()

    def log_ignored(self) -> None:
        """Say in one line what lies in state_dict beside the network."""
        if self.ignored:
            _LOGGER.info("%s: ignored what is not part of the network: %s", self.path, self.ignored)


def read_checkpoint(path: Path, hyper_parameters: Path | None = None, weights: str = TRAINED_WEIGHTS) -> Checkpoint:
    """Read and check a checkpoint.

    Only `state_dict` and the fields of contract 1 in `hyper_parameters` are looked at; nothing that the file names is
    run. The names of the backbone's tensors are only checked when the network is built.

    Args:
        path: an archive of `torch.save`, a safetensors file, or a folder that holds one.
        hyper_parameters: JSON or YAML file whose entries replace those of the checkpoint.
        weights: "model"; "ema" for the averaged copy; or the prefix of one of several networks in the file.

    Raises:
        CheckpointError: the file does not exist or is not a checkpoint, a field that is needed holds an object, the
            file needs more memory than its size explains, a head is missing or surplus, names and shapes disagree, or
            a weight is NaN or infinite.
    """
    check_checkpoint(path, hyper_parameters)
    with open_weights(path) as content:
        entries = content.select_state(weights)
        parameters = _merge_parameters(content, hyper_parameters)
        spec = read_spec(path, parameters)
        names = _find_network(content, entries, weights)
        state = _read_tensors(content, entries, names)
        heads = {i: _take_head(path, state, spec, i) for i in spec.taxonomy.species_with_head}
        projection = None
        if any(name.startswith("projection.") for name in state):
            projection = _take_linear(path, state, "projection", spec.embedding_dim, None)
        species_head = _take_linear(path, state, "species_head", len(spec.taxonomy.species), spec.embedding_dim)
        backbone = {
            name.removeprefix("backbone."): state.pop(name) for name in list(state) if name.startswith("backbone.")
        }
        if state:
            raise CheckpointError(
                f"{path}: {len(state)} tensor(s) belong to no species of hyper_parameters['species'] and no part of "
                f"the network: {', '.join(sorted(state)[:5])}"
            )
        return Checkpoint(
            path=path,
            sha256=content.sha256,
            spec=spec,
            backbone=backbone,
            projection=projection,
            species_head=species_head,
            disease_heads=heads,
            parameters_sha256=None if hyper_parameters is None else _digest(hyper_parameters),
            weights=weights,
            ignored=names.describe_ignored(),
            held_out=read_digests(path, parameters, HELD_OUT),
            seen_non_plants=read_digests(path, parameters, SEEN_NON_PLANTS),
        )


def _digest(path: Path) -> str:
    try:
        return digest_file(path.resolve()).sha256
    except BundleError as error:
        raise CheckpointError(str(error)) from error


def _merge_parameters(content: Weights, hyper_parameters: Path | None) -> Mapping[str, Any]:
    """Return the hyper-parameters of a checkpoint, with the entries of a file in place of its own."""
    inside = content.parameters
    if hyper_parameters is not None:
        return (inside if isinstance(inside, dict) else {}) | read_parameter_file(hyper_parameters)
    if not isinstance(inside, dict):
        raise refuse_parameters(content.path, inside)
    return inside


def _find_network(content: Weights, entries: Mapping[Any, Any], weights: str) -> NetworkNames:
    path = content.path
    wrong = next((name for name in entries if not isinstance(name, str)), None)
    if wrong is not None:
        raise CheckpointError(f"{path}: state_dict must map names to tensors, got the name {wrong!r:.60}")
    separate = entries is not content.document and weights == "ema" and _holds_one_network(content, entries)
    return find_network(path, entries, TRAINED_WEIGHTS if separate else weights)


def _holds_one_network(content: Weights, entries: Mapping[Any, Any]) -> bool:
    """Return whether these entries are averaged weights by themselves, without a prefix that says so."""
    return content.averaged_while_training or entries.keys() != content.select_state(TRAINED_WEIGHTS).keys()


def _read_tensors(content: Weights, entries: Mapping[str, Any], names: NetworkNames) -> dict[str, torch.Tensor]:
    """Return the network's tensors in float32, after checking what they would take."""
    path, total = content.path, 0
    for name, original in names.network.items():
        source = entries[original]
        if isinstance(source, Foreign):
            raise CheckpointError(f"{path}: {name} is not a plain tensor, got {source.name}")
        if not isinstance(source, TensorSource):
            raise CheckpointError(f"{path}: state_dict must map names to tensors, {name} is a {type(source).__name__}")
        total += source.size_bytes
        if total > _MAX_EXPANSION * content.size_bytes:
            raise CheckpointError(
                f"{path}: {name} has shape {source.shape}, with which the tensors take {total:,} bytes; the file has "
                f"{content.size_bytes:,}"
            )
    return {name: _read_tensor(path, name, entries[original]) for name, original in names.network.items()}


def _read_tensor(path: Path, name: str, source: TensorSource) -> torch.Tensor:
    tensor = source.read()
    if not tensor.is_floating_point():
        return tensor
    if tensor.dtype not in _FLOATS:
        raise CheckpointError(f"{path}: {name} is {tensor.dtype}, expected float16, bfloat16 or float32")
    if not torch.isfinite(tensor).all():
        count = int((~torch.isfinite(tensor)).sum())
        raise CheckpointError(f"{path}: {name} holds {count:,} NaN or infinite of {tensor.numel():,} weights")
    return tensor.to(torch.float32)


def _take_head(
    path: Path, state: dict[str, torch.Tensor], spec: NetworkSpec, species_index: int
) -> tuple[torch.Tensor, torch.Tensor]:
    species, slug = spec.taxonomy.species[species_index], spec.taxonomy.slugs[species_index]
    keys = dict.fromkeys((species, species.replace(".", "_"), slug))
    found = [key for key in keys if f"disease_heads.{key}.weight" in state]
    if len(found) != 1:
        problem = "no head" if not found else "several heads"
        raise CheckpointError(
            f"{path}: {problem} for species {species!r}; expected one of "
            f"{', '.join(f'disease_heads.{key}.weight' for key in keys)}"
        )
    diseases = spec.taxonomy.diseases_of(species_index)
    return _take_linear(path, state, f"disease_heads.{found[0]}", len(diseases), spec.embedding_dim, diseases)


def _take_linear(
    path: Path,
    state: dict[str, torch.Tensor],
    name: str,
    rows: int,
    columns: int | None,
    classes: tuple[str, ...] = (),
) -> tuple[torch.Tensor, torch.Tensor]:
    weight, bias = state.pop(f"{name}.weight", None), state.pop(f"{name}.bias", None)
    if weight is None or bias is None:
        raise CheckpointError(f"{path}: {name}.weight or {name}.bias is missing")
    if not (weight.is_floating_point() and bias.is_floating_point()):
        raise CheckpointError(
            f"{path}: {name} is {weight.dtype} and {bias.dtype}, expected float16, bfloat16 or float32"
        )
    shape = (rows, weight.shape[-1] if columns is None and weight.ndim == 2 else columns)
    if tuple(weight.shape) != shape or tuple(bias.shape) != (rows,):
        named = f" ({', '.join(classes)})" if classes else ""
        raise CheckpointError(
            f"{path}: {name}.weight {tuple(weight.shape)} and {name}.bias {tuple(bias.shape)} do not fit the "
            f"{rows} classes of hyper_parameters{named}: expected {shape} and ({rows},)"
        )
    return weight, bias
