"""The gates of contract 5: what each measures, whether its values pass, and how its numbers are written.

>>> gate = judge_gate("ood_recall", [GateValue("", 0.95, 0.961)], samples=300, min_images=50)
>>> gate.status, gate.measured_text, gate.limit_text
('passed', '96.10 %', '≥ 95 %')
>>> judge_gate("ood_recall", [GateValue("", 0.95, 0.961)], samples=30, min_images=50).status
'not measured'
>>> judge_gate("ood_recall", [GateValue("", 0.95, 0.961, bound=0.94)], samples=300).status
'passed, uncertain'
"""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from plantmodels.report.formatting import MISSING, format_number, format_percent, format_range

Operator = Literal["<", "≤", "≥"]
Status = Literal["passed", "passed, uncertain", "uncertain", "failed", "not measured"]

COMPARE: Final[dict[Operator, Callable[[float, float], bool]]] = {
    "<": operator.lt,
    "≤": operator.le,
    "≥": operator.ge,
}
"""Operator to the comparison of a value with its limit."""

_COUNTED: Final = ("files", "problems", "classes")
"""Units whose name stands beside the limit alone."""

_ALWAYS_SHOWN: Final = 2
"""Values of a gate that its line always shows. Further values are shown when they miss their limit."""


@dataclass(frozen=True)
class GateKind:
    """What a gate measures.

    Attributes:
        meaning: one line that explains the gate to people.
        comparison: operator between a measured value and its limit that must hold for the gate to pass.
        unit: unit of the measured values and of the limits.
        samples_of: plural noun for the samples that the values rest on.
    """

    meaning: str
    comparison: Operator
    unit: str
    samples_of: str


GATES: Final[dict[str, GateKind]] = {
    "parity": GateKind("Largest difference between PyTorch and the FP16 models", "<", "max abs diff", "images"),
    "int8_accuracy": GateKind(
        "Accuracy lost from FP16 to INT8, the largest loss of species, disease and both", "≤", "drop", "images"
    ),
    "ood_precision": GateKind(
        "Non-plants among the rejected images, at equal numbers of plants and non-plants", "≥", "share", "non-plants"
    ),
    "ood_recall": GateKind("Non-plants that are rejected", "≥", "share", "non-plants"),
    "false_alarms": GateKind("Plants that are rejected", "≤", "share", "images"),
    "loads": GateKind("ONNX files that fail the checker or do not open", "≤", "files", "files"),
    "heads_complete": GateKind("Disease heads or classes that differ from the checkpoint", "≤", "problems", "heads"),
    "species_size": GateKind("Size of the INT8 species model", "<", "bytes", "files"),
    "head_size": GateKind("Size of the largest disease head", "<", "bytes", "files"),
    "latency": GateKind("Median time from one image to species and disease on the CPU", "<", "ms", "runs"),
    "accuracy": GateKind(
        "Images with the right species, and with the right species and disease", "≥", "share", "images"
    ),
    "coverage": GateKind("Species and disease classes with too few validation images", "≤", "classes", "images"),
    "leakage": GateKind(
        "Validation images that also occur in train, in another class or among the non-plants", "≤", "share", "images"
    ),
}
"""The gates in the order of contract 5, which `verify` measures and the report holds."""

PROMOTION_GATES: Final[dict[str, GateKind]] = {
    "no_regression": GateKind(
        "Accuracy, OOD precision or OOD recall lost beyond noise, against the version in Production",
        "≤",
        "drop",
        "images",
    ),
}
"""Gates that only a promotion can judge, because they compare with another version. No report holds them."""

_KINDS: Final = GATES | PROMOTION_GATES


@dataclass(frozen=True)
class GateValue:
    """One measured value of a gate, and its limit.

    Attributes:
        name: what was measured, such as "end to end"; "" if the gate has a single value.
        limit: limit in force, in the gate's unit.
        measured: measured value in the same unit; None if it is not defined or not a finite number.
        bound: the end of the value's confidence interval that is closer to failing. If it misses a limit that the value
            meets, the verdict is uncertain. None if the value has no interval.
    """

    name: str
    limit: float
    measured: float | None
    bound: float | None = None


@dataclass(frozen=True)
class GateResult:
    """The verdict on one gate.

    Attributes:
        name: one of `GATES` or `PROMOTION_GATES`.
        comparison: operator between a value and its limit that must hold for the gate to pass.
        unit: "max abs diff", "drop" or "share" (proportions of images), "files", "problems", "classes", "bytes" or
            "ms".
        values: the measured values with their limits; the gate passes if all of them do.
        samples: number of images, files, heads or runs that the values rest on.
        min_images: number of samples below which the gate is not measured; 0 for a gate that measures no images.
        confidence: confidence with which the limits must be met; the bounds have it, too. None if an uncertain value
            passes; then the bounds are those of 95 % intervals.
        status: the verdict. "passed" and "passed, uncertain" count as passed. In an uncertain gate every value meets
            its limit, but a bound does not. Such a gate is "uncertain", and not passed, if `confidence` is given.
        detail: one line of explanation; "" when there is nothing to add.
    """

    name: str
    comparison: Operator
    unit: str
    values: tuple[GateValue, ...]
    samples: int
    min_images: int
    confidence: float | None
    status: Status
    detail: str = ""

    def __post_init__(self) -> None:
        """Check that the verdict follows from its own numbers.

        Raises:
            ValueError: the gate is unknown, its operator or unit is wrong, or its status contradicts the numbers.
        """
        kind = _KINDS.get(self.name)
        if kind is None:
            raise ValueError(f"unknown gate {self.name!r}; gates are {', '.join(_KINDS)}")
        if (self.comparison, self.unit) != (kind.comparison, kind.unit):
            raise ValueError(
                f"gate {self.name} compares {kind.comparison} in {kind.unit}, got {self.comparison} in {self.unit}"
            )
        if self.samples < 0 or not self.values:
            raise ValueError(f"gate {self.name} has {self.samples} samples and {len(self.values)} values")
        allowed = self._list_possible_statuses()
        if self.status not in allowed:
            raise ValueError(
                f"gate {self.name} is {self.status!r}, but {self._list_comparisons()} "
                f"makes it {' or '.join(map(repr, allowed))}"
            )

    def _list_possible_statuses(self) -> tuple[Status, ...]:
        if self.samples >= self.min_images and all(value.measured is None for value in self.values):
            return ("failed", "not measured")
        return (_find_status(self.comparison, self.values, self.samples >= self.min_images, self.confidence),)

    def _list_comparisons(self) -> str:
        if self.samples < self.min_images:
            return f"{self.samples} of at least {self.min_images} images"
        return " and ".join(
            f"{value.measured} {self.comparison} {value.limit}"
            f"{'' if value.bound is None else f', bound {value.bound}'}{f' ({value.name})' if value.name else ''}"
            for value in self.values
        )

    def is_met(self, value: GateValue) -> bool:
        """Return whether one of the gate's values meets its limit, with confidence if the policy asks for it."""
        return _meets(self.comparison, value) and (self.confidence is None or self.is_certain(value))

    def is_certain(self, value: GateValue) -> bool:
        """Return whether a value's bound meets its limit, too. A value without an interval is certain."""
        return value.bound is None or COMPARE[self.comparison](value.bound, value.limit)

    @property
    def is_uncertain(self) -> bool:
        """Whether the values meet their limits, but chance could explain that."""
        return self.status in ("passed, uncertain", "uncertain")

    @property
    def limit(self) -> float:
        """The limit of the first value."""
        return self.values[0].limit

    @property
    def measured(self) -> float | None:
        """The first measured value; None when it is not defined."""
        return self.values[0].measured

    @property
    def passed(self) -> bool:
        """Whether the gate was measured and meets its limits, with the confidence that the policy asks for."""
        return self.status in ("passed", "passed, uncertain")

    @property
    def _shown(self) -> list[GateValue]:
        """The values that the gate's line shows."""
        return [
            value
            for place, value in enumerate(self.values)
            if place < _ALWAYS_SHOWN or (self.status == "failed" and not self.is_met(value)) or self._is_in_doubt(value)
        ]

    @property
    def limit_text(self) -> str:
        """The limit for people, such as "≥ 95 %", "0 problems" or "species ≥ 70 %, end to end ≥ 60 %"."""
        text = ", ".join(f"{value.name} {self._write_limit(value)}".strip() for value in self._shown)
        return text if self.confidence is None else f"{text}, with {format_percent(self.confidence, 0)} confidence"

    def _write_limit(self, value: GateValue) -> str:
        display = self._display_of(value)
        number = f"{round(value.limit / display.scale, display.most_digits):,g}"
        if self.unit in _COUNTED:
            return f"{number}{display.suffix}"
        suffix = display.suffix.removesuffix("s") if self.unit == "drop" and number == "1" else display.suffix
        return f"{self.comparison} {number}{suffix}"

    @property
    def measured_text(self) -> str:
        """The measured values for people, with as many digits as it takes not to contradict the verdict.

        A drop in accuracy says its direction: "0.19 points lost" or "0.13 points gained".
        """
        if all(value.measured is None for value in self.values):
            return MISSING
        return ", ".join(f"{value.name} {self._write_value(value)}".strip() for value in self._shown)

    def _write_value(self, value: GateValue) -> str:
        if value.measured is None:
            return MISSING
        text = self._write_number(value, value.measured)
        if value.bound is None or (self.confidence is None and not self._is_in_doubt(value)):
            return text
        return f"{text} (bound {self._write_number(value, value.bound)})"

    def _is_in_doubt(self, value: GateValue) -> bool:
        return self.is_uncertain and not self.is_certain(value)

    def _write_number(self, value: GateValue, number: float) -> str:
        display = self._display_of(value)
        scaled, digits = number / display.scale, display.digits
        meets = COMPARE[self.comparison]
        while digits < display.most_digits and meets(round(scaled, digits), value.limit / display.scale) != meets(
            number, value.limit
        ):
            digits += 1
        if self.unit == "drop":
            direction = "gained" if round(scaled, digits) < 0 else "lost"
            return f"{format_number(abs(scaled), digits)}{display.suffix} {direction}"
        return format_number(scaled, digits) + ("" if self.unit in _COUNTED else display.suffix)

    def interval_text(self, low: float, high: float) -> str:
        """Return the 95 % interval of the first value for people; accuracy that was gained is negative."""
        display = self._display_of(self.values[0])
        return format_range(low / display.scale, high / display.scale, display.digits) + display.suffix

    def _display_of(self, value: GateValue) -> "_Display":
        return _DISPLAYS[("MB" if value.limit >= 1e6 else "KB") if self.unit == "bytes" else self.unit]

    @property
    def samples_text(self) -> str:
        """The number of samples with their noun, such as "1,539 images"."""
        noun = _KINDS[self.name].samples_of
        return f"{self.samples:,} {noun.removesuffix('s') if self.samples == 1 else noun}"


@dataclass(frozen=True)
class _Display:
    """How a unit is written: divided by `scale`, with at least `digits` decimals."""

    scale: float
    suffix: str
    digits: int
    most_digits: int = 9


_DISPLAYS: Final = {
    "max abs diff": _Display(1, "", 6, 12),
    "drop": _Display(0.01, " points", 2),
    "share": _Display(0.01, " %", 2),
    "files": _Display(1, " failures", 0, 0),
    "problems": _Display(1, " problems", 0, 0),
    "classes": _Display(1, " classes", 0, 0),
    "KB": _Display(1e3, " KB", 1, 3),
    "MB": _Display(1e6, " MB", 2, 6),
    "ms": _Display(1, " ms", 1),
}


def judge_gate(
    name: str,
    values: Sequence[GateValue],
    *,
    samples: int,
    min_images: int = 0,
    confidence: float | None = None,
    detail: str = "",
) -> GateResult:
    """Return the verdict on measured values. NaN, infinity and None (a value that is not defined) fail.

    If every value meets its limit but a bound does not, the gate is uncertain. It passes unless `confidence` is given.

    Args:
        name: one of `GATES` or `PROMOTION_GATES`.
        values: the measured values and limits in the gate's unit.
        samples: number of images, files, heads or runs that were measured.
        min_images: with fewer samples the gate is not measured.
        confidence: confidence with which the limits must be met; None if an uncertain value passes.
        detail: one line of explanation.
    """
    kind = _KINDS[name]
    undefined = [v.measured for v in values if v.measured is not None and not math.isfinite(v.measured)]
    few = f"needs at least {min_images:,} {kind.samples_of}, got {samples:,}" if samples < min_images else ""
    explained = "; ".join(filter(None, [few, detail, *(f"measured {number}" for number in undefined)]))
    finite = tuple(map(_drop_non_finite, values))
    status = _find_status(kind.comparison, finite, samples >= min_images, confidence)
    return GateResult(name, kind.comparison, kind.unit, finite, samples, min_images, confidence, status, explained)


def _drop_non_finite(value: GateValue) -> GateValue:
    is_defined = value.measured is not None and math.isfinite(value.measured)
    return value if is_defined else GateValue(value.name, value.limit, None)


def _find_status(
    comparison: Operator, values: Sequence[GateValue], is_measured: bool, confidence: float | None
) -> Status:
    if not is_measured:
        return "not measured"
    if not all(_meets(comparison, value) for value in values):
        return "failed"
    if all(value.bound is None or COMPARE[comparison](value.bound, value.limit) for value in values):
        return "passed"
    return "passed, uncertain" if confidence is None else "uncertain"


def _meets(comparison: Operator, value: GateValue) -> bool:
    return value.measured is not None and COMPARE[comparison](value.measured, value.limit)


def not_measured(
    name: str, limits: Mapping[str, float], *, reason: str, min_images: int = 0, confidence: float | None = None
) -> GateResult:
    """Return the verdict on a gate that was not measured. It counts as not passed."""
    kind = _KINDS[name]
    values = tuple(GateValue(value, limit, None) for value, limit in limits.items())
    return GateResult(name, kind.comparison, kind.unit, values, 0, min_images, confidence, "not measured", reason)
