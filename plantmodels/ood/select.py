"""Selects the detector that a bundle serves, and its threshold, by cross-validated evidence.

The selection half of the non-plants is used here; the gates measure the other half.

References:
    McNemar, "Note on the Sampling Error of the Difference Between Correlated Proportions or Percentages", 1947.
"""

import logging
import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from scipy.stats import binomtest
from threadpoolctl import threadpool_limits

from plantmodels.arrays import Labels
from plantmodels.bundle.detector import METHODS, Method, OODDetector
from plantmodels.data.non_plants import BY_GROUP, HALVES_BY
from plantmodels.data.progress import log_step
from plantmodels.errors import DetectorError
from plantmodels.ood.baselines import BASELINES, FitData, Scorer
from plantmodels.ood.by_species import measure_species
from plantmodels.ood.cross_validation import (
    FOLDS,
    MIN_NON_PLANTS,
    DetectorTrial,
    Fit,
    HeldOutScores,
    count_left_to_fit,
    cross_validate,
    measure_trial,
    score_fresh,
)
from plantmodels.ood.embeddings import LeafEmbeddings, NonPlantEmbeddings
from plantmodels.ood.held_out import Images, Scored, cross_fit, score_held_out
from plantmodels.ood.moments import MIN_FIT_IMAGES, RunningMoments, fit_detector
from plantmodels.ood.threshold import TARGET_PRECISION, Threshold, choose_threshold
from plantmodels.serve.cores import count_cores

MIN_TRAINING_IMAGES: Final = math.ceil(MIN_FIT_IMAGES * FOLDS / (FOLDS - 1))
"""With this many leaves, each fold leaves `MIN_FIT_IMAGES` to fit on."""

_MIN_LEFT: Final = MIN_NON_PLANTS - math.ceil(MIN_NON_PLANTS / FOLDS)
"""Non-plants that the other folds must hold: `MIN_NON_PLANTS` of them leave as many, if no groups are given."""

_CLASSIC: Final = METHODS[0]
"""Taken unless another method is better beyond noise: one mean, one covariance."""

_EXPOSED: Final[Method] = "gaussian_ratio"
"""The method that is fitted on non-plants."""

_SIGNIFICANCE: Final = 0.05
_MAX_BASELINE_PLANTS: Final = 2_000
"""Some methods of the literature take minutes on more leaves, and they only serve as a comparison."""

_LOGGER: Final = logging.getLogger(__name__)


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


def check_images(images: int, groups: Labels | None) -> None:
    """Raise an error if there are too few training leaves to fit on; called before any of them is embedded.

    Args:
        images: N, the number of training leaves.
        groups: (N,) number of the group of each leaf; None if each leaf is a group of its own.

    Raises:
        DetectorError: there are fewer than `MIN_TRAINING_IMAGES`, or the folds of the cross-validation leave fewer
            than `MIN_FIT_IMAGES` because groups go whole into a fold.
    """
    if images < MIN_TRAINING_IMAGES:
        raise DetectorError(f"the detector needs at least {MIN_TRAINING_IMAGES} training images, got {images}")
    left = count_left_to_fit(images, groups)
    if groups is not None and left < MIN_FIT_IMAGES:
        _, sizes = np.unique(groups, return_counts=True)
        raise DetectorError(
            f"groups go whole into a fold of the cross-validation: of {images:,} training images in {len(sizes):,} "
            f"groups, the largest with {sizes.max():,} images, {left:,} are left to fit the detector on, at least "
            f"{MIN_FIT_IMAGES} are needed; give images of more groups"
        )


def select_detector(
    plants: LeafEmbeddings,
    non_plants: NonPlantEmbeddings | None,
    *,
    calibration: LeafEmbeddings | None = None,
    further_moments: RunningMoments | None = None,
    seed: int = 0,
    learned: bool = False,
) -> Selection:
    """Try every method and return the best one that a bundle can hold, fitted on all images, with its threshold.

    A method replaces a simpler one only if three conditions hold. At its own threshold it rejects more non-plants,
    beyond noise (McNemar's test at 5 %). It rejects at least as many non-plants from sources that the fit did not
    see. It reaches the target precision if the simpler one does. With fewer than `MIN_NON_PLANTS` non-plants there is
    no evidence to choose by, so the classic detector is taken.

    Every score comes from a fit that did not see the image (`score_held_out`). Without leaves that calibrate, the
    threshold is optimistic if the network has learned the training leaves.

    Linear algebra runs on one thread: with several the last bits differ, and on a busy machine it takes twenty times
    as long.

    Args:
        plants: training leaves.
        non_plants: the selection half of the non-plants, or None.
        calibration: leaves that give the threshold and the p-values, and that neither network nor detector has seen;
            None takes the training leaves.
        further_moments: moments of further training leaves with the same class numbers. They only enter the final
            fit, and are not changed.
        seed: seed of the folds.
        learned: whether the network was trained to tell these non-plants from leaves. Every method then rejects nearly
            all of them, which is no evidence to choose by, so the method that is fitted on them is taken.

    Raises:
        DetectorError: there are too few leaves, or embeddings are not finite or do not vary.
    """
    check_images(len(plants.outputs), plants.groups)
    with threadpool_limits(1):
        images = Images(plants, non_plants, calibration, further_moments, seed)
        reason = _find_lack(non_plants)
        for kind, given in (("training leaves", plants), ("non-plants", non_plants)):
            _warn_of_few_groups(kind, None if given is None else given.groups)
        if non_plants is None or reason:
            return _take_classic(replace(images, non_plants=None), reason)
        return _select_by_evidence(images, non_plants, learned)


def _find_lack(non_plants: NonPlantEmbeddings | None) -> str:
    """Return why there are too few non-plants to choose a detector by; "" if there are enough."""
    count = 0 if non_plants is None else len(non_plants.outputs)
    if non_plants is None or count < MIN_NON_PLANTS:
        return f"{count} non-plants to choose by, at least {MIN_NON_PLANTS} are needed for another than the classic"
    left = count_left_to_fit(count, non_plants.groups)
    if left < _MIN_LEFT:
        return (
            f"groups go whole into a fold: of {count} non-plants {left} are left to fit on, at least {_MIN_LEFT} are "
            "needed for another than the classic"
        )
    return ""


def _warn_of_few_groups(kind: str, groups: Labels | None) -> None:
    count = FOLDS if groups is None else len(np.unique(groups))
    if count < FOLDS:
        _LOGGER.warning(
            "the %s form %d groups, so their cross-validation has %d folds, not %d", kind, count, count, FOLDS
        )


def _take_classic(images: Images, reason: str) -> Selection:
    return Selection(_calibrate(_CLASSIC, images, score_held_out(_CLASSIC, images)), reason, ())


def _select_by_evidence(images: Images, non_plants: NonPlantEmbeddings, learned: bool) -> Selection:
    with log_step("select detector", total=len(METHODS) + len(BASELINES) + 1, unit="method") as advance:
        candidates, baselines = _try_methods(images, non_plants, advance)
        best = _EXPOSED if learned else _CLASSIC
        for method in () if learned else METHODS[1:]:
            if candidates[method].is_better_than(candidates[best]):
                best = method
        scored = candidates[best].scored if images.calibration is not None else score_held_out(best, images)
        detector = _calibrate(best, images, scored)
        advance()
    recalls = ", ".join(f"{method} {candidate.threshold.recall:.1%}" for method, candidate in candidates.items())
    reason = f"of {len(non_plants.outputs):,} non-plants rejected at each one's threshold: {recalls}"
    if learned:
        reason = f"the network has learned these non-plants, so the method that is fitted on them is taken; {reason}"
    return Selection(detector, reason, (*(candidate.trial for candidate in candidates.values()), *baselines))


def _try_methods(
    images: Images, non_plants: NonPlantEmbeddings, advance: Callable[[], object]
) -> tuple[dict[Method, "_CandidateDetector"], list[DetectorTrial]]:
    """Evaluate every method, one on each core at a time; this gives the same bits on any number of cores."""
    pool = ThreadPoolExecutor(count_cores(), initializer=_limit_openmp)
    try:
        methods = {method: pool.submit(_evaluate_method, method, images, non_plants) for method in METHODS}
        baselines = [pool.submit(_evaluate_baseline, name, images, non_plants) for name in BASELINES]
        futures: list[Future[Any]] = [*methods.values(), *baselines]
        for future in futures:
            future.result()
            advance()
    finally:
        pool.shutdown(cancel_futures=True)
    return {method: future.result() for method, future in methods.items()}, [each.result() for each in baselines]


def _limit_openmp() -> None:
    """Give OpenMP one thread; unlike that of linear algebra, this limit holds only in the thread that sets it."""
    threadpool_limits(1, user_api="openmp")


@dataclass(frozen=True)
class _CandidateDetector:
    """A method that a bundle can hold, with its scores and the threshold chosen on them."""

    trial: DetectorTrial
    scored: Scored
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


def _evaluate_method(method: Method, images: Images, non_plants: NonPlantEmbeddings) -> _CandidateDetector:
    scored, exposed = score_held_out(method, images, plant_rounds=1), method == "gaussian_ratio"
    scores, fit = scored.scores, _make_fit(method)
    trial = measure_trial(method, fit, images.plants, non_plants, scores, served=True, exposed=exposed)
    return _CandidateDetector(trial, scored, scores, choose_threshold(scores.plants, scores.non_plants))


def _evaluate_baseline(name: str, images: Images, non_plants: NonPlantEmbeddings) -> DetectorTrial:
    baseline, some, seed = BASELINES[name], _take_some(images.plants), images.seed
    if images.calibration is None:
        scores = cross_validate(baseline.fit, some, non_plants, seed)
    else:
        fresh = _take_some(images.calibration)
        scores = score_fresh(baseline.fit, some, fresh, non_plants, seed if baseline.exposed else None)
    return measure_trial(name, baseline.fit, some, non_plants, scores, served=False, exposed=baseline.exposed)


def _take_some(leaves: LeafEmbeddings) -> LeafEmbeddings:
    step = -(-len(leaves.outputs) // _MAX_BASELINE_PLANTS)
    return leaves[np.arange(len(leaves.outputs)) % step == 0]


def _make_fit(method: Method) -> Fit:
    def fit(data: FitData) -> Scorer:
        detector = _fit_method(method, data)
        return lambda outputs: detector.score(outputs.features)

    return fit


def _fit_method(method: Method, data: FitData) -> OODDetector:
    dim = data.plants.features.shape[1]
    moments = RunningMoments(int(data.classes.max()) + 1, dim)
    moments.update(data.classes, data.plants.features)
    if data.non_plants is None or method != "gaussian_ratio":
        return fit_detector(moments, method)
    non_plants = RunningMoments(1, dim)
    non_plants.update(np.zeros(len(data.non_plants), np.int64), data.non_plants.features)
    return fit_detector(moments, method, non_plants)


def _calibrate(method: Method, images: Images, scored: Scored) -> OODDetector:
    """Return the detector with its threshold, its p-values, and what they rest on."""
    scores = scored.scores
    others, plants = images.non_plants, images.plants.outputs
    threshold = choose_threshold(scores.plants, None if others is None else scores.non_plants)
    rounds = scored.rounds or (None,)
    usual_plants = scores.plants if images.calibration is None else cross_fit(method, images, images.seed)
    usual = measure_species(usual_plants, plants.predicted, count=plants.logits.shape[1])
    order = np.argsort(scores.plants, kind="stable")
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
        scored.detector,
        threshold=threshold.value,
        plant_scores=scores.plants[order],
        plant_species=images.fresh.outputs.predicted[order],
        species_center=usual.center,
        species_scale=usual.scale,
        round_thresholds=np.array([choose_threshold(scores.plants, each).value for each in rounds]),
        fit={**scored.detector.fit, **evidence},
    )
