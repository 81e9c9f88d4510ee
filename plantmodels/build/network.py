"""The PyTorch network of a checkpoint: the reference that every exported file is held against.

>>> network = load_network(read_checkpoint(path))  # doctest: +SKIP
>>> species_logits, embedding = network(images)    # (B, 3, S, S) → (B, species), (B, D)  # doctest: +SKIP
"""

import timm
import torch
from torch import nn

from plantmodels.build.checkpoint import Checkpoint, NetworkSpec
from plantmodels.errors import CheckpointError


class HierarchicalNetwork(nn.Module):
    """Backbone, optional projection, species head, and one disease head a species, keyed by slug."""

    def __init__(self, spec: NetworkSpec, *, projection: bool) -> None:
        """Builds the layers with random weights.

        Args:
            spec: backbone, embedding size and classes.
            projection: whether a linear layer maps backbone features to the embedding.

        Raises:
            CheckpointError: timm does not know the backbone or refuses its arguments, or its features are not
                the embedding although there is no projection.
        """
        super().__init__()
        self.spec = spec
        self.backbone = _create_backbone(spec)
        features = int(str(self.backbone.num_features))
        if not projection and features != spec.embedding_dim:
            raise CheckpointError(
                f"backbone {spec.backbone!r} gives {features} features, embedding_dim is {spec.embedding_dim}, "
                "and there is no projection"
            )
        self.projection = nn.Linear(features, spec.embedding_dim) if projection else nn.Identity()
        self.species_head = nn.Linear(spec.embedding_dim, len(spec.taxonomy.species))
        self.disease_heads = nn.ModuleDict(
            {
                spec.taxonomy.slugs[i]: nn.Linear(spec.embedding_dim, len(spec.taxonomy.diseases_of(i)))
                for i in spec.taxonomy.species_with_head
            }
        )

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Computes species logits and embedding.

        Args:
            images: (B, 3, S, S) float32, normalised.

        Returns:
            (B, species) and (B, D).
        """
        embedding = self.projection(self.backbone(images))
        return self.species_head(embedding), embedding


def _create_backbone(spec: NetworkSpec) -> nn.Module:
    size = spec.preprocessing.image_size
    kwargs = {"num_classes": 0, "pretrained": False, **spec.backbone_kwargs}
    try:
        backbone = timm.create_model(spec.backbone, **kwargs)
        with torch.inference_mode():
            features = backbone.eval()(torch.zeros(1, 3, size, size))
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise CheckpointError(
            f"timm {timm.__version__} cannot build backbone {spec.backbone!r} with {dict(spec.backbone_kwargs)} for "
            f"{size}x{size} images ({error})"
        ) from error
    if features.ndim != 2:
        raise CheckpointError(f"backbone {spec.backbone!r} gives {tuple(features.shape)}, expected (1, features)")
    return backbone


def load_network(checkpoint: Checkpoint) -> HierarchicalNetwork:
    """Builds the network of a checkpoint with its weights, in evaluation mode.

    Raises:
        CheckpointError: tensors missing from, surplus to, or of another shape than the network.
    """
    network = HierarchicalNetwork(checkpoint.spec, projection=checkpoint.projection is not None)
    _load_backbone(network.backbone, checkpoint)
    _fill(checkpoint, "species_head", network.species_head, checkpoint.species_head)
    if checkpoint.projection is not None:
        _fill(checkpoint, "projection", network.projection, checkpoint.projection)
    for index, head in checkpoint.disease_heads.items():
        slug = checkpoint.spec.taxonomy.slugs[index]
        _fill(checkpoint, f"disease_heads.{slug}", network.disease_heads[slug], head)
    return network.eval()


def _load_backbone(backbone: nn.Module, checkpoint: Checkpoint) -> None:
    expected, found = backbone.state_dict(), checkpoint.backbone
    problems = [f"missing: {name}" for name in expected if name not in found]
    problems += [f"unknown: {name}" for name in found if name not in expected]
    problems += [
        f"{name}: {tuple(found[name].shape)}, timm has {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    if problems:
        raise CheckpointError(
            f"{checkpoint.path}: {len(problems)} backbone tensor(s) do not fit timm's {checkpoint.spec.backbone!r}: "
            + "; ".join(problems[:5])
        )
    backbone.load_state_dict(dict(found))


def _fill(checkpoint: Checkpoint, name: str, layer: nn.Module, values: tuple[torch.Tensor, torch.Tensor]) -> None:
    state = dict(zip(("weight", "bias"), values, strict=True))
    shape = tuple(layer.state_dict()["weight"].shape)
    if tuple(values[0].shape) != shape:
        raise CheckpointError(f"{checkpoint.path}: {name}.weight is {tuple(values[0].shape)}, expected {shape}")
    layer.load_state_dict(state)
