"""The probabilities of one leaf that `gate-images.csv` keeps: those of the answers that are served, and of the truth.

>>> taxonomy = Taxonomy(("Apple", "Fern"), {"Apple": ("scab", "healthy")})
>>> logits, heads = np.array([[0.0, -50.0]]), np.array([[0.0, 0.0]])
>>> list_losses(taxonomy, np.array([0]), np.array([1]), logits, heads, (1.0, 1.0), "fp16_")
[{'fp16_species_nll': 0.0, 'fp16_disease_nll': 0.6931471805599453}]
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from plantmodels.arrays import Labels, Logits
from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.report.calibration.scores import evaluate_probabilities
from plantmodels.serve.prediction import Outputs
from plantmodels.serve.routing import DiseaseAnswer, softmax

Columns = dict[str, Any]
"""Columns of `ImageRow` to numbers, or None."""


def list_losses(
    taxonomy: Taxonomy,
    species: Labels,
    disease: Labels,
    logits: Logits,
    heads: Logits,
    temperatures: tuple[float, float],
    prefix: str,
) -> list[Columns]:
    """Return −log of the probability of each leaf's true species, and of its true disease where there are several.

    Args:
        taxonomy: the species and diseases.
        species: (N,) true species.
        disease: (N,) true diseases; −1 if the species has no head.
        logits: (N, S) species logits.
        heads: (N, max diseases) logits of the true species' heads.
        temperatures: of P(species) and of P(disease | species).
        prefix: how the names of the columns begin.
    """
    _, losses = evaluate_probabilities(logits, species, temperatures[0])
    found: list[Columns] = [{f"{prefix}species_nll": loss} for loss in losses.tolist()]
    several = np.flatnonzero([len(taxonomy.diseases_of(index)) > 1 for index in species.tolist()])
    _, losses = evaluate_probabilities(heads[several], disease[several], temperatures[1])
    for row, loss in zip(several.tolist(), losses.tolist(), strict=True):
        found[row][f"{prefix}disease_nll"] = loss
    return found


def list_answers(
    outputs: Outputs,
    hard: Sequence[DiseaseAnswer],
    soft: Sequence[DiseaseAnswer],
    species_temperature: float,
    prefix: str,
) -> list[Columns]:
    """Return the probabilities of the answers to N leaves, by both routings.

    Args:
        outputs: what the models computed.
        hard: the N answers by hard routing.
        soft: the N answers by soft routing.
        species_temperature: of P(species).
        prefix: how the names of the columns begin.
    """
    species = softmax(outputs.species_logits, species_temperature)[
        np.arange(len(outputs.species_index)), outputs.species_index
    ]
    return [
        {
            f"{prefix}species_probability": chance,
            f"{prefix}disease_given_species_probability": routed.given_species,
            f"{prefix}soft_disease_probability": mixed.probability,
            f"{prefix}soft_disease_given_species_probability": mixed.given_species,
        }
        for chance, routed, mixed in zip(species.tolist(), hard, soft, strict=True)
    ]
