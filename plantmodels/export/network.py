"""Builds the PyTorch network of a checkpoint, with which all exported files are compared.

>>> from plantmodels.checkpoint.reading import read_checkpoint
>>> network = load_network(read_checkpoint(checkpoint))
>>> species_logits, embedding = network(torch.zeros(2, 3, 224, 224))
>>> len(species_logits), len(embedding)
(2, 2)
"""

from typing import Final

import timm
import torch
from torch import nn

from plantmodels.checkpoint.reading import Checkpoint
from plantmodels.checkpoint.spec import NetworkSpec
from plantmodels.errors import CheckpointError
from plantmodels.export.layouts import describe_origin, list_misfits, translate_names
from plantmodels.foreign_text import quote_error

_FIXED_ARGUMENTS: Final = {"num_classes": 0, "pretrained": False, "checkpoint_path": ""}
"""Arguments of timm that a checkpoint cannot set: all weights come from the checkpoint, and nothing is downloaded."""

_BUILD_ERRORS: Final = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""Errors that timm's constructors raise for arguments that do not fit."""


class HierarchicalNetwork(nn.Module):
    """Backbone, optional projection, species head, and one disease head per species, by the slug of the species."""

    def __init__(self, spec: NetworkSpec, *, projection: bool, empty_heads: bool = False) -> None:
        """Build the layers with random weights.

        Args:
            spec: backbone, embedding size and classes.
            projection: whether a linear layer maps the features of the backbone to the embedding.
            empty_heads: whether the species head and the disease heads take no memory until weights are assigned.

        Raises:
            CheckpointError: timm does not know the backbone or refuses its arguments, or there is no projection and
                the number of features is not the length of the embedding.
        """
        super().__init__()
        self.spec = spec
        self.backbone, features = _create_backbone(spec)
        if not projection and features != spec.embedding_dim:
            raise CheckpointError(
                f"backbone {spec.backbone!r} gives {features} features, embedding_dim is {spec.embedding_dim}, "
                "and there is no projection"
            )
        self.projection = nn.Linear(features, spec.embedding_dim) if projection else nn.Identity()
        device = "meta" if empty_heads else None
        self.species_head = nn.Linear(spec.embedding_dim, len(spec.taxonomy.species), device=device)
        self.disease_heads = nn.ModuleDict(
            {
                spec.taxonomy.slugs[i]: nn.Linear(spec.embedding_dim, len(spec.taxonomy.diseases_of(i)), device=device)
                for i in spec.taxonomy.species_with_head
            }
        )

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the species logits and the embedding.

        Args:
            images: (B, 3, P, P) float32, normalized.

        Returns:
            Species logits (B, S), and embedding (B, D).
        """
        embedding = self.projection(self.backbone(images))
        return self.species_head(embedding), embedding


def _create_backbone(spec: NetworkSpec) -> tuple[nn.Module, int]:
    """Return the backbone and the number of its features, which is not `num_features` in every timm model."""
    if not timm.is_model(spec.backbone):
        raise CheckpointError(f"timm {timm.__version__} does not know backbone {spec.backbone!r}")
    size = spec.preprocessing.image_size
    try:
        backbone = timm.create_model(spec.backbone, **{**spec.backbone_kwargs, **_FIXED_ARGUMENTS})
        with torch.inference_mode():
            features = backbone.eval()(torch.zeros(1, 3, size, size))
    except _BUILD_ERRORS as error:
        raise CheckpointError(
            f"timm {timm.__version__} cannot build backbone {spec.backbone!r} with {dict(spec.backbone_kwargs)} for "
            f"{size}x{size} images ({quote_error(error)})"
        ) from error
    if not isinstance(features, torch.Tensor) or features.ndim != 2:
        given = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
        raise CheckpointError(f"backbone {spec.backbone!r} gives {given}, expected (1, features)")
    return backbone, features.shape[1]


def load_network(checkpoint: Checkpoint) -> HierarchicalNetwork:
    """Return the network of a checkpoint with its weights, in evaluation mode.

    The network uses the checkpoint's own tensors and does not copy them: 10,000 heads take 120 MB.

    Raises:
        CheckpointError: the checkpoint lacks tensors of the network, has more, or has tensors of another shape.
    """
    network = HierarchicalNetwork(checkpoint.spec, projection=checkpoint.projection is not None, empty_heads=True)
    _load_backbone(network.backbone, checkpoint)
    _load_linear(checkpoint, "species_head", network.species_head, checkpoint.species_head)
    if checkpoint.projection is not None:
        _load_linear(checkpoint, "projection", network.projection, checkpoint.projection)
    for index, head in checkpoint.disease_heads.items():
        slug = checkpoint.spec.taxonomy.slugs[index]
        _load_linear(checkpoint, f"disease_heads.{slug}", network.disease_heads[slug], head)
    return network.eval()


def _load_backbone(backbone: nn.Module, checkpoint: Checkpoint) -> None:
    path, name = checkpoint.path, checkpoint.spec.backbone
    state = translate_names(backbone, checkpoint.backbone)
    if problems := list_misfits(backbone, state):
        raise CheckpointError(
            f"{path}: {len(problems)} backbone tensor(s) do not fit timm's {name!r}: {'; '.join(problems[:5])}"
            f"{describe_origin(checkpoint.backbone)}"
        )
    backbone.load_state_dict(dict(state), assign=True)


def _load_linear(
    checkpoint: Checkpoint, name: str, layer: nn.Module, values: tuple[torch.Tensor, torch.Tensor]
) -> None:
    state = dict(zip(("weight", "bias"), values, strict=True))
    shape = tuple(layer.state_dict()["weight"].shape)
    if tuple(values[0].shape) != shape:
        raise CheckpointError(f"{checkpoint.path}: {name}.weight is {tuple(values[0].shape)}, expected {shape}")
    layer.load_state_dict(state, assign=True)
