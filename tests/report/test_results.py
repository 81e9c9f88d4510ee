import pytest

from plantmodels.report.results import SMALL_CLASS, Bin, ClassRow, Reliability
from plantmodels.report.samples import Scatter


def test_small_classes_are_named_as_such() -> None:
    assert ClassRow(SMALL_CLASS - 1, 0, 0).is_small
    assert not ClassRow(SMALL_CLASS, 0, 0).is_small


def test_the_calibration_error_weighs_bins_by_their_images() -> None:
    assert Reliability((Bin(10, 5, 0.7), Bin(0, 0, 0.0), Bin(30, 27, 0.85)), None).ece == pytest.approx((2 + 1.5) / 40)
    assert Reliability((Bin(0, 0, 0.0),), None).ece is None


def test_a_scatter_has_as_many_of_each() -> None:
    with pytest.raises(ValueError, match=r"a scatter needs as many logits of each, got \(2, 2, 1\)"):
        Scatter((1.0, 2.0), (1.0, 2.0), (1.0,))
