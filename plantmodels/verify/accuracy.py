"""One pass over the validation leaves: what is right in FP16 and INT8, and the plants' OOD scores.

Species; disease given the TRUE species (its head answers, whatever the species model says); and end to end
(species and disease both right). Images are streamed: all that is kept of one is a few numbers.

>>> run = measure_accuracy(fp16, int8, leaves, unreadable=[])  # doctest: +SKIP
>>> run.accuracy.int8.species.value  # doctest: +SKIP
0.8116
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from plantmodels.build.data import LeafSample, LeafSet, UnreadableImage, stream_batches
from plantmodels.serve.classifier import PlantClassifier
from plantmodels.verify.measurements import Accuracy, PrecisionAccuracy, Share, SpeciesRow

BATCH: Final = 8


@dataclass(frozen=True)
class AccuracyRun:
    """What one pass yields.

    Attributes:
        accuracy: the counts.
        samples: the images that could be read, in the order measured.
        scores: (N,) float64, OOD scores of these from the INT8 embedding.
    """

    accuracy: Accuracy
    samples: tuple[LeafSample, ...]
    scores: NDArray[np.float64]


@dataclass
class _Answers:
    """Indices that one precision answers with, per image; −1 where a species has no head."""

    species: list[int] = field(default_factory=list)
    disease: list[int] = field(default_factory=list)


def measure_accuracy(
    fp16: PlantClassifier, int8: PlantClassifier, leaves: LeafSet, *, unreadable: list[UnreadableImage]
) -> AccuracyRun:
    """Streams the leaves once through both precisions.

    Args:
        fp16: the bundle with its FP16 species model.
        int8: the bundle as it is served.
        leaves: labelled images, already thinned out if there are too many.
        unreadable: files that are skipped are appended here.

    Raises:
        DataError: too many unreadable files.
    """
    answers = {"fp16": _Answers(), "int8": _Answers()}
    samples: list[LeafSample] = []
    scores: list[NDArray[np.float64]] = []
    for positions, pixels in stream_batches(
        leaves.paths, int8.metadata.preprocessing, size=BATCH, unreadable=unreadable, description="measure accuracy"
    ):
        batch = [leaves.samples[position] for position in positions]
        samples += batch
        embedding = _answer_(answers["int8"], int8, batch, pixels)
        scores.append(int8.detector.score(embedding))
        _answer_(answers["fp16"], fp16, batch, pixels)
    accuracy = _count(samples, answers["fp16"], answers["int8"], int8.taxonomy.species)
    return AccuracyRun(accuracy, tuple(samples), np.concatenate([np.empty(0), *scores]))


def _answer_(
    answers: _Answers, classifier: PlantClassifier, batch: Sequence[LeafSample], pixels: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Appends a batch's answers and returns its embedding (n, D)."""
    logits, embedding = classifier.embed(pixels)
    true_species = np.array([sample.species_index for sample in batch], np.int64)
    diseases = classifier.disease_logits(embedding, true_species).argmax(axis=1)
    has_head = np.array([sample.disease_index is not None for sample in batch])
    answers.species += logits.argmax(axis=1).tolist()
    answers.disease += np.where(has_head, diseases, -1).tolist()
    return embedding


def _count(samples: Sequence[LeafSample], fp16: _Answers, int8: _Answers, names: Sequence[str]) -> Accuracy:
    true_species = np.array([sample.species_index for sample in samples], np.int64)
    right = {
        name: np.array(answers.species, np.int64) == true_species for name, answers in (("fp16", fp16), ("int8", int8))
    }
    by_species = {
        names[index]: SpeciesRow(
            int((true_species == index).sum()),
            int(right["fp16"][true_species == index].sum()),
            int(right["int8"][true_species == index].sum()),
        )
        for index in np.unique(true_species).tolist()
    }
    return Accuracy(
        fp16=_count_right(samples, fp16),
        int8=_count_right(samples, int8),
        species_flips=sum(a != b for a, b in zip(fp16.species, int8.species, strict=True)),
        disease_flips=sum(a != b for a, b in zip(fp16.disease, int8.disease, strict=True)),
        by_species=by_species,
    )


def _count_right(samples: Sequence[LeafSample], answers: _Answers) -> PrecisionAccuracy:
    """Right species and right disease given it is right end to end: hard routing asks that very head."""
    true_species = np.array([sample.species_index for sample in samples], np.int64)
    true_disease = np.array([-1 if s.disease_index is None else s.disease_index for s in samples], np.int64)
    species = np.array(answers.species, np.int64) == true_species
    disease = np.array(answers.disease, np.int64) == true_disease
    has_head = true_disease >= 0
    return PrecisionAccuracy(
        species=Share(int(species.sum()), len(samples)),
        disease=Share(int((disease & has_head).sum()), int(has_head.sum())),
        end_to_end=Share(int((species & disease).sum()), len(samples)),
    )
