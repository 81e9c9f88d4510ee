"""Checks streamed moments against numpy, shrinkage against scikit-learn, and the Gaussian ratio against SciPy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import OAS

from plantmodels.errors import DetectorError
from plantmodels.ood.moments import MIN_FIT_IMAGES, RunningMoments, fit_detector

RTOL = 1e-9
"""Float64 sums in another order differ by this much."""


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

    def test_without_embeddings_the_counts_are_zero(self) -> None:
        moments = RunningMoments(2, 3)
        moments.update(np.empty(0, np.int64), np.empty((0, 3), np.float32))

        assert moments.counts.tolist() == [0, 0]
        assert moments.pooled().counts.tolist() == [0]

    def test_a_copy_is_independent(self) -> None:
        labels, features = embeddings(40, 3, 2)
        moments = moments_of(labels, features, 2)
        other = moments.copy()
        other.update(labels, features)

        check_moments(moments, labels, features)
        check_moments(other, np.tile(labels, 2), np.tile(features, (2, 1)))

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
    def test_the_classic_detector_equals_sklearns_oas(self, count: int, dim: int) -> None:
        labels, features = embeddings(count, dim, 3)
        detector = fit_detector(moments_of(labels, features, 3, [count // 3]), "mahalanobis")
        reference = OAS().fit(features.astype(np.float64))

        np.testing.assert_allclose(detector.fit["shrinkage"], reference.shrinkage_, rtol=1e-6)
        np.testing.assert_allclose(detector.mean, reference.location_[None], rtol=1e-6)
        np.testing.assert_allclose(detector.inv_cov, np.linalg.inv(reference.covariance_), rtol=1e-4, atol=1e-7)
        scores = [mahalanobis(f, reference.location_, np.linalg.inv(reference.covariance_)) for f in features[:20]]
        np.testing.assert_allclose(detector.score(features[:20]), scores, rtol=1e-5)
        assert detector.fit["fit_images"] == count

    def test_class_means_with_one_tied_covariance(self) -> None:
        labels, features = embeddings(400, 6, 4)
        detector = fit_detector(moments_of(labels, features, 4), "class_mahalanobis")
        means = np.stack([features[labels == i].astype(np.float64).mean(axis=0) for i in range(4)])
        reference = OAS(assume_centered=True).fit(features - means[labels])

        np.testing.assert_allclose(detector.mean, means, rtol=1e-6)
        np.testing.assert_allclose(detector.inv_cov, np.linalg.inv(reference.covariance_), rtol=1e-4, atol=1e-7)

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

        with pytest.raises(DetectorError, match="the detector needs at least 50 training images, got 49"):
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


class TestRatio:
    def test_scores_as_two_gaussians_of_scipy_with_pooled_covariances_of_sklearn(self) -> None:
        labels, features = embeddings(400, 6, 3)
        _, non_plants = embeddings(80, 6, 1, seed=7)
        detector = fit_detector(
            moments_of(labels, features, 3), "gaussian_ratio", moments_of(np.zeros(80, int), non_plants, 1, [30])
        )
        means = np.stack([features[labels == i].astype(np.float64).mean(axis=0) for i in range(3)])
        within = OAS(assume_centered=True).fit(features - means[labels]).covariance_
        reference = OAS().fit(non_plants.astype(np.float64))
        near, far = np.linalg.inv(
            [0.75 * a + 0.25 * b for a, b in ((within, reference.covariance_), (reference.covariance_, within))]
        )
        expected = [
            min(mahalanobis(f, mean, near) for mean in means) ** 2 - mahalanobis(f, reference.location_, far) ** 2
            for f in [*features[:20], *non_plants[:20]]
        ]

        scores = detector.score(np.concatenate([features[:20], non_plants[:20]]))
        np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-2)
        assert detector.fit["fit_non_plants"] == 80
        assert detector.fit["non_plant_shrinkage"] == pytest.approx(reference.shrinkage_, rel=1e-6)

    def test_needs_non_plants_that_vary(self) -> None:
        labels, features = embeddings(100, 4, 2)
        moments, equal = moments_of(labels, features, 2), moments_of(np.zeros(30, int), np.ones((30, 4)), 1)

        with pytest.raises(ValueError, match="'gaussian_ratio' needs the moments of non-plants"):
            fit_detector(moments, "gaussian_ratio")
        with pytest.raises(DetectorError, match="all 30 non-plant embeddings are equal"):
            fit_detector(moments, "gaussian_ratio", equal)
