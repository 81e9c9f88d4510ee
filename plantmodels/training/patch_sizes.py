"""Adapts a network and its weights to images of another size.

>>> small = {"patch_embed.weight": torch.ones(4, 3, 2, 2)}
>>> resize_patches({"patch_embed.weight": torch.ones(4, 3, 4, 4)}, small)["patch_embed.weight"].shape
torch.Size([4, 3, 2, 2])
"""

from collections.abc import Mapping
from dataclasses import replace

import timm
import torch
from torch.nn import functional

from plantmodels.checkpoint.spec import NetworkSpec
from plantmodels.errors import TrainingError


def needs_image_size(backbone: str) -> bool:
    """Return whether timm builds this backbone for one fixed image size."""
    return bool(getattr(timm.get_pretrained_cfg(backbone), "fixed_input_size", False))


def resize_spec(spec: NetworkSpec, side: int, scale_patches: bool) -> NetworkSpec:
    """Return the spec of the same network for images of another size.

    Args:
        spec: spec for the full image size.
        side: side of the images in pixels.
        scale_patches: whether patches shrink with the images, so that their number stays the same.

    Raises:
        TrainingError: the patches cannot be scaled by the ratio of the sizes.
    """
    full = spec.preprocessing.image_size
    if side == full:
        return spec
    kwargs = dict(spec.backbone_kwargs)
    if scale_patches:
        patch = kwargs.get("patch_size")
        if not isinstance(patch, int) or full % side or patch % (full // side):
            raise TrainingError(
                f"patches can only shrink by a whole number: image_size {full} / {side} must be a whole number that "
                f"divides backbone_kwargs['patch_size'] {patch!r}"
            )
        kwargs["patch_size"] = patch // (full // side)
    if needs_image_size(spec.backbone):
        kwargs["img_size"] = side
    return replace(spec, backbone_kwargs=kwargs, preprocessing=replace(spec.preprocessing, image_size=side))


def resize_patches(weights: Mapping[str, torch.Tensor], like: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return weights whose patch kernels have the sizes in `like`, if these are whole multiples or fractions.

    A kernel that grows is spread out: it gives the same result for a large image as before for the averages of its
    pixels. A kernel that shrinks becomes the sum of its blocks, which reverses the growth.

    Args:
        weights: `state_dict` of any network.
        like: `state_dict` of the same network for images of another size.
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
