"""Selects the detector that a bundle serves, and its threshold, by cross-validated evidence.

The selection half of the non-plants is used here; the gates measure the other half.

References:
    McNemar, "Note on the Sampling Error of the Difference Between Correlated Proportions or Percentages", 1947.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from scipy.stats import binomtest
from threadpoolctl import threadpool_limits

from plantmodels.bundle.detector import METHODS, Method, OODDetector
from plantmodels.data.non_plants import BY_GROUP, HALVES_BY
from plantmodels.data.progress import log_step
from plantmodels.errors import DetectorError
from plantmodels.ood.baselines import BASELINES, FitData, Scorer
from plantmodels.ood.cross_validation import (
    FOLDS,
    MIN_NON_PLANTS,
    DetectorTrial,
    Fit,
    HeldOutScores,
    cross_validate,
    measure_trial,
)
from plantmodels.ood.embeddings import LeafEmbeddings, NonPlantEmbeddings
from plantmodels.ood.moments import MIN_FIT_IMAGES, RunningMoments, fit_detector
from plantmodels.ood.threshold import TARGET_PRECISION, Threshold, choose_threshold

MIN_TRAINING_IMAGES: Final = math.ceil(MIN_FIT_IMAGES * FOLDS / (FOLDS - 1))
"""With this many leaves, each fold leaves `MIN_FIT_IMAGES` to fit on."""

_CLASSIC: Final = METHODS[0]
"""Taken unless another method is better beyond noise: one mean, one covariance."""

_SIGNIFICANCE: Final = 0.05
_MAX_BASELINE_PLANTS: Final = 2_000
"""Some methods of the literature take minutes on more leaves, and they only serve as a comparison."""


@dataclass(frozen=True)
class Selection:
    """The detector to serve and the evidence for it.

    Attributes:
        detector: fitted on all images, with its threshold.
        reason: one line that says why this method was taken.
        trials: one result per method; empty without enough non-plants.
    """

    detector: OODDetector
    reason: str
    trials: tuple[DetectorTrial, ...]


def check_image_count(images: int) -> None:
    """Raise an error if there are too few training leaves; called before any of them is embedded.

    Args:
        images: number of training leaves.

    Raises:
        DetectorError: there are fewer than `MIN_TRAINING_IMAGES`.
    """
    if images < MIN_TRAINING_IMAGES:
        raise DetectorError(f"the detector needs at least {MIN_TRAINING_IMAGES} training images, got {images}")


def select_detector(
    plants: LeafEmbeddings,
    non_plants: NonPlantEmbeddings | None,
    *,
    further_moments: RunningMoments | None = None,
    seed: int = 0,
) -> Selection:
    """Try every method and return the best one that a bundle can hold, fitted on all images, with its threshold.

    A method replaces a simpler one only if three conditions hold. At its own threshold it rejects more non-plants,
    beyond noise (McNemar's test at 5 %). It rejects at least as many non-plants from sources that the fit did not
    see. It reaches the target precision if the simpler one does. With fewer than `MIN_NON_PLANTS` non-plants there is
    no evidence to choose by, so the classic detector is taken.

    Linear algebra runs on one thread: with several the last bits differ, and on a busy machine it takes twenty times
    as long.

    Args:
        plants: training leaves.
        non_plants: the selection half of the non-plants, or None.
        further_moments: moments of further training leaves with the same class numbers. They only enter the final
            fit, and are not changed.
        seed: seed of the folds.

    Raises:
        DetectorError: there are too few leaves, or embeddings are not finite or do not vary.
    """
    check_image_count(len(plants.outputs))
    with threadpool_limits(1):
        count = 0 if non_plants is None else len(non_plants.outputs)
        if non_plants is None or count < MIN_NON_PLANTS:
            return _take_classic(plants, count, further_moments, seed)
        return _select_by_evidence(plants, non_plants, further_moments, seed)


def _take_classic(plants: LeafEmbeddings, non_plants: int, further: RunningMoments | None, seed: int) -> Selection:
    scores = cross_validate(_make_fit(_CLASSIC), plants, None, seed)
    threshold = choose_threshold(scores.plants, None)
    reason = f"{non_plants} non-plants to choose by, at least {MIN_NON_PLANTS} are needed for another than the classic"
    detector = _fit_method(_CLASSIC, FitData(plants.outputs, plants.classes, None), further)
    return Selection(_add_evidence(detector, scores, threshold), reason, ())


def _select_by_evidence(
    plants: LeafEmbeddings, non_plants: NonPlantEmbeddings, further: RunningMoments | None, seed: int
) -> Selection:
    candidates: dict[Method, _CandidateDetector] = {}
    baselines: list[DetectorTrial] = []
    with log_step("select detector", total=len(METHODS) + len(BASELINES), unit="method") as advance:
        for method in METHODS:
            candidates[method] = _evaluate_method(method, plants, non_plants, seed)
            advance()
        for trial in _evaluate_baselines(plants, non_plants, seed):
            baselines.append(trial)
            advance()
    best = _CLASSIC
    for method in METHODS[1:]:
        if candidates[method].is_better_than(candidates[best]):
            best = method
    recalls = ", ".join(f"{method} {candidate.threshold.recall:.1%}" for method, candidate in candidates.items())
    reason = f"of {len(non_plants.outputs):,} non-plants rejected at each one's threshold: {recalls}"
    trials = (*(candidate.trial for candidate in candidates.values()), *baselines)
    detector = _fit_method(best, FitData(plants.outputs, plants.classes, non_plants.outputs), further)
    return Selection(_add_evidence(detector, candidates[best].scores, candidates[best].threshold), reason, trials)


@dataclass(frozen=True)
class _CandidateDetector:
    """A method that a bundle can hold, with its cross-validated scores and the threshold chosen on them."""

    trial: DetectorTrial
    scores: HeldOutScores
    threshold: Threshold

    def is_better_than(self, simpler: "_CandidateDetector") -> bool:
        """Return whether this method replaces a simpler one (see `select_detector`)."""
        precise, simpler_precise = (
            (threshold.precision or 0.0) >= TARGET_PRECISION for threshold in (self.threshold, simpler.threshold)
        )
        if precise != simpler_precise:
            return precise
        rejected = self.scores.non_plants > self.threshold.value
        simpler_rejected = simpler.scores.non_plants > simpler.threshold.value
        gained, lost = int((rejected & ~simpler_rejected).sum()), int((simpler_rejected & ~rejected).sum())
        if gained <= lost or binomtest(gained, gained + lost).pvalue >= _SIGNIFICANCE:
            return False
        unseen = self.trial.by_unseen_source
        return sum(unseen.values()) >= sum(simpler.trial.by_unseen_source[source] for source in unseen)


def _evaluate_method(
    method: Method, plants: LeafEmbeddings, non_plants: NonPlantEmbeddings, seed: int
) -> _CandidateDetector:
    fit, exposed = _make_fit(method), method == "gaussian_ratio"
    scores = cross_validate(fit, plants, non_plants, seed)
    trial = measure_trial(method, fit, plants, non_plants, scores, served=True, exposed=exposed)
    return _CandidateDetector(trial, scores, choose_threshold(scores.plants, scores.non_plants))


def _evaluate_baselines(plants: LeafEmbeddings, non_plants: NonPlantEmbeddings, seed: int) -> Iterator[DetectorTrial]:
    step = -(-len(plants.outputs) // _MAX_BASELINE_PLANTS)
    some = plants[np.arange(len(plants.outputs)) % step == 0]
    for name, baseline in BASELINES.items():
        scores = cross_validate(baseline.fit, some, non_plants, seed)
        yield measure_trial(name, baseline.fit, some, non_plants, scores, served=False, exposed=baseline.exposed)


def _make_fit(method: Method) -> Fit:
    def fit(data: FitData) -> Scorer:
        detector = _fit_method(method, data)
        return lambda outputs: detector.score(outputs.features)

    return fit


def _fit_method(method: Method, data: FitData, further: RunningMoments | None = None) -> OODDetector:
    dim = data.plants.features.shape[1]
    moments = RunningMoments(int(data.classes.max()) + 1, dim) if further is None else further.copy()
    moments.update(data.classes, data.plants.features)
    if data.non_plants is None or method != "gaussian_ratio":
        return fit_detector(moments, method)
    non_plants = RunningMoments(1, dim)
    non_plants.update(np.zeros(len(data.non_plants), np.int64), data.non_plants.features)
    return fit_detector(moments, method, non_plants)


def _add_evidence(detector: OODDetector, scores: HeldOutScores, threshold: Threshold) -> OODDetector:
    """Return the detector with its threshold, the held-out scores of the plants, and what the choice rests on."""
    evidence: dict[str, float | int | str] = {
        "calibration_images": len(scores.plants),
        "selection_images": len(scores.non_plants),
        "quantile": threshold.quantile,
    }
    if len(scores.non_plants):
        evidence[HALVES_BY] = BY_GROUP
    if threshold.precision is not None and threshold.recall is not None:
        evidence |= {"selection_precision": threshold.precision, "selection_recall": threshold.recall}
    return replace(
        detector,
        threshold=threshold.value,
        plant_scores=np.sort(scores.plants),
        fit={**detector.fit, **evidence},
    )
