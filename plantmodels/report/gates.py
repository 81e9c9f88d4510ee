"""The nine gates of contract 5: what each measures, whether a value passes, and how its numbers are written.

>>> gate = judge_gate("ood_recall", 0.961, limit=0.95, samples=300)
>>> gate.status, gate.measured_text, gate.limit_text
('passed', '96.10 %', '≥ 95 %')
>>> not_measured("ood_recall", limit=0.95, reason="no non-plants were given").passed
False
"""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from plantmodels.report.formatting import MISSING, format_number, format_range

Operator = Literal["<", "≤", "≥"]
Status = Literal["passed", "failed", "not measured"]

_COMPARE: Final[dict[Operator, Callable[[float, float], bool]]] = {
    "<": operator.lt,
    "≤": operator.le,
    "≥": operator.ge,
}


@dataclass(frozen=True)
class GateKind:
    """What a gate measures.

    Attributes:
        meaning: one line that explains the gate to people.
        comparison: operator between the measured value and the limit that must hold for the gate to pass.
        unit: unit of the measured value and of the limit.
        samples_of: plural noun for the samples that the value rests on.
    """

    meaning: str
    comparison: Operator
    unit: str
    samples_of: str


GATES: Final[dict[str, GateKind]] = {
    "parity": GateKind("Largest difference between PyTorch and the FP16 models", "<", "max abs diff", "images"),
    "int8_accuracy": GateKind(
        "Accuracy lost from FP16 to INT8, the larger loss of species and disease", "≤", "drop", "images"
    ),
    "ood_precision": GateKind(
        "Non-plants among the rejected images, at equal numbers of plants and non-plants", "≥", "share", "images"
    ),
    "ood_recall": GateKind("Non-plants that are rejected", "≥", "share", "images"),
    "loads": GateKind("ONNX files that fail the checker or do not open", "≤", "files", "files"),
    "heads_complete": GateKind("Disease heads or classes that differ from the checkpoint", "≤", "problems", "heads"),
    "species_size": GateKind("Size of the INT8 species model", "<", "bytes", "files"),
    "head_size": GateKind("Size of the largest disease head", "<", "bytes", "files"),
    "latency": GateKind("Median time from one image to species and disease on the CPU", "<", "ms", "runs"),
}
"""The gates in the order of contract 5."""


@dataclass(frozen=True)
class GateResult:
    """The verdict on one gate.

    Attributes:
        name: one of `GATES`.
        limit: limit in force, in `unit`.
        comparison: operator between `measured` and `limit` that must hold for the gate to pass.
        measured: measured value in `unit`; None when it was not measured or is not a finite number.
        unit: "max abs diff", "drop" or "share" (proportions of images), "files", "problems", "bytes" or "ms".
        samples: number of images, files, heads or runs that the value rests on.
        status: the verdict; "not measured" counts as not passed.
        detail: one line of explanation; "" when there is nothing to add.
    """

    name: str
    limit: float
    comparison: Operator
    measured: float | None
    unit: str
    samples: int
    status: Status
    detail: str = ""

    def __post_init__(self) -> None:
        """Check that the verdict follows from its own numbers.

        Raises:
            ValueError: the gate is unknown, its operator or unit is wrong, or its status contradicts the numbers.
        """
        kind = GATES.get(self.name)
        if kind is None:
            raise ValueError(f"unknown gate {self.name!r}; gates are {', '.join(GATES)}")
        if (self.comparison, self.unit) != (kind.comparison, kind.unit):
            raise ValueError(
                f"gate {self.name} compares {kind.comparison} in {kind.unit}, got {self.comparison} in {self.unit}"
            )
        if self.samples < 0:
            raise ValueError(f"gate {self.name} has {self.samples} samples")
        statuses: tuple[Status, ...] = ("failed", "not measured")
        if self.measured is not None:
            statuses = (_decide_status(self.name, self.measured, self.limit),)
        if self.status not in statuses:
            raise ValueError(
                f"gate {self.name} is {self.status!r}, but {self.measured} {self.comparison} {self.limit} "
                f"makes it {' or '.join(map(repr, statuses))}"
            )

    @property
    def passed(self) -> bool:
        """Whether the gate was measured and meets its limit."""
        return self.status == "passed"

    @property
    def limit_text(self) -> str:
        """The limit for people, such as "≥ 95 %" or "0 problems"."""
        display = _display_of(self)
        number = f"{round(self.limit / display.scale, display.most_digits):,g}"
        if self.unit in ("files", "problems"):
            return f"{number}{display.suffix}"
        suffix = display.suffix.removesuffix("s") if self.unit == "drop" and number == "1" else display.suffix
        return f"{self.comparison} {number}{suffix}"

    @property
    def measured_text(self) -> str:
        """The measured value for people, with as many digits as it takes not to contradict the verdict.

        A drop in accuracy says its direction: "0.19 points lost" or "0.13 points gained".
        """
        if self.measured is None:
            return MISSING
        display = _display_of(self)
        value, limit = self.measured / display.scale, self.limit / display.scale
        digits = display.digits
        while digits < display.most_digits and _decide_status(self.name, round(value, digits), limit) != self.status:
            digits += 1
        if self.unit == "drop":
            direction = "gained" if round(value, digits) < 0 else "lost"
            return f"{format_number(abs(value), digits)}{display.suffix} {direction}"
        return format_number(value, digits) + ("" if self.unit in ("files", "problems") else display.suffix)

    def interval_text(self, low: float, high: float) -> str:
        """Return the 95 % interval of the measured value for people; accuracy that was gained is negative."""
        display = _display_of(self)
        return format_range(low / display.scale, high / display.scale, display.digits) + display.suffix

    @property
    def samples_text(self) -> str:
        """The number of samples with their noun, such as "1,539 images"."""
        noun = GATES[self.name].samples_of
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
    "KB": _Display(1e3, " KB", 1, 3),
    "MB": _Display(1e6, " MB", 2, 6),
    "ms": _Display(1, " ms", 1),
}


def _display_of(gate: GateResult) -> _Display:
    unit = ("MB" if gate.limit >= 1e6 else "KB") if gate.unit == "bytes" else gate.unit
    return _DISPLAYS[unit]


def _decide_status(name: str, measured: float, limit: float) -> Status:
    return "passed" if _COMPARE[GATES[name].comparison](measured, limit) else "failed"


def judge_gate(name: str, measured: float | None, *, limit: float, samples: int, detail: str = "") -> GateResult:
    """Return the verdict on a measured value. NaN, infinity and None (a value that is not defined) fail.

    Args:
        name: one of `GATES`.
        measured: measured value in the gate's unit.
        limit: limit in the gate's unit.
        samples: number of images, files, heads or runs that were measured.
        detail: one line of explanation.
    """
    if measured is not None and not math.isfinite(measured):
        detail, measured = f"{detail}; measured {measured}".removeprefix("; "), None
    status: Status = "failed" if measured is None else _decide_status(name, measured, limit)
    kind = GATES[name]
    return GateResult(name, limit, kind.comparison, measured, kind.unit, samples, status, detail)


def not_measured(name: str, *, limit: float, reason: str) -> GateResult:
    """Return the verdict on a gate that was not measured. It counts as not passed."""
    kind = GATES[name]
    return GateResult(name, limit, kind.comparison, None, kind.unit, 0, "not measured", reason)
