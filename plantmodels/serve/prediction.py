"""What a classifier returns for an image (contract 4, version `PREDICTION_CONTRACT`), and what it computes on the way.

>>> Prediction(error="zero bytes: expected an encoded image").species is None
True
"""

from dataclasses import dataclass
from typing import Final

from plantmodels.arrays import Embedding, Embeddings, Labels, Logits, Scores

PREDICTION_CONTRACT: Final = 2
"""Version of contract 4 that this code answers by. Version 1 served the probability of the disease given the species as
`disease_probability`, under hard routing, and had no `disease_given_species_probability`."""


@dataclass(frozen=True)
class Candidate:
    """One of the most probable species."""

    species: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The answer for one image (contract 4). A bad image has `error` set, and every other field is None.

    Attributes:
        species: name of the most probable species.
        species_index: its index in the taxonomy.
        species_probability: its calibrated probability: how likely the species is right.
        disease: name of the disease, or None if the species has no disease head.
        disease_probability: how likely this answer is right. Hard routing: P(species) · P(disease | species), that
            species and disease are both right. Soft routing: P(disease), the sum of these products over all species,
            that the disease is right whatever the species. None if `disease` is None.
        disease_given_species_probability: P(disease | species): how likely the disease is right if the species is. 0 if
            soft routing names a disease that the species does not have. None if `disease` is None.
        ood_score: out-of-distribution score; higher means more out-of-distribution.
        ood_p_value: fraction of known plants with at least this score (`OODDetector.p_values`); None for a detector of
            format 1, which keeps no scores to compare with.
        rejected: whether the score is above the detector's threshold.
        error: why the image could not be classified.
        candidates: the `top_k` most probable species, best first; None unless asked for.
        embedding: (D,) float32; None unless asked for.
    """

    species: str | None = None
    species_index: int | None = None
    species_probability: float | None = None
    disease: str | None = None
    disease_probability: float | None = None
    disease_given_species_probability: float | None = None
    ood_score: float | None = None
    ood_p_value: float | None = None
    rejected: bool | None = None
    error: str | None = None
    candidates: tuple[Candidate, ...] | None = None
    embedding: Embedding | None = None


@dataclass(frozen=True)
class Outputs:
    """What the models and the detector compute for N images.

    Attributes:
        species_logits: (N, S) float32.
        embedding: (N, D) float32.
        species_index: (N,) int64, the species with the highest logit.
        disease_logits: (N, max diseases) float32 from that species' head, −inf at classes that it lacks.
        ood_scores: (N,) float64.
    """

    species_logits: Logits
    embedding: Embeddings
    species_index: Labels
    disease_logits: Logits
    ood_scores: Scores
