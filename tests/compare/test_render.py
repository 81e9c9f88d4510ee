"""A comparison as text: each number in its own unit."""

import pytest

from plantmodels.compare.model import MeasurePair
from plantmodels.compare.render import format_measure


@pytest.mark.parametrize(
    ("measure", "change", "interval"),
    [
        (MeasurePair("a", "share", 0.8, 0.81, "better", low=0.002, high=0.018), "+1.00 points", "0.20 to 1.80"),
        (MeasurePair("a", "score", 0.3724, 0.289, "better", low=-0.1097, high=-0.057), "−0.0834", "−0.1097 to −0.0570"),
        (MeasurePair("a", "ratio", 2.5, 2.0, "better"), "−0.5", ""),
        (MeasurePair("a", "score", None, 2.0, "not comparable"), "", ""),
    ],
)
def test_the_interval_has_the_unit_of_the_change(measure: MeasurePair, change: str, interval: str) -> None:
    row = format_measure(measure)
    assert (row.change, row.interval) == (change, interval)
