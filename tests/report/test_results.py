import pytest

from plantmodels.report.calibration.results import Bin, Reliability
from plantmodels.report.results import SMALL_CLASS, ClassRow
from plantmodels.report.samples import Scatter
from plantmodels.report.statistics import Proportion


def test_small_classes_are_named_as_such() -> None:
    assert ClassRow(SMALL_CLASS - 1, 0, 0).is_small
    assert not ClassRow(SMALL_CLASS, 0, 0).is_small


def test_the_calibration_error_weighs_bins_by_their_images() -> None:
    reliability = Reliability((Bin(10, 5, 0.7), Bin(0, 0, 0.0), Bin(30, 27, 0.85)), 0.1, 0.2)
    assert reliability.ece == pytest.approx((2 + 1.5) / 40)
    assert reliability.right == Proportion(32, 40) and reliability.mean_probability == pytest.approx(32.5 / 40)
    nothing = Reliability((Bin(0, 0, 0.0),), None, None)
    assert (nothing.ece, nothing.mean_probability, nothing.images) == (None, None, 0)


def test_a_scatter_has_as_many_of_each() -> None:
    with pytest.raises(ValueError, match=r"a scatter needs as many logits of each, got \(2, 2, 1\)"):
        Scatter((1.0, 2.0), (1.0, 2.0), (1.0,))
