"""Checks the selected detector on embeddings that one method must win on, and its threshold by brute force."""

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plantmodels.bundle.detector import METHODS
from plantmodels.errors import DetectorError
from plantmodels.ood import select
from plantmodels.ood.baselines import BASELINES, FitData
from plantmodels.ood.cross_validation import MIN_NON_PLANTS, cross_validate
from plantmodels.ood.embeddings import LeafEmbeddings, ModelOutputs, NonPlantEmbeddings
from plantmodels.ood.moments import RunningMoments, fit_detector
from plantmodels.ood.select import (
    MIN_TRAINING_IMAGES,
    Selection,
    check_images,
    select_detector,
)
from plantmodels.ood.threshold import choose_threshold

DIM = 12


def embed(features: np.ndarray) -> ModelOutputs:
    return ModelOutputs(features.astype(np.float32), features[:, :3].astype(np.float32))


def make_plants(count: int = 400, spread: float = 3.0, seed: int = 0) -> LeafEmbeddings:
    rng = np.random.default_rng(seed)
    species = np.arange(count) % 5
    means = np.random.default_rng(99).normal(size=(5, DIM)) * spread
    return LeafEmbeddings(embed(rng.normal(size=(count, DIM)) + means[species]), species, species)


def make_non_plants(count: int = 120, shift: float = 2.0, scale: float = 0.5, seed: int = 1) -> NonPlantEmbeddings:
    """Draw non-plants near the mean of the plants and closer together than these: distance cannot separate them."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, DIM)) * scale
    features[:, 0] += shift
    return NonPlantEmbeddings(embed(features), np.where(np.arange(count) % 3 == 0, "stones", "walls"))


@pytest.fixture(scope="module")
def exposed() -> Selection:
    return select_detector(make_plants(spread=0.0), make_non_plants())


class TestThreshold:
    @pytest.mark.parametrize("count", [19, 20, 39, 100, 101, 1000])
    def test_without_non_plants_it_is_the_split_conformal_quantile(self, count: int) -> None:
        scores = np.random.default_rng(0).permutation(count).astype(float)
        chosen = choose_threshold(scores, None)
        rank = math.ceil((count + 1) * 0.95)

        assert chosen.value == rank - 1
        assert chosen.quantile == rank / count
        assert (scores > chosen.value).mean() <= 0.05
        assert (chosen.precision, chosen.recall) == (None, None)

    def test_exchangeable_plants_are_rejected_no_more_often_than_promised(self) -> None:
        rng = np.random.default_rng(1)
        rejected = [
            (rng.normal(size=200) > choose_threshold(rng.normal(size=19), None).value).mean() for _ in range(2000)
        ]

        assert np.mean(rejected) <= 0.05 + 0.005

    @settings(max_examples=150, deadline=None)
    @given(
        plants=st.lists(st.integers(0, 60), min_size=19, max_size=120),
        non_plants=st.lists(st.integers(0, 200), min_size=1, max_size=60),
    )
    def test_no_other_threshold_leaves_more_room(self, plants: list[int], non_plants: list[int]) -> None:
        chosen = choose_threshold(np.array(plants, float), np.array(non_plants, float))
        lowest = sorted(plants)[math.ceil((len(plants) + 1) * 0.95) - 1]
        candidates = [value for value in {*plants, *non_plants} if value >= lowest]

        assert chosen.value >= lowest
        assert room(plants, non_plants, chosen.value) >= max(room(plants, non_plants, value) for value in candidates)
        assert chosen.recall == pytest.approx(sum(score > chosen.value for score in non_plants) / len(non_plants))
        assert chosen.quantile == pytest.approx(sum(score <= chosen.value for score in plants) / len(plants))

    def test_it_lies_in_the_middle_of_a_gap(self) -> None:
        chosen = choose_threshold(np.arange(1000.0), np.arange(5000.0, 5400.0))

        assert 2000 < chosen.value < 4000
        assert (chosen.recall, chosen.quantile) == (1, 1)

    def test_if_recall_is_out_of_reach_the_lowest_precise_threshold_is_taken(self) -> None:
        chosen = choose_threshold(np.arange(1000.0), np.arange(2000) + 0.5)
        # 99 % precision at recall 0.5: (k + 1) / 1001 <= 0.5/99, so k <= 4 plants above it

        assert 995 < chosen.value < 996
        assert chosen.precision >= 0.99
        assert chosen.recall == pytest.approx(0.5, abs=0.005)

    def test_if_no_threshold_suffices_the_most_precise_is_taken(self) -> None:
        chosen = choose_threshold(np.arange(30.0), np.full(10, 100.0))

        assert 29 <= chosen.value < 100
        assert chosen.precision == pytest.approx(1 / (1 + 1 / 31))

    def test_non_plants_that_look_like_plants_give_no_recall(self) -> None:
        chosen = choose_threshold(np.arange(100.0), np.zeros(50))

        assert (chosen.recall, chosen.precision) == (0, 0)
        assert chosen.value >= 95


def room(plants: list[int], non_plants: list[int], threshold: float) -> tuple[bool, float]:
    """Return whether the target precision holds, and the smaller room to both targets in standard errors."""
    n, m = len(plants), len(non_plants)
    alarms = (sum(score > threshold for score in plants) + 1) / (n + 1)
    recall = sum(score > threshold for score in non_plants) / m
    smoothed = [(rate * count + 2) / (count + 4) for rate, count in ((alarms, n), (recall, m))]
    errors = [math.sqrt(p * (1 - p) / (count + 4)) for p, count in zip(smoothed, (n, m), strict=True)]
    margin = min((recall / 99 - alarms) / errors[0], (recall - 0.95) / errors[1])
    precision = recall / (recall + alarms)
    return (True, round(margin, 9)) if precision >= 0.99 else (False, round(precision, 9))


class TestSelect:
    def test_only_the_ratio_rejects_non_plants_amid_the_plants(self, exposed: Selection) -> None:
        trials = {trial.method: trial for trial in exposed.trials}

        assert exposed.detector.method == "gaussian_ratio"
        assert trials["gaussian_ratio"].recall > 0.6 > 0.1 > trials["mahalanobis"].recall
        assert exposed.reason.startswith("of 120 non-plants rejected at each one's threshold: mahalanobis ")

    def test_non_plants_that_the_network_has_learned_do_not_choose_the_method(self) -> None:
        plants = make_plants(spread=0.0)
        far = make_non_plants()
        far.outputs.features[:] += 50
        by_evidence, learned = (select_detector(plants, far, learned=learned) for learned in (False, True))

        assert by_evidence.detector.method == "mahalanobis"
        assert learned.detector.method == "gaussian_ratio"
        assert learned.reason.startswith(
            "the network has learned these non-plants, so the method that is fitted on them"
        )

    def test_every_method_is_tried_and_named(self, exposed: Selection) -> None:
        assert [trial.method for trial in exposed.trials] == [*METHODS, *BASELINES]
        assert [trial.method for trial in exposed.trials if trial.served] == list(METHODS)
        assert {trial.method for trial in exposed.trials if trial.exposed} == {"gaussian_ratio", "logistic", "rbf_svm"}
        for trial in exposed.trials:
            assert 0 <= trial.auroc <= 1
            assert set(trial.by_source) == {"stones", "walls"} == set(trial.by_unseen_source)

    def test_the_detector_is_fitted_on_everything(self, exposed: Selection) -> None:
        plants, non_plants = make_plants(spread=0.0), make_non_plants()
        moments, other_moments = RunningMoments(5, DIM), RunningMoments(1, DIM)
        moments.update(plants.classes, plants.outputs.features)
        other_moments.update(np.zeros(120, np.int64), non_plants.outputs.features)
        expected = fit_detector(moments, "gaussian_ratio", other_moments)

        np.testing.assert_allclose(exposed.detector.inv_cov, expected.inv_cov, rtol=1e-5)
        np.testing.assert_allclose(exposed.detector.other_inv_cov, expected.other_inv_cov, rtol=1e-5)
        assert exposed.detector.fit["fit_images"] == exposed.detector.fit["calibration_images"] == 400
        assert exposed.detector.fit["selection_images"] == 120

    def test_scores_that_count_come_from_fits_that_saw_neither_image(self, monkeypatch: pytest.MonkeyPatch) -> None:
        plants, non_plants = make_plants(100), make_non_plants(40)
        for part in (plants, non_plants):
            part.outputs.logits[:, 0] = np.arange(len(part.outputs))  # an image's number

        def fit(training: FitData):
            seen = set(training.plants.logits[:, 0]), set(training.non_plants.logits[:, 0])

            def score(embedded: ModelOutputs) -> np.ndarray:
                kind = 0 if len(training.plants) == 80 and not set(embedded.logits[:, 0]) & seen[0] else 1
                assert not set(embedded.logits[:, 0]) & seen[kind]
                return np.zeros(len(embedded))

            return score

        scores = cross_validate(fit, plants, non_plants, 0)
        assert (len(scores.plants), len(scores.non_plants)) == (100, 40)

    def test_the_classic_detector_is_taken_if_no_other_is_better(self) -> None:
        selection = select_detector(make_plants(spread=0.0), make_non_plants(shift=60.0))

        assert selection.detector.method == "mahalanobis"
        assert all(trial.recall == 1 for trial in selection.trials if trial.served)

    def test_class_means_win_where_non_plants_lie_between_the_classes(self) -> None:
        plants = make_plants(spread=9.0)
        ends = [plants.outputs.features[plants.species == species][:20] for species in range(5)]
        between = np.concatenate([(ends[i] + ends[(i + 1) % 5]) / 2 for i in range(5)])
        non_plants = NonPlantEmbeddings(embed(between), np.repeat("stones", 100))
        classic, tied, _ = select_detector(plants, non_plants).trials[:3]

        assert tied.recall > 0.9 > classic.recall

    @pytest.mark.parametrize("non_plants", [None, make_non_plants(MIN_NON_PLANTS - 1)])
    def test_without_enough_non_plants_the_classic_detector_is_taken_and_named(
        self, non_plants: NonPlantEmbeddings | None
    ) -> None:
        selection = select_detector(make_plants(), non_plants)
        count = 0 if non_plants is None else 19

        assert selection.detector.method == "mahalanobis"
        assert selection.trials == ()
        assert selection.reason.startswith(f"{count} non-plants to choose by, at least 20 are needed")
        assert selection.detector.fit["selection_images"] == 0
        assert selection.detector.rejects(selection.detector.plant_scores).mean() <= 0.05

    def test_further_leaves_enter_the_final_fit(self) -> None:
        plants, more = make_plants(), make_plants(1000, seed=3)
        further = RunningMoments(5, DIM)
        further.update(more.classes, more.outputs.features)
        detector = select_detector(plants, None, further_moments=further).detector

        assert detector.fit["fit_images"] == 1400
        assert further.counts.sum() == 1000, "the caller's moments are left as they are"
        both = np.concatenate([plants.outputs.features, more.outputs.features]).astype(np.float64)
        np.testing.assert_allclose(detector.mean[0], both.mean(axis=0), rtol=1e-6)
        assert detector.fit["calibration_images"] == len(detector.plant_scores) == 400

    def test_the_same_seed_gives_the_same_detector(self) -> None:
        detectors = [select_detector(make_plants(), make_non_plants(), seed=seed).detector for seed in (0, 0, 1)]

        assert detectors[0].threshold == detectors[1].threshold
        assert not np.array_equal(detectors[0].plant_scores, detectors[2].plant_scores)

    def test_the_number_of_cores_changes_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = []
        for cores in (1, 3):
            monkeypatch.setattr(select, "count_cores", lambda cores=cores: cores)
            found.append(select_detector(make_plants(), make_non_plants()))

        assert [trial.method for trial in found[0].trials] == [*METHODS, *BASELINES]
        assert (found[0].trials, found[0].reason) == (found[1].trials, found[1].reason)
        np.testing.assert_array_equal(found[0].detector.plant_scores, found[1].detector.plant_scores)

    def test_an_error_of_one_method_ends_the_search(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tried: list[str] = []

        def fail(method: str, *_: object) -> None:
            if method == METHODS[0]:
                raise DetectorError(f"{method} failed")
            time.sleep(0.2)

        monkeypatch.setattr(select, "count_cores", lambda: 1)
        monkeypatch.setattr(select, "_evaluate_method", fail)
        monkeypatch.setattr(select, "_evaluate_baseline", lambda name, *_: tried.append(name))
        with pytest.raises(DetectorError, match="mahalanobis failed"):
            select_detector(make_plants(), make_non_plants())
        assert tried == [], "methods that had not begun were tried, too"

    def test_one_source_and_one_species(self) -> None:
        plants = make_plants()
        one = LeafEmbeddings(plants.outputs, plants.classes, np.zeros_like(plants.species))
        non_plants = NonPlantEmbeddings(make_non_plants().outputs, np.repeat("stones", 120))
        trials = {trial.method: trial for trial in select_detector(one, non_plants).trials}

        assert trials["gaussian_ratio"].by_unseen_source == {}
        assert trials["gaussian_ratio"].unseen_species is None

    def test_nan_is_refused(self) -> None:
        plants = make_plants()
        plants.outputs.features[5, 1] = np.nan

        with pytest.raises(DetectorError, match="an embedding holds NaN or infinity"):
            select_detector(plants, make_non_plants())

    def test_too_few_leaves_are_refused(self) -> None:
        check_images(MIN_TRAINING_IMAGES, None)
        with pytest.raises(DetectorError, match="the detector needs at least 63 training images, got 62"):
            select_detector(make_plants(62), None)
