"""Soft routing: the probability of a disease, summed over every species that may have it.

>>> mixture = DiseaseMixture(taxonomy)  # doctest: +SKIP
>>> mixture.answer(species_logits, embedding, heads, species_temperature=0.8, disease_temperature=0.5)  # doctest: +SKIP
[('Late blight', 0.93)]
"""

from collections.abc import Callable, Sequence
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from plantmodels.arrays import Labels, Logits
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

    def answer(
        self,
        species_logits: NDArray[np.float32],
        embedding: NDArray[np.float32],
        run_heads: RunHeads,
        *,
        species_temperature: float = 1.0,
        disease_temperature: float = 1.0,
    ) -> list[tuple[str | None, float | None]]:
        """Names the disease of each of N images, with its probability; None where no head can answer.

        The name is the one of the highest probability at temperature 1, whatever the temperatures are: these
        change the weights of a sum, and with them which term is the largest.

        Args:
            species_logits: (N, S).
            embedding: (N, D) float32.
            run_heads: the packed heads.
            species_temperature: of the probability that is returned, for P(species).
            disease_temperature: the same for P(disease | species).
        """
        temperatures = [(1.0, 1.0), (species_temperature, disease_temperature)]
        if temperatures[0] == temperatures[1]:
            temperatures.pop()
        mixed = self.mix(species_logits, embedding, run_heads, temperatures)
        return [
            (self.names[best := int(plain.argmax())], float(tempered[best])) if plain.any() else (None, None)
            for plain, tempered in zip(mixed[0], mixed[-1], strict=True)
        ]

    def mix(
        self,
        species_logits: NDArray[np.float32],
        embedding: NDArray[np.float32],
        run_heads: RunHeads,
        temperatures: Sequence[tuple[float, float]] = ((1.0, 1.0),),
    ) -> NDArray[np.float64]:
        """Computes P(disease) for N images, at several temperatures for one run of the heads.

        Args:
            species_logits: (N, S).
            embedding: (N, D) float32.
            run_heads: the packed heads.
            temperatures: pairs of species' and diseases' temperature, T of them.

        Returns:
            (T, N, names) float64. A row sums to the probability of the species that have a head.
        """
        chances = np.stack([softmax(species_logits, species) for species, _ in temperatures])
        chances[(chances < MIN_SPECIES_PROBABILITY) | ~self._has_head] = 0
        rows, species = np.nonzero(chances.any(axis=0))
        mixed = np.zeros((len(temperatures), len(embedding), len(self.names)))
        for start in range(0, len(rows), _PAIRS_AT_ONCE):
            row, index = rows[start : start + _PAIRS_AT_ONCE], species[start : start + _PAIRS_AT_ONCE]
            logits = run_heads(embedding[row], index)
            for total, chance, (_, temperature) in zip(mixed, chances, temperatures, strict=True):
                weighted = softmax(logits, temperature) * chance[row, index, None]
                np.add.at(total, (row[:, None], self._place[index]), weighted)  # classes that a species lacks add 0
        return mixed


def route_hard(
    taxonomy: Taxonomy, species_index: Labels, disease_logits: Logits, temperature: float
) -> list[tuple[str | None, float | None]]:
    """Return each image's disease and its probability, by the head of one species; None if it has no head.

    Args:
        taxonomy: the names of all classes.
        species_index: (N,) int64, the species whose head answered.
        disease_logits: (N, max diseases) float32, −inf at classes that the species lacks.
        temperature: divides the logits before they become probabilities.
    """
    found: list[tuple[str | None, float | None]] = []
    for index, logits in zip(species_index.tolist(), disease_logits, strict=True):
        names = taxonomy.diseases_of(index)
        if not names:
            found.append((None, None))
            continue
        own = logits[: len(names)]
        found.append((names[int(own.argmax())], float(softmax(own, temperature).max())))
    return found


def softmax(logits: NDArray[np.floating], temperature: float = 1.0) -> NDArray[np.float64]:
    """Probabilities of `logits / temperature` along the last axis, computed in float64."""
    shifted = (logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)) / temperature
    exponents = np.exp(shifted)
    probabilities: NDArray[np.float64] = exponents / exponents.sum(axis=-1, keepdims=True)
    return probabilities
