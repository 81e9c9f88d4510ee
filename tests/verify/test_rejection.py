import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plantmodels.build.data import NonPlantSet, UnreadableImage, read_non_plants
from plantmodels.errors import DataError
from plantmodels.verify.measurements import Histogram, Rejection, Share
from plantmodels.verify.rejection import bin_scores, gate_images, measure_rejection

EMPTY = Histogram((), (), ())


def make_rejection(plants: Share, non_plants: Share) -> Rejection:
    return Rejection(1.0, plants, non_plants, False, {}, {}, EMPTY)


def test_precision_is_that_of_equal_numbers() -> None:
    """The formula against counting: 300 copies of 200 plants meet 200 copies of 300 non-plants."""
    rejection = make_rejection(Share(2, 200), Share(285, 300))
    rejected_plants, rejected_others = 2 * 300, 285 * 200
    assert rejection.precision == pytest.approx(rejected_others / (rejected_others + rejected_plants), rel=1e-12)
    assert rejection.recall == 0.95
    assert rejection.false_alarm_rate == 0.01


@pytest.mark.parametrize(
    ("plants", "non_plants", "precision", "recall"),
    [
        (Share(0, 10), Share(10, 10), 1.0, 1.0),
        (Share(10, 10), Share(0, 10), 0.0, 0.0),
        (Share(5, 10), Share(5, 10), 0.5, 0.5),
        (Share(0, 10), Share(0, 10), None, 0.0),
        (Share(1, 10), Share(0, 0), None, None),
        (Share(0, 0), Share(5, 10), None, 0.5),
    ],
)
def test_the_edges_of_precision_and_recall(
    plants: Share, non_plants: Share, precision: float | None, recall: float | None
) -> None:
    rejection = make_rejection(plants, non_plants)
    assert (rejection.precision, rejection.recall) == (precision, recall)


def test_scores_are_held_against_the_threshold_by_source_and_species(
    numbered_images: Callable[..., list[Path]], scripted: type, tmp_path: Path
) -> None:
    numbered_images(20, "others/bricks")
    numbered_images(30, "others/rocks", first=20)
    scores = np.random.default_rng(3).normal(1, 1, 50)
    scores[7] = 1.5  # equal to the threshold: not rejected
    classifier = scripted([0] * 50, [[0, 0, 0]] * 50, scores.tolist(), threshold=1.5)
    plant_scores = np.array([0.1, 1.5, 1.6, math.nan, -3.0, 9.0])
    names = ["Rose", "Rose", "Apple", "Apple", "Apple", "Rose"]
    rejection = measure_rejection(classifier, plant_scores, names, read_non_plants(tmp_path / "others"), unreadable=[])
    above = [score > 1.5 for score in scores]
    assert rejection.by_source == {"bricks": Share(sum(above[:20]), 20), "rocks": Share(sum(above[20:]), 30)}
    assert rejection.non_plants == Share(sum(above), 50)
    assert rejection.by_species == {"Apple": Share(2, 3), "Rose": Share(1, 3)}
    assert rejection.plants == Share(3, 6), "NaN is rejected"
    assert not rejection.held_out
    assert classifier.seen == list(range(50))


def test_a_detector_that_was_chosen_on_non_plants_is_measured_on_the_others(
    numbered_images: Callable[..., list[Path]], scripted: type, tmp_path: Path
) -> None:
    numbered_images(60, "others/bricks")
    everything = read_non_plants(tmp_path / "others")
    classifier = scripted([0] * 60, [[0, 0, 0]] * 60, [1.0] * 60, fit={"selection_images": 27})
    rejection = measure_rejection(classifier, np.zeros(1), ["Rose"], everything, unreadable=[])
    gate, selection = everything.half("gate"), everything.half("selection")
    assert rejection.held_out
    assert classifier.seen == [int(path.stem) for path in gate.paths]
    assert set(gate.paths).isdisjoint(selection.paths)
    assert len(gate.paths) + len(selection.paths) == 60


@pytest.mark.parametrize(
    ("fit", "held_out"),
    [
        ({}, False),
        ({"selection_images": 0}, False),
        ({"selection_images": 5}, True),
        ({"selection_images": "5"}, False),
    ],
)
def test_which_half_is_measured_follows_from_the_fit(fit: dict[str, object], held_out: bool, tmp_path: Path) -> None:
    images = NonPlantSet(tmp_path, tuple(tmp_path / f"{i}.png" for i in range(10)))
    for path in images.paths:
        path.write_text(path.name)
    used, answer = gate_images(images, fit)
    assert answer is held_out
    assert (used == images) is not held_out


def test_without_non_plants_false_alarms_are_still_counted(scripted: type) -> None:
    classifier = scripted([], [], [], threshold=1.0)
    rejection = measure_rejection(classifier, np.array([0.5, 2.0]), ["Rose"] * 2, None, unreadable=[])
    assert (rejection.plants, rejection.non_plants) == (Share(1, 2), Share(0, 0))
    assert (rejection.precision, rejection.recall) == (None, None)


def test_unreadable_non_plants_are_named_or_too_many(
    numbered_images: Callable[..., list[Path]], scripted: type, tmp_path: Path
) -> None:
    paths = numbered_images(120, "others")
    classifier = scripted([0] * 120, [[0, 0, 0]] * 120, [1.0] * 120)
    unreadable: list[UnreadableImage] = []
    paths[3].write_bytes(b"")
    others = read_non_plants(tmp_path / "others")
    rejection = measure_rejection(classifier, np.zeros(1), ["Rose"], others, unreadable=unreadable)
    assert rejection.non_plants.images == 119
    assert [image.path for image in unreadable] == [paths[3]]
    paths[4].write_bytes(b"")
    with pytest.raises(DataError, match="cannot be read"):
        measure_rejection(classifier, np.zeros(1), ["Rose"], others, unreadable=[])


# ONNX Runtime sessions that treat denormals as zero leave the thread so; hypothesis insists on being told.
FINITE = st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), max_size=50)


@given(FINITE, FINITE)
def test_every_finite_score_falls_into_one_bin(plants: list[float], non_plants: list[float]) -> None:
    histogram = bin_scores(np.array([*plants, math.nan]), np.array([*non_plants, math.inf]))
    assert (sum(histogram.plants), sum(histogram.non_plants)) == (len(plants), len(non_plants))
    assert list(histogram.edges) == sorted(histogram.edges)


def test_counts_that_do_not_fit_the_edges_are_refused() -> None:
    with pytest.raises(ValueError, match="2 bins need as many counts, got 2 and 1"):
        Histogram((0.0, 1.0, 2.0), (1, 2), (3,))
