"""Small networks that take a teacher's place: which there are, how large their INT8 file is, and their first weights.

>>> spec = student_spec(find_student("swin"), teacher.spec)  # doctest: +SKIP
>>> network = HierarchicalNetwork(spec, projection=True)  # doctest: +SKIP
>>> inherit_weights_(network, teacher)  # doctest: +SKIP
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import timm
import torch
from torch import nn

from plantmodels.errors import TrainingError
from plantmodels.export.checkpoint import NetworkSpec
from plantmodels.export.network import HierarchicalNetwork
from plantmodels.export.onnx_species import export_species
from plantmodels.export.quantize import quantize_int8
from plantmodels.training.dataset import Pictures
from plantmodels.training.patch_sizes import resize_patches, takes_image_size

MAX_INT8_BYTES: Final = 5_000_000
"""The default of the gate `species_size`."""

_SWIN: Final = "swin_tiny_patch4_window7_224"
_RIDGE: Final = 1e-3
_EMBEDDING_BATCH: Final = 64
_PERTURBATION: Final = 0.02


@dataclass(frozen=True)
class Student:
    """An architecture.

    Attributes:
        backbone: timm model name.
        backbone_kwargs: of `timm.create_model`.
        scale_patches: as in `Recipe`.
    """

    backbone: str
    backbone_kwargs: Mapping[str, Any] = field(default_factory=dict)
    scale_patches: bool = False


def _swin(width: int, depths: tuple[int, ...]) -> Student:
    """Patches of 8 pixels: a quarter of the tokens, so a quarter of the work, of Swin's usual 4."""
    heads = [width // 32 * 2**stage for stage in range(len(depths))]
    kwargs = {"patch_size": 8, "embed_dim": width, "depths": list(depths), "num_heads": heads, "drop_path_rate": 0.0}
    return Student(_SWIN, kwargs, scale_patches=True)


STUDENTS: Final[Mapping[str, Student]] = MappingProxyType(
    {"swin": _swin(96, (2, 2, 1)), "swin-64": _swin(64, (2, 2, 1))}
)
"""By name. "swin" is as wide as Swin-Tiny and inherits its first blocks; "swin-64" is two thirds as wide."""


def find_student(name: str) -> Student:
    """A student by its name here, or by timm's.

    Raises:
        TrainingError: neither knows it.
    """
    if name in STUDENTS:
        return STUDENTS[name]
    if not timm.is_model(name):
        raise TrainingError(f"no student {name!r}: expected {', '.join(STUDENTS)}, or the name of a timm backbone")
    return Student(name)


def student_spec(student: Student, teacher: NetworkSpec) -> NetworkSpec:
    """The teacher's preprocessing, classes and embedding size on the student's backbone."""
    kwargs = dict(student.backbone_kwargs)
    if takes_image_size(student.backbone):
        kwargs["img_size"] = teacher.preprocessing.image_size
    return replace(teacher, backbone=student.backbone, backbone_kwargs=kwargs)


def measure_int8_bytes(spec: NetworkSpec) -> int:
    """Size of the species model's INT8 file when every product is INT8; an export may keep some float.

    The weights are random, biases and norms too: equal tensors, as in a new network, are stored once.

    Args:
        spec: of a network with a projection.

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


def check_fits(spec: NetworkSpec, max_bytes: int) -> int:
    """Size of the INT8 file.

    Raises:
        TrainingError: not below `max_bytes`.
        CheckpointError, ExportError: as `measure_int8_bytes`.
    """
    size = measure_int8_bytes(spec)
    if size >= max_bytes:
        raise TrainingError(
            f"student {spec.backbone!r} with {dict(spec.backbone_kwargs)} takes {size:,} bytes in INT8, its budget is "
            f"{max_bytes:,}"
        )
    return size


def inherit_weights_(network: HierarchicalNetwork, teacher: HierarchicalNetwork) -> int:
    """Copies the teacher's heads, and of the backbone what has the same name; a narrower layer takes a part.

    The part is spread evenly over each dimension, by the same rule everywhere, so that what one layer writes is
    what the next one reads; of an MLP's hidden units the ones with the largest weights. The last norm, before
    which the student lacks layers, and position tables of windows of another size stay as they are.

    Returns:
        How many backbone tensors were inherited.

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
    network: HierarchicalNetwork, pictures: Pictures, rows: torch.Tensor, embedding: torch.Tensor, device: torch.device
) -> None:
    """Sets the projection to the ridge regression from the backbone's features to the teacher's embedding.

    Args:
        network: on the device, in evaluation mode.
        pictures: training leaves.
        rows: (n,) those that are trained on.
        embedding: (N, D) the teacher's, of all pictures.
        device: of the network.
    """
    side = network.spec.preprocessing.image_size
    features = torch.cat(
        [network.backbone(pictures.batch(batch, side, device)).cpu() for batch in torch.split(rows, _EMBEDDING_BATCH)]
    ).double()
    padded = torch.cat([features, torch.ones(len(features), 1, dtype=torch.float64)], dim=1)
    gram = padded.T @ padded
    gram += _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    solution = torch.linalg.solve(gram, padded.T @ embedding[rows].double())
    layer = network.projection
    if not isinstance(layer, nn.Linear):
        raise TypeError("the network must have a projection")
    layer.load_state_dict({"weight": solution[:-1].T.float(), "bias": solution[-1].float()})
