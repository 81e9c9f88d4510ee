"""Routing: which species' heads name the disease of an image.

Hard routing asks the head of one species. Soft routing sums the probability of a disease over every species that may
have it.

>>> from plantmodels.bundle.taxonomy import Taxonomy
>>> taxonomy = Taxonomy(("Apple", "Pear"), {"Apple": ("healthy", "scab"), "Pear": ("scab", "rust")})
>>> mixture = DiseaseMixture(taxonomy)
>>> mixture.names
('healthy', 'scab', 'rust')
>>> heads = np.zeros((2, 2), np.float32)  # the logits of both species: every disease is equally likely
>>> mixture.name_diseases(np.zeros((1, 2), np.float32), np.zeros((1, 4), np.float32), lambda _, index: heads[index])
[('scab', 0.5)]
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from plantmodels.arrays import Embeddings, Labels, Logits, Probabilities
from plantmodels.bundle.taxonomy import Taxonomy

Routing = Literal["hard", "soft"]
ROUTINGS: Final[tuple[Routing, ...]] = get_args(Routing)
"""Whose head names the disease: "hard", of the most probable species; "soft", of all species (`DiseaseMixture`)."""

MIN_SPECIES_PROBABILITY: Final = 1e-6
"""A less probable species is left out of the sum, so S species lose less than S times this probability."""

_PAIRS_AT_ONCE: Final = 256
"""(image, species) pairs in one run of the heads. Each pair gathers the weights of a head, so this bounds memory."""

RunHeads = Callable[[Embeddings, Labels], Logits]
"""Runs the packed heads: embeddings (P, D) and species indices (P,) to logits (P, max diseases)."""


@dataclass(frozen=True)
class DiseaseAnswer:
    """The disease of one image. Every field is None if no head can answer.

    Attributes:
        name: name of the disease.
        probability: how likely this answer is right (contract 4): P(species) · P(disease | species) by hard routing,
            P(disease) by soft routing.
        given_species: P(disease | species) of the most probable species; 0 if that species does not have the disease.
    """

    name: str | None = None
    probability: float | None = None
    given_species: float | None = None


class DiseaseMixture:
    """Soft routing: P(disease) = Σ over species of P(species) · P(disease | species).

    Diseases with the same name are the same disease.
    """

    def __init__(self, taxonomy: Taxonomy) -> None:
        """Collect the diseases of all species."""
        self.names = tuple(dict.fromkeys(name for i in taxonomy.species_with_head for name in taxonomy.diseases_of(i)))
        column = {name: i for i, name in enumerate(self.names)}
        self._has_head = np.zeros(len(taxonomy.species), dtype=bool)
        self._columns = np.zeros((len(taxonomy.species), max(1, taxonomy.max_diseases)), dtype=np.int64)
        for i in taxonomy.species_with_head:
            self._has_head[i] = True
            diseases = taxonomy.diseases_of(i)
            self._columns[i, : len(diseases)] = [column[name] for name in diseases]

    def name_diseases(
        self,
        species_logits: Logits,
        embedding: Embeddings,
        run_heads: RunHeads,
        *,
        species_temperature: float = 1.0,
        disease_temperature: float = 1.0,
    ) -> list[tuple[str | None, float | None]]:
        """Return each image's most probable disease and its probability; None if no head can answer.

        The disease is chosen at temperature 1, whatever the temperatures are. A temperature changes the weights of a
        sum, and could so change which disease is the most probable.

        Args:
            species_logits: (N, S) float32.
            embedding: (N, D) float32.
            run_heads: runs the packed heads.
            species_temperature: temperature of P(species) in the probability that is returned.
            disease_temperature: temperature of P(disease | species) in that probability.
        """
        temperatures = [(1.0, 1.0), (species_temperature, disease_temperature)]
        if temperatures[0] == temperatures[1]:
            temperatures.pop()
        mixed = self.compute_probabilities(species_logits, embedding, run_heads, temperatures)
        return [
            (self.names[best := int(plain.argmax())], float(tempered[best])) if plain.any() else (None, None)
            for plain, tempered in zip(mixed[0], mixed[-1], strict=True)
        ]

    def compute_probabilities(
        self,
        species_logits: Logits,
        embedding: Embeddings,
        run_heads: RunHeads,
        temperatures: Sequence[tuple[float, float]] = ((1.0, 1.0),),
    ) -> Probabilities:
        """Return P(disease) of N images, at several temperatures from one run of the heads.

        Args:
            species_logits: (N, S) float32.
            embedding: (N, D) float32.
            run_heads: runs the packed heads.
            temperatures: T pairs of a temperature of P(species) and one of P(disease | species).

        Returns:
            (T, N, len(names)) float64. A row sums to the probability that the species has a head.
        """
        species_probability = np.stack([softmax(species_logits, species) for species, _ in temperatures])
        species_probability[(species_probability < MIN_SPECIES_PROBABILITY) | ~self._has_head] = 0
        rows, species = np.nonzero(species_probability.any(axis=0))
        mixed = np.zeros((len(temperatures), len(embedding), len(self.names)))
        for start in range(0, len(rows), _PAIRS_AT_ONCE):
            row, index = rows[start : start + _PAIRS_AT_ONCE], species[start : start + _PAIRS_AT_ONCE]
            logits = run_heads(embedding[row], index)
            for total, weights, (_, temperature) in zip(mixed, species_probability, temperatures, strict=True):
                weighted = softmax(logits, temperature) * weights[row, index, None]
                np.add.at(total, (row[:, None], self._columns[index]), weighted)  # a class that is lacking adds 0
        return mixed


def route_hard(
    taxonomy: Taxonomy,
    species_index: Labels,
    species_probability: Probabilities,
    disease_logits: Logits,
    temperature: float,
) -> list[DiseaseAnswer]:
    """Return each image's disease by the head of its most probable species.

    Args:
        taxonomy: the names of all classes.
        species_index: (N,) int64, the species whose head answered.
        species_probability: (N,) probability of that species.
        disease_logits: (N, max diseases) float32, −inf at classes that the species lacks.
        temperature: divides the disease logits before they become probabilities.
    """
    answers: list[DiseaseAnswer] = []
    for index, chance, logits in zip(species_index.tolist(), species_probability.tolist(), disease_logits, strict=True):
        names = taxonomy.diseases_of(index)
        if not names:
            answers.append(DiseaseAnswer())
            continue
        own = logits[: len(names)]
        given = float(softmax(own, temperature).max())
        answers.append(DiseaseAnswer(names[int(own.argmax())], chance * given, given))
    return answers


def add_given_species(
    taxonomy: Taxonomy,
    species_index: Labels,
    disease_logits: Logits,
    temperature: float,
    named: Iterable[tuple[str | None, float | None]],
) -> list[DiseaseAnswer]:
    """Return the answers of soft routing together with P(disease | species) of each image's most probable species.

    Args:
        taxonomy: the names of all classes.
        species_index: (N,) int64, the most probable species.
        disease_logits: (N, max diseases) float32 from the heads of these species.
        temperature: divides the disease logits before they become probabilities.
        named: what `DiseaseMixture.name_diseases` returned for the N images.
    """
    answers: list[DiseaseAnswer] = []
    for index, logits, (name, probability) in zip(species_index.tolist(), disease_logits, named, strict=True):
        names = taxonomy.diseases_of(index)
        given = None if name is None else 0.0
        if name in names:
            given = float(softmax(logits[: len(names)], temperature)[names.index(name)])
        answers.append(DiseaseAnswer(name, probability, given))
    return answers


def softmax(logits: NDArray[np.floating], temperature: float = 1.0) -> Probabilities:
    """Return the probabilities of `logits / temperature` along the last axis, computed in float64."""
    shifted = (logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)) / temperature
    exponents = np.exp(shifted)
    probabilities: Probabilities = exponents / exponents.sum(axis=-1, keepdims=True)
    return probabilities
