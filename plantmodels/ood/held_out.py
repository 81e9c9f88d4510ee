"""Fits the detectors that a bundle can hold, and scores images by fits that did not see them.

Leaves that calibrate are in no fit, so the detector itself scores them. Without such leaves, training leaves are scored
by cross-validation. A detector that is fitted on non-plants scores these by cross-validation too, in `ROUNDS` rounds
with different folds, so that no single assignment to folds decides the threshold.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from plantmodels.arrays import Mask, Scores
from plantmodels.bundle.detector import Method, OODDetector
from plantmodels.ood.cross_validation import FOLDS, HeldOutScores, assign_folds
from plantmodels.ood.embeddings import LeafEmbeddings, NonPlantEmbeddings
from plantmodels.ood.moments import Gaussian, RunningMoments, add_other, fit_detector, fit_gaussian

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
    detector = fit_detector(_sum_plants(images.plants, None, images.further), _plain(method))
    near, others = detector, images.non_plants if method == "gaussian_ratio" else None
    if others is not None:
        detector = add_other(near, _fit_others(others, None))
    if images.calibration is None:
        plants = np.mean([cross_fit(method, images, seed) for seed in images.seeds[:plant_rounds]], axis=0)
    else:
        plants = detector.score(images.calibration.outputs.features)
    if images.non_plants is None:
        return Scored(detector, plants, ())
    scores = near.score(images.non_plants.outputs.features)
    if others is None:
        return Scored(detector, plants, (scores,))
    rounds = (scores**2 - _cross_fit_others(others, seed) for seed in images.seeds)
    return Scored(detector, plants, tuple(rounds))


def cross_fit(method: Method, images: Images, seed: int) -> Scores:
    """Return the score of each training leaf by a fit on the leaves of the other folds and on all non-plants.

    Args:
        method: the method of the detector.
        images: the training leaves and the non-plants.
        seed: seed of the folds.
    """
    plants, features = images.plants, images.plants.outputs.features
    folds, squared = assign_folds(len(features), plants.groups, seed), np.empty(len(features))
    for fold in range(FOLDS):
        moments = _sum_plants(plants, folds != fold, None)
        near = fit_gaussian(moments.pooled() if method == "mahalanobis" else moments, "training")
        squared[folds == fold] = near.squared_distances(features[folds == fold])
    if method != "gaussian_ratio" or images.non_plants is None:
        return np.sqrt(squared)
    return squared - _fit_others(images.non_plants, None).squared_distances(features)


def _plain(method: Method) -> Method:
    """Return the method without non-plants."""
    return "class_mahalanobis" if method == "gaussian_ratio" else method


def _sum_plants(plants: LeafEmbeddings, rows: Mask | None, further: RunningMoments | None) -> RunningMoments:
    dim = plants.outputs.features.shape[1]
    moments = RunningMoments(int(plants.classes.max()) + 1, dim) if further is None else further.copy()
    chosen = slice(None) if rows is None else rows
    moments.update(plants.classes[chosen], plants.outputs.features[chosen])
    return moments


def _fit_others(non_plants: NonPlantEmbeddings, rows: Mask | None) -> Gaussian:
    features = non_plants.outputs.features if rows is None else non_plants.outputs.features[rows]
    moments = RunningMoments(1, features.shape[1])
    moments.update(np.zeros(len(features), np.int64), features)
    return fit_gaussian(moments, "non-plant")


def _cross_fit_others(non_plants: NonPlantEmbeddings, seed: int) -> Scores:
    """Return the squared distance of each non-plant to the Gaussian of the non-plants in the other folds."""
    features = non_plants.outputs.features
    folds, squared = assign_folds(len(features), non_plants.groups, seed), np.empty(len(features))
    for fold in range(FOLDS):
        squared[folds == fold] = _fit_others(non_plants, folds != fold).squared_distances(features[folds == fold])
    return squared
