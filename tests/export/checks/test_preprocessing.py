"""Checks which means and deviations are refused, and which pixels are odd."""

import numpy as np
import pytest

from plantmodels.bundle.metadata import Preprocessing
from plantmodels.checkpoint.scale import check_scale
from plantmodels.export.checks.preprocessing import describe_odd_pixels


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ((0, 0, 0), (1, 1, 1)),
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ((1, 1, 1), (0.01, 0.01, 0.01)),
    ],
)
def test_usual_values_are_accepted(mean, std) -> None:
    check_scale(Preprocessing(32, mean, std))


@pytest.mark.parametrize(
    ("mean", "std", "match"),
    [
        ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5), r"got mean \(127.5, 127.5, 127.5\).*255: divide both by 255"),
        ((123.675, 116.28, 103.53), (58.4, 57.12, 57.38), r"mean must be from -1 to 1 and std from 0.01 to 1"),
        ((0.5, 0.5, 0.5), (58.4, 57.12, 57.38), "scale 0 to 255"),
        ((-2, 0, 0), (1, 1, 1), r"got mean \(-2, 0, 0\) and std \(1, 1, 1\)$"),
        ((0.5, 0.5, 0.5), (0.2, 0.2, 0.009), r"0.009\)\. Is it the variance"),
    ],
)
def test_another_scale_is_refused_with_its_reason(mean, std, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        check_scale(Preprocessing(32, mean, std))


def test_odd_pixels_are_named_by_channel() -> None:
    pixels = np.random.default_rng(0).normal(size=(8, 3, 16, 16)).astype(np.float32)
    assert describe_odd_pixels(pixels) == ""
    pixels[:, 1] += 3
    pixels[:, 2] *= 0.05
    warning = describe_odd_pixels(pixels)
    assert "mean 3.0" in warning
    assert "deviation 0.05 in blue" in warning
    assert "red" not in warning
