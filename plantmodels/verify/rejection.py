"""How well the detector rejects what is no plant, at the threshold that is served.

>>> rejection = measure_rejection(classifier, scores, names, non_plants, unreadable=[])  # doctest: +SKIP
>>> rejection.recall, rejection.precision  # doctest: +SKIP
(0.961, 0.991)
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from plantmodels.build.data import NonPlantSet, UnreadableImage, stream_batches
from plantmodels.serve.classifier import PlantClassifier
from plantmodels.verify.accuracy import BATCH
from plantmodels.verify.measurements import Histogram, Rejection, Share

HISTOGRAM_BINS: Final = 60


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
    classifier: PlantClassifier,
    plant_scores: NDArray[np.float64],
    plant_species: Sequence[str],
    non_plants: NonPlantSet | None,
    *,
    unreadable: list[UnreadableImage],
) -> Rejection:
    """Scores the non-plants and holds them and the plants against the threshold.

    Args:
        classifier: the bundle as it is served.
        plant_scores: (N,) float64, from the accuracy pass.
        plant_species: (N,) true species of each.
        non_plants: all that were given, or None; `gate_images` chooses among them.
        unreadable: files that are skipped are appended here.

    Raises:
        DataError: too many unreadable files.
    """
    detector = classifier.detector
    used, held_out = (None, False) if non_plants is None else gate_images(non_plants, detector.fit)
    total = 0 if non_plants is None else len(non_plants.paths)
    sources, scores = _score_non_plants(classifier, used, total, unreadable)
    plants_rejected, non_plants_rejected = detector.rejects(plant_scores), detector.rejects(scores)
    return Rejection(
        threshold=detector.threshold,
        plants=Share(int(plants_rejected.sum()), len(plant_scores)),
        non_plants=Share(int(non_plants_rejected.sum()), len(scores)),
        held_out=held_out,
        by_source=_count_by(sources, non_plants_rejected),
        by_species=_count_by(plant_species, plants_rejected),
        histogram=bin_scores(plant_scores, scores),
    )


def _score_non_plants(
    classifier: PlantClassifier, non_plants: NonPlantSet | None, total: int, unreadable: list[UnreadableImage]
) -> tuple[list[str], NDArray[np.float64]]:
    sources: list[str] = []
    scores: list[NDArray[np.float64]] = [np.empty(0)]
    if non_plants is not None:
        preprocessing = classifier.metadata.preprocessing
        for positions, pixels in stream_batches(
            non_plants.paths,
            preprocessing,
            size=BATCH,
            unreadable=unreadable,
            out_of=total,
            description="measure rejection",
        ):
            sources += [non_plants.source_of(non_plants.paths[position]) for position in positions]
            scores.append(classifier.detector.score(classifier.embed(pixels)[1]))
    return sources, np.concatenate(scores)


def _count_by(names: Sequence[str], rejected: NDArray[np.bool_]) -> dict[str, Share]:
    labels = np.array(names, dtype=object)
    return {
        name: Share(int(rejected[labels == name].sum()), int((labels == name).sum())) for name in sorted(set(names))
    }


def bin_scores(plants: NDArray[np.float64], non_plants: NDArray[np.float64]) -> Histogram:
    """Counts scores in `HISTOGRAM_BINS` equal bins from the lowest to the highest of all.

    Args:
        plants: (N,) scores.
        non_plants: (M,) scores.
    """
    groups = [scores[np.isfinite(scores)] for scores in (plants, non_plants)]
    both = np.concatenate(groups)
    if not len(both):
        return Histogram((), (), ())
    edges = np.histogram_bin_edges(both, HISTOGRAM_BINS)
    counts = [tuple(np.histogram(scores, edges)[0].tolist()) for scores in groups]
    return Histogram(tuple(edges.tolist()), counts[0], counts[1])
