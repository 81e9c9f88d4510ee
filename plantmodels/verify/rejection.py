"""Out-of-distribution rejection: how well the detector rejects non-plants, at its own threshold and at any other.

>>> plants, non_plants = np.array([0.1, 0.2, 0.4, 0.6]), np.array([0.5, 0.9])
>>> separation = measure_separation(plants, non_plants)
>>> separation.auroc.value, separation.fpr_at_95_recall.value
(0.875, 0.25)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from plantmodels.arrays import Inputs, Logits, Mask, Scores
from plantmodels.data.image_files import name_in_report
from plantmodels.data.non_plants import NonPlantSet
from plantmodels.data.streaming import ImageStream, UnreadableImage
from plantmodels.ood.metrics import auroc, bootstrap, fpr_at_recall, roc_curve
from plantmodels.report.per_image import ImageRow, ImageSetName
from plantmodels.report.results import Estimate, Histogram, Rejection, Separation
from plantmodels.report.statistics import Proportion
from plantmodels.serve.classifier import PlantClassifier
from plantmodels.serve.routing import softmax
from plantmodels.verify.accuracy import BATCH, AccuracyRun

if TYPE_CHECKING:
    from plantmodels.export.network import HierarchicalNetwork

HISTOGRAM_BINS: Final = 60
"""Bins of the histogram of scores: as many as its plot can show."""

_RECALL: Final = 0.95
"""Recall at which false alarms are reported, as is usual for out-of-distribution detectors."""


@dataclass(frozen=True)
class ScoredImages:
    """Images that show no known plant, with the answers and OOD scores of both precisions.

    Attributes:
        paths: the N readable image files.
        rows: N rows, the answers for each image.
        scores: (N,) float64, OOD scores of the INT8 embeddings.
        fp16_scores: (N,) float64, OOD scores of the FP16 embeddings by the same detector.
        unreadable: files that were skipped.
    """

    paths: tuple[Path, ...]
    rows: tuple[ImageRow, ...]
    scores: Scores
    fp16_scores: Scores
    unreadable: tuple[UnreadableImage, ...]

    @property
    def sources(self) -> list[str]:
        """The folder that each image belongs to."""
        return [row.source for row in self.rows]


@dataclass(frozen=True)
class RejectionRun:
    """The result of one pass over non-plants and unseen plants.

    Attributes:
        rejection: what was measured.
        non_plants: the non-plants behind it; empty if none were given.
        unseen_plants: the plants of unknown species behind it; empty if none were given.
    """

    rejection: Rejection
    non_plants: ScoredImages
    unseen_plants: ScoredImages


def choose_gate_images(non_plants: NonPlantSet, fit: Mapping[str, object]) -> tuple[NonPlantSet, bool]:
    """Return the non-plants that the gates may measure, and whether they are a held-out half.

    If the other half chose the detector, only the held-out half may be measured; otherwise all may.

    Args:
        non_plants: all non-plants.
        fit: how the detector was fitted, from its file.
    """
    selected_on = fit.get("selection_images", 0)
    held_out = isinstance(selected_on, int) and selected_on > 0
    return (non_plants.half("gate") if held_out else non_plants), held_out


def measure_rejection(
    fp16: PlantClassifier,
    int8: PlantClassifier,
    leaves: AccuracyRun,
    non_plants: NonPlantSet | None,
    unseen_plants: NonPlantSet | None,
) -> RejectionRun:
    """Score non-plants and unseen plants, and compare their scores and those of the leaves with the threshold.

    Args:
        fp16: the bundle with its FP16 species model.
        int8: the bundle as it is served.
        leaves: the result of the pass over the leaves.
        non_plants: all non-plants, or None; `choose_gate_images` chooses among them.
        unseen_plants: plants of unknown species, or None.

    Raises:
        DataError: too many files are unreadable.
    """
    detector = int8.detector
    chosen, held_out = (None, False) if non_plants is None else choose_gate_images(non_plants, detector.fit)
    set_size = 0 if non_plants is None else len(non_plants.paths)
    others = _score_images(fp16, int8, chosen, "non-plants", set_size)
    set_size = 0 if unseen_plants is None else len(unseen_plants.paths)
    unseen = _score_images(fp16, int8, unseen_plants, "unseen-plants", set_size)
    plants_rejected, others_rejected, unseen_rejected = (
        detector.rejects(images.scores) for images in (leaves, others, unseen)
    )
    int8_decisions = np.concatenate([plants_rejected, others_rejected, unseen_rejected])
    fp16_decisions = detector.rejects(np.concatenate([leaves.fp16_scores, others.fp16_scores, unseen.fp16_scores]))
    rejection = Rejection(
        threshold=detector.threshold,
        plants=_count_true(plants_rejected),
        non_plants=_count_true(others_rejected),
        unseen_plants=_count_true(unseen_rejected),
        held_out=held_out,
        by_source=_count_true_by_name(others.sources, others_rejected),
        by_unseen_source=_count_true_by_name(unseen.sources, unseen_rejected),
        by_species=_count_true_by_name([row.species for row in leaves.rows], plants_rejected),
        flips={"fp16": _count_true(int8_decisions != fp16_decisions)},
        separation=measure_separation(leaves.scores, others.scores),
        separation_by_source=_measure_separation_by_source(leaves.scores, others),
        separation_by_unseen_source=_measure_separation_by_source(leaves.scores, unseen),
        roc=tuple(roc_curve(*_keep_finite(leaves.scores, others.scores))),
        histogram=bin_scores(leaves.scores, others.scores, unseen.scores),
    )
    return RejectionRun(rejection, others, unseen)


def _score_images(
    fp16: PlantClassifier, int8: PlantClassifier, images: NonPlantSet | None, name: ImageSetName, set_size: int
) -> ScoredImages:
    if images is None:
        return ScoredImages((), (), np.empty(0), np.empty(0), ())
    paths: list[Path] = []
    rows: list[ImageRow] = []
    scores: list[Scores] = [np.empty(0)]
    fp16_scores: list[Scores] = [np.empty(0)]
    stream = ImageStream(images.paths, int8.metadata.preprocessing, set_size=set_size, description=f"measure {name}")
    for positions, inputs in stream.batches(BATCH):
        batch = [images.paths[position] for position in positions]
        (fp16_logits, fp16_embeddings), (logits, embeddings) = fp16.embed(inputs), int8.embed(inputs)
        paths += batch
        scores.append(int8.detector.score(embeddings))
        fp16_scores.append(int8.detector.score(fp16_embeddings))
        rows += _make_rows(images, name, batch, fp16_logits, logits, scores[-1], int8)
    return ScoredImages(
        tuple(paths), tuple(rows), np.concatenate(scores), np.concatenate(fp16_scores), stream.unreadable
    )


def _make_rows(
    images: NonPlantSet,
    name: ImageSetName,
    paths: Sequence[Path],
    fp16_logits: Logits,
    logits: Logits,
    scores: Scores,
    int8: PlantClassifier,
) -> list[ImageRow]:
    names, temperature = int8.taxonomy.species, int8.metadata.species_temperature
    probabilities = softmax(logits, temperature).max(axis=1)
    return [
        ImageRow(
            set=name,
            source=images.source_of(path),
            name=name_in_report(images.root, path),
            species="",
            disease="",
            fp16_species=names[fp16],
            fp16_disease="",
            int8_species=names[best],
            int8_disease="",
            int8_routed_disease="",
            int8_soft_disease="",
            species_probability=float(probability),
            ood_score=float(score),
            rejected=bool(rejected),
        )
        for path, fp16, best, probability, score, rejected in zip(
            paths,
            fp16_logits.argmax(axis=1).tolist(),
            logits.argmax(axis=1).tolist(),
            probabilities,
            scores,
            int8.detector.rejects(scores),
            strict=True,
        )
    ]


def _count_true(hits: Mask) -> Proportion:
    return Proportion(int(hits.sum()), len(hits))


def _count_true_by_name(names: Sequence[str], hits: Mask) -> dict[str, Proportion]:
    labels = np.array(names, dtype=object)
    return {name: _count_true(hits[labels == name]) for name in sorted(set(names))}


def measure_separation(plants: Scores, others: Scores) -> Separation | None:
    """Return AUROC and false alarms at 95 % recall, each with a bootstrap interval.

    Scores that are not finite are left out.

    Args:
        plants: (N,) scores of leaves.
        others: (M,) scores of other images.

    Returns:
        The two estimates; None if there are no plants or no other images.
    """
    plants, others = _keep_finite(plants, others)
    if not len(plants) or not len(others):
        return None

    def false_alarms(plants: Scores, others: Scores) -> float:
        return fpr_at_recall(plants, others, _RECALL)

    area, alarms = (
        Estimate(statistic(plants, others), *bootstrap(statistic, plants, others))
        for statistic in (auroc, false_alarms)
    )
    return Separation(area, alarms)


def _keep_finite(*groups: Scores) -> list[Scores]:
    return [scores[np.isfinite(scores)] for scores in groups]


def _measure_separation_by_source(plants: Scores, others: ScoredImages) -> dict[str, Separation]:
    sources = np.array(others.sources, dtype=object)
    found = {name: measure_separation(plants, others.scores[sources == name]) for name in sorted(set(others.sources))}
    return {name: separation for name, separation in found.items() if separation is not None}


def bin_scores(plants: Scores, non_plants: Scores, unseen_plants: Scores) -> Histogram:
    """Return the finite scores of each group, counted in `HISTOGRAM_BINS` bins of equal width from lowest to highest.

    Args:
        plants: (N,) scores.
        non_plants: (M,) scores.
        unseen_plants: (K,) scores.
    """
    groups = _keep_finite(plants, non_plants, unseen_plants)
    everything = np.concatenate(groups)
    if not len(everything):
        return Histogram((), (), (), ())
    edges = np.histogram_bin_edges(everything, HISTOGRAM_BINS)
    counts = [tuple(np.histogram(scores, edges)[0].tolist()) for scores in groups]
    return Histogram(tuple(edges.tolist()), *counts)


def count_flips(network: "HierarchicalNetwork", int8: PlantClassifier, inputs: Inputs) -> Proportion:
    """Return how many images are rejected by their INT8 embedding and not by PyTorch's float32 one, or the reverse.

    Args:
        network: the checkpoint's network.
        int8: the bundle as it is served.
        inputs: (N, 3, P, P) float32, normalized.
    """
    import torch  # takes seconds

    flips = []
    for start in range(0, len(inputs), BATCH):
        batch = inputs[start : start + BATCH]
        with torch.inference_mode():
            reference = network(torch.from_numpy(batch))[1].numpy()
        by_pytorch, by_int8 = (
            int8.detector.rejects(int8.detector.score(embeddings)) for embeddings in (reference, int8.embed(batch)[1])
        )
        flips.append(by_pytorch != by_int8)
    return _count_true(np.concatenate(flips))
