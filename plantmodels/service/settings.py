"""What a service is started with: the model, how to load it, and the limits that bound its memory and its queue.

The command line takes its defaults from this module, so it imports nothing heavy. The settings travel to every worker
process as JSON in an environment variable.

>>> Settings.from_json(Settings("public/models", threads=1).to_json()).threads
1
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from plantmodels.bundle.layout import DEFAULT_PRECISION, Precision

MEGABYTE: Final = 2**20

VARIABLE: Final = "PLANTMODELS_SERVICE"
"""The environment variable that carries the settings to worker processes."""

FOLDER_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable that names the folder in which several processes count; `prometheus_client` reads it."""


@dataclass(frozen=True)
class Limits:
    """The limits of one worker process. Whatever exceeds a limit is refused before it costs memory.

    Attributes:
        body_bytes: size of the largest body; a larger one gets status 413.
        held_bytes: size of all bodies together, announced bytes included; a request beyond it gets status 503.
        requests: number of requests with a body that wait or compute at once; a further one gets status 503.
        images: number of images in one request; a request with more gets status 413.
        body_timeout_s: seconds in which a body must arrive; a slower one gets status 408.
    """

    body_bytes: int = 20 * MEGABYTE
    held_bytes: int = 48 * MEGABYTE
    requests: int = 64
    images: int = 64
    body_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        """Check every limit.

        Raises:
            ValueError: names the limit, what it must be and what came.
        """
        for name, value in asdict(self).items():
            if not value > 0:
                raise ValueError(f"{name} must be greater than 0, got {value!r}")
        if self.held_bytes < self.body_bytes:
            raise ValueError(
                f"held_bytes must be at least body_bytes, {self.body_bytes:,}, got {self.held_bytes:,}: "
                f"the largest body would never fit"
            )


@dataclass(frozen=True)
class Settings:
    """What a service is started with.

    Attributes:
        model: folder of a bundle, or an address such as "models:/plant-disease@production".
        interval_s: seconds between two looks at where the address points.
        precision: as in `LoadOptions`.
        threads: as in `LoadOptions`.
        public_key: as in `LoadOptions`.
        limits: the limits of each worker process.
    """

    model: str
    interval_s: float = 30.0
    precision: Precision = DEFAULT_PRECISION
    threads: int | None = None
    public_key: Path | None = None
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Check every setting.

        Raises:
            ValueError: names the setting, what it must be and what came.
        """
        if not self.interval_s > 0:
            raise ValueError(f"interval_s must be greater than 0, got {self.interval_s!r}")

    @property
    def load_options(self) -> dict[str, Any]:
        """The fields of `LoadOptions`. `allow_paths` stays off: a client could name any file of this machine."""
        return {"precision": self.precision, "threads": self.threads, "public_key": self.public_key}

    def to_json(self) -> str:
        """Return the settings as JSON."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> "Settings":
        """Return the settings that `to_json` wrote."""
        fields = json.loads(text)
        key = fields.pop("public_key")
        return cls(**fields | {"limits": Limits(**fields["limits"]), "public_key": None if key is None else Path(key)})
