"""Measures out-of-distribution methods on leaves and known non-plants that they were not fitted on.

Every score that counts comes from a fit that saw neither the leaf nor the non-plant. Leaves that calibrate are in no
fit, so they need no folds. Without such leaves, training leaves are scored by cross-validation. Non-plants always are.

References:
    Vovk, "Cross-conformal Predictors", 2015 (arXiv:1208.0806).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from plantmodels.arrays import Labels, Scores
from plantmodels.ood.baselines import FitData, Scorer
from plantmodels.ood.embeddings import LeafEmbeddings, NonPlantEmbeddings
from plantmodels.ood.metrics import auroc, fpr_at_recall
from plantmodels.ood.moments import MIN_FIT_IMAGES
from plantmodels.ood.threshold import TARGET_RECALL

FOLDS: Final = 5

FALSE_ALARMS: Final = 0.01
"""Methods are compared at the threshold that rejects this share of the plants."""

MIN_NON_PLANTS: Final = 20
"""With fewer non-plants there is not enough evidence to prefer one method to another."""

_SPECIES_GROUPS: Final = 4
"""Each group of species in turn is left out of the fit, to see how unknown species are judged."""

Fit = Callable[[FitData], Scorer]
"""Fits a method and returns the function that scores images."""


@dataclass(frozen=True)
class HeldOutScores:
    """Scores by fits that did not see the image.

    Attributes:
        plants: (N,) one score per leaf.
        non_plants: (M,) one score per non-plant; empty without non-plants.
    """

    plants: Scores
    non_plants: Scores


@dataclass(frozen=True)
class DetectorTrial:
    """The cross-validated result of one method.

    All shares rejected refer to the threshold that rejects 1 % of the plants (`FALSE_ALARMS`).

    Attributes:
        method: name of the method.
        served: whether a bundle can hold this detector; the others are only for comparison.
        exposed: whether the method was fitted on non-plants too (outlier exposure).
        auroc: area under the ROC curve of non-plants against plants.
        fpr_at_95_recall: share of plants rejected at the threshold that rejects 95 % of the non-plants.
        recall: share of the non-plants rejected.
        by_source: source to the share of its non-plants rejected.
        by_unseen_source: source to the share of its non-plants rejected by a fit without this source. A source is
            left out if fewer than `MIN_NON_PLANTS` remain without it.
        unseen_species: share of leaves rejected whose species the fit did not see; None if too few leaves remain.
    """

    method: str
    served: bool
    exposed: bool
    auroc: float
    fpr_at_95_recall: float
    recall: float
    by_source: Mapping[str, float]
    by_unseen_source: Mapping[str, float]
    unseen_species: float | None


def cross_validate(fit: Fit, plants: LeafEmbeddings, non_plants: NonPlantEmbeddings | None, seed: int) -> HeldOutScores:
    """Score every training leaf and every non-plant by a fit on the other folds.

    Args:
        fit: function that fits the method.
        plants: N training leaves.
        non_plants: M non-plants, or None.
        seed: seed of the assignment to `FOLDS` folds.
    """
    plant_folds = assign_folds(len(plants.outputs), plants.groups, seed)
    non_plant_folds = _assign_non_plants(non_plants, seed)
    scores = HeldOutScores(np.empty(len(plant_folds)), np.empty(len(non_plant_folds)))
    for fold in list_folds(plant_folds, non_plant_folds):
        seen, seen_non_plants = plant_folds != fold, non_plant_folds != fold
        known = None if non_plants is None else non_plants.outputs[seen_non_plants]
        score = fit(FitData(plants.outputs[seen], plants.classes[seen], known))
        if not seen.all():
            scores.plants[~seen] = score(plants.outputs[~seen])
        if non_plants is not None and not seen_non_plants.all():
            scores.non_plants[~seen_non_plants] = score(non_plants.outputs[~seen_non_plants])
    return scores


def score_fresh(
    fit: Fit, plants: LeafEmbeddings, fresh: LeafEmbeddings, non_plants: NonPlantEmbeddings | None, seed: int | None
) -> HeldOutScores:
    """Score leaves that are in no fit by a fit on everything, and non-plants by fits on the other folds of them.

    The scores of the leaves are those that the detector on everything gives, so they are exchangeable with the scores
    of fresh leaves.

    Args:
        fit: function that fits the method.
        plants: training leaves.
        fresh: N leaves that are not among them.
        non_plants: M non-plants, or None.
        seed: seed of the folds of the non-plants; None for a method that is not fitted on them, which needs no folds.
    """
    score = fit(FitData(plants.outputs, plants.classes, None if non_plants is None else non_plants.outputs))
    if non_plants is None or seed is None:
        return HeldOutScores(score(fresh.outputs), np.empty(0) if non_plants is None else score(non_plants.outputs))
    scores = HeldOutScores(score(fresh.outputs), np.empty(len(non_plants.outputs)))
    folds = _assign_non_plants(non_plants, seed)
    for fold in list_folds(folds):
        score = fit(FitData(plants.outputs, plants.classes, non_plants.outputs[folds != fold]))
        scores.non_plants[folds == fold] = score(non_plants.outputs[folds == fold])
    return scores


def assign_folds(count: int, groups: Labels | None, seed: int) -> Labels:
    """Return the fold of each image, 0 to `FOLDS` − 1; images of one group have the same.

    Groups are taken in random order, the largest first, and each goes into the fold that has the fewest images. So the
    seed does not change the sizes of the folds. With fewer groups than folds, there are as many folds as groups.

    Args:
        count: N, the number of images.
        groups: (N,) number of each image's group; None if each image is a group of its own.
        seed: another seed gives other folds.
    """
    if groups is None:
        return np.random.default_rng(seed).permutation(count) % FOLDS
    _, number, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.argsort(np.random.default_rng(seed).permutation(len(sizes)))
    fold_of_group, images = np.empty(len(sizes), np.int64), [0] * FOLDS
    for group in order[np.argsort(-sizes[order], kind="stable")].tolist():
        smallest = images.index(min(images))
        fold_of_group[group] = smallest
        images[smallest] += int(sizes[group])
    return fold_of_group[number]


def list_folds(*folds: Labels) -> list[int]:
    """Return the folds that hold images, in order; `folds` is one or several results of `assign_folds`."""
    return [int(fold) for fold in np.unique(np.concatenate(folds))]


def count_left_to_fit(count: int, groups: Labels | None) -> int:
    """Return how many images are left to fit on when the largest fold is scored, whatever the seed is.

    Args:
        count: N, the number of images.
        groups: (N,) number of each image's group; None if each image is a group of its own.
    """
    return count - int(np.bincount(assign_folds(count, groups, 0), minlength=1).max())


def _assign_non_plants(non_plants: NonPlantEmbeddings | None, seed: int) -> Labels:
    if non_plants is None:
        return assign_folds(0, None, seed)
    return assign_folds(len(non_plants.outputs), non_plants.groups, seed)


def measure_trial(
    method: str,
    fit: Fit,
    plants: LeafEmbeddings,
    non_plants: NonPlantEmbeddings,
    scores: HeldOutScores,
    *,
    served: bool,
    exposed: bool,
) -> DetectorTrial:
    """Measure a method by its cross-validated scores, and by further fits without each source and group of species.

    Args:
        method: name of the method.
        fit: function that fits the method.
        plants: N training leaves.
        non_plants: M non-plants.
        scores: cross-validated scores of the same images.
        served: whether a bundle can hold this detector.
        exposed: whether the method is fitted on non-plants too.
    """
    threshold = float(np.quantile(scores.plants, 1 - FALSE_ALARMS, method="higher"))
    by_source = {
        source: float((scores.non_plants[non_plants.sources == source] > threshold).mean())
        for source in np.unique(non_plants.sources).tolist()
    }
    return DetectorTrial(
        method=method,
        served=served,
        exposed=exposed,
        auroc=auroc(scores.plants, scores.non_plants),
        fpr_at_95_recall=fpr_at_recall(scores.plants, scores.non_plants, TARGET_RECALL),
        recall=float((scores.non_plants > threshold).mean()),
        by_source=by_source,
        by_unseen_source=_measure_unseen_sources(fit, plants, non_plants, threshold) if exposed else by_source,
        unseen_species=_measure_unseen_species(fit, plants, non_plants, threshold),
    )


def _measure_unseen_sources(
    fit: Fit, plants: LeafEmbeddings, non_plants: NonPlantEmbeddings, threshold: float
) -> dict[str, float]:
    shares = {}
    for source in np.unique(non_plants.sources).tolist():
        unseen = non_plants.sources == source
        if (~unseen).sum() >= MIN_NON_PLANTS:
            score = fit(FitData(plants.outputs, plants.classes, non_plants.outputs[~unseen]))
            shares[source] = float((score(non_plants.outputs[unseen]) > threshold).mean())
    return shares


def _measure_unseen_species(
    fit: Fit, plants: LeafEmbeddings, non_plants: NonPlantEmbeddings, threshold: float
) -> float | None:
    names, number = np.unique(plants.species, return_inverse=True)
    rejected = 0
    for group in range(min(_SPECIES_GROUPS, len(names))):
        unseen = number % _SPECIES_GROUPS == group
        if (~unseen).sum() < MIN_FIT_IMAGES:
            return None
        score = fit(FitData(plants.outputs[~unseen], plants.classes[~unseen], non_plants.outputs))
        rejected += int((score(plants.outputs[unseen]) > threshold).sum())
    return rejected / len(number)
