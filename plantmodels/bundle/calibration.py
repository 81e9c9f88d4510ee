"""Which leaves calibrated a bundle: its out-of-distribution threshold, its p-values and its temperatures.

A network answers leaves that it has learned more surely than fresh ones, so only leaves that it has not learned say how
it does on fresh ones. The record names them by the digests of their contents: `verify` measures none of them.

>>> calibration = CalibrationRecord("val", 120, {"Mint": 120, "Rose": 0}, "the checkpoint names no held-out leaves", ())
>>> print(calibration.describe())
calibrated on 120 leaves of the split val, which no gate measures: the checkpoint names no held-out leaves
>>> calibration.species_without
('Rose',)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

CalibrationSource = Literal["calibration", "held-out", "val", "train"]
"""The split calibration; leaves of the split train that training held out; a part of the split val; all of train."""

_WHAT: Final[Mapping[CalibrationSource, str]] = {
    "calibration": "calibrated on {leaves} of the split calibration",
    "held-out": "calibrated on {leaves} of the split train that training held out",
    "val": "calibrated on {leaves} of the split val, which no gate measures",
    "train": "OPTIMISTIC: calibrated on {leaves} of the split train, which the network has learned",
}

_DIGEST_LENGTH: Final = 64

MAX_DISTANCE: Final = 44
"""Largest number of differing bits, of 256, in the perceptual hashes of two images that are the same (contract 5).

Such images calibrate together, and the gate `leakage` finds them. Measured on PlantVillage: JPEG quality 50 to 95 and
resizing to a third, half or double change at most 10 bits, a crop of up to 5 % on every side at most 40. Of 6 million
pairs of different leaves, seen in every view, the closest differs in 48.
"""


@dataclass(frozen=True)
class CalibrationRecord:
    """The leaves that calibrated a bundle.

    Attributes:
        source: where they come from.
        images: number of leaves.
        by_species: each species of the taxonomy to its number of these leaves, which may be 0.
        reason: why they were not taken from a better source; "" if there is none.
        sha256: digests of their contents, ascending; empty for the source "train".
    """

    source: CalibrationSource
    images: int
    by_species: Mapping[str, int]
    reason: str
    sha256: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check the digests.

        Raises:
            ValueError: a digest is not one, or there are more digests than leaves.
        """
        wrong = next((each for each in self.sha256 if len(each) != _DIGEST_LENGTH), None)
        if wrong is not None:
            raise ValueError(f"sha256 must be digests of {_DIGEST_LENGTH} characters, got {wrong!r:.80}")
        if len(self.sha256) > self.images:
            raise ValueError(f"sha256 has {len(self.sha256)} digests of {self.images} images")

    @property
    def is_optimistic(self) -> bool:
        """Whether the network has learned these leaves, so that it rejects more fresh leaves than was aimed at."""
        return self.source == "train"

    @property
    def species_without(self) -> tuple[str, ...]:
        """The species that none of these leaves shows."""
        return tuple(name for name, images in self.by_species.items() if not images)

    def describe(self) -> str:
        """Return one line that says which leaves they are, and why they are not better ones."""
        leaves = f"{self.images:,} {'leaf' if self.images == 1 else 'leaves'}"
        return _WHAT[self.source].format(leaves=leaves) + (f": {self.reason}" if self.reason else "")
