"""Draws random views of training images, a batch at a time.

>>> augment(torch.zeros(2, 3, 8, 8), torch.Generator().manual_seed(0)).shape
torch.Size([2, 3, 8, 8])
"""

import math
from typing import Final

import torch
from torch.nn import functional

# Largest changes, except for the last two: these are standard deviations.
_TURN: Final = math.radians(15)
_ZOOM: Final = 0.12
_SHIFT: Final = 0.08
_CONTRAST: Final = 0.15
_BRIGHTNESS: Final = 0.15


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Flip, rotate, zoom and shift each image, and change its contrast, brightness and colour balance.

    Each image is rotated by a multiple of 90° and up to 15° more, because leaves lie any way round.

    Args:
        images: (B, 3, P, P) float32, normalized; not changed.
        generator: source of randomness on the CPU, so that every device sees the same views.

    Returns:
        (B, 3, P, P) float32.
    """
    count, device = len(images), images.device

    def uniform(*shape: int) -> torch.Tensor:
        return (torch.rand(count, *shape, generator=generator) * 2 - 1).to(device)

    def normal(channels: int) -> torch.Tensor:
        return torch.randn(count, channels, 1, 1, generator=generator).to(device)

    quarters = torch.randint(4, (count,), generator=generator).to(device) * (math.pi / 2)
    turn, zoom = quarters + uniform() * _TURN, torch.exp(uniform() * _ZOOM)
    flip = torch.sign(uniform())
    cos, sin, shift = torch.cos(turn) / zoom, torch.sin(turn) / zoom, uniform(2) * _SHIFT
    rows = [torch.stack([cos * flip, -sin, shift[:, 0]], 1), torch.stack([sin * flip, cos, shift[:, 1]], 1)]
    grid = functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    moved = functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    contrast = 1 + _CONTRAST * normal(1).clamp(-2, 2)
    return moved * contrast + _BRIGHTNESS * normal(3)
