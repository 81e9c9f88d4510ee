"""Fits the detectors that a bundle can hold, and scores images by fits that did not see them.

Leaves that calibrate are in no fit, so the detector itself scores them. Without such leaves, training leaves are scored
by cross-validation. A detector that is fitted on non-plants scores these by cross-validation too, in `ROUNDS` rounds
with different folds, so that no single assignment to folds decides the threshold.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from plantmodels.arrays import Embeddings, Mask, Scores
from plantmodels.bundle.detector import Method, OODDetector
from plantmodels.ood.cross_validation import HeldOutScores, assign_folds, list_folds
from plantmodels.ood.embeddings import LeafEmbeddings, NonPlantEmbeddings
from plantmodels.ood.moments import Gaussian, RunningMoments, fit_detector, fit_gaussian, fit_pair

ROUNDS: Final = 20
"""Rounds with different folds of the non-plants, whose scores are averaged."""

PLANT_ROUNDS: Final = 5
"""Rounds with different folds of the leaves, where training leaves calibrate. A fit on leaves takes longest."""


@dataclass(frozen=True)
class Images:
    """The images that fit and calibrate detectors.

    Attributes:
        plants: training leaves.
        non_plants: the selection half of the non-plants, or None.
        calibration: leaves that give threshold and p-values, and are in no fit; None takes the training leaves.
        further: moments of further training leaves with the same class numbers, or None. They enter the fits on all
            leaves.
        seed: seed of the folds.
    """

    plants: LeafEmbeddings
    non_plants: NonPlantEmbeddings | None
    calibration: LeafEmbeddings | None
    further: RunningMoments | None
    seed: int

    @property
    def fresh(self) -> LeafEmbeddings:
        """The leaves that threshold and p-values rest on."""
        return self.plants if self.calibration is None else self.calibration

    @property
    def seeds(self) -> list[int]:
        """The seeds of all rounds. Two exports with different seeds share none."""
        return [self.seed * ROUNDS + number for number in range(ROUNDS)]


@dataclass(frozen=True)
class Scored:
    """A detector, and the scores of images by fits that did not see them.

    Attributes:
        detector: fitted on all images; its threshold rejects nothing yet.
        plants: (N,) scores of the leaves that threshold and p-values rest on.
        rounds: the scores (M,) of the non-plants by each round; a single round if the detector is not fitted on them,
            and no array without non-plants.
    """

    detector: OODDetector
    plants: Scores
    rounds: tuple[Scores, ...]

    @property
    def scores(self) -> HeldOutScores:
        """The scores of the leaves, and the mean of the non-plants' scores over all rounds."""
        return HeldOutScores(self.plants, np.mean(self.rounds, axis=0) if self.rounds else np.empty(0))


def score_held_out(method: Method, images: Images, *, plant_rounds: int = PLANT_ROUNDS) -> Scored:
    """Fit a detector on all images, and score them by fits that did not see them.

    Args:
        method: the method of the detector.
        images: what to fit on and to score.
        plant_rounds: rounds of cross-validation of training leaves, if these calibrate.

    Raises:
        DetectorError: embeddings are not finite or do not vary.
    """
    moments = _sum_plants(images.plants, None, images.further)
    others = images.non_plants if method == "gaussian_ratio" else None
    detector = fit_detector(moments, method, None if others is None else _sum_others(others, None))
    if images.calibration is None:
        plants = np.mean([cross_fit(method, images, seed) for seed in images.seeds[:plant_rounds]], axis=0)
    else:
        plants = detector.score(images.calibration.outputs.features)
    if images.non_plants is None:
        return Scored(detector, plants, ())
    if others is None:
        return Scored(detector, plants, (detector.score(images.non_plants.outputs.features),))
    return Scored(detector, plants, tuple(_cross_fit_others(moments, others, seed) for seed in images.seeds))


def cross_fit(method: Method, images: Images, seed: int) -> Scores:
    """Return the score of each training leaf by a fit on the leaves of the other folds and on all non-plants.

    Args:
        method: the method of the detector.
        images: the training leaves and the non-plants.
        seed: seed of the folds.
    """
    plants, features = images.plants, images.plants.outputs.features
    folds, squared = assign_folds(len(features), plants.groups, seed), np.empty(len(features))
    others = images.non_plants if method == "gaussian_ratio" else None
    known = None if others is None else _sum_others(others, None)
    for fold in list_folds(folds):
        rows, moments = folds == fold, _sum_plants(plants, folds != fold, None)
        if known is None:
            near = fit_gaussian(moments.pooled() if method == "mahalanobis" else moments, "training")
            squared[rows] = near.squared_distances(features[rows])
        else:
            squared[rows] = _score_ratio(fit_pair(moments, known), features[rows])
    return np.sqrt(squared) if known is None else squared


def _score_ratio(pair: tuple[Gaussian, Gaussian], features: Embeddings) -> Scores:
    near, other = pair
    return near.squared_distances(features) - other.squared_distances(features)


def _sum_plants(plants: LeafEmbeddings, rows: Mask | None, further: RunningMoments | None) -> RunningMoments:
    dim = plants.outputs.features.shape[1]
    moments = RunningMoments(int(plants.classes.max()) + 1, dim) if further is None else further.copy()
    chosen = slice(None) if rows is None else rows
    moments.update(plants.classes[chosen], plants.outputs.features[chosen])
    return moments


def _sum_others(non_plants: NonPlantEmbeddings, rows: Mask | None) -> RunningMoments:
    features = non_plants.outputs.features if rows is None else non_plants.outputs.features[rows]
    moments = RunningMoments(1, features.shape[1])
    moments.update(np.zeros(len(features), np.int64), features)
    return moments


def _cross_fit_others(plants: RunningMoments, non_plants: NonPlantEmbeddings, seed: int) -> Scores:
    """Return the score of each non-plant by a fit on all plants and on the non-plants of the other folds."""
    features = non_plants.outputs.features
    folds, scores = assign_folds(len(features), non_plants.groups, seed), np.empty(len(features))
    for fold in list_folds(folds):
        pair = fit_pair(plants, _sum_others(non_plants, folds != fold))
        scores[folds == fold] = _score_ratio(pair, features[folds == fold])
    return scores
