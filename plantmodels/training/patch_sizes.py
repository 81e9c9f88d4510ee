"""The same network for pictures of another size.

>>> spec = spec_of_size(spec, 112, scale_patches=True)  # doctest: +SKIP
>>> weights = resize_patches(large.state_dict(), small.state_dict())  # doctest: +SKIP
"""

from collections.abc import Mapping
from dataclasses import replace

import timm
import torch
from torch.nn import functional

from plantmodels.errors import TrainingError
from plantmodels.export.checkpoint import NetworkSpec


def takes_image_size(backbone: str) -> bool:
    """Whether timm must be told the size of this backbone's pictures."""
    return bool(getattr(timm.get_pretrained_cfg(backbone), "fixed_input_size", False))


def spec_of_size(spec: NetworkSpec, side: int, scale_patches: bool) -> NetworkSpec:
    """The same network for pictures of another size.

    Args:
        spec: of the full size.
        side: of the pictures.
        scale_patches: whether patches shrink with the pictures, so that there are as many.

    Raises:
        TrainingError: sizes whose ratio patches cannot be scaled by.
    """
    full = spec.preprocessing.image_size
    if side == full:
        return spec
    kwargs = dict(spec.backbone_kwargs)
    if scale_patches:
        patch = kwargs.get("patch_size")
        if not isinstance(patch, int) or full % side or patch % (full // side):
            raise TrainingError(
                f"patches shrink by whole numbers only: image_size {full} / {side} must be one that divides "
                f"backbone_kwargs['patch_size'] {patch!r}"
            )
        kwargs["patch_size"] = patch // (full // side)
    if takes_image_size(spec.backbone):
        kwargs["img_size"] = side
    return replace(spec, backbone_kwargs=kwargs, preprocessing=replace(spec.preprocessing, image_size=side))


def resize_patches(weights: Mapping[str, torch.Tensor], like: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Brings patch kernels to the size in `like`, a whole multiple or part of theirs.

    A kernel that grows is spread out, and answers to a picture as it did to its averages; one that shrinks is the
    sum of its blocks, which undoes that.
    """
    resized = {}
    for name, tensor in weights.items():
        side, wanted = (t.shape[-1] if t.ndim == 4 else 1 for t in (tensor, like.get(name, tensor)))
        if wanted > side and wanted % side == 0:
            factor = wanted // side
            tensor = tensor.repeat_interleave(factor, 2).repeat_interleave(factor, 3) / factor**2
        elif wanted < side and side % wanted == 0:
            tensor = functional.avg_pool2d(tensor, side // wanted) * (side // wanted) ** 2
        resized[name] = tensor
    return resized
