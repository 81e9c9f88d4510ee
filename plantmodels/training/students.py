"""Architectures of small students, the size of their INT8 file, and their initial weights.

>>> find_student("swin-64").backbone_kwargs["embed_dim"]
64
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import timm
import torch
from torch import nn

from plantmodels.checkpoint.spec import NetworkSpec
from plantmodels.errors import TrainingError
from plantmodels.export.network import HierarchicalNetwork
from plantmodels.export.onnx_species import export_species
from plantmodels.export.quantize import quantize_int8
from plantmodels.training.dataset import LeafImages
from plantmodels.training.patch_sizes import needs_image_size, resize_patches

_SWIN: Final = "swin_tiny_patch4_window7_224"
_RIDGE: Final = 1e-3
"""Ridge penalty, as a share of the mean diagonal of the Gram matrix."""

_EMBEDDING_BATCH: Final = 64
_PERTURBATION: Final = 0.02
"""Standard deviation of the noise that makes all tensors of a new network different."""


@dataclass(frozen=True)
class Student:
    """An architecture of a student.

    Attributes:
        backbone: timm model name.
        backbone_kwargs: further arguments of `timm.create_model`.
        scale_patches: whether patches shrink with the images of a stage (see `Recipe`).
    """

    backbone: str
    backbone_kwargs: Mapping[str, Any] = field(default_factory=dict)
    scale_patches: bool = False


def _make_swin(width: int, depths: tuple[int, ...]) -> Student:
    """Return a Swin with patches of 8 pixels instead of 4: a quarter of the tokens, so a quarter of the work."""
    heads = [width // 32 * 2**stage for stage in range(len(depths))]
    kwargs = {"patch_size": 8, "embed_dim": width, "depths": list(depths), "num_heads": heads, "drop_path_rate": 0.0}
    return Student(_SWIN, kwargs, scale_patches=True)


STUDENTS: Final[Mapping[str, Student]] = MappingProxyType(
    {"swin": _make_swin(96, (2, 2, 1)), "swin-64": _make_swin(64, (2, 2, 1))}
)
"""Students by name. "swin" is as wide as Swin-Tiny and inherits its first blocks; "swin-64" is two thirds as wide."""


def find_student(name: str) -> Student:
    """Return the student with this name.

    Args:
        name: a key of `STUDENTS`, or the name of a timm backbone.

    Raises:
        TrainingError: the name is unknown.
    """
    if name in STUDENTS:
        return STUDENTS[name]
    if not timm.is_model(name):
        raise TrainingError(f"no student {name!r}: expected {', '.join(STUDENTS)}, or the name of a timm backbone")
    return Student(name)


def make_student_spec(student: Student, teacher: NetworkSpec) -> NetworkSpec:
    """Return a spec with the student's backbone and the teacher's preprocessing, classes and embedding size."""
    kwargs = dict(student.backbone_kwargs)
    if needs_image_size(student.backbone):
        kwargs["img_size"] = teacher.preprocessing.image_size
    return replace(teacher, backbone=student.backbone, backbone_kwargs=kwargs)


def measure_int8_bytes(spec: NetworkSpec) -> int:
    """Return the size in bytes of the INT8 species file if every product is INT8; an export may keep some in float.

    All weights are made random, including biases and norms: in a new network many tensors are equal, and equal ones
    are stored only once.

    Args:
        spec: spec of a network with a projection.

    Raises:
        CheckpointError: timm cannot build the backbone.
        ExportError: the network cannot be exported.
    """
    network = HierarchicalNetwork(spec, projection=True).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=_PERTURBATION)
    side = spec.preprocessing.image_size
    noise = np.random.default_rng(0).standard_normal((1, 3, side, side)).astype(np.float32)
    return int(quantize_int8(export_species(network, noise).model, reduce_range=False).ByteSize())


def check_size(spec: NetworkSpec, max_bytes: int) -> int:
    """Return the size in bytes of the INT8 species file, and raise an error if it is too large.

    Args:
        spec: spec of a network with a projection.
        max_bytes: the size must be below this number of bytes.

    Raises:
        TrainingError: the file is too large.
        CheckpointError, ExportError: as in `measure_int8_bytes`.
    """
    size = measure_int8_bytes(spec)
    if size >= max_bytes:
        raise TrainingError(
            f"student {spec.backbone!r} with {dict(spec.backbone_kwargs)} takes {size:,} bytes in INT8, the limit is "
            f"{max_bytes:,}"
        )
    return size


def inherit_weights_(network: HierarchicalNetwork, teacher: HierarchicalNetwork) -> int:
    """Copy the teacher's heads, and all backbone tensors that the student has too; a narrower layer takes a part.

    The part is spread evenly over each dimension. The rule is the same everywhere, so that each layer reads the
    channels that the layer before it writes. Of the hidden units of an MLP, those with the largest weights are taken.
    The last norm is not copied, because the student lacks the layers before it, nor are position tables of windows
    of another size.

    Args:
        network: student to change.
        teacher: teacher to copy from; not changed.

    Returns:
        The number of backbone tensors that were copied.

    References:
        Xu et al., "Initializing Models with Larger Ones", ICLR 2024.
    """
    network.species_head.load_state_dict(teacher.species_head.state_dict())
    network.disease_heads.load_state_dict(teacher.disease_heads.state_dict())
    mine, theirs = network.backbone.state_dict(), dict(teacher.backbone.state_dict())
    inherited = {}
    for name, tensor in resize_patches({n: t for n, t in theirs.items() if n in mine}, mine).items():
        wanted = mine[name].shape
        fits = tensor.ndim == len(wanted) and all(a >= b for a, b in zip(tensor.shape, wanted, strict=True))
        table = name.endswith("relative_position_bias_table") and tensor.shape[0] != wanted[0]
        if fits and tensor.is_floating_point() and not table and not name.startswith("norm."):
            inherited[name] = _take_part(name, tensor, wanted, theirs)
    network.backbone.load_state_dict({**mine, **inherited})
    return len(inherited)


def _take_part(name: str, tensor: torch.Tensor, shape: torch.Size, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    layer, _, part = name.rpartition(".mlp.")
    hidden = {"fc1.weight": 0, "fc1.bias": 0, "fc2.weight": 1}.get(part)
    for dim, wanted in enumerate(shape):
        index = torch.arange(wanted) * tensor.shape[dim] // wanted
        if dim == hidden:
            rows, columns = weights[f"{layer}.mlp.fc1.weight"], weights[f"{layer}.mlp.fc2.weight"]
            index = (rows.norm(dim=1) * columns.norm(dim=0)).topk(wanted).indices.sort().values
        tensor = tensor.index_select(dim, index)
    return tensor


@torch.inference_mode()
def fit_projection_(
    network: HierarchicalNetwork, images: LeafImages, rows: torch.Tensor, embedding: torch.Tensor, device: torch.device
) -> None:
    """Set the projection to the ridge regression from the features of the backbone to the teacher's embedding.

    Args:
        network: student to change, on the device, in evaluation mode.
        images: N training leaves.
        rows: (n,) rows to train on.
        embedding: (N, D) embedding of the teacher for all leaves.
        device: device of the network.
    """
    side = network.spec.preprocessing.image_size
    features = torch.cat(
        [
            network.backbone(images.load_batch(batch, side, device)).cpu()
            for batch in torch.split(rows, _EMBEDDING_BATCH)
        ]
    ).double()
    padded = torch.cat([features, torch.ones(len(features), 1, dtype=torch.float64)], dim=1)
    gram = padded.T @ padded
    gram += _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    solution = torch.linalg.solve(gram, padded.T @ embedding[rows].double())
    layer = network.projection
    if not isinstance(layer, nn.Linear):
        raise TypeError("the network must have a projection")
    layer.load_state_dict({"weight": solution[:-1].T.float(), "bias": solution[-1].float()})
