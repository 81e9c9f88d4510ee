"""One gate's verdict: the nine gates of contract 5, how each compares, and how its numbers are written.

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

Comparison = Literal["<", "≤", "≥"]
Status = Literal["passed", "failed", "not measured"]

_COMPARE: Final[dict[Comparison, Callable[[float, float], bool]]] = {
    "<": operator.lt,
    "≤": operator.le,
    "≥": operator.ge,
}


@dataclass(frozen=True)
class GateKind:
    """What a gate measures.

    Attributes:
        meaning: one line for people.
        comparison: how a measured value passes: `measured comparison limit`.
        unit: of the measured value and the limit.
        samples_of: what is counted as samples.
    """

    meaning: str
    comparison: Comparison
    unit: str
    samples_of: str


GATES: Final[dict[str, GateKind]] = {
    "parity": GateKind("FP16 species model and heads against PyTorch", "<", "max abs diff", "images"),
    "int8_accuracy": GateKind(
        "Accuracy lost from FP16 to INT8, the worse of species and disease", "≤", "drop", "images"
    ),
    "ood_precision": GateKind("Non-plants among what is rejected, at equal numbers", "≥", "share", "images"),
    "ood_recall": GateKind("Non-plants that are rejected", "≥", "share", "images"),
    "loads": GateKind("ONNX files that fail the checker or do not open", "≤", "files", "files"),
    "heads_complete": GateKind("Problems with disease heads or class order", "≤", "problems", "heads"),
    "species_size": GateKind("INT8 species file", "<", "bytes", "files"),
    "head_size": GateKind("Largest disease head", "<", "bytes", "files"),
    "latency": GateKind("One image to species and disease on CPU, median", "<", "ms", "runs"),
}
"""The gates in the order of contract 5."""


@dataclass(frozen=True)
class GateResult:
    """Verdict on one gate.

    Attributes:
        name: one of `GATES`.
        limit: in `unit`.
        comparison: "passed" means `measured comparison limit`.
        measured: None when it was not measured or is not a finite number.
        unit: "max abs diff", "drop" and "share" (of images), "files", "problems", "bytes" or "ms".
        samples: how many images, files, heads or runs it rests on.
        status: "not measured" counts as not passed.
        detail: one line of explanation; "" when there is nothing to add.
    """

    name: str
    limit: float
    comparison: Comparison
    measured: float | None
    unit: str
    samples: int
    status: Status
    detail: str = ""

    def __post_init__(self) -> None:
        """Refuses a verdict that its own numbers contradict.

        Raises:
            ValueError: an unknown gate, another comparison or unit than the gate's, or a status that the
                measured value and the limit do not bear out.
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
        statuses = (
            ("failed", "not measured") if self.measured is None else (_verdict(self.name, self.measured, self.limit),)
        )
        if self.status not in statuses:
            raise ValueError(
                f"gate {self.name} is {self.status!r}, but {self.measured} {self.comparison} {self.limit} "
                f"makes it {' or '.join(map(repr, statuses))}"
            )

    @property
    def passed(self) -> bool:
        """Whether it was measured and meets its limit."""
        return self.status == "passed"

    @property
    def limit_text(self) -> str:
        """The limit for people, such as "≥ 95 %"."""
        if self.unit in ("files", "problems"):
            return "none"
        display = _display_of(self)
        return f"{self.comparison} {round(self.limit / display.scale, display.most_digits):,g}{display.suffix}"

    @property
    def measured_text(self) -> str:
        """The measured value for people, with as many digits as it takes not to contradict the verdict."""
        if self.measured is None:
            return "–"
        display = _display_of(self)
        value, limit = self.measured / display.scale, self.limit / display.scale
        digits = display.digits
        while digits < display.most_digits and _verdict(self.name, round(value, digits), limit) != self.status:
            digits += 1
        return f"{value:,.{digits}f}{display.suffix}"

    def interval_text(self, low: float, high: float) -> str:
        """A 95 % interval of the measured value, in its unit."""
        display = _display_of(self)
        written = (f"{value / display.scale:,.{display.digits}f}" for value in (low, high))
        return f"{' to '.join(written)}{display.suffix}".replace("-", "−")

    @property
    def samples_text(self) -> str:
        """The number of samples with what they are, such as "1,539 images"."""
        noun = GATES[self.name].samples_of
        return f"{self.samples:,} {noun.removesuffix('s') if self.samples == 1 else noun}"


@dataclass(frozen=True)
class _Display:
    """How a unit is written: divided by `scale`, with `digits` decimals or more."""

    scale: float
    suffix: str
    digits: int
    most_digits: int = 9


_DISPLAYS: Final = {
    "max abs diff": _Display(1, "", 6, 12),
    "drop": _Display(1, "", 4),
    "share": _Display(0.01, " %", 2),
    "files": _Display(1, "", 0, 0),
    "problems": _Display(1, "", 0, 0),
    "KB": _Display(1e3, " KB", 1, 3),
    "MB": _Display(1e6, " MB", 2, 6),
    "ms": _Display(1, " ms", 1),
}


def _display_of(gate: GateResult) -> _Display:
    unit = ("MB" if gate.limit >= 1e6 else "KB") if gate.unit == "bytes" else gate.unit
    return _DISPLAYS[unit]


def _verdict(name: str, measured: float, limit: float) -> Status:
    return "passed" if _COMPARE[GATES[name].comparison](measured, limit) else "failed"


def judge_gate(name: str, measured: float | None, *, limit: float, samples: int, detail: str = "") -> GateResult:
    """Compares a measured value with its limit; NaN, infinity and None (not defined) fail.

    Args:
        name: one of `GATES`.
        measured: in the gate's unit.
        limit: in the gate's unit.
        samples: how many images, files, heads or runs were measured.
        detail: one line of explanation.
    """
    if measured is not None and not math.isfinite(measured):
        detail, measured = f"{detail}; measured {measured}".removeprefix("; "), None
    status: Status = "failed" if measured is None else _verdict(name, measured, limit)
    kind = GATES[name]
    return GateResult(name, limit, kind.comparison, measured, kind.unit, samples, status, detail)


def not_measured(name: str, *, limit: float, reason: str) -> GateResult:
    """A gate without a measurement, which counts as not passed."""
    kind = GATES[name]
    return GateResult(name, limit, kind.comparison, None, kind.unit, 0, "not measured", reason)
