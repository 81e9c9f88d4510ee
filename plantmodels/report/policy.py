"""The limits of the gates, and the strict reading of `gates.toml` (contract 5).

>>> GatePolicy().ood_recall_min
0.95
>>> read_policy(Path("gates.toml")) == replace(GatePolicy(), sha256="...")  # doctest: +SKIP
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
    """What a limit may be.

    Attributes:
        gate: table in `gates.toml`.
        key: name in that table.
        looser: whether a larger or a smaller value lets more bundles pass; None when it is no threshold.
        lowest: smallest allowed value.
        highest: largest allowed value.
        whole: whether only integers are allowed.
    """

    gate: str
    key: str
    looser: Literal["larger", "smaller"] | None
    lowest: float
    highest: float
    whole: bool = False

    @property
    def expected(self) -> str:
        """What a value must be, in words."""
        return f"{'an integer' if self.whole else 'a number'} from {self.lowest:g} to {self.highest:g}"

    def accepts(self, value: object) -> bool:
        """Whether a value has the right type and range."""
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        return math.isfinite(value) and self.lowest <= value <= self.highest


LIMITS: Final[dict[str, LimitKind]] = {
    "parity_max_abs_diff": LimitKind("parity", "max_abs_diff", "larger", 0, 1e3),
    "int8_accuracy_max_drop": LimitKind("int8_accuracy", "max_drop", "larger", 0, 1),
    "int8_accuracy_max_images": LimitKind("int8_accuracy", "max_images", None, 1, 10**9, whole=True),
    "ood_precision_min": LimitKind("ood_precision", "min", "smaller", 0, 1),
    "ood_recall_min": LimitKind("ood_recall", "min", "smaller", 0, 1),
    "species_size_max_bytes": LimitKind("species_size", "max_bytes", "larger", 1, 10**12, whole=True),
    "head_size_max_bytes": LimitKind("head_size", "max_bytes", "larger", 1, 10**12, whole=True),
    "latency_max_median_ms": LimitKind("latency", "max_median_ms", "larger", 0, 1e6),
}
"""Fields of `GatePolicy` that a file may set."""


@dataclass(frozen=True)
class GatePolicy:
    """Effective limits; the defaults are those of contract 5.

    Attributes:
        parity_max_abs_diff: passes below it.
        int8_accuracy_max_drop: share of images; passes at or below it.
        int8_accuracy_max_images: validation images measured at most.
        ood_precision_min: passes at or above it.
        ood_recall_min: passes at or above it.
        species_size_max_bytes: passes below it.
        head_size_max_bytes: passes below it.
        latency_max_median_ms: passes below it.
        sha256: of the file that set them; None for the built-in defaults.
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
        """Checks every limit.

        Raises:
            ValueError: naming the limit, what it must be and what came.
        """
        for name, kind in LIMITS.items():
            value = getattr(self, name)
            if not kind.accepts(value):
                raise ValueError(f"{name} must be {kind.expected}, got {value!r}")
            object.__setattr__(self, name, int(value) if kind.whole else float(value))

    def limit_of(self, gate: str) -> float:
        """The limit that a gate's measured value is compared with; 0 for a gate that counts problems."""
        for name, kind in LIMITS.items():
            if kind.gate == gate and kind.looser is not None:
                return float(getattr(self, name))
        return 0.0

    @property
    def loosened(self) -> tuple[str, ...]:
        """Names of the limits that let more pass than the defaults of contract 5 do."""
        default = GatePolicy()
        signs = {"larger": 1, "smaller": -1, None: 0}
        return tuple(
            name
            for name, kind in LIMITS.items()
            if signs[kind.looser] * (getattr(self, name) - getattr(default, name)) > 0
        )


def read_policy(path: Path | None) -> GatePolicy:
    """Reads a policy file; what it leaves out keeps its default.

    Args:
        path: a TOML file, or None for the defaults.

    Raises:
        PolicyError: no such file, not TOML, an unknown gate or key, or a limit that is no number in range.
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
