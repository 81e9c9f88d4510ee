"""Checks that a checkpoint's mean and standard deviation are on the scale 0 to 1 and fit the training leaves.

>>> check_scale(Preprocessing(image_size=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)))
>>> print(describe_odd_pixels(np.zeros((2, 3, 8, 8), np.float32))[:67])
normalized training pixels have mean 0.00 and deviation 0.00 in red
"""

from typing import Final

import numpy as np

from plantmodels.arrays import Inputs
from plantmodels.bundle.metadata import Preprocessing

MAX_MEAN: Final = 1.0
MIN_STD: Final = 0.01
MAX_STD: Final = 1.0
"""Pixels are scaled to 0..1 first. Means lie in that range, and no deviation of such numbers exceeds 1."""

_ODD_MEAN: Final = 2.0
_ODD_STD: Final = (0.1, 4.0)
"""Leaves are near 0 and 1 after normalization: from 0.2 (pixels that are only scaled to 0..1) to 1.2 in practice."""

_CHANNELS: Final = ("red", "green", "blue")


def check_scale(preprocessing: Preprocessing) -> None:
    """Refuse means and deviations that are not on the scale 0 to 1.

    Raises:
        ValueError: names the values, what they must be and the likely reason.
    """
    mean, std = preprocessing.mean, preprocessing.std
    if max(map(abs, mean)) <= MAX_MEAN and min(std) >= MIN_STD and max(std) <= MAX_STD:
        return
    reason = ""
    if max(mean) > MAX_MEAN or max(std) > MAX_STD:
        reason = ". They look like the scale 0 to 255: divide both by 255"
    elif min(std) < MIN_STD:
        reason = ". Is it the variance, or divided by 255 twice?"
    raise ValueError(
        f"mean must be from -{MAX_MEAN:g} to {MAX_MEAN:g} and std from {MIN_STD:g} to {MAX_STD:g}, on pixels scaled "
        f"to 0..1; got mean {_spell(mean)} and std {_spell(std)}{reason}"
    )


def _spell(values: tuple[float, ...]) -> str:
    return f"({', '.join(f'{value:g}' for value in values)})"


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
