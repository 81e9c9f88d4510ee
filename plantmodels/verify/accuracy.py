"""One pass over the validation leaves: what FP16 and INT8 answer, how sure they are, and the plants' OOD scores.

Species; disease given the TRUE species (its head answers, whatever the species model says); and end to end
(species and disease both right), by hard and by soft routing. Images are streamed: all that is kept of one is a few
numbers.

>>> run = measure_accuracy(fp16, int8, leaves)  # doctest: +SKIP
>>> run.accuracy.int8.species.value  # doctest: +SKIP
0.8116
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from plantmodels.bundle.serialization import replace_non_finite
from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.data.image_files import name_in_report
from plantmodels.data.leaves import CLASS_SEPARATOR, LeafSample, LeafSet, class_of
from plantmodels.data.streaming import ImageStream, UnreadableImage
from plantmodels.report.per_image import ImageRow
from plantmodels.report.results import Accuracy, Bin, Calibration, ClassRow, Reliability
from plantmodels.report.statistics import PairedCounts
from plantmodels.serve.classifier import PlantClassifier

BATCH: Final = 8
CALIBRATION_BINS: Final = 15
"""Of equal width, as Guo et al. (2017) have them."""

_T = TypeVar("_T", "_Answers", "_Served")


@dataclass(frozen=True)
class AccuracyRun:
    """What one pass yields.

    Attributes:
        accuracy: the counts.
        samples: the images that could be read, in the order measured.
        rows: the answers to each of these.
        scores: (N,) float64, OOD scores of these from the INT8 embedding.
        fp16_scores: (N,) float64, the same detector's from the FP16 embedding.
        unreadable: files that were skipped.
    """

    accuracy: Accuracy
    samples: tuple[LeafSample, ...]
    rows: tuple[ImageRow, ...]
    scores: NDArray[np.float64]
    fp16_scores: NDArray[np.float64]
    unreadable: tuple[UnreadableImage, ...]


@dataclass(frozen=True)
class _Truth:
    """What is right, for n images: indices, −1 for the disease where the species has no head."""

    species: NDArray[np.int64]
    disease: NDArray[np.int64]


@dataclass(frozen=True)
class _Answers:
    """What one precision answers to n images: indices; the disease is that of the true species' head, −1 without."""

    species: NDArray[np.int64]
    disease: NDArray[np.int64]


@dataclass(frozen=True)
class _Served:
    """What INT8 answers besides, for n images.

    Attributes:
        routed: (n,) names of diseases by hard routing, "" where there is none.
        soft: (n,) the same by soft routing.
        scores: (n,) OOD scores.
        species: (n, 2, 2), at temperature 1 and as served: probability of the answer, and −log P(truth).
        disease: (m, 2, 2), the same of the disease given the true species, where that has several.
        disease_right: (m,) whether that answer is right.
    """

    routed: NDArray[np.str_]
    soft: NDArray[np.str_]
    scores: NDArray[np.float64]
    species: NDArray[np.float64]
    disease: NDArray[np.float64]
    disease_right: NDArray[np.bool_]


def measure_accuracy(fp16: PlantClassifier, int8: PlantClassifier, leaves: LeafSet) -> AccuracyRun:
    """Streams the leaves once through both precisions.

    Args:
        fp16: the bundle with its FP16 species model.
        int8: the bundle as it is served.
        leaves: labelled images, already thinned out if there are too many.

    Raises:
        DataError: too many unreadable files.
    """
    samples: list[LeafSample] = []
    parts: list[tuple[_Answers, _Answers, _Served]] = []
    fp16_scores: list[NDArray[np.float64]] = []
    stream = ImageStream(leaves.paths, int8.metadata.preprocessing, description="measure accuracy")
    for positions, pixels in stream.batches(BATCH):
        batch = [leaves.samples[position] for position in positions]
        samples += batch
        truth = _read_truth(batch)
        served, answers = _serve(int8, truth, pixels)
        fp16_logits, fp16_embedding = fp16.embed(pixels)
        fp16_scores.append(int8.detector.score(fp16_embedding))
        parts.append((_answer(fp16, truth, fp16_logits, fp16_embedding)[0], answers, served))
    fp16_parts, int8_parts, served_parts = zip(*parts, strict=True)
    truth, a, b, served = _read_truth(samples), _join(fp16_parts), _join(int8_parts), _join(served_parts)
    rows = tuple(_describe(leaves.root, samples, truth, a, b, served, int8))
    accuracy = _count(truth, a, b, served, int8)
    return AccuracyRun(accuracy, tuple(samples), rows, served.scores, np.concatenate(fp16_scores), stream.unreadable)


def _join(parts: Sequence[_T]) -> _T:
    names = [field.name for field in fields(parts[0])]
    return replace(parts[0], **{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def _read_truth(samples: Sequence[LeafSample]) -> _Truth:
    species, diseases = np.array([class_of(sample) for sample in samples], np.int64).T
    return _Truth(species, diseases)


def _answer(
    classifier: PlantClassifier, truth: _Truth, logits: NDArray[np.float32], embedding: NDArray[np.float32]
) -> tuple[_Answers, NDArray[np.float32]]:
    """The answers, and the logits of the true species' heads (n, max diseases)."""
    heads = classifier.disease_logits(embedding, truth.species)
    return _Answers(logits.argmax(axis=1), np.where(truth.disease >= 0, heads.argmax(axis=1), -1)), heads


def _serve(classifier: PlantClassifier, truth: _Truth, pixels: NDArray[np.float32]) -> tuple[_Served, _Answers]:
    metadata, taxonomy = classifier.metadata, classifier.taxonomy
    logits, embedding = classifier.embed(pixels)
    answers, heads = _answer(classifier, truth, logits, embedding)
    best = classifier.disease_logits(embedding, answers.species).argmax(axis=1)
    routed = [_name_disease(taxonomy, *pair) for pair in zip(answers.species.tolist(), best.tolist(), strict=True)]
    soft = [name or "" for name, _ in classifier.route_soft(logits, embedding)]
    several = np.array([len(taxonomy.diseases_of(i)) > 1 for i in truth.species.tolist()])
    served = _Served(
        np.array(routed, np.str_),
        np.array(soft, np.str_),
        classifier.detector.score(embedding),
        measure_chances(logits, truth.species, metadata.species_temperature),
        measure_chances(heads[several], truth.disease[several], metadata.disease_temperature),
        (answers.disease == truth.disease)[several],
    )
    return served, answers


def _name_disease(taxonomy: Taxonomy, species: int, disease: int) -> str:
    names = taxonomy.diseases_of(species)
    return names[disease] if names and disease >= 0 else ""


def measure_chances(logits: NDArray[np.float32], labels: NDArray[np.int64], temperature: float) -> NDArray[np.float64]:
    """Probability of the answer and −log P(label), at temperature 1 and at another: (N, 2, 2) float64.

    Args:
        logits: (N, C), −inf at classes that a row lacks.
        labels: (N,) the true class.
        temperature: the other.
    """
    gaps = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    rows = np.arange(len(labels))
    found = np.empty((len(labels), 2, 2))
    for column, divisor in enumerate((1.0, temperature)):
        sums = np.exp(gaps / divisor).sum(axis=1)
        found[:, column] = np.stack([1 / sums, np.log(sums) - gaps[rows, labels] / divisor], axis=1)
    return found


def measure_calibration(chances: NDArray[np.float64], right: NDArray[np.bool_], temperature: float) -> Calibration:
    """Bins answers by their probability.

    Args:
        chances: (N, 2, 2) of `measure_chances`.
        right: (N,) whether the answer is.
        temperature: of the second.
    """
    before, after = (_bin(chances[:, column], right) for column in (0, 1))
    return Calibration(temperature, before, after)


def _bin(chances: NDArray[np.float64], right: NDArray[np.bool_]) -> Reliability:
    confidence = np.nan_to_num(chances[:, 0])
    places = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    bins = []
    for place in range(CALIBRATION_BINS):
        inside = places == place
        images = int(inside.sum())
        bins.append(Bin(images, int(right[inside].sum()), float(confidence[inside].mean()) if images else 0.0))
    return Reliability(tuple(bins), replace_non_finite(float(chances[:, 1].mean())) if len(chances) else None)


def _describe(
    root: Path,
    samples: Sequence[LeafSample],
    truth: _Truth,
    fp16: _Answers,
    int8: _Answers,
    served: _Served,
    classifier: PlantClassifier,
) -> Iterator[ImageRow]:
    taxonomy = classifier.taxonomy
    rejected = classifier.detector.rejects(served.scores)
    for i, (sample, species, disease) in enumerate(
        zip(samples, truth.species.tolist(), truth.disease.tolist(), strict=True)
    ):
        yield ImageRow(
            set="val",
            source=_name_class(taxonomy, species, disease),
            name=name_in_report(root, sample.path),
            species=taxonomy.species[species],
            disease=_name_disease(taxonomy, species, disease),
            fp16_species=taxonomy.species[fp16.species[i]],
            fp16_disease=_name_disease(taxonomy, species, int(fp16.disease[i])),
            int8_species=taxonomy.species[int8.species[i]],
            int8_disease=_name_disease(taxonomy, species, int(int8.disease[i])),
            int8_routed_disease=str(served.routed[i]),
            int8_soft_disease=str(served.soft[i]),
            species_probability=float(served.species[i, 1, 0]),
            ood_score=float(served.scores[i]),
            rejected=bool(rejected[i]),
        )


def _name_class(taxonomy: Taxonomy, species: int, disease: int) -> str:
    name = _name_disease(taxonomy, species, disease)
    return taxonomy.species[species] + (CLASS_SEPARATOR + name if name else "")


def _count(truth: _Truth, fp16: _Answers, int8: _Answers, served: _Served, classifier: PlantClassifier) -> Accuracy:
    taxonomy, metadata = classifier.taxonomy, classifier.metadata
    headed = truth.disease >= 0
    species = [answers.species == truth.species for answers in (fp16, int8)]
    disease = [answers.disease == truth.disease for answers in (fp16, int8)]
    names = np.array([_name_disease(taxonomy, *pair) for pair in zip(truth.species, truth.disease, strict=True)])
    soft = species[1] & ((served.soft == names) | ~headed)
    return Accuracy(
        species=_pair(*species),
        disease=_pair(disease[0][headed], disease[1][headed]),
        end_to_end=_pair(species[0] & disease[0], species[1] & disease[1]),  # hard routing asks the true head then
        routing=_pair(species[1] & disease[1], soft),
        disease_routing=_pair((served.routed == names)[headed], (served.soft == names)[headed]),
        species_flips=int((fp16.species != int8.species).sum()),
        disease_flips=int((fp16.disease != int8.disease).sum()),
        by_species=_count_classes([(i, -1) for i in truth.species.tolist()], species, taxonomy),
        by_disease=_count_classes(
            list(zip(truth.species[headed].tolist(), truth.disease[headed].tolist(), strict=True)),
            [right[headed] for right in disease],
            taxonomy,
        ),
        confusions=_count_confusions(truth.species.tolist(), int8.species.tolist(), taxonomy.species),
        species_calibration=measure_calibration(served.species, species[1], metadata.species_temperature),
        disease_calibration=measure_calibration(served.disease, served.disease_right, metadata.disease_temperature),
    )


def _pair(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> PairedCounts:
    return PairedCounts(
        *(int(part.sum()) for part in (first & second, first & ~second, ~first & second, ~first & ~second))
    )


def _count_classes(
    labels: Sequence[tuple[int, int]], right: Sequence[NDArray[np.bool_]], taxonomy: Taxonomy
) -> dict[str, ClassRow]:
    images = Counter(labels)
    fp16, int8 = (Counter(label for label, hit in zip(labels, hits, strict=True) if hit) for hits in right)
    return {
        _name_class(taxonomy, *label): ClassRow(images[label], fp16[label], int8[label]) for label in sorted(images)
    }


def _count_confusions(truth: Sequence[int], answers: Sequence[int], names: Sequence[str]) -> dict[str, dict[str, int]]:
    counts = Counter((t, a) for t, a in zip(truth, answers, strict=True) if t != a)
    found: dict[str, dict[str, int]] = {}
    for (true, answer), images in sorted(counts.items()):
        found.setdefault(names[true], {})[names[answer]] = images
    return found
