"""Fitting the detector: streamed moments against numpy, shrinkage against scikit-learn, thresholds by brute force."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import OAS

from plantmodels.build.fit_detector import (
    MIN_CALIBRATION_IMAGES,
    MIN_FIT_IMAGES,
    RunningMoments,
    check_image_counts,
    choose_threshold,
    fit_detector,
    select_detector,
)
from plantmodels.bundle.detector import OODDetector
from plantmodels.errors import DetectorError

RTOL = 1e-9
"""Float64 sums in another order."""


def embeddings(count: int, dim: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    mixing = rng.normal(size=(dim, dim))
    features = rng.normal(size=(count, dim)) @ mixing + rng.normal(size=(classes, dim))[labels] * 4 + 2
    return labels, features.astype(np.float32)


def moments_of(labels: np.ndarray, features: np.ndarray, classes: int, cuts: list[int] | None = None) -> RunningMoments:
    moments = RunningMoments(classes, features.shape[1])
    for batch_labels, batch in zip(np.split(labels, cuts or []), np.split(features, cuts or []), strict=True):
        moments.update(batch_labels, batch)
    return moments


def check_moments(moments: RunningMoments, labels: np.ndarray, features: np.ndarray) -> None:
    features = features.astype(np.float64)
    scatter = np.zeros((features.shape[1],) * 2)
    for label in range(len(moments.counts)):
        rows = features[labels == label]
        assert moments.counts[label] == len(rows)
        if len(rows):
            np.testing.assert_allclose(moments.means[label], rows.mean(axis=0), rtol=RTOL, atol=RTOL)
            scatter += (rows - rows.mean(axis=0)).T @ (rows - rows.mean(axis=0))
    np.testing.assert_allclose(moments.scatter, scatter, rtol=RTOL, atol=RTOL * max(1, np.abs(scatter).max()))


class TestMoments:
    @pytest.mark.parametrize("classes", [1, 4])
    def test_equal_numpy_on_all_data_at_once(self, classes: int) -> None:
        labels, features = embeddings(200, 7, classes)

        check_moments(moments_of(labels, features, classes, list(range(32, 200, 32))), labels, features)

    @settings(max_examples=60, deadline=None)
    @given(cuts=st.lists(st.integers(0, 60), max_size=8).map(sorted), classes=st.integers(1, 5), seed=st.integers(0, 9))
    def test_do_not_depend_on_the_batches(self, cuts: list[int], classes: int, seed: int) -> None:
        labels, features = embeddings(60, 3, classes, seed)

        check_moments(moments_of(labels, features, classes, cuts), labels, features)

    def test_far_from_the_origin_nothing_cancels(self) -> None:
        labels, features = embeddings(300, 4, 2)
        near = moments_of(labels, features.astype(np.float64), 2, [100, 200])
        far = moments_of(labels, features.astype(np.float64) + 1e7, 2, [100, 200])

        np.testing.assert_allclose(far.scatter, near.scatter, rtol=1e-6)

    def test_pooled_equals_one_class(self) -> None:
        labels, features = embeddings(150, 6, 5)
        labels[labels == 2] = 3  # a class that does not occur
        pooled = moments_of(labels, features, 5, [40, 90]).pooled()
        single = moments_of(np.zeros_like(labels), features, 1)

        assert pooled.counts.tolist() == [150]
        np.testing.assert_allclose(pooled.means, single.means, rtol=RTOL)
        np.testing.assert_allclose(pooled.scatter, single.scatter, rtol=RTOL, atol=RTOL)

    def test_nothing_yet(self) -> None:
        moments = RunningMoments(2, 3)
        moments.update(np.empty(0, np.int64), np.empty((0, 3), np.float32))

        assert moments.counts.tolist() == [0, 0]
        assert moments.pooled().counts.tolist() == [0]

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_nan_is_refused_and_changes_nothing(self, value: float) -> None:
        labels, features = embeddings(20, 3, 2)
        moments = moments_of(labels, features, 2)
        before = moments.scatter.copy()
        bad = features.copy()
        bad[3, 1] = value

        with pytest.raises(DetectorError, match="an embedding holds NaN or infinity"):
            moments.update(labels, bad)
        np.testing.assert_array_equal(moments.scatter, before)


class TestFit:
    @pytest.mark.parametrize(("count", "dim"), [(500, 8), (60, 40), (60, 100)])
    def test_the_classic_detector_is_sklearns_oas(self, count: int, dim: int) -> None:
        labels, features = embeddings(count, dim, 3)
        detector = fit_detector(moments_of(labels, features, 3, [count // 3]), "mahalanobis")
        reference = OAS().fit(features.astype(np.float64))

        np.testing.assert_allclose(detector.fit["shrinkage"], reference.shrinkage_, rtol=1e-6)
        np.testing.assert_allclose(detector.mean, reference.location_[None], rtol=1e-6)
        np.testing.assert_allclose(np.linalg.inv(detector.inv_cov), reference.covariance_, rtol=1e-6, atol=1e-8)
        scores = [mahalanobis(f, reference.location_, np.linalg.inv(reference.covariance_)) for f in features[:20]]
        np.testing.assert_allclose(detector.score(features[:20]), scores, rtol=1e-6)
        assert detector.fit["fit_images"] == count

    def test_class_means_with_one_tied_covariance(self) -> None:
        labels, features = embeddings(400, 6, 4)
        detector = fit_detector(moments_of(labels, features, 4), "class_mahalanobis")
        means = np.stack([features[labels == i].astype(np.float64).mean(axis=0) for i in range(4)])
        reference = OAS(assume_centered=True).fit(features - means[labels])

        np.testing.assert_allclose(detector.mean, means, rtol=1e-6)
        np.testing.assert_allclose(np.linalg.inv(detector.inv_cov), reference.covariance_, rtol=1e-6, atol=1e-8)

    def test_a_class_that_does_not_occur_has_no_mean(self) -> None:
        labels, features = embeddings(100, 4, 3)
        detector = fit_detector(moments_of(labels, features, 7), "class_mahalanobis")

        assert detector.mean.shape == (3, 4)

    def test_nothing_is_rejected_before_a_threshold_is_chosen(self) -> None:
        labels, features = embeddings(100, 4, 2)
        detector = fit_detector(moments_of(labels, features, 2), "mahalanobis")

        assert not detector.rejects(detector.score(features * 1000)).any()

    @pytest.mark.parametrize("method", ["mahalanobis", "class_mahalanobis"])
    def test_too_few_images_are_refused(self, method) -> None:
        labels, features = embeddings(MIN_FIT_IMAGES - 1, 4, 2)

        with pytest.raises(DetectorError, match="49 training images to fit the detector on, at least 50 are needed"):
            fit_detector(moments_of(labels, features, 2), method)

    @pytest.mark.parametrize("method", ["mahalanobis", "class_mahalanobis"])
    @pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -3.3e5, 1e-20])
    def test_equal_embeddings_are_refused(self, method, value: float) -> None:
        features = np.full((61, 5), value, np.float32) * np.arange(1, 6, dtype=np.float32)
        moments = moments_of(np.arange(61) % 3, features, 3, [7, 8, 30])

        with pytest.raises(DetectorError, match="all 61 training embeddings are equal"):
            fit_detector(moments, method)

    def test_embeddings_that_vary_within_no_class_are_refused_by_the_class_detector_only(self) -> None:
        labels = np.arange(60) % 3
        features = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)[labels]

        with pytest.raises(DetectorError, match="embeddings are equal"):
            fit_detector(moments_of(labels, features, 3, [11]), "class_mahalanobis")
        assert fit_detector(moments_of(labels, features, 3, [11]), "mahalanobis").embedding_dim == 5

    def test_the_smallest_difference_of_float32_is_a_difference(self) -> None:
        features = np.ones((60, 4), np.float32)
        features[:30] = np.nextafter(np.float32(1), np.float32(2))

        assert fit_detector(moments_of(np.zeros(60, int), features, 1), "mahalanobis").embedding_dim == 4


def threshold_by_brute_force(plants: np.ndarray, others: np.ndarray | None, quantile: float, target: float) -> float:
    n = len(plants)
    rank = next(k for k in range(1, n + 1) if k >= (n + 1) * quantile)
    ordered = sorted(plants)
    if others is None or len(others) == 0:
        return ordered[rank - 1]
    best, best_precision = None, -1.0
    for candidate in ordered[rank - 1 :]:
        recall = sum(score > candidate for score in others) / len(others)
        false_alarms = (sum(score > candidate for score in plants) + 1) / (n + 1)
        precision = recall / (recall + false_alarms)
        if precision >= target:
            return candidate
        if precision > best_precision:
            best, best_precision = candidate, precision
    return best


class TestThreshold:
    @settings(max_examples=150, deadline=None)
    @given(
        plants=st.lists(st.integers(0, 60), min_size=MIN_CALIBRATION_IMAGES, max_size=120),
        others=st.none() | st.lists(st.integers(0, 200), max_size=60),
        quantile=st.sampled_from([0.5, 0.9, 0.95]),
        target=st.sampled_from([0.8, 0.95, 0.99]),
    )
    def test_is_that_of_a_slow_loop(self, plants, others, quantile: float, target: float) -> None:
        scores = np.array(plants, float)
        non_plants = None if others is None else np.array(others, float)
        chosen = choose_threshold(scores, non_plants, quantile=quantile, target_precision=target)

        assert chosen.value == threshold_by_brute_force(scores, non_plants, quantile, target)
        assert chosen.value in scores
        if others:
            rejected = sum(score > chosen.value for score in others) / len(others)
            assert chosen.recall == pytest.approx(rejected)
        else:
            assert (chosen.recall, chosen.precision) == (None, None)

    @pytest.mark.parametrize("count", [19, 20, 39, 100, 101, 1000])
    def test_without_non_plants_it_is_the_split_conformal_quantile(self, count: int) -> None:
        scores = np.random.default_rng(0).permutation(count).astype(float)
        chosen = choose_threshold(scores, None)
        rank = math.ceil((count + 1) * 0.95)

        assert chosen.value == rank - 1
        assert chosen.quantile == rank / count
        assert (scores > chosen.value).mean() <= 0.05

    def test_exchangeable_plants_are_rejected_no_more_often_than_promised(self) -> None:
        rng = np.random.default_rng(1)
        rejected = [
            (rng.normal(size=200) > choose_threshold(rng.normal(size=19), None).value).mean() for _ in range(2000)
        ]

        assert np.mean(rejected) <= 0.05 + 0.005

    def test_the_lowest_threshold_of_enough_precision_is_taken(self) -> None:
        plants = np.arange(1000.0)
        # 99 % precision at full recall: (k + 1) / 1001 <= 1/99, so k <= 9 plants above it
        chosen = choose_threshold(plants, np.full(100, 5000.0))

        assert chosen.value == 990
        assert chosen.precision >= 0.99
        assert chosen.recall == 1

    def test_where_no_threshold_suffices_the_best_is_taken(self) -> None:
        chosen = choose_threshold(np.arange(30.0), np.full(10, 100.0))

        assert chosen.value == 29
        assert chosen.precision == pytest.approx(1 / (1 + 1 / 31))

    def test_non_plants_that_look_like_plants_give_no_recall(self) -> None:
        chosen = choose_threshold(np.arange(100.0), np.zeros(50))

        assert chosen.recall == 0
        assert chosen.precision == 0
        assert chosen.value == 95

    def test_too_few_plants_are_refused(self) -> None:
        with pytest.raises(DetectorError, match="18 held-out training images to set the threshold on, at least 19"):
            choose_threshold(np.arange(18.0), None)
        choose_threshold(np.arange(19.0), None)


class TestSelect:
    @pytest.fixture
    def detectors(self) -> list[OODDetector]:
        classic = OODDetector("mahalanobis", np.zeros((1, 2)), np.eye(2), 1e300, fit={"fit_images": 60})
        tied = OODDetector("class_mahalanobis", np.zeros((3, 2)), np.eye(2), 1e300, fit={"fit_images": 61})
        return [classic, tied]

    def test_the_one_that_rejects_most_non_plants_is_taken(self, detectors: list[OODDetector]) -> None:
        plants = np.tile(np.arange(1000.0)[:, None], (1, 2))
        others = np.stack([np.where(np.arange(100) < 60, 2000.0, 0), np.where(np.arange(100) < 80, 2000.0, 0)], axis=1)
        chosen = select_detector(detectors, plants, others)
        expected = threshold_by_brute_force(plants[:, 1], others[:, 1], 0.95, 0.99)

        assert (chosen.method, chosen.threshold) == ("class_mahalanobis", expected)
        assert chosen.fit["fit_images"] == 61
        assert chosen.fit["selection_recall"] == 0.8
        assert chosen.fit["selection_precision"] >= 0.99
        assert (chosen.fit["calibration_images"], chosen.fit["selection_images"]) == (1000, 100)

    def test_the_classic_one_is_taken_where_the_others_are_no_better(self, detectors: list[OODDetector]) -> None:
        plants = np.tile(np.arange(100.0)[:, None], (1, 2))

        assert select_detector(detectors, plants, np.full((10, 2), 500.0)).method == "mahalanobis"
        assert select_detector(detectors, plants, np.zeros((10, 2))).method == "mahalanobis"

    @pytest.mark.parametrize("others", [None, np.empty((0, 2))])
    def test_without_non_plants_the_classic_one_is_taken(self, detectors: list[OODDetector], others) -> None:
        plants = np.stack([np.arange(100.0), np.arange(100.0) / 2], axis=1)
        chosen = select_detector(detectors, plants, others)

        assert (chosen.method, chosen.threshold) == ("mahalanobis", 95)
        assert chosen.fit == {"fit_images": 60, "calibration_images": 100, "selection_images": 0, "quantile": 0.96}

    def test_the_detectors_given_are_unchanged(self, detectors: list[OODDetector]) -> None:
        select_detector(detectors, np.zeros((100, 2)), np.ones((5, 2)))

        assert [detector.threshold for detector in detectors] == [1e300, 1e300]


def test_image_counts_are_checked_before_the_work() -> None:
    check_image_counts(50, 19)
    with pytest.raises(DetectorError, match="49 training images to fit"):
        check_image_counts(49, 19)
    with pytest.raises(DetectorError, match="18 held-out training images"):
        check_image_counts(50, 18)
