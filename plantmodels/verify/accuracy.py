"""One pass over the validation leaves: the answers of FP16 and INT8, their probabilities, and the leaves' OOD scores.

Three things are counted: the species; the disease given the TRUE species (its head answers, whatever the species model
says); and both together, by hard and by soft routing. Images are streamed, and only a few numbers of each are kept.

>>> from plantmodels.data.leaves import read_leaves
>>> fp16, int8 = (PlantClassifier.load(bundle, precision=precision, threads=1) for precision in ("fp16", "int8"))
>>> run = measure_accuracy(fp16, int8, read_leaves(data, "val", int8.taxonomy))
>>> run.accuracy.int8.species
Proportion(count=45, images=45)
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from plantmodels.arrays import Embeddings, Inputs, Labels, Logits, Mask, Scores
from plantmodels.bundle.serialization import replace_non_finite
from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.data.image_files import name_in_report
from plantmodels.data.labels import CLASS_SEPARATOR
from plantmodels.data.leaves import LeafSample, LeafSet, class_of
from plantmodels.data.streaming import ImageStream, UnreadableImage
from plantmodels.report.per_image import ImageRow
from plantmodels.report.results import Accuracy, Baseline, Bin, Calibration, ClassRow, Reliability
from plantmodels.report.statistics import PairedCounts
from plantmodels.serve.classifier import PlantClassifier

BATCH: Final = 8
"""Images that the models see at once."""

CALIBRATION_BINS: Final = 15
"""Number of bins of equal width, as in Guo et al. (2017)."""

_Columns = TypeVar("_Columns", "_Classes", "_ServedOutputs")


@dataclass(frozen=True)
class AccuracyRun:
    """The result of one pass over the leaves.

    Attributes:
        accuracy: how often each precision is right.
        samples: the N readable leaves, in the order measured.
        rows: N rows, the answers for each leaf.
        scores: (N,) float64, OOD scores of the INT8 embeddings.
        fp16_scores: (N,) float64, OOD scores of the FP16 embeddings by the same detector.
        unreadable: files that were skipped.
    """

    accuracy: Accuracy
    samples: tuple[LeafSample, ...]
    rows: tuple[ImageRow, ...]
    scores: Scores
    fp16_scores: Scores
    unreadable: tuple[UnreadableImage, ...]


@dataclass(frozen=True)
class _Classes:
    """The true classes of n leaves, or those that one precision answers.

    Attributes:
        species: (n,) species indices.
        disease: (n,) disease indices given the true species; −1 if the true species has no head.
    """

    species: Labels
    disease: Labels


@dataclass(frozen=True)
class _ServedOutputs:
    """What INT8, the served precision, answers besides classes, for n leaves.

    Attributes:
        routed: (n,) names of the diseases by hard routing, "" for no disease.
        soft: (n,) names of the diseases by soft routing, "" for no disease.
        scores: (n,) OOD scores.
        species: (n, 2, 2), the `evaluate_probabilities` of the species.
        disease: (m, 2, 2), the `evaluate_probabilities` of the disease given the true species, for the leaves whose
            true species has several diseases.
        disease_right: (m,) whether the disease is right, for the same leaves.
    """

    routed: NDArray[np.str_]
    soft: NDArray[np.str_]
    scores: Scores
    species: NDArray[np.float64]
    disease: NDArray[np.float64]
    disease_right: Mask


def measure_accuracy(fp16: PlantClassifier, int8: PlantClassifier, leaves: LeafSet) -> AccuracyRun:
    """Run every leaf once through both precisions.

    Args:
        fp16: the bundle with its FP16 species model.
        int8: the bundle as it is served.
        leaves: the labelled images to measure.

    Raises:
        DataError: too many files are unreadable.
    """
    samples: list[LeafSample] = []
    parts: list[tuple[_Classes, _Classes, _ServedOutputs]] = []
    fp16_scores: list[Scores] = []
    stream = ImageStream(leaves.paths, int8.metadata.preprocessing, description="measure accuracy")
    for positions, inputs in stream.batches(BATCH):
        batch = [leaves.samples[position] for position in positions]
        samples += batch
        truth = _read_truth(batch)
        int8_classes, served = _predict_as_served(int8, truth, inputs)
        fp16_logits, fp16_embeddings = fp16.embed(inputs)
        fp16_scores.append(int8.detector.score(fp16_embeddings))
        parts.append((_predict_classes(fp16, truth, fp16_logits, fp16_embeddings)[0], int8_classes, served))
    fp16_parts, int8_parts, served_parts = zip(*parts, strict=True)
    truth = _read_truth(samples)
    answers = (_concatenate(fp16_parts), _concatenate(int8_parts))
    served = _concatenate(served_parts)
    return AccuracyRun(
        accuracy=_count_answers(truth, *answers, served, int8),
        samples=tuple(samples),
        rows=tuple(_make_rows(leaves.root, samples, truth, *answers, served, int8)),
        scores=served.scores,
        fp16_scores=np.concatenate(fp16_scores),
        unreadable=stream.unreadable,
    )


def _concatenate(parts: Sequence[_Columns]) -> _Columns:
    names = [field.name for field in fields(parts[0])]
    return replace(parts[0], **{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def _read_truth(samples: Sequence[LeafSample]) -> _Classes:
    species, diseases = np.array([class_of(sample) for sample in samples], np.int64).T
    return _Classes(species, diseases)


def _predict_classes(
    classifier: PlantClassifier, truth: _Classes, logits: Logits, embeddings: Embeddings
) -> tuple[_Classes, Logits]:
    """Return the classes that a precision answers, and the logits of the true species' heads (n, max diseases)."""
    heads = classifier.run_heads(embeddings, truth.species)
    return _Classes(logits.argmax(axis=1), np.where(truth.disease >= 0, heads.argmax(axis=1), -1)), heads


def _predict_as_served(classifier: PlantClassifier, truth: _Classes, inputs: Inputs) -> tuple[_Classes, _ServedOutputs]:
    metadata, taxonomy = classifier.metadata, classifier.taxonomy
    logits, embeddings = classifier.embed(inputs)
    answers, heads = _predict_classes(classifier, truth, logits, embeddings)
    best = classifier.run_heads(embeddings, answers.species).argmax(axis=1)
    routed = [_name_disease(taxonomy, *pair) for pair in zip(answers.species.tolist(), best.tolist(), strict=True)]
    soft = [name or "" for name, _ in classifier.route_soft(logits, embeddings)]
    several = np.array([len(taxonomy.diseases_of(i)) > 1 for i in truth.species.tolist()])
    return answers, _ServedOutputs(
        routed=np.array(routed, np.str_),
        soft=np.array(soft, np.str_),
        scores=classifier.detector.score(embeddings),
        species=evaluate_probabilities(logits, truth.species, metadata.species_temperature),
        disease=evaluate_probabilities(heads[several], truth.disease[several], metadata.disease_temperature),
        disease_right=(answers.disease == truth.disease)[several],
    )


def _name_disease(taxonomy: Taxonomy, species: int, disease: int) -> str:
    names = taxonomy.diseases_of(species)
    return names[disease] if names and disease >= 0 else ""


def evaluate_probabilities(logits: Logits, labels: Labels, temperature: float) -> NDArray[np.float64]:
    """Return the probability of each answer and −log P(label), at temperature 1 and at the one given.

    Args:
        logits: (N, C) float32, −inf at classes that a row lacks.
        labels: (N,) int64, the true classes.
        temperature: the temperature that is served.

    Returns:
        (N, 2, 2) float64: for each row and each of the two temperatures, the probability and −log P(label).
    """
    gaps = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    rows = np.arange(len(labels))
    evaluated = np.empty((len(labels), 2, 2))
    for column, divisor in enumerate((1.0, temperature)):
        sums = np.exp(gaps / divisor).sum(axis=1)
        evaluated[:, column] = np.stack([1 / sums, np.log(sums) - gaps[rows, labels] / divisor], axis=1)
    return evaluated


def measure_calibration(evaluated: NDArray[np.float64], right: Mask, temperature: float) -> Calibration:
    """Return the calibration at temperature 1 and at the one served: answers in bins by their probability.

    Args:
        evaluated: (N, 2, 2) float64 from `evaluate_probabilities`.
        right: (N,) whether each answer is right.
        temperature: the temperature that is served.
    """
    before, after = (_bin_by_confidence(evaluated[:, column], right) for column in (0, 1))
    return Calibration(temperature, before, after)


def _bin_by_confidence(evaluated: NDArray[np.float64], right: Mask) -> Reliability:
    confidence = np.nan_to_num(evaluated[:, 0])
    places = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    bins = []
    for place in range(CALIBRATION_BINS):
        inside = places == place
        images = int(inside.sum())
        bins.append(Bin(images, int(right[inside].sum()), float(confidence[inside].mean()) if images else 0.0))
    return Reliability(tuple(bins), replace_non_finite(float(evaluated[:, 1].mean())) if len(evaluated) else None)


def _make_rows(
    root: Path,
    samples: Sequence[LeafSample],
    truth: _Classes,
    fp16: _Classes,
    int8: _Classes,
    served: _ServedOutputs,
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


def _count_answers(
    truth: _Classes, fp16: _Classes, int8: _Classes, served: _ServedOutputs, classifier: PlantClassifier
) -> Accuracy:
    taxonomy, metadata = classifier.taxonomy, classifier.metadata
    has_head = truth.disease >= 0
    species = [answers.species == truth.species for answers in (fp16, int8)]
    disease = [answers.disease == truth.disease for answers in (fp16, int8)]
    names = np.array([_name_disease(taxonomy, *pair) for pair in zip(truth.species, truth.disease, strict=True)])
    both_by_soft_routing = species[1] & ((served.soft == names) | ~has_head)
    # Where the species is right, hard routing asks the true species' head.
    both = [species[0] & disease[0], species[1] & disease[1]]
    return Accuracy(
        species=_count_pairs(*species),
        disease=_count_pairs(disease[0][has_head], disease[1][has_head]),
        end_to_end=_count_pairs(*both),
        routing=_count_pairs(both[1], both_by_soft_routing),
        disease_routing=_count_pairs((served.routed == names)[has_head], (served.soft == names)[has_head]),
        species_flips=int((fp16.species != int8.species).sum()),
        disease_flips=int((fp16.disease != int8.disease).sum()),
        by_species=_count_classes([(i, -1) for i in truth.species.tolist()], species, taxonomy),
        by_disease=_count_classes(
            list(zip(truth.species[has_head].tolist(), truth.disease[has_head].tolist(), strict=True)),
            [right[has_head] for right in disease],
            taxonomy,
        ),
        by_class=_count_classes(list(zip(truth.species.tolist(), truth.disease.tolist(), strict=True)), both, taxonomy),
        species_baseline=_find_baseline([taxonomy.species[i] for i in truth.species.tolist()], species[1]),
        class_baseline=_find_baseline(
            [_name_class(taxonomy, *pair) for pair in zip(truth.species.tolist(), truth.disease.tolist(), strict=True)],
            both[1],
        ),
        confusions=_count_confusions(truth.species.tolist(), int8.species.tolist(), taxonomy.species),
        species_calibration=measure_calibration(served.species, species[1], metadata.species_temperature),
        disease_calibration=measure_calibration(served.disease, served.disease_right, metadata.disease_temperature),
    )


def _count_pairs(first: Mask, second: Mask) -> PairedCounts:
    return PairedCounts(
        *(int(part.sum()) for part in (first & second, first & ~second, ~first & second, ~first & ~second))
    )


def _count_classes(labels: Sequence[tuple[int, int]], right: Sequence[Mask], taxonomy: Taxonomy) -> dict[str, ClassRow]:
    images = Counter(labels)
    fp16, int8 = (Counter(label for label, hit in zip(labels, hits, strict=True) if hit) for hits in right)
    return {
        _name_class(taxonomy, *label): ClassRow(images[label], fp16[label], int8[label]) for label in sorted(images)
    }


def _find_baseline(labels: Sequence[str], right: Mask) -> Baseline:
    """Return the commonest label, the first in the alphabet of equals, against INT8."""
    counts = Counter(labels)
    commonest = min(counts, key=lambda name: (-counts[name], name))
    return Baseline(commonest, _count_pairs(np.array([label == commonest for label in labels]), right))


def _count_confusions(truth: Sequence[int], answers: Sequence[int], names: Sequence[str]) -> dict[str, dict[str, int]]:
    counts = Counter((t, a) for t, a in zip(truth, answers, strict=True) if t != a)
    found: dict[str, dict[str, int]] = {}
    for (true, answer), images in sorted(counts.items()):
        found.setdefault(names[true], {})[names[answer]] = images
    return found
