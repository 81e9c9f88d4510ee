"""Checks that a checkpoint's mean and standard deviation fit the training leaves.

>>> print(describe_odd_pixels(np.zeros((2, 3, 8, 8), np.float32))[:67])
normalized training pixels have mean 0.00 and deviation 0.00 in red
"""

from typing import Final

import numpy as np

from plantmodels.arrays import Inputs

_ODD_MEAN: Final = 2.0
_ODD_STD: Final = (0.1, 4.0)
"""Leaves are near 0 and 1 after normalization: from 0.2 (pixels that are only scaled to 0..1) to 1.2 in practice."""

_CHANNELS: Final = ("red", "green", "blue")


def describe_odd_pixels(pixels: Inputs) -> str:
    """Return a warning if normalized training pixels are far from mean 0 and deviation 1; "" if they are not.

    Args:
        pixels: (N, 3, P, P) normalized training leaves.
    """
    means = pixels.mean(axis=(0, 2, 3), dtype=np.float64)
    deviations = pixels.std(axis=(0, 2, 3), dtype=np.float64)
    odd = [
        f"mean {mean:.2f} and deviation {deviation:.2f} in {channel}"
        for channel, mean, deviation in zip(_CHANNELS, means, deviations, strict=True)
        if abs(mean) > _ODD_MEAN or not _ODD_STD[0] <= deviation <= _ODD_STD[1]
    ]
    if not odd:
        return ""
    return (
        f"normalized training pixels have {', '.join(odd)}; expected are about 0 and 1. Are mean and std those that "
        "the network was trained with?"
    )
