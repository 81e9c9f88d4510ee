"""Centres and scales the scores of each species, so that one species' leaves do not look stranger than another's.

>>> scores, species = np.array([1.0, 2, 3, 11, 12, 13]), np.array([0, 0, 0, 1, 1, 1])
>>> usual = measure_species(np.tile(scores, 200), np.tile(species, 200), count=3)
>>> usual.center.round(1).tolist(), usual.scale.round(1).tolist()
([2.2, 11.8, 7.0], [1.2, 1.2, 6.0])
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from plantmodels.arrays import Labels, Scores

PRIOR_LEAVES: Final = 20
"""A species counts as if it had this many further leaves that score as the leaves of all species do."""

_HIGH: Final = 0.9
_SMALLEST_SCALE: Final = 1e-3
"""Smallest scale of a species, in units of the scale of all species: of equal scores it would be 0."""


@dataclass(frozen=True)
class UsualScores:
    """What is usual for the leaves that the network names one species; S is the number of species.

    Attributes:
        center: (S,) median score.
        scale: (S,) distance from the median to the 90th percentile, above 0.
    """

    center: NDArray[np.float64]
    scale: NDArray[np.float64]


def measure_species(scores: Scores, species: Labels, *, count: int) -> UsualScores:
    """Return centre and scale of the scores of each species, drawn towards those of all leaves (`PRIOR_LEAVES`).

    With n leaves of a species, its own numbers have the weight `n / (n + 20)`.

    Args:
        scores: (N,) scores of leaves that the detector was not fitted on, N ≥ 1.
        species: (N,) index of the species that the network names.
        count: S, the number of species.
    """
    center, scale = _measure(scores)
    floor = scale * _SMALLEST_SCALE or 1.0
    centers, scales = np.full(count, center), np.full(count, scale)
    for index in np.unique(species):
        own = scores[species == index]
        weight, (own_center, own_scale) = len(own) / (len(own) + PRIOR_LEAVES), _measure(own)
        centers[index] += weight * (own_center - center)
        scales[index] += weight * (own_scale - scale)
    return UsualScores(centers, np.maximum(scales, floor))


def _measure(scores: Scores) -> tuple[float, float]:
    middle, high = np.quantile(scores, [0.5, _HIGH])
    return float(middle), float(high - middle)
