"""Checks that a checkpoint's mean and standard deviation are on the scale 0 to 1.

>>> check_scale(Preprocessing(image_size=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)))
"""

from typing import Final

from plantmodels.bundle.metadata import Preprocessing

MAX_MEAN: Final = 1.0
MIN_STD: Final = 0.01
MAX_STD: Final = 1.0
"""Pixels are scaled to 0..1 first. Means lie in that range, and no deviation of such numbers exceeds 1."""


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
