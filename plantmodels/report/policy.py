"""The limits of the gates, and how `gates.toml` is read (contract 5).

>>> GatePolicy().ood_recall_min
0.95
>>> file = tmp / "gates.toml"
>>> file.write_text("ood_recall.min = 0.9")
20
>>> read_policy(file).loosened
('ood_recall_min',)
"""

import hashlib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from plantmodels.errors import PolicyError


@dataclass(frozen=True)
class LimitKind:
    """What a limit is and which values it may have.

    Attributes:
        gate: table in `gates.toml`.
        key: name in that table.
        looser: whether a larger or a smaller value lets more bundles pass; None when the limit is not a threshold.
        lowest: smallest allowed value.
        highest: largest allowed value.
        is_integer: whether only integers are allowed.
        is_optional: whether None is allowed in code, which stands for "no such limit"; a file then leaves the key out.
        of_each: whether the key is a table of such values, one for each species that it names.
    """

    gate: str
    key: str
    looser: Literal["larger", "smaller"] | None
    lowest: float
    highest: float
    is_integer: bool = False
    is_optional: bool = False
    of_each: bool = False

    @property
    def expected(self) -> str:
        """The allowed values in words."""
        number = f"{'an integer' if self.is_integer else 'a number'} from {self.lowest:g} to {self.highest:g}"
        return f"a table of species, each with {number}" if self.of_each else number

    def accepts(self, value: object) -> bool:
        """Return whether a value has the right type and lies in the allowed range."""
        if self.of_each:
            return isinstance(value, Mapping) and all(isinstance(k, str) and self._fits(v) for k, v in value.items())
        return self._fits(value)

    def _fits(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if self.is_integer else int | float):
            return False
        return math.isfinite(value) and self.lowest <= value <= self.highest

    def normalize(self, value: Any) -> Any:
        """Return an accepted value as the number type that the limit has."""
        kind = int if self.is_integer else float
        return {name: kind(each) for name, each in value.items()} if self.of_each else kind(value)


_MOST_IMAGES: Final = 10**9


def _fewest_images(gate: str, key: str, lowest: int) -> LimitKind:
    return LimitKind(gate, key, "smaller", lowest, _MOST_IMAGES, is_integer=True)


def _min_images(gate: str) -> LimitKind:
    return _fewest_images(gate, "min_images", 1)


def _worst(gate: str, key: str) -> LimitKind:
    return LimitKind(gate, key, None, 0, 1, is_optional=True)


def _confidence(gate: str) -> LimitKind:
    return LimitKind(gate, "confidence", None, 0.5, 0.9999, is_optional=True)


LIMITS: Final[dict[str, LimitKind]] = {
    "parity_max_abs_diff": LimitKind("parity", "max_abs_diff", "larger", 0, 1e3),
    "parity_min_images": _min_images("parity"),
    "int8_accuracy_max_drop": LimitKind("int8_accuracy", "max_drop", "larger", 0, 1),
    "int8_accuracy_max_images": LimitKind("int8_accuracy", "max_images", None, 1, _MOST_IMAGES, is_integer=True),
    "int8_accuracy_min_images": _min_images("int8_accuracy"),
    "int8_accuracy_confidence": LimitKind("int8_accuracy", "confidence", "smaller", 0.5, 0.9999, is_optional=True),
    "int8_accuracy_max_worst_species": _worst("int8_accuracy", "max_worst_species"),
    "ood_precision_min": LimitKind("ood_precision", "min", "smaller", 0, 1),
    "ood_precision_min_images": _min_images("ood_precision"),
    "ood_precision_confidence": _confidence("ood_precision"),
    "ood_precision_non_plant_share": LimitKind("ood_precision", "non_plant_share", None, 0.001, 0.999),
    "ood_recall_min": LimitKind("ood_recall", "min", "smaller", 0, 1),
    "ood_recall_min_worst_source": _worst("ood_recall", "min_worst_source"),
    "ood_recall_min_images": _min_images("ood_recall"),
    "ood_recall_confidence": _confidence("ood_recall"),
    "false_alarms_max": LimitKind("false_alarms", "max", "larger", 0, 1),
    "false_alarms_max_worst_species": _worst("false_alarms", "max_worst_species"),
    "false_alarms_min_images": _min_images("false_alarms"),
    "false_alarms_confidence": _confidence("false_alarms"),
    "species_size_max_bytes": LimitKind("species_size", "max_bytes", "larger", 1, 10**12, is_integer=True),
    "head_size_max_bytes": LimitKind("head_size", "max_bytes", "larger", 1, 10**12, is_integer=True),
    "latency_max_median_ms": LimitKind("latency", "max_median_ms", "larger", 0, 1e6),
    "accuracy_min_species": LimitKind("accuracy", "min_species", "smaller", 0, 1),
    "accuracy_min_end_to_end": LimitKind("accuracy", "min_end_to_end", "smaller", 0, 1),
    "accuracy_min_worst_species": LimitKind("accuracy", "min_worst_species", None, 0, 1, is_optional=True),
    "accuracy_min_worst_class": LimitKind("accuracy", "min_worst_class", None, 0, 1, is_optional=True),
    "accuracy_min_field_species": LimitKind("accuracy", "min_field_species", None, 0, 1, is_optional=True),
    "accuracy_min_field_end_to_end": LimitKind("accuracy", "min_field_end_to_end", None, 0, 1, is_optional=True),
    "accuracy_min_field_accepted": LimitKind("accuracy", "min_field_accepted", None, 0, 1, is_optional=True),
    "accuracy_min_field_accepted_right": LimitKind(
        "accuracy", "min_field_accepted_right", None, 0, 1, is_optional=True
    ),
    "accuracy_min_field_images": _fewest_images("accuracy", "min_field_images", 1),
    "accuracy_species": LimitKind("accuracy", "species", None, 0, 1, of_each=True),
    "accuracy_min_images": _min_images("accuracy"),
    "accuracy_confidence": _confidence("accuracy"),
    "coverage_images_per_species": _fewest_images("coverage", "images_per_species", 0),
    "coverage_images_per_class": _fewest_images("coverage", "images_per_class", 0),
    "leakage_max": LimitKind("leakage", "max", "larger", 0, 1),
    "leakage_min_images": _min_images("leakage"),
    "leakage_confidence": _confidence("leakage"),
    "no_regression_max_drop": LimitKind("no_regression", "max_drop", "larger", 0, 1),
    "no_regression_min_images": _min_images("no_regression"),
}
"""Field of `GatePolicy` that a file may set to what it may be."""

_WORST: Final = {
    "int8_accuracy": ("int8_accuracy_max_worst_species", "worst species"),
    "ood_recall": ("ood_recall_min_worst_source", "worst source"),
    "false_alarms": ("false_alarms_max_worst_species", "worst species"),
}
"""Gate to its limit for a single species or source, and the name of the value that it is about."""

_VALUES: Final = {
    "accuracy_min_species": "species",
    "accuracy_min_end_to_end": "end to end",
    "accuracy_min_worst_species": "worst species",
    "accuracy_min_worst_class": "worst class",
    "accuracy_min_field_species": "field species",
    "accuracy_min_field_end_to_end": "field end to end",
    "accuracy_min_field_accepted": "field accepted",
    "accuracy_min_field_accepted_right": "field accepted and right",
}
"""Limit to the value that it is about, in a gate with several values."""


@dataclass(frozen=True)
class GatePolicy:
    """The limits in force; the defaults are those of contract 5.

    `<gate>_min_images` is the number of images below which a gate is not measured. `<gate>_confidence` is None, or the
    confidence of a two-sided interval; then the worse end of the interval must meet the limit, and not the value alone.

    Attributes:
        parity_max_abs_diff: a difference below this limit passes.
        parity_min_images: fewest leaves that are compared with PyTorch; `verify` takes 64.
        int8_accuracy_max_drop: a drop at or below this limit passes; a proportion of the images.
        int8_accuracy_max_images: largest number of validation images that are measured.
        int8_accuracy_min_images: fewest validation images.
        int8_accuracy_confidence: confidence of the drop. Unlike all others it is set by default, because the value
            alone lets a true loss of a point pass every second time.
        int8_accuracy_max_worst_species: largest share of its leaves that any single species may lose; None for no such
            limit. It holds for the value alone: few leaves of one species say nothing with confidence.
        ood_precision_min: a precision at or above this limit passes.
        ood_precision_min_images: fewest non-plants.
        ood_precision_confidence: confidence of the precision, or None.
        ood_precision_non_plant_share: share of non-plants among all images for which the precision is printed as well.
            The gate itself is about equal numbers.
        ood_recall_min: a recall at or above this limit passes.
        ood_recall_min_worst_source: lowest recall that any single source of non-plants may have; None for no limit.
        ood_recall_min_images: fewest non-plants.
        ood_recall_confidence: confidence of the recall, or None.
        false_alarms_max: a share of rejected leaves at or below this limit passes. A precision of 99 % at equal
            numbers implies about as much.
        false_alarms_max_worst_species: largest share of its leaves that any single species may have rejected; None for
            no such limit.
        false_alarms_min_images: fewest validation images.
        false_alarms_confidence: confidence of the share, or None.
        species_size_max_bytes: a size below this limit passes.
        head_size_max_bytes: a size below this limit passes.
        latency_max_median_ms: a median below this limit passes.
        accuracy_min_species: a species accuracy at or above this limit passes.
        accuracy_min_end_to_end: an accuracy of species and disease together at or above this limit passes.
        accuracy_min_worst_species: lowest accuracy that any single species may have; None for no such limit.
        accuracy_min_worst_class: lowest end-to-end accuracy that any single class may have; None for no such limit.
        accuracy_min_field_species: lowest species accuracy on field leaves; None for no such limit, as in the next 3.
        accuracy_min_field_end_to_end: lowest accuracy of species and disease together on field leaves.
        accuracy_min_field_accepted: lowest share of the field leaves that the detector accepts.
        accuracy_min_field_accepted_right: lowest species accuracy on the field leaves that the detector accepts.
        accuracy_min_field_images: with fewer field leaves, these four limits are missed.
        accuracy_species: name of a species to the lowest accuracy that this species may have.
        accuracy_min_images: fewest validation images.
        accuracy_confidence: confidence of every accuracy, or None.
        coverage_images_per_species: fewest validation images of every species.
        coverage_images_per_class: fewest validation images of every disease class.
        leakage_max: a share of leaking validation images at or below this limit passes.
        leakage_min_images: fewest validation images.
        leakage_confidence: confidence of the share, or None.
        no_regression_max_drop: a loss at or below this limit passes at promotion; a proportion of the images.
        no_regression_min_images: fewest leaves, and fewest non-plants, that two versions are compared by.
        sha256: digest of the file that set the limits; None for the built-in defaults.
    """

    parity_max_abs_diff: float = 0.01
    parity_min_images: int = 32
    int8_accuracy_max_drop: float = 0.01
    int8_accuracy_max_images: int = 10_000
    int8_accuracy_min_images: int = 300
    int8_accuracy_confidence: float | None = 0.95
    int8_accuracy_max_worst_species: float | None = None
    ood_precision_min: float = 0.99
    ood_precision_min_images: int = 50
    ood_precision_confidence: float | None = None
    ood_precision_non_plant_share: float = 0.5
    ood_recall_min: float = 0.95
    ood_recall_min_worst_source: float | None = None
    ood_recall_min_images: int = 50
    ood_recall_confidence: float | None = None
    false_alarms_max: float = 0.01
    false_alarms_max_worst_species: float | None = None
    false_alarms_min_images: int = 300
    false_alarms_confidence: float | None = None
    species_size_max_bytes: int = 5_000_000
    head_size_max_bytes: int = 200_000
    latency_max_median_ms: float = 200.0
    accuracy_min_species: float = 0.70
    accuracy_min_end_to_end: float = 0.60
    accuracy_min_worst_species: float | None = None
    accuracy_min_worst_class: float | None = None
    accuracy_min_field_species: float | None = None
    accuracy_min_field_end_to_end: float | None = None
    accuracy_min_field_accepted: float | None = None
    accuracy_min_field_accepted_right: float | None = None
    accuracy_min_field_images: int = 50
    accuracy_species: Mapping[str, float] = field(default_factory=dict)
    accuracy_min_images: int = 300
    accuracy_confidence: float | None = None
    coverage_images_per_species: int = 5
    coverage_images_per_class: int = 1
    leakage_max: float = 0.01
    leakage_min_images: int = 300
    leakage_confidence: float | None = None
    no_regression_max_drop: float = 0.01
    no_regression_min_images: int = 100
    sha256: str | None = None

    def __post_init__(self) -> None:
        """Check every limit.

        Raises:
            ValueError: a limit has a wrong type or lies outside its range.
        """
        for name, kind in LIMITS.items():
            value = getattr(self, name)
            if value is None and kind.is_optional:
                continue
            if not kind.accepts(value):
                raise ValueError(f"{name} must be {kind.expected}, got {value!r}")
            object.__setattr__(self, name, kind.normalize(value))

    def limits_of(self, gate: str) -> dict[str, float]:
        """Return the limits of a gate: name of each of its values to its limit; "" where the gate has one value.

        A gate that counts problems or classes has the limit 0.
        """
        if gate == "coverage":
            return {"": 0.0}
        if gate == "accuracy":
            return self._limits_of_accuracy()
        for name, kind in LIMITS.items():
            if kind.gate == gate and kind.looser is not None and kind.key not in ("min_images", "confidence"):
                return {"": float(getattr(self, name))} | self._limit_worst(gate)
        return {"": 0.0}

    def _limit_worst(self, gate: str) -> dict[str, float]:
        field_name, value = _WORST.get(gate, ("", ""))
        limit = getattr(self, field_name) if field_name else None
        return {} if limit is None else {value: limit}

    def _limits_of_accuracy(self) -> dict[str, float]:
        """Both accuracies must also exceed, beyond noise, those of always answering the commonest class."""
        found = {words: getattr(self, name) for name, words in _VALUES.items()}
        chance = {f"{name} above the commonest": 0.0 for name in ("species", "end to end")}
        each = {f"species {name}": limit for name, limit in self.accuracy_species.items()}
        return {name: limit for name, limit in (found | chance | each).items() if limit is not None}

    def min_images_of(self, gate: str) -> int:
        """Return the number of images below which a gate is not measured; 0 for a gate that measures no images."""
        return int(getattr(self, f"{gate}_min_images", 0))

    def confidence_of(self, gate: str) -> float | None:
        """Return the confidence with which a gate's limits must be met; None if the values alone are judged."""
        confidence: float | None = getattr(self, f"{gate}_confidence", None)
        return confidence

    @property
    def loosened(self) -> tuple[str, ...]:
        """Names of the limits that let more bundles pass than the defaults of contract 5 do."""
        default = GatePolicy()
        signs = {"larger": 1, "smaller": -1}
        return tuple(
            name
            for name, kind in LIMITS.items()
            if kind.looser is not None
            and signs[kind.looser] * ((getattr(self, name) or 0.0) - getattr(default, name)) > 0
        )


def read_policy(path: Path | None) -> GatePolicy:
    """Read a policy file. Limits that the file does not set keep their defaults.

    Args:
        path: a TOML file; None for the defaults.

    Raises:
        PolicyError: the file cannot be read or is not TOML, names an unknown gate or key, or sets a limit that is not
            a number in its range.
    """
    if path is None:
        return GatePolicy()
    try:
        data = path.read_bytes()
        document = tomllib.loads(data.decode("utf-8"))
    except OSError as error:
        raise PolicyError(f"{path}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PolicyError(f"{path}: not a TOML file ({error})") from error
    limits = {name: value for gate, table in document.items() for name, value in _read_gate(path, gate, table).items()}
    return GatePolicy(**limits, sha256=hashlib.sha256(data).hexdigest())


def _read_gate(path: Path, gate: str, table: object) -> dict[str, Any]:
    fields = {kind.key: name for name, kind in LIMITS.items() if kind.gate == gate}
    if not fields:
        known = ", ".join(dict.fromkeys(kind.gate for kind in LIMITS.values()))
        raise PolicyError(f"{path}: unknown gate {gate!r}; gates with limits are {known}")
    if not isinstance(table, dict):
        raise PolicyError(f"{path}: {gate} must be a table [{gate}] with {', '.join(fields)}, got {table!r}")
    for key, value in table.items():
        if key not in fields:
            raise PolicyError(f"{path}: [{gate}] has unknown key {key!r}; it may set {', '.join(fields)}")
        if not LIMITS[fields[key]].accepts(value):
            raise PolicyError(f"{path}: [{gate}] {key} is {value!r}, expected {LIMITS[fields[key]].expected}")
    return {fields[key]: value for key, value in table.items()}
