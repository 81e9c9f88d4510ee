"""Groups of images go whole into a fold: copies of an image do not score it, and few groups are said or refused."""

import logging
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from plantmodels.errors import DetectorError
from plantmodels.ood.cross_validation import FOLDS, assign_folds, count_left_to_fit, cross_validate
from plantmodels.ood.embeddings import LeafEmbeddings, ModelOutputs, NonPlantEmbeddings, number_groups
from plantmodels.ood.select import select_detector

DIM, COPIES = 40, 8


def embed(features: np.ndarray) -> ModelOutputs:
    return ModelOutputs(features.astype(np.float32), features[:, :3].astype(np.float32))


def make_copies(originals: int, *, grouped: bool, seed: int = 0) -> LeafEmbeddings:
    """Draw leaves of one class, of each of which there are eight nearly equal photographs."""
    rng = np.random.default_rng(seed)
    number = np.repeat(np.arange(originals), COPIES)
    features = rng.normal(size=(originals, DIM))[number] + 0.01 * rng.normal(size=(len(number), DIM))
    zeros = np.zeros(len(number), np.int64)
    return LeafEmbeddings(embed(features), zeros, zeros, number if grouped else None)


def make_non_plants(groups: np.ndarray) -> NonPlantEmbeddings:
    rng, count = np.random.default_rng(1), len(groups)
    return NonPlantEmbeddings(embed(rng.normal(size=(count, DIM)) * 0.5), np.repeat("stones", count), groups)


@pytest.mark.parametrize("sizes", [[1] * 63, [7, 1, 1, 20, 3, 3, 3, 9, 2, 1, 1, 1], [4, 40]])
def test_no_fold_cuts_a_group_and_the_sizes_of_folds_do_not_depend_on_the_seed(sizes: list[int]) -> None:
    groups = np.random.default_rng(3).permutation(np.repeat(np.arange(len(sizes)) * 10, sizes))
    found = [assign_folds(len(groups), groups, seed) for seed in range(20)]

    for folds in found:
        assert all(len(set(folds[groups == group])) == 1 for group in set(groups.tolist()))
    assert len({tuple(sorted(Counter(folds.tolist()).values())) for folds in found}) == 1
    assert len(sizes) <= FOLDS or len({tuple(folds) for folds in found}) > 1, "another seed gives other folds"
    assert len(set(found[0].tolist())) == min(FOLDS, len(sizes))
    assert count_left_to_fit(len(groups), groups) == len(groups) - max(Counter(found[7].tolist()).values())


def test_groups_of_one_image_have_the_folds_that_images_without_groups_have() -> None:
    groups = number_groups([f"image {number}" for number in range(101)])

    np.testing.assert_array_equal(assign_folds(101, groups, 5), assign_folds(101, None, 5))
    assert number_groups(["b", "a", "b"]).tolist() == [0, 1, 0]


def test_fresh_leaves_are_rejected_as_often_as_was_aimed_at_only_if_groups_stay_whole() -> None:
    fresh = np.random.default_rng(7).normal(size=(4_000, DIM))
    rejected = {}
    for grouped in (True, False):
        detector = select_detector(make_copies(60, grouped=grouped), None).detector
        rejected[grouped] = float(detector.rejects(detector.score(fresh)).mean())

    assert rejected[True] < 0.12, "60 different leaves tell 5 % to about this"
    assert rejected[False] > 2 * rejected[True], "a leaf is scored by a fit on its copies"


def test_fewer_groups_than_folds_make_fewer_folds_and_are_said(caplog: pytest.LogCaptureFixture) -> None:
    plants = make_copies(40, grouped=False)
    three = replace(plants, groups=np.arange(320) % 3)
    select_detector(three, make_non_plants(np.arange(60) % 2))

    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "the training leaves form 3 groups, so their cross-validation has 3 folds, not 5",
        "the non-plants form 2 groups, so their cross-validation has 2 folds, not 5",
    ]
    scored: list[int] = []

    def fit(_: object):
        return lambda outputs: scored.append(len(outputs)) or np.zeros(len(outputs))

    cross_validate(fit, three, make_non_plants(np.arange(60) % 2), 0)
    assert sorted(scored) == [30, 30, 106, 107, 107], "no fold is scored that holds no image"


@pytest.mark.parametrize(
    ("groups", "match"),
    [
        (np.zeros(320, np.int64), "in 1 groups, the largest with 320 images, 0 are left to fit the detector on"),
        (
            np.maximum(np.arange(320) - 279, 0),
            "of 320 training images in 41 groups, the largest with 280 images, 40 are left to fit the detector on, at "
            "least 50 are needed; give images of more groups",
        ),
    ],
)
def test_a_group_that_leaves_nothing_to_fit_on_is_an_error(groups: np.ndarray, match: str) -> None:
    with pytest.raises(DetectorError, match=match):
        select_detector(replace(make_copies(40, grouped=False), groups=groups), None)


def test_non_plants_of_one_group_choose_no_detector() -> None:
    plants = make_copies(40, grouped=True)
    selection = select_detector(plants, make_non_plants(np.maximum(np.arange(60) - 45, 0)))

    assert selection.detector.method == "mahalanobis"
    assert selection.reason == (
        "groups go whole into a fold: of 60 non-plants 14 are left to fit on, at least 16 are needed for another than "
        "the classic"
    )
