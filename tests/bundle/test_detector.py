"""The detector's score against scipy and a slow loop, its file, and what its reader refuses."""

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import mahalanobis
from scipy.stats import multivariate_normal

from plantmodels.bundle import detector as detector_module
from plantmodels.bundle.detector import OODDetector, read_detector, write_detector
from plantmodels.bundle.quadratic_form import check_definite
from plantmodels.errors import DetectorError

RTOL = 1e-5
"""Of squared distances: float32 sums of a few dozen terms."""


def make_inv_cov(dim: int, rng: np.random.Generator) -> np.ndarray:
    spread = rng.normal(size=(3 * dim, dim)) * rng.uniform(0.1, 3, dim)
    inverse = np.linalg.inv(spread.T @ spread / len(spread))
    return (inverse + inverse.T) / 2


def make_detector(
    classes: int = 1, dim: int = 5, *, normalize: bool = False, ratio: bool = False, seed: int = 0
) -> OODDetector:
    rng = np.random.default_rng(seed)
    others = {"other_mean": rng.normal(size=dim) * 3, "other_inv_cov": make_inv_cov(dim, rng)} if ratio else {}
    return OODDetector(
        method="gaussian_ratio" if ratio else "mahalanobis" if classes == 1 else "class_mahalanobis",
        mean=rng.normal(size=(classes, dim)) * 3,
        inv_cov=make_inv_cov(dim, rng),
        threshold=2.5,
        normalize=normalize,
        plant_scores=np.sort(rng.normal(size=7)),
        round_thresholds=np.array([2.4, 2.6]),
        fit={"fit_images": 3 * dim, "shrinkage": 0.25, "note": "été"},
        **others,
    )


def score_slowly(detector: OODDetector, feature: np.ndarray) -> float:
    def squared_distance(mean: np.ndarray, inv_cov: np.ndarray) -> float:
        delta = feature - mean
        return sum(delta[i] * inv_cov[i, j] * delta[j] for i in range(len(mean)) for j in range(len(mean)))

    if detector.normalize:
        feature = feature / np.sqrt(sum(x * x for x in feature))
    nearest = min(squared_distance(mean, detector.inv_cov) for mean in detector.mean)
    if detector.method == "gaussian_ratio":
        return nearest - squared_distance(detector.other_mean, detector.other_inv_cov)
    return np.sqrt(nearest)


SPECIES = {
    "plant_scores": np.arange(7.0),
    "plant_species": np.array([0, 1, 1, 0, 1, 1, 0]),
    "species_center": np.array([0.5, -1.0]),
    "species_scale": np.array([1.0, 2.0]),
}
OTHERS = {"method": "gaussian_ratio", "other_mean": np.zeros(5), "other_inv_cov": np.eye(5)}


class TestScore:
    def test_one_mean_is_scipys_mahalanobis(self) -> None:
        detector = make_detector(dim=32)
        features = np.random.default_rng(1).normal(size=(50, 32)) * 4
        expected = [mahalanobis(feature, detector.mean[0], detector.inv_cov) for feature in features]

        np.testing.assert_allclose(detector.score(features), expected, rtol=RTOL)

    @pytest.mark.parametrize("normalize", [False, True])
    @pytest.mark.parametrize("classes", [1, 2, 7])
    def test_the_nearest_of_several_means_by_a_slow_loop(self, classes: int, normalize: bool) -> None:
        detector = make_detector(classes, dim=6, normalize=normalize)
        features = np.random.default_rng(2).normal(size=(20, 6)).astype(np.float32) * 3
        expected = [score_slowly(detector, feature.astype(np.float64)) for feature in features]

        np.testing.assert_allclose(detector.score(features), expected, rtol=RTOL)

    @pytest.mark.parametrize("dim", [6, 96, 97, 200])
    @pytest.mark.parametrize("classes", [1, 3])
    def test_the_ratio_is_the_difference_of_two_squared_distances(self, classes: int, dim: int) -> None:
        detector = make_detector(classes, dim, ratio=True)
        features = np.random.default_rng(2).normal(size=(4, dim)) * 3
        expected = [score_slowly(detector, feature) for feature in features]

        np.testing.assert_allclose(detector.score(features), expected, rtol=1e-4, atol=1e-3 * dim)

    def test_the_ratio_orders_as_the_likelihoods_of_scipy(self) -> None:
        detector = make_detector(1, 4, ratio=True)
        features = np.random.default_rng(3).normal(size=(30, 4)) * 3
        plants = multivariate_normal(detector.mean[0], np.linalg.inv(detector.inv_cov))
        others = multivariate_normal(detector.other_mean, np.linalg.inv(detector.other_inv_cov))
        gaps = detector.score(features) - 2 * (others.logpdf(features) - plants.logpdf(features))

        np.testing.assert_allclose(gaps, gaps[0], atol=1e-3)

    @pytest.mark.parametrize("ratio", [False, True])
    def test_a_row_does_not_depend_on_the_others(self, ratio: bool) -> None:
        detector = make_detector(5, 130, ratio=ratio)
        features = np.random.default_rng(4).normal(size=(33, 130)).astype(np.float32)
        alone = [detector.score(feature[None])[0] for feature in features]

        np.testing.assert_array_equal(detector.score(features), alone)

    @pytest.mark.parametrize("smallest", [1e-3, 1e-14])
    def test_covariances_of_any_condition_score_exactly(self, smallest: float) -> None:
        rotation = np.linalg.qr(np.random.default_rng(5).normal(size=(40, 40)))[0]
        inv_cov = rotation * np.geomspace(smallest, 1, 40) @ rotation.T
        detector = OODDetector("mahalanobis", np.zeros((1, 40)), (inv_cov + inv_cov.T) / 2, 1.0)
        features = (rotation * np.geomspace(smallest, 1, 40) ** -0.5).T  # each at distance 1

        np.testing.assert_allclose(detector.score(features), 1, rtol=1e-4 if smallest == 1e-3 else 0.05)

    def test_far_from_the_origin_nothing_cancels(self) -> None:
        detector = make_detector(3, dim=4)
        shifted = OODDetector(detector.method, detector.mean + 1e6, detector.inv_cov, 1.0)
        features = np.random.default_rng(3).normal(size=(10, 4))

        np.testing.assert_allclose(shifted.score(features + 1e6), detector.score(features), rtol=1e-6)

    def test_a_mean_itself_scores_zero(self) -> None:
        detector = make_detector(3)

        np.testing.assert_allclose(detector.score(detector.mean), np.zeros(3), atol=0.02)

    def test_higher_is_further_and_only_above_the_threshold_is_rejected(self) -> None:
        detector = OODDetector("mahalanobis", np.zeros((1, 2)), np.eye(2), 2.0)
        scores = detector.score(np.array([[1.0, 0], [2, 0], [2.000001, 0], [30, 40]], np.float32))

        np.testing.assert_allclose(scores, [1, 2, 2.000001, 50], rtol=1e-6)
        assert detector.rejects(scores).tolist() == [False, False, True, True]

    def test_nan_is_rejected(self) -> None:
        detector = make_detector(2)
        scores = detector.score(np.full((1, 5), np.nan))

        assert np.isnan(scores).all()
        assert detector.rejects(scores).tolist() == [True]

    def test_a_zero_embedding_can_be_normalized(self) -> None:
        assert np.isfinite(make_detector(normalize=True).score(np.zeros((1, 5)))).all()

    def test_no_rows_give_no_scores(self) -> None:
        assert make_detector(2, ratio=True).score(np.empty((0, 5))).shape == (0,)
        assert make_detector(2).score(np.empty((0, 5))).shape == (0,)

    @pytest.mark.parametrize("shape", [(5,), (1, 4), (1, 1, 5)])
    def test_other_shapes_are_refused(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match="features must be \\(N, 5\\), got"):
            make_detector().score(np.zeros(shape))


def with_plants(scores: np.ndarray, species: np.ndarray, center: np.ndarray, scale: np.ndarray) -> OODDetector:
    """Return a detector whose p-values rest on these held-out plants."""
    order = np.argsort(scores, kind="stable")
    return dataclasses.replace(
        make_detector(),
        plant_scores=scores[order],
        plant_species=species[order],
        species_center=center,
        species_scale=scale,
    )


class TestPValue:
    def test_counts_the_held_out_plants_that_score_as_high(self) -> None:
        detector = dataclasses.replace(make_detector(), plant_scores=np.array([1.0, 2, 2, 3]))
        found = detector.p_values(np.array([0.5, 2, 2.5, 3, 4]), np.zeros(5, int))

        np.testing.assert_allclose(found, [1, 0.8, 0.4, 0.4, 0.2])
        assert detector.p_values(np.array([np.nan]), np.zeros(1, int)) == [0.2]

    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def test_is_that_of_a_slow_loop(self, data: st.DataObject) -> None:
        """Species 2 has no held-out plant. Small bounds of leaves show all three cases of the weight."""
        values, names, least = st.integers(0, 9), st.integers(0, 1), data.draw(st.sampled_from([0, 3, 500]))
        scores = np.array(data.draw(st.lists(values, min_size=1, max_size=30)), float)
        named = np.array(data.draw(st.lists(names, min_size=len(scores), max_size=len(scores))))
        center, scale = np.array([0.0, 3.0, 1.0]), np.array([1.0, 2.0, 0.5])
        score, species = float(data.draw(st.integers(-1, 10))), data.draw(st.integers(0, 2))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(detector_module, "SPECIES_LEAVES", least)
            found = with_plants(scores, named, center, scale).p_values(np.array([score]), np.array([species]))

        high = total = 1.0
        own = sum(named == species)
        for other, name in zip(scores, named, strict=True):
            weight = 1.0 if name == species else min(1.0, max(0, least - own) / (len(scores) - own))
            total += weight
            high += weight * ((other - center[name]) / scale[name] >= (score - center[species]) / scale[species])
        assert found[0] == pytest.approx(high / total)

    @pytest.mark.parametrize("held_out", [99, 3000])
    def test_no_more_plants_than_promised_get_a_small_one(self, held_out: int) -> None:
        """With 99 held-out plants all count alike; with 3,000 each species has 1,000 or 2,000 of its own."""
        rng = np.random.default_rng(1)
        spread = np.array([1.0, 5.0])

        def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
            species = (np.arange(count) % 3 == 0).astype(int)
            return rng.normal(size=count) * spread[species], species

        small = []
        for _ in range(400 if held_out == 99 else 30):
            detector = with_plants(*draw(held_out), np.zeros(2), np.ones(2))
            small.append(detector.p_values(*draw(1000)) <= 0.1)
        share = np.mean(small, axis=0)

        assert share.mean() == pytest.approx(0.1, abs=0.01)
        if held_out == 3000:
            assert share[::3].mean() == pytest.approx(0.1, abs=0.02), "each species alone"

    def test_without_held_out_plants_there_is_none(self) -> None:
        detector = dataclasses.replace(make_detector(), plant_scores=np.empty(0))

        assert detector.p_values(np.ones(3), np.zeros(3, int)) is None


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"method": "euclid"}, "method must be one of mahalanobis, class_mahalanobis, gaussian_ratio, got 'euclid'"),
        ({"plant_scores": np.array([2.0, 1.0])}, "plant_scores must be one ascending row, got shape \\(2,\\)"),
        ({"plant_scores": np.array([np.nan])}, "plant_scores and threshold must be finite"),
        ({"plant_species": np.zeros(7, int)}, "plant_species must be the index of one of 0 species for each of 0"),
        (SPECIES | {"plant_species": np.zeros(6, int)}, "of one of 2 species for each of 7 plant_scores.*; got 6 from"),
        (SPECIES | {"plant_species": np.full(7, 2)}, "got 7 from 0 to 2"),
        (SPECIES | {"plant_species": np.full(7, -1)}, "got 7 from -1 to 0"),
        (SPECIES | {"plant_species": np.zeros(7)}, "plant_species must be one row of integers, got float64"),
        (SPECIES | {"species_scale": np.ones(3)}, "species_scale must be 2 numbers above 0"),
        (SPECIES | {"species_scale": np.zeros(2)}, "species_scale must be 2 numbers above 0"),
        (SPECIES | {"species_center": np.full(2, np.nan)}, "species_center must be one row of finite numbers"),
        ({"round_thresholds": np.eye(2)}, "round_thresholds must be one row of finite numbers, got shape \\(2, 2\\)"),
        ({"method": "gaussian_ratio"}, "belong to method 'gaussian_ratio', both; the method is 'gaussian_ratio'"),
        ({"method": "gaussian_ratio", "other_mean": np.zeros(5)}, "belong to method 'gaussian_ratio', both"),
        ({"other_mean": np.zeros(5), "other_inv_cov": np.eye(5)}, "both; the method is 'mahalanobis'"),
        (
            OTHERS | {"other_mean": np.zeros(4)},
            "other_mean must be .* and other_inv_cov .*, got \\(4,\\)",
        ),
        (OTHERS | {"other_inv_cov": np.eye(4)}, "got \\(5,\\) and \\(4, 4\\)"),
        (OTHERS | {"other_mean": np.full(5, np.inf)}, "other_mean and other_inv_cov must be finite"),
        (OTHERS | {"other_inv_cov": -np.eye(5)}, "other_inv_cov must be positive definite"),
        (OTHERS | {"other_inv_cov": np.eye(5) + np.eye(5, k=1)}, "other_inv_cov must be symmetric"),
        ({"method": None}, "method must be one of"),
        ({"method": np.zeros(3)}, "method must be one of"),
        ({"mean": np.zeros((2, 5))}, "'mahalanobis' has one mean, got 2"),
        ({"mean": np.zeros((1, 4))}, "mean must be .* got \\(1, 4\\) and \\(5, 5\\)"),
        ({"mean": np.zeros((0, 5))}, "mean must be"),
        ({"mean": np.zeros((1, 1, 5))}, "mean must be"),
        ({"inv_cov": np.eye(5)[:4]}, "inv_cov \\(D, D\\), got \\(1, 5\\) and \\(4, 5\\)"),
        ({"inv_cov": np.eye(5)[0]}, "mean must be"),
        ({"mean": np.full((1, 5), np.nan)}, "must be finite"),
        ({"inv_cov": np.diag([1, 1, 1, 1, np.inf])}, "must be finite"),
        ({"threshold": float("nan")}, "must be finite"),
        ({"threshold": float("inf")}, "must be finite"),
        ({"inv_cov": np.eye(5) + np.eye(5, k=1)}, "must be symmetric"),
        ({"inv_cov": -np.eye(5)}, "must be positive definite"),
        ({"inv_cov": np.zeros((5, 5))}, "must be positive definite"),
        ({"inv_cov": np.ones((5, 5))}, "must be positive definite"),
        ({"inv_cov": np.diag([1, 1, 1, 1, -1e-3])}, "must be positive definite"),
    ],
)
def test_arrays_that_are_no_detector_are_refused(changes: dict[str, Any], match: str) -> None:
    values = {"method": "mahalanobis", "mean": np.zeros((1, 5)), "inv_cov": np.eye(5), "threshold": 1.0}

    with pytest.raises(DetectorError, match=match):
        OODDetector(**{**values, **changes})


def test_rounding_may_make_a_matrix_differ_from_its_transpose() -> None:
    matrix = make_inv_cov(5, np.random.default_rng(0))
    rounded = matrix.copy()
    rounded[0, 1] *= 1 + 1e-8

    assert check_definite(rounded, "inv_cov") == pytest.approx(check_definite(matrix, "inv_cov"), rel=1e-6)
    rounded[0, 1] *= 1 + 1e-3
    with pytest.raises(DetectorError, match="inv_cov must be symmetric"):
        check_definite(rounded, "inv_cov")


class TestFile:
    @pytest.mark.parametrize("ratio", [False, True])
    @pytest.mark.parametrize("normalize", [False, True])
    @pytest.mark.parametrize("classes", [1, 4])
    def test_round_trip(self, tmp_path: Path, classes: int, normalize: bool, ratio: bool) -> None:
        detector = dataclasses.replace(make_detector(classes, normalize=normalize, ratio=ratio), **SPECIES)
        detector = dataclasses.replace(detector, inv_cov=detector.inv_cov.astype(np.float32))
        write_detector(tmp_path / "ood.pkl", detector)
        again = read_detector(tmp_path / "ood.pkl")

        np.testing.assert_array_equal(again.mean, detector.mean)
        for name in ("inv_cov", "other_mean", "other_inv_cov", "round_thresholds", *SPECIES):
            np.testing.assert_array_equal(getattr(again, name), getattr(detector, name))
        assert again.inv_cov.dtype == np.float32
        assert again.mean.shape == (classes, 5)
        assert (again.method, again.threshold) == (detector.method, detector.threshold)
        assert (again.normalize, again.fit) == (normalize, detector.fit)
        features = np.random.default_rng(0).normal(size=(9, 5))
        np.testing.assert_array_equal(again.score(features), detector.score(features))

    def test_a_plain_reader_gets_the_classic_decision(self, tmp_path: Path) -> None:
        features = np.random.default_rng(1).normal(size=(200, 8)) * 4
        detector = make_detector(dim=8)
        detector = dataclasses.replace(detector, threshold=float(np.quantile(detector.score(features), 0.9)))
        write_detector(tmp_path / "ood.pkl", detector)
        document = pickle.loads((tmp_path / "ood.pkl").read_bytes())
        rejected = [
            mahalanobis(feature, document["mean"], document["inv_cov"]) > document["threshold"] for feature in features
        ]

        assert document["mean"].shape == (8,)
        assert sum(rejected) == 20
        assert detector.rejects(detector.score(features)).tolist() == rejected

    def test_the_same_detector_gives_the_same_bytes(self, tmp_path: Path) -> None:
        write_detector(tmp_path / "a", make_detector(3))
        write_detector(tmp_path / "b", read_detector(tmp_path / "a"))

        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()

    def test_a_foreign_pickle_of_three_names_is_the_classic_detector(self, tmp_path: Path) -> None:
        path = tmp_path / "foreign.pkl"
        path.write_bytes(pickle.dumps({"mean": np.zeros(3), "inv_cov": np.eye(3), "threshold": 2}))
        detector = read_detector(path)

        assert (detector.method, detector.normalize, detector.threshold) == ("mahalanobis", False, 2.0)

    @pytest.mark.parametrize(
        ("changes", "match"),
        [
            ({"format_version": 4}, "format_version 4, this code reads 1 to 3"),
            ({"format_version": "1"}, "format_version '1'"),
            ({"mean": [0.0]}, "opcode EMPTY_LIST"),
            ({"mean": 1.0}, "mean must be an array, got float"),
            ({"inv_cov": None}, "inv_cov must be an array, got NoneType"),
            ({"other_mean": 1.0}, "other_mean must be an array, got float"),
            ({"plant_scores": 1.0}, "plant_scores must be an array, got float"),
            ({"threshold": "95"}, "threshold must be a finite number, got '95'"),
            ({"threshold": None}, "threshold must be a finite number"),
            ({"threshold": True}, "threshold must be a finite number, got True"),
            ({"threshold": np.zeros(1)}, "threshold must be a finite number"),
            ({"threshold": float("nan")}, "threshold must be a finite number"),
            ({"threshold": 2**1500}, "threshold must be a finite number"),
            ({"normalize": 1}, "normalize must be true or false, got 1"),
            ({"normalize": "no"}, "normalize must be true or false"),
            ({"fit": "well"}, "fit must be a dict, got str"),
            ({"method": "euclid"}, "method must be one of"),
            ({"method": np.zeros(2)}, "method must be one of"),
            ({"mean": np.zeros(2)}, "mean must be \\(C, D\\)"),
            ({"mean": np.zeros((2, 3))}, "has one mean, got 2"),
            ({"mean": np.array([0, 0, np.nan])}, "must be finite"),
            ({"inv_cov": -np.eye(3)}, "positive definite"),
            ({"inv_cov": np.full((3, 3), 1e308)}, "positive definite"),
            ({"inv_cov": np.diag([5e-324] * 3)}, "positive definite"),
        ],
    )
    def test_wrong_content_is_refused_with_the_path(self, tmp_path: Path, changes, match: str) -> None:
        path = tmp_path / "ood.pkl"
        document = {"mean": np.zeros(3), "inv_cov": np.eye(3), "threshold": 1.0}
        path.write_bytes(pickle.dumps({**document, **changes}))

        with pytest.raises(DetectorError, match=match) as caught:
            read_detector(path)
        assert str(caught.value).startswith(f"{path}: ")

    @pytest.mark.parametrize("name", ["mean", "inv_cov", "threshold"])
    def test_a_missing_name_is_said(self, tmp_path: Path, name: str) -> None:
        document = {"mean": np.zeros(3), "inv_cov": np.eye(3), "threshold": 1.0}
        del document[name]
        (tmp_path / "ood.pkl").write_bytes(pickle.dumps(document))

        with pytest.raises(DetectorError, match=f"{name} missing; it holds"):
            read_detector(tmp_path / "ood.pkl")

    def test_absent_folder_and_too_large(self, tmp_path: Path) -> None:
        with pytest.raises(DetectorError, match=r"none\.pkl: cannot be read"):
            read_detector(tmp_path / "none.pkl")
        with pytest.raises(DetectorError, match="expected a regular file"):
            read_detector(tmp_path)
        with (tmp_path / "large.pkl").open("wb") as file:
            file.truncate(detector_module.MAX_PICKLE_BYTES + 1)
        with pytest.raises(DetectorError, match="268,435,457 bytes, at most 268,435,456 are read"):
            read_detector(tmp_path / "large.pkl")
