"""Reads a training checkpoint (contract 1) without running the code that its pickle may contain.

>>> read_checkpoint(checkpoint).spec.backbone
'swin_tiny_patch4_window7_224'
"""

import pickle
import pickletools
import re
import struct
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from plantmodels.bundle.manifest import digest_file
from plantmodels.bundle.metadata import Preprocessing
from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.data.inputs import check_checkpoint
from plantmodels.errors import BundleError, CheckpointError, TaxonomyError
from plantmodels.export.checks.preprocessing import check_scale
from plantmodels.foreign_text import quote_error

_PREFIXES: Final = ("model.", "net.", "_orig_mod.", "module.")
_ROOTS: Final = ("backbone.", "projection.", "species_head.", "disease_heads.")
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
"""Errors of torch's restricted unpickler for files that are not checkpoints: it takes any bytes for opcodes."""

_ALLOCATING: Final = re.compile(r"(builtins|__builtin__) bytearray|_codecs encode|torch[\w.]* \w*Tensor")
"""Globals that torch's restricted unpickler calls with any size: a file of a kilobyte can allocate gigabytes."""

_MAX_EXPANSION: Final = 2
"""Largest ratio of the bytes of all tensors to the bytes of the file; it exceeds 1 if tensors share a storage."""


@dataclass(frozen=True)
class NetworkSpec:
    """The description of a network in `hyper_parameters`.

    Attributes:
        backbone: timm model name.
        backbone_kwargs: further arguments of `timm.create_model`.
        embedding_dim: D, the length of the embedding that the heads read.
        preprocessing: how images became inputs in training.
        taxonomy: all classes in logit order.
    """

    backbone: str
    backbone_kwargs: Mapping[str, Any]
    embedding_dim: int
    preprocessing: Preprocessing
    taxonomy: Taxonomy


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose class names and head shapes agree.

    Attributes:
        path: file that was read.
        sha256: digest of the file.
        spec: description of the network.
        backbone: timm's name of each backbone tensor, and the tensor in float32; integer buffers keep their dtype.
        projection: weight (D, F) and bias (D,), or None if the features of the backbone are the embedding.
        species_head: weight (S, D) and bias (S,).
        disease_heads: index of each species with a head, and weight (N, D) and bias (N,).
    """

    path: Path
    sha256: str
    spec: NetworkSpec
    backbone: Mapping[str, torch.Tensor]
    projection: tuple[torch.Tensor, torch.Tensor] | None
    species_head: tuple[torch.Tensor, torch.Tensor]
    disease_heads: Mapping[int, tuple[torch.Tensor, torch.Tensor]]


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and check a checkpoint file.

    The names of the backbone's tensors are only checked when the network is built.

    Raises:
        CheckpointError: the file does not exist or is not a checkpoint, its content is refused by `weights_only` or
            needs more memory than its size explains, a head is missing or surplus, names and shapes disagree, or a
            weight is NaN or infinite.
    """
    check_checkpoint(path)
    try:
        sha256 = digest_file(path.resolve()).sha256  # Lightning's last.ckpt is a link
    except BundleError as error:
        raise CheckpointError(str(error)) from error
    document = _load_document(path)
    spec = _read_spec(path, document["hyper_parameters"])
    state = _strip_prefix(path, document["state_dict"])
    _check_tensors(path, state)
    heads = {i: _take_head(path, state, spec, i) for i in spec.taxonomy.species_with_head}
    projection = None
    if any(name.startswith("projection.") for name in state):
        projection = _take_linear(path, state, "projection", spec.embedding_dim, None)
    species_head = _take_linear(path, state, "species_head", len(spec.taxonomy.species), spec.embedding_dim)
    backbone = {name.removeprefix("backbone."): state.pop(name) for name in list(state) if name.startswith("backbone.")}
    if state:
        raise CheckpointError(
            f"{path}: {len(state)} tensor(s) belong to no species of hyper_parameters['species'] and no part of the "
            f"network: {', '.join(sorted(state)[:5])}"
        )
    return Checkpoint(path, sha256, spec, backbone, projection, species_head, heads)


def _check_archive(path: Path) -> None:
    """Raise an error, before torch reads the file, if its content would take more memory than the file has bytes."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check_members(path, members)
            for member in members:
                if member.filename.endswith("data.pkl"):
                    _check_globals(path, archive.read(member))
    except (zipfile.BadZipFile, *READ_ERRORS) as error:
        raise CheckpointError(
            f"{path}: not a checkpoint: expected the zip archive that torch.save writes ({error})"
        ) from error


def _check_members(path: Path, members: list[zipfile.ZipInfo]) -> None:
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(
                f"{path}: {member.filename!r:.100} is compressed, {member.compress_size:,} bytes become "
                f"{member.file_size:,}: refused, torch.save stores members as they are"
            )
    name, count = max(Counter(member.filename for member in members).items(), key=lambda item: item[1], default=("", 0))
    if count > 1:
        raise CheckpointError(f"{path}: {name!r:.100} is in the archive {count} times")
    claimed, size = sum(member.file_size for member in members), path.stat().st_size
    if claimed > size:
        raise CheckpointError(f"{path}: its members claim {claimed:,} bytes, the file has {size:,}")


def _check_globals(path: Path, content: bytes) -> None:
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name == "GLOBAL" and _ALLOCATING.fullmatch(str(argument)):
            raise CheckpointError(
                f"{path}: not a checkpoint of tensors and plain values; its pickle calls {str(argument)!r:.100}, "
                "which may take any amount of memory: refused"
            )


def _load_document(path: Path) -> dict[str, Any]:
    _check_archive(path)
    try:
        document: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = quote_error(error)
        raise CheckpointError(
            f"{path}: not a checkpoint of tensors and plain values; torch.load(weights_only=True) refuses it ({reason})"
        ) from error
    except READ_ERRORS as error:
        reason = quote_error(error)
        raise CheckpointError(f"{path}: not a checkpoint that torch can read ({reason})") from error
    for name in ("state_dict", "hyper_parameters"):
        if not isinstance(document, dict) or not isinstance(document.get(name), dict):
            raise CheckpointError(f"{path}: expected a dict with {name!r} (a dict), as Lightning writes it")
    return document


def _read_spec(path: Path, parameters: Mapping[str, Any]) -> NetworkSpec:
    required = ("backbone", "embedding_dim", "image_size", "mean", "std", "species", "diseases")
    missing = [name for name in required if name not in parameters]
    if missing:
        raise CheckpointError(f"{path}: hyper_parameters lack {', '.join(missing)}")
    optional = {name: parameters[name] for name in ("interpolation", "crop_pct") if name in parameters}
    kwargs, dim = parameters.get("backbone_kwargs") or {}, parameters["embedding_dim"]
    try:
        if not isinstance(parameters["backbone"], str) or not isinstance(kwargs, Mapping):
            raise ValueError("backbone must be a timm name and backbone_kwargs a dict")
        if type(dim) is not int or dim < 1:
            raise ValueError(f"embedding_dim must be a positive integer, got {dim!r}")
        preprocessing = Preprocessing(
            parameters["image_size"],
            _to_tuple("mean", parameters["mean"]),
            _to_tuple("std", parameters["std"]),
            **optional,
        )
        check_scale(preprocessing)
        diseases = {name: _to_tuple("diseases", names) for name, names in parameters["diseases"].items()}
        taxonomy = Taxonomy(
            _to_tuple("species", parameters["species"]), {name: names for name, names in diseases.items() if names}
        )
    except (TaxonomyError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: hyper_parameters: {error}") from error
    return NetworkSpec(parameters["backbone"], kwargs, dim, preprocessing, taxonomy)


def _to_tuple(name: str, values: object) -> tuple[Any, ...]:
    """Return a list as a tuple. Tensors are refused, because their shape may claim any number of elements."""
    if not isinstance(values, list | tuple):
        raise ValueError(f"{name} must be a list, got {type(values).__name__}")
    return tuple(values)


def _strip_prefix(path: Path, state: Mapping[Any, Any]) -> dict[str, torch.Tensor]:
    names = list(state)
    if not all(isinstance(name, str) and isinstance(state[name], torch.Tensor) for name in names):
        raise CheckpointError(f"{path}: state_dict must map names to tensors")
    prefix = ""
    while names and not any(name.startswith(prefix + "backbone.") for name in names):
        step = next((p for p in _PREFIXES if all(name.startswith(prefix + p) for name in names)), None)
        if step is None:
            raise CheckpointError(
                f"{path}: state_dict has no 'backbone.*' tensors (first names: {', '.join(names[:3])}); "
                f"expected {', '.join(_ROOTS)} with at most a common prefix"
            )
        prefix += step
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def _check_tensors(path: Path, state: dict[str, torch.Tensor]) -> None:
    total, size = 0, path.stat().st_size
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized or tensor.is_nested:
            raise CheckpointError(f"{path}: {name} is not a plain tensor, got {tensor.layout} on {tensor.device.type}")
        total += tensor.numel() * tensor.element_size()
        if total > _MAX_EXPANSION * size:
            raise CheckpointError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, with which the tensors take {total:,} bytes; the "
                f"file has {size:,}"
            )
        if not tensor.is_floating_point():
            continue
        if tensor.dtype not in _FLOATS:
            raise CheckpointError(f"{path}: {name} is {tensor.dtype}, expected float16, bfloat16 or float32")
        state[name] = tensor.to(torch.float32)
        if not torch.isfinite(tensor).all():
            count = int((~torch.isfinite(tensor)).sum())
            raise CheckpointError(f"{path}: {name} holds {count:,} NaN or infinite of {tensor.numel():,} weights")


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
