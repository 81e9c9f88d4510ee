"""Compares the numbers of a report with those that its evidence makes, and names the first one that differs.

>>> find_difference({"recall": 0.97}, {"recall": 0.5}, "rejection")
('rejection.recall', 0.97, 0.5)
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final

from plantmodels.bundle.serialization import encode
from plantmodels.report.gates import GateResult

_TOLERANCE: Final = 1e-9
"""Largest relative difference of two floats that count as equal: processors round sums differently."""

_ABSENT: Final = "nothing"
"""Stands in an error for an entry that one of the two lacks."""

Difference = tuple[str, object, object]
"""Where two values differ, the value found there, and the value expected there."""


def find_difference(found: object, expected: object, where: str) -> Difference | None:
    """Return the first place where two JSON values differ; None if they are equal.

    Args:
        found: the value that a report states.
        expected: the value that its evidence makes.
        where: the value's name in the report.
    """
    if isinstance(found, Mapping) and isinstance(expected, Mapping):
        for key in [*expected, *(name for name in found if name not in expected)]:
            difference = find_difference(found.get(key, _ABSENT), expected.get(key, _ABSENT), f"{where}.{key}")
            if difference is not None:
                return difference
        return None
    if isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        pairs = enumerate(zip(found, expected, strict=True))
        differences = (find_difference(*pair, f"{where}[{place}]") for place, pair in pairs)
        return next((difference for difference in differences if difference is not None), None)
    return None if _are_equal(found, expected) else (where, found, expected)


def _are_equal(found: object, expected: object) -> bool:
    if type(found) is float and type(expected) is float:
        return math.isclose(found, expected, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE * 1e-3)
    return type(found) is type(expected) and found == expected


def check_gates(found: Sequence[GateResult], expected: Sequence[GateResult]) -> None:
    """Check that every verdict is the one that the measured values and the limits make. Details are not compared.

    Raises:
        ValueError: names the first gate and value that differ.
    """
    for gate, right in zip(found, expected, strict=True):
        difference = find_difference(_list_numbers(gate), _list_numbers(right), f"gate {gate.name}")
        if difference is not None:
            raise ValueError(describe_difference(difference))


def _list_numbers(gate: GateResult) -> dict[str, object]:
    document: dict[str, object] = encode(gate)
    del document["detail"]
    return document | {"values": {value.name or "value": encode(value) for value in gate.values}}


def describe_difference(difference: Difference, evidence: str = "the evidence and the limits") -> str:
    """Return a difference in words.

    Args:
        difference: from `find_difference`.
        evidence: what makes the expected value.
    """
    where, found, expected = difference
    return f"{where} is {found!r:.80}, but {evidence} make it {expected!r:.80}"
