"""Soft routing: the probability of a disease, summed over every species that may have it.

>>> mixture = DiseaseMixture(taxonomy)  # doctest: +SKIP
>>> probabilities = mixture.mix(species_probability, embedding, heads)  # doctest: +SKIP
>>> mixture.names[int(probabilities[0].argmax())]  # doctest: +SKIP
'Late blight'
"""

from collections.abc import Callable
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from plantmodels.bundle.taxonomy import Taxonomy

Routing = Literal["hard", "soft"]
ROUTINGS: Final[tuple[Routing, ...]] = get_args(Routing)
"""By whose head a disease is named: that of the top species, or those of all (`DiseaseMixture`)."""

MIN_SPECIES_PROBABILITY: Final = 1e-6
"""A species less probable than this adds nothing; S species leave out less than S times it."""

_PAIRS_AT_ONCE: Final = 256
"""(image, species) pairs in one run of the heads, each of which gathers one head's weights: bounds memory."""

RunHeads = Callable[[NDArray[np.float32], NDArray[np.int64]], NDArray[np.float32]]
"""Embeddings (P, D) and species (P,) to logits (P, max diseases), −inf at classes that a species lacks."""


class DiseaseMixture:
    """P(disease) = Σ over species of P(species) · P(disease | species); diseases of one name are one disease."""

    def __init__(self, taxonomy: Taxonomy) -> None:
        """Takes the classes of all heads."""
        self.names = tuple(dict.fromkeys(name for i in taxonomy.species_with_head for name in taxonomy.diseases_of(i)))
        place = {name: i for i, name in enumerate(self.names)}
        self._has_head = np.zeros(len(taxonomy.species), dtype=bool)
        self._place = np.zeros((len(taxonomy.species), max(1, taxonomy.max_diseases)), dtype=np.int64)
        for i in taxonomy.species_with_head:
            self._has_head[i] = True
            diseases = taxonomy.diseases_of(i)
            self._place[i, : len(diseases)] = [place[name] for name in diseases]

    def mix(
        self, species_probability: NDArray[np.float64], embedding: NDArray[np.float32], run_heads: RunHeads
    ) -> NDArray[np.float64]:
        """Computes P(disease) for N images.

        Args:
            species_probability: (N, S) float64.
            embedding: (N, D) float32.
            run_heads: the packed heads.

        Returns:
            (N, names) float64. A row sums to the probability of the species that have a head.
        """
        rows, species = np.nonzero((species_probability >= MIN_SPECIES_PROBABILITY) & self._has_head)
        mixed = np.zeros((len(embedding), len(self.names)))
        for start in range(0, len(rows), _PAIRS_AT_ONCE):
            row, index = rows[start : start + _PAIRS_AT_ONCE], species[start : start + _PAIRS_AT_ONCE]
            weighted = softmax(run_heads(embedding[row], index)) * species_probability[row, index, None]
            np.add.at(mixed, (row[:, None], self._place[index]), weighted)  # classes that a species lacks add 0
        return mixed


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Probabilities along the last axis, computed in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    exponents = np.exp(shifted)
    probabilities: NDArray[np.float64] = exponents / exponents.sum(axis=-1, keepdims=True)
    return probabilities
