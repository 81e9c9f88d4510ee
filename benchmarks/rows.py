"""The last step, which is the same for every contestant: from logits and scores to final rows.

make_rows(taxonomy, 3.5, species_logits, disease_logits, scores)[0].species     # "Tomato"
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from plantmodels.arrays import Embeddings, Labels, Logits, Scores
from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.serve.prediction import Prediction
from plantmodels.serve.routing import softmax


class FloatHeads:
    """Disease heads in plain numpy, for peers without their own files of the heads."""

    def __init__(self, path: Path) -> None:
        """Read `heads.npz`: weight (S, max diseases, D), and bias (S, max diseases) with −inf where padded."""
        with np.load(path) as arrays:
            self._weight, self._bias = arrays["weight"], arrays["bias"]

    def run(self, embeddings: Embeddings, species_index: Labels) -> Logits:
        """Return the logits (N, max diseases) of each row's head."""
        logits: Logits = np.stack(
            [self._weight[i] @ row + self._bias[i] for i, row in zip(species_index.tolist(), embeddings, strict=True)]
        )
        return logits


def make_rows(
    taxonomy: Taxonomy,
    threshold: float,
    species_logits: Logits,
    disease_logits: Sequence[Logits] | Logits,
    scores: Scores,
) -> list[Prediction]:
    """Return names and probabilities of N images.

    Args:
        taxonomy: the names.
        threshold: images with a higher OOD score are rejected.
        species_logits: (N, S) logits.
        disease_logits: N rows of logits, each by the head of the top species and padded after its classes.
        scores: (N,) OOD scores.
    """
    probabilities = softmax(species_logits)
    rows = []
    for n, i in enumerate(species_logits.argmax(axis=1).tolist()):
        names = taxonomy.diseases_of(i)
        diseases = softmax(disease_logits[n][: len(names)]) if names else None
        best = None if diseases is None else int(diseases.argmax())
        given = None if diseases is None or best is None else float(diseases[best])
        rows.append(
            Prediction(
                species=taxonomy.species[i],
                species_index=i,
                species_probability=float(probabilities[n, i]),
                disease=None if best is None else names[best],
                disease_probability=None if given is None else float(probabilities[n, i]) * given,
                disease_given_species_probability=given,
                ood_score=float(scores[n]),
                rejected=bool(scores[n] > threshold),
            )
        )
    return rows
