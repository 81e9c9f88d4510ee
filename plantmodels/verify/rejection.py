"""How well the detector rejects what is no plant, at the threshold that is served, and at any other.

>>> run = measure_rejection(fp16, int8, leaves, non_plants, unseen_plants)  # doctest: +SKIP
>>> run.rejection.recall, run.rejection.precision  # doctest: +SKIP
(0.968, 0.991)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

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
_RECALL: Final = 0.95


@dataclass(frozen=True)
class ScoredImages:
    """Readable images of no known plant, as INT8 and FP16 see them.

    Attributes:
        paths: N image files.
        rows: the answers to them.
        scores: (N,) float64, of the INT8 embedding.
        fp16_scores: (N,) float64.
        unreadable: files that were skipped.
    """

    paths: tuple[Path, ...]
    rows: tuple[ImageRow, ...]
    scores: NDArray[np.float64]
    fp16_scores: NDArray[np.float64]
    unreadable: tuple[UnreadableImage, ...]

    @property
    def sources(self) -> list[str]:
        """The folder of each."""
        return [row.source for row in self.rows]


@dataclass(frozen=True)
class RejectionRun:
    """What was measured, and the images behind it."""

    rejection: Rejection
    non_plants: ScoredImages
    unseen_plants: ScoredImages


def gate_images(non_plants: NonPlantSet, fit: Mapping[str, object]) -> tuple[NonPlantSet, bool]:
    """The non-plants that gates may measure: the held-out half if the other half chose the detector.

    Args:
        non_plants: all.
        fit: how the detector was fitted, from its file.

    Returns:
        The images, and whether they are the held-out half.
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
    """Scores non-plants and unseen plants and holds them and the leaves against the threshold.

    Args:
        fp16: the bundle with its FP16 species model.
        int8: the bundle as it is served.
        leaves: of the accuracy pass.
        non_plants: all that were given, or None; `gate_images` chooses among them.
        unseen_plants: plants of no known species, or None.

    Raises:
        DataError: too many unreadable files.
    """
    detector = int8.detector
    used, held_out = (None, False) if non_plants is None else gate_images(non_plants, detector.fit)
    total = 0 if non_plants is None else len(non_plants.paths)
    others = _score(fp16, int8, used, "non-plants", total)
    total = 0 if unseen_plants is None else len(unseen_plants.paths)
    unseen = _score(fp16, int8, unseen_plants, "unseen-plants", total)
    rejected = {
        name: detector.rejects(scores)
        for name, scores in (("plants", leaves.scores), ("others", others.scores), ("unseen", unseen.scores))
    }
    all_scores = [
        np.concatenate(pair)
        for pair in (
            (leaves.scores, others.scores, unseen.scores),
            (leaves.fp16_scores, others.fp16_scores, unseen.fp16_scores),
        )
    ]
    rejection = Rejection(
        threshold=detector.threshold,
        plants=_count(rejected["plants"]),
        non_plants=_count(rejected["others"]),
        unseen_plants=_count(rejected["unseen"]),
        held_out=held_out,
        by_source=_count_by(others.sources, rejected["others"]),
        by_unseen_source=_count_by(unseen.sources, rejected["unseen"]),
        by_species=_count_by([row.species for row in leaves.rows], rejected["plants"]),
        flips={"fp16": _count(detector.rejects(all_scores[0]) != detector.rejects(all_scores[1]))},
        separation=measure_separation(leaves.scores, others.scores),
        separation_by_source=_separate_by(leaves.scores, others),
        separation_by_unseen_source=_separate_by(leaves.scores, unseen),
        roc=tuple(roc_curve(*_keep_finite(leaves.scores, others.scores))),
        histogram=bin_scores(leaves.scores, others.scores, unseen.scores),
    )
    return RejectionRun(rejection, others, unseen)


def _score(
    fp16: PlantClassifier,
    int8: PlantClassifier,
    images: NonPlantSet | None,
    which: ImageSetName,
    total: int,
) -> ScoredImages:
    paths: list[Path] = []
    rows: list[ImageRow] = []
    scores: list[NDArray[np.float64]] = [np.empty((0, 2))]
    if images is None:
        return ScoredImages((), (), np.empty(0), np.empty(0), ())
    stream = ImageStream(images.paths, int8.metadata.preprocessing, set_size=total, description=f"measure {which}")
    for positions, pixels in stream.batches(BATCH):
        batch = [images.paths[position] for position in positions]
        (fp16_logits, fp16_embedding), (logits, embedding) = fp16.embed(pixels), int8.embed(pixels)
        both = np.stack([int8.detector.score(features) for features in (embedding, fp16_embedding)], axis=1)
        paths += batch
        rows += _describe(images, which, batch, fp16_logits, logits, both[:, 0], int8)
        scores.append(both)
    joined = np.concatenate(scores)
    return ScoredImages(tuple(paths), tuple(rows), joined[:, 0], joined[:, 1], stream.unreadable)


def _describe(
    images: NonPlantSet,
    which: ImageSetName,
    paths: Sequence[Path],
    fp16_logits: NDArray[np.float32],
    logits: NDArray[np.float32],
    scores: NDArray[np.float64],
    int8: PlantClassifier,
) -> list[ImageRow]:
    names, temperature = int8.taxonomy.species, int8.metadata.species_temperature
    probabilities = softmax(logits, temperature).max(axis=1)
    return [
        ImageRow(
            set=which,
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


def _count(hits: NDArray[np.bool_]) -> Proportion:
    return Proportion(int(hits.sum()), len(hits))


def _count_by(names: Sequence[str], rejected: NDArray[np.bool_]) -> dict[str, Proportion]:
    labels = np.array(names, dtype=object)
    return {name: _count(rejected[labels == name]) for name in sorted(set(names))}


def measure_separation(plants: NDArray[np.float64], others: NDArray[np.float64]) -> Separation | None:
    """AUROC and false alarms at 95 % recall, both with intervals.

    Args:
        plants: (N,) scores; those that are not finite are left out.
        others: (M,) scores of non-plants, likewise.

    Returns:
        None where either has none.
    """
    plants, others = _keep_finite(plants, others)
    if not len(plants) or not len(others):
        return None

    def false_alarms(plants: NDArray[np.float64], others: NDArray[np.float64]) -> float:
        return fpr_at_recall(plants, others, _RECALL)

    area, alarms = (
        Estimate(statistic(plants, others), *bootstrap(statistic, plants, others))
        for statistic in (auroc, false_alarms)
    )
    return Separation(area, alarms)


def _keep_finite(*groups: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    return [scores[np.isfinite(scores)] for scores in groups]


def _separate_by(plants: NDArray[np.float64], others: ScoredImages) -> dict[str, Separation]:
    sources = np.array(others.sources, dtype=object)
    found = {name: measure_separation(plants, others.scores[sources == name]) for name in sorted(set(others.sources))}
    return {name: separation for name, separation in found.items() if separation is not None}


def bin_scores(
    plants: NDArray[np.float64], non_plants: NDArray[np.float64], unseen_plants: NDArray[np.float64]
) -> Histogram:
    """Counts scores in `HISTOGRAM_BINS` equal bins from the lowest to the highest of all.

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


def count_flips(network: "HierarchicalNetwork", int8: PlantClassifier, pixels: NDArray[np.float32]) -> Proportion:
    """How many images PyTorch's float32 embedding decides otherwise than the INT8 one that is served.

    Args:
        network: the checkpoint's.
        int8: the bundle as it is served.
        pixels: (N, 3, S, S) float32, normalised.
    """
    import torch  # takes seconds to import

    flips = []
    for start in range(0, len(pixels), BATCH):
        batch = pixels[start : start + BATCH]
        with torch.inference_mode():
            reference = network(torch.from_numpy(batch))[1].numpy()
        decisions = [int8.detector.rejects(int8.detector.score(e)) for e in (reference, int8.embed(batch)[1])]
        flips.append(decisions[0] != decisions[1])
    return _count(np.concatenate(flips))
