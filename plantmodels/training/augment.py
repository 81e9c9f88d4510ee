"""Random views of training pictures, a batch at a time.

>>> batch = augment(pictures, torch.Generator().manual_seed(0))  # doctest: +SKIP
"""

import math
from typing import Final

import torch
from torch.nn import functional

_TURN: Final = math.radians(15)
_ZOOM: Final = 0.12
_SHIFT: Final = 0.08
_CONTRAST: Final = 0.15
_BRIGHTNESS: Final = 0.15


def augment(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Flips, turns, zooms and shifts each picture, and changes its contrast, brightness and colour balance.

    Turns are by a quarter, a half or none and a little besides: leaves lie any way round.

    Args:
        pictures: (B, 3, S, S) float32, normalised; not changed.
        generator: source of randomness, on the CPU, so that every device sees the same views.

    Returns:
        (B, 3, S, S) float32.
    """
    count = len(pictures)

    device = pictures.device

    def uniform(*shape: int) -> torch.Tensor:
        return (torch.rand(count, *shape, generator=generator) * 2 - 1).to(device)

    def normal(channels: int) -> torch.Tensor:
        return torch.randn(count, channels, 1, 1, generator=generator).to(device)

    quarters = torch.randint(4, (count,), generator=generator).to(device) * (math.pi / 2)
    turn, zoom = quarters + uniform() * _TURN, torch.exp(uniform() * _ZOOM)
    flip = torch.sign(uniform())
    cos, sin, shift = torch.cos(turn) / zoom, torch.sin(turn) / zoom, uniform(2) * _SHIFT
    rows = [torch.stack([cos * flip, -sin, shift[:, 0]], 1), torch.stack([sin * flip, cos, shift[:, 1]], 1)]
    grid = functional.affine_grid(torch.stack(rows, 1), list(pictures.shape), align_corners=False)
    moved = functional.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)
    contrast = 1 + _CONTRAST * normal(1).clamp(-2, 2)
    return moved * contrast + _BRIGHTNESS * normal(3)
