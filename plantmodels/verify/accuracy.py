"""One pass over the validation leaves: the answers of FP16 and INT8, their probabilities, and the leaves' OOD scores.

The disease is asked for twice: of the true species' head, whatever the species model says, and as it is served. Images
are streamed, and only a row of each is kept. What is counted follows from the rows (`plantmodels.report.evidence`).

>>> from plantmodels.data.leaves import read_leaves
>>> fp16, int8 = (PlantClassifier.load(bundle, precision=precision, threads=1) for precision in ("fp16", "int8"))
>>> run = measure_accuracy(fp16, int8, read_leaves(data, "val", int8.taxonomy))
>>> run.accuracy.int8.species
Proportion(count=45, images=45)
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from plantmodels.arrays import Embeddings, Labels, Logits, Scores
from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.data.digests import digest_content
from plantmodels.data.image_files import name_in_report
from plantmodels.data.leaves import LeafSample, LeafSet, class_of
from plantmodels.data.streaming import ImageStream, UnreadableImage
from plantmodels.report.evidence.accuracy import Temperatures, count_accuracy, name_class
from plantmodels.report.evidence.columns import ImageTable
from plantmodels.report.per_image import ImageRow, ImageSetName
from plantmodels.report.results import Accuracy
from plantmodels.serve.classifier import PlantClassifier
from plantmodels.serve.prediction import Outputs
from plantmodels.serve.routing import ROUTINGS, DiseaseAnswer
from plantmodels.verify.probabilities import Columns, list_answers, list_losses

BATCH: Final = 8
"""Images that the models see at once."""

_AHEAD: Final = 2
"""Batches that the models run before the caller asks for them; each holds 5 MB for images of 224 pixels."""

_Outputs = tuple[Logits, Embeddings]
_Running = Future[_Outputs]
_Batch = tuple[list[int], _Outputs, _Outputs]
"""Positions of images in the stream, and the outputs of INT8 and of FP16 for them."""

_DESCRIPTIONS: Final[dict[ImageSetName, str]] = {"val": "measure accuracy", "field": "measure field leaves"}
"""Set to the description of its progress bar."""


@dataclass(frozen=True)
class AccuracyRun:
    """The result of one pass over the leaves.

    Attributes:
        accuracy: how often each precision is right.
        samples: the N readable leaves, in the order measured.
        rows: N rows, the answers for each leaf.
        unreadable: files that were skipped.
    """

    accuracy: Accuracy
    samples: tuple[LeafSample, ...]
    rows: tuple[ImageRow, ...]
    unreadable: tuple[UnreadableImage, ...]


@dataclass(frozen=True)
class _Answer:
    """What one precision answers to one leaf.

    Attributes:
        species: name of the species.
        disease: name of the disease, given the true species.
        ood_score: out-of-distribution score by the bundle's detector.
    """

    species: str
    disease: str
    ood_score: float


@dataclass(frozen=True)
class _Served:
    """What INT8 answers to one leaf besides.

    Attributes:
        routed_disease: name of the disease by hard routing, "" for none.
        soft_disease: name of the disease by soft routing, "" for none.
        rejected: whether the detector rejects the leaf.
        p_value: p-value of the score; None if the detector has none.
        probabilities: columns of `ImageRow` to the probabilities of its answers and labels.
    """

    routed_disease: str
    soft_disease: str
    rejected: bool
    p_value: float | None
    probabilities: Columns


def measure_accuracy(
    fp16: PlantClassifier, int8: PlantClassifier, leaves: LeafSet, name: ImageSetName = "val"
) -> AccuracyRun:
    """Run every leaf once through both precisions.

    Args:
        fp16: the bundle with its FP16 species model.
        int8: the bundle as it is served.
        leaves: the labelled images to measure.
        name: the set that the image rows say: "val", or "field" for leaves from another place.

    Raises:
        DataError: too many files are unreadable.
    """
    samples: list[LeafSample] = []
    rows: list[ImageRow] = []
    stream = ImageStream(leaves.paths, int8.metadata.preprocessing, description=_DESCRIPTIONS[name])
    for positions, int8_outputs, (logits, embeddings) in embed_ahead(stream, int8, fp16):
        batch = [leaves.samples[position] for position in positions]
        samples += batch
        truth = _read_truth(batch)
        int8_answers, served = _answer_as_served(int8, truth, *int8_outputs)
        fp16_answers, heads = _answer(fp16, int8, truth, logits, embeddings)
        labels = int8.taxonomy, truth.species, truth.disease
        losses = list_losses(*labels, logits, heads, _read_temperatures(int8), "fp16_")
        for answers in zip(batch, fp16_answers, int8_answers, served, losses, strict=True):
            rows.append(_make_row(name, leaves.root, int8.taxonomy, *answers))
    temperatures = Temperatures(*_read_temperatures(int8))
    return AccuracyRun(
        accuracy=count_accuracy(ImageTable.from_rows(rows), int8.taxonomy, temperatures),
        samples=tuple(samples),
        rows=tuple(rows),
        unreadable=stream.unreadable,
    )


def embed_ahead(stream: ImageStream, int8: PlantClassifier, fp16: PlantClassifier) -> Iterator[_Batch]:
    """Yield positions in the stream, and the outputs of INT8 and of FP16 for these images, `BATCH` at a time.

    Meanwhile both models run the next batches, so that no core waits for the caller or for the other model.

    Raises:
        BundleError: a model fails.
        DataError: too many files are unreadable.
    """
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        running: deque[tuple[list[int], _Running, _Running]] = deque()
        for positions, inputs in stream.batches(BATCH):
            running.append((positions, first.submit(int8.embed, inputs), second.submit(fp16.embed, inputs)))
            if len(running) > _AHEAD:
                yield _await(*running.popleft())
        while running:
            yield _await(*running.popleft())


def _await(positions: list[int], int8: _Running, fp16: _Running) -> _Batch:
    return positions, int8.result(), fp16.result()


@dataclass(frozen=True)
class _Truth:
    """The true classes of n leaves.

    Attributes:
        species: (n,) species indices.
        disease: (n,) disease indices; −1 if the species has no head.
    """

    species: Labels
    disease: Labels


def _read_truth(samples: Sequence[LeafSample]) -> _Truth:
    species, diseases = np.array([class_of(sample) for sample in samples], np.int64).T
    return _Truth(species, diseases)


def _answer(
    classifier: PlantClassifier, int8: PlantClassifier, truth: _Truth, logits: Logits, embeddings: Embeddings
) -> tuple[list[_Answer], Logits]:
    """Return the answers of one precision, and the logits of the true species' heads (n, max diseases)."""
    taxonomy = classifier.taxonomy
    heads = classifier.run_heads(embeddings, truth.species)
    columns = (truth.species, logits.argmax(axis=1), heads.argmax(axis=1), int8.detector.score(embeddings))
    answers = [
        _Answer(taxonomy.species[species], _name_disease(taxonomy, true, disease), float(score))
        for true, species, disease, score in zip(*(column.tolist() for column in columns), strict=True)
    ]
    return answers, heads


def _answer_as_served(
    classifier: PlantClassifier, truth: _Truth, logits: Logits, embeddings: Embeddings
) -> tuple[list[_Answer], Iterator[_Served]]:
    answers, heads = _answer(classifier, classifier, truth, logits, embeddings)
    species = logits.argmax(axis=1).astype(np.int64)
    scores = np.array([answer.ood_score for answer in answers])
    outputs = Outputs(logits, embeddings, species, classifier.run_heads(embeddings, species), scores)
    hard, soft = (classifier.name_diseases(outputs, way) for way in ROUTINGS)
    routed, mixed = ([answer.name or "" for answer in diseases] for diseases in (hard, soft))
    probabilities = _list_probabilities(classifier, truth, outputs, heads, (hard, soft))
    rejected, p_values = classifier.detector.rejects(scores).tolist(), list_p_values(classifier, scores, species)
    return answers, map(_Served, routed, mixed, rejected, p_values, probabilities)


def list_p_values(classifier: PlantClassifier, scores: Scores, species: Labels) -> list[float | None]:
    """Return the p-value of each score that is served; None where the detector has none.

    Args:
        classifier: the bundle as it is served.
        scores: (N,) out-of-distribution scores of INT8.
        species: (N,) index of the species that INT8 names.
    """
    p_values = classifier.detector.p_values(scores, species)
    return [None] * len(scores) if p_values is None else p_values.tolist()


def _list_probabilities(
    classifier: PlantClassifier,
    truth: _Truth,
    outputs: Outputs,
    heads: Logits,
    served: tuple[list[DiseaseAnswer], list[DiseaseAnswer]],
) -> list[Columns]:
    """Return the probabilities of each leaf by their column, as served and at temperature 1.

    `served` holds the answers by hard and by soft routing.
    """
    labels, plain = (classifier.taxonomy, truth.species, truth.disease), (1.0, 1.0)
    hard, soft = (classifier.name_diseases(outputs, way, temperatures=plain) for way in ROUTINGS)
    found: list[Columns] = [{} for _ in truth.species]
    for prefix, temperatures, named in (("", _read_temperatures(classifier), served), ("raw_", plain, (hard, soft))):
        answers = list_answers(outputs, *named, temperatures[0], prefix)
        losses = list_losses(*labels, outputs.species_logits, heads, temperatures, prefix)
        for columns, *parts in zip(found, answers, losses, strict=True):
            for part in parts:
                columns |= part
    return found


def _read_temperatures(classifier: PlantClassifier) -> tuple[float, float]:
    return classifier.metadata.species_temperature, classifier.metadata.disease_temperature


def _name_disease(taxonomy: Taxonomy, species: int, disease: int) -> str:
    names = taxonomy.diseases_of(species)
    return names[disease] if names and disease >= 0 else ""


def _make_row(
    name: ImageSetName,
    root: Path,
    taxonomy: Taxonomy,
    sample: LeafSample,
    fp16: _Answer,
    int8: _Answer,
    served: _Served,
    losses: Columns,
) -> ImageRow:
    species, disease = class_of(sample)
    names = taxonomy.species[species], _name_disease(taxonomy, species, disease)
    return ImageRow(
        set=name,
        source=name_class(*names),
        name=name_in_report(root, sample.path),
        species=names[0],
        disease=names[1],
        fp16_species=fp16.species,
        fp16_disease=fp16.disease,
        int8_species=int8.species,
        int8_disease=int8.disease,
        int8_routed_disease=served.routed_disease,
        int8_soft_disease=served.soft_disease,
        ood_score=int8.ood_score,
        rejected=served.rejected,
        sha256=digest_content(sample.path),
        fp16_ood_score=fp16.ood_score,
        ood_p_value=served.p_value,
        **served.probabilities,
        **losses,
    )
