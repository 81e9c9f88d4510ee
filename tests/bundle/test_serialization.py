import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from plantmodels.bundle.serialization import decode, encode, replace_non_finite


@dataclass(frozen=True)
class Inner:
    value: float

    def __post_init__(self) -> None:
        if self.value < 0:
            raise ValueError(f"value must not be negative, got {self.value}")


@dataclass(frozen=True)
class Outer:
    name: str
    count: int
    flag: bool
    kind: Literal["a", "b"]
    maybe: Inner | None
    many: tuple[Inner, ...]
    by_name: Mapping[str, tuple[int, ...]]


OUTER = Outer("x", 2, True, "a", None, (Inner(1.0), Inner(2.5)), {"p": (1, 2), "q": ()})
DOCUMENT: dict[str, Any] = {
    "name": "x",
    "count": 2,
    "flag": True,
    "kind": "a",
    "maybe": None,
    "many": [{"value": 1.0}, {"value": 2.5}],
    "by_name": {"p": [1, 2], "q": []},
}


def test_a_record_becomes_plain_json_and_comes_back() -> None:
    assert encode(OUTER) == DOCUMENT
    assert decode(Outer, DOCUMENT, "here") == OUTER


def test_an_integer_is_a_number() -> None:
    inner = decode(Inner, {"value": 3}, "here")
    assert inner == Inner(3.0)
    assert type(inner.value) is float


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": 5}, r"here\.name: expected text, got 5"),
        ({"count": 2.0}, r"here\.count: expected an integer, got 2.0"),
        ({"count": True}, r"here\.count: expected an integer, got True"),
        ({"flag": 1}, r"here\.flag: expected true or false, got 1"),
        ({"kind": "c"}, r"here\.kind: expected one of 'a', 'b', got 'c'"),
        ({"maybe": 3}, r"here\.maybe: expected an object with value, got 3"),
        ({"maybe": {"value": -1}}, r"here\.maybe: value must not be negative, got -1"),
        ({"many": {}}, r"here\.many: expected a list, got \{\}"),
        ({"many": [{"value": "1"}]}, r"here\.many\[0\]\.value: expected a finite number, got '1'"),
        ({"many": [{"value": math.nan}]}, r"many\[0\]\.value: expected a finite number, got nan"),
        ({"many": [{"value": 10**400}]}, r"many\[0\]\.value: expected a finite number, got 1000"),
        ({"many": [{"value": True}]}, r"many\[0\]\.value: expected a finite number, got True"),
        ({"many": [{}]}, r"here\.many\[0\]: 'value' is missing; expected value"),
        ({"many": [{"value": 1, "extra": 2}]}, r"here\.many\[0\]: 'extra' is unknown; expected value"),
        ({"by_name": {"p": [1.5]}}, r"here\.by_name\['p'\]\[0\]: expected an integer, got 1.5"),
        ({"by_name": []}, r"here\.by_name: expected an object, got \[\]"),
    ],
)
def test_every_deviation_is_refused_by_its_place(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode(Outer, {**DOCUMENT, **changes}, "here")


def test_what_json_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="nan is not a JSON number"):
        encode(Inner(math.nan))
    with pytest.raises(TypeError, match="a value of type set has no JSON form here"):
        encode({"a": {1}})


def test_finite_or_none() -> None:
    assert [replace_non_finite(v) for v in (1.5, math.nan, math.inf)] == [1.5, None, None]
