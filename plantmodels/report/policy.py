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
from dataclasses import dataclass
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
    """

    gate: str
    key: str
    looser: Literal["larger", "smaller"] | None
    lowest: float
    highest: float
    is_integer: bool = False

    @property
    def expected(self) -> str:
        """The allowed values in words."""
        return f"{'an integer' if self.is_integer else 'a number'} from {self.lowest:g} to {self.highest:g}"

    def accepts(self, value: object) -> bool:
        """Return whether a value has the right type and lies in the allowed range."""
        if isinstance(value, bool) or not isinstance(value, int if self.is_integer else int | float):
            return False
        return math.isfinite(value) and self.lowest <= value <= self.highest


LIMITS: Final[dict[str, LimitKind]] = {
    "parity_max_abs_diff": LimitKind("parity", "max_abs_diff", "larger", 0, 1e3),
    "int8_accuracy_max_drop": LimitKind("int8_accuracy", "max_drop", "larger", 0, 1),
    "int8_accuracy_max_images": LimitKind("int8_accuracy", "max_images", None, 1, 10**9, is_integer=True),
    "ood_precision_min": LimitKind("ood_precision", "min", "smaller", 0, 1),
    "ood_recall_min": LimitKind("ood_recall", "min", "smaller", 0, 1),
    "species_size_max_bytes": LimitKind("species_size", "max_bytes", "larger", 1, 10**12, is_integer=True),
    "head_size_max_bytes": LimitKind("head_size", "max_bytes", "larger", 1, 10**12, is_integer=True),
    "latency_max_median_ms": LimitKind("latency", "max_median_ms", "larger", 0, 1e6),
}
"""Field of `GatePolicy` that a file may set to what it may be."""


@dataclass(frozen=True)
class GatePolicy:
    """The limits in force; the defaults are those of contract 5.

    Attributes:
        parity_max_abs_diff: a difference below this limit passes.
        int8_accuracy_max_drop: a drop at or below this limit passes; a proportion of the images.
        int8_accuracy_max_images: largest number of validation images that are measured.
        ood_precision_min: a precision at or above this limit passes.
        ood_recall_min: a recall at or above this limit passes.
        species_size_max_bytes: a size below this limit passes.
        head_size_max_bytes: a size below this limit passes.
        latency_max_median_ms: a median below this limit passes.
        sha256: digest of the file that set the limits; None for the built-in defaults.
    """

    parity_max_abs_diff: float = 0.01
    int8_accuracy_max_drop: float = 0.01
    int8_accuracy_max_images: int = 10_000
    ood_precision_min: float = 0.99
    ood_recall_min: float = 0.95
    species_size_max_bytes: int = 5_000_000
    head_size_max_bytes: int = 200_000
    latency_max_median_ms: float = 200.0
    sha256: str | None = None

    def __post_init__(self) -> None:
        """Check every limit.

        Raises:
            ValueError: a limit has a wrong type or lies outside its range.
        """
        for name, kind in LIMITS.items():
            value = getattr(self, name)
            if not kind.accepts(value):
                raise ValueError(f"{name} must be {kind.expected}, got {value!r}")
            object.__setattr__(self, name, int(value) if kind.is_integer else float(value))

    def limit_of(self, gate: str) -> float:
        """Return the limit that a gate's measured value is compared with; 0 for a gate that counts problems."""
        for name, kind in LIMITS.items():
            if kind.gate == gate and kind.looser is not None:
                return float(getattr(self, name))
        return 0.0

    @property
    def loosened(self) -> tuple[str, ...]:
        """Names of the limits that let more bundles pass than the defaults of contract 5 do."""
        default = GatePolicy()
        signs = {"larger": 1, "smaller": -1, None: 0}
        return tuple(
            name
            for name, kind in LIMITS.items()
            if signs[kind.looser] * (getattr(self, name) - getattr(default, name)) > 0
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
