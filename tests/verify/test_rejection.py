import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from plantmodels.data.non_plants import NonPlantSet, read_non_plants
from plantmodels.errors import DataError
from plantmodels.report.evidence.separation import measure_separation
from plantmodels.report.per_image import ImageRow
from plantmodels.report.results import Histogram, Rejection
from plantmodels.report.statistics import Proportion
from plantmodels.verify.rejection import RejectionRun, choose_gate_images, measure_rejection, score_in_pytorch
from tests.fixtures.reports import TAXONOMY
from tests.fixtures.rows import complete

EMPTY = Histogram((), (), (), ())


def make_rejection(plants: Proportion, non_plants: Proportion) -> Rejection:
    return Rejection(1.0, plants, non_plants, Proportion(0, 0), False, {}, {}, {}, {}, None, {}, {}, (), (), EMPTY)


def leaves_of(scores: Sequence[float], species: Sequence[str], fp16_scores: Sequence[float] | None = None) -> Any:
    """Return the few attributes of an accuracy pass that a rejection pass reads."""
    rows = []
    for name, score, fp16_score in zip(species, scores, scores if fp16_scores is None else fp16_scores, strict=True):
        row = ImageRow("val", name, "1.png", name, "", name, "", name, "", "", "", 0.5, float(score), False)
        rows.append(replace(complete(row, TAXONOMY), fp16_ood_score=float(fp16_score)))
    return SimpleNamespace(rows=rows)


def measure(
    classifier: Any, leaves: Any, others: NonPlantSet | None, unseen: NonPlantSet | None = None
) -> RejectionRun:
    return measure_rejection(classifier, classifier, leaves, others, unseen)


def test_precision_is_computed_for_equal_numbers_of_plants_and_non_plants() -> None:
    """The formula against counting: 300 copies of 200 plants meet 200 copies of 300 non-plants."""
    rejection = make_rejection(Proportion(2, 200), Proportion(285, 300))
    rejected_plants, rejected_others = 2 * 300, 285 * 200
    assert rejection.precision == pytest.approx(rejected_others / (rejected_others + rejected_plants), rel=1e-12)
    assert rejection.recall == 0.95
    assert rejection.false_alarm_rate == 0.01


@pytest.mark.parametrize(
    ("plants", "non_plants", "precision", "recall"),
    [
        (Proportion(0, 10), Proportion(10, 10), 1.0, 1.0),
        (Proportion(10, 10), Proportion(0, 10), 0.0, 0.0),
        (Proportion(5, 10), Proportion(5, 10), 0.5, 0.5),
        (Proportion(0, 10), Proportion(0, 10), None, 0.0),
        (Proportion(1, 10), Proportion(0, 0), None, None),
        (Proportion(0, 0), Proportion(5, 10), None, 0.5),
    ],
)
def test_the_edges_of_precision_and_recall(
    plants: Proportion, non_plants: Proportion, precision: float | None, recall: float | None
) -> None:
    rejection = make_rejection(plants, non_plants)
    assert (rejection.precision, rejection.recall) == (precision, recall)


def test_scores_are_compared_with_the_threshold_by_source_and_species(
    numbered_images: Callable[..., list[Path]], scripted: type, tmp_path: Path
) -> None:
    numbered_images(20, "others/bricks")
    numbered_images(30, "others/rocks", first=20)
    scores = np.random.default_rng(3).normal(1, 1, 50)
    scores[7] = 1.5  # equal to the threshold: not rejected
    classifier = scripted([0] * 50, [[0, 0, 0]] * 50, scores.tolist(), threshold=1.5)
    plant_scores = np.array([0.1, 1.5, 1.6, math.nan, -3.0, 9.0])
    names = ["Rose", "Rose", "Apple", "Apple", "Apple", "Rose"]
    run = measure(classifier, leaves_of(plant_scores, names), read_non_plants(tmp_path / "others"))
    rejection = run.rejection
    above = [score > 1.5 for score in scores]
    assert set(rejection.separation_by_source) == {"bricks", "rocks"}
    assert rejection.separation_by_source["rocks"] == measure_separation(plant_scores, scores[20:])
    assert list(rejection.roc) == sorted(rejection.roc) and len(rejection.roc) == 50
    assert rejection.by_source == {"bricks": Proportion(sum(above[:20]), 20), "rocks": Proportion(sum(above[20:]), 30)}
    assert rejection.non_plants == Proportion(sum(above), 50)
    assert rejection.by_species == {"Apple": Proportion(2, 3), "Rose": Proportion(1, 3)}
    assert rejection.plants == Proportion(3, 6), "NaN is rejected"
    assert not rejection.held_out
    assert sorted(classifier.seen) == sorted([*range(50)] * 2), "each image once in each precision"
    assert [row.rejected for row in run.non_plants.rows] == above
    assert [row.ood_score for row in run.non_plants.rows] == scores.tolist()
    assert {(row.set, row.species, row.int8_disease) for row in run.non_plants.rows} == {("non-plants", "", "")}
    assert run.non_plants.rows[20].source == "rocks"
    assert run.non_plants.paths[20].name == run.non_plants.rows[20].name.split("/")[1]


def test_a_detector_that_was_chosen_on_non_plants_is_measured_on_the_others(
    numbered_images: Callable[..., list[Path]], scripted: type, tmp_path: Path
) -> None:
    numbered_images(60, "others/bricks")
    everything = read_non_plants(tmp_path / "others")
    classifier = scripted([0] * 60, [[0, 0, 0]] * 60, [1.0] * 60, fit={"selection_images": 27})
    rejection = measure(classifier, leaves_of([0], ["Rose"]), everything).rejection
    gate, selection = everything.half("gate"), everything.half("selection")
    assert rejection.held_out
    assert sorted(classifier.seen) == sorted(2 * [int(path.stem) for path in gate.paths])
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
    used, answer = choose_gate_images(images, fit)
    assert answer is held_out
    assert (used == images) is not held_out


def test_without_non_plants_false_alarms_are_still_counted(scripted: type) -> None:
    classifier = scripted([], [], [], threshold=1.0)
    rejection = measure(classifier, leaves_of([0.5, 2.0], ["Rose"] * 2), None).rejection
    assert rejection.separation is None and rejection.roc == ()
    assert (rejection.plants, rejection.non_plants) == (Proportion(1, 2), Proportion(0, 0))
    assert (rejection.precision, rejection.recall) == (None, None)


def test_unreadable_non_plants_are_named_or_too_many(
    numbered_images: Callable[..., list[Path]], scripted: type, tmp_path: Path
) -> None:
    paths = numbered_images(120, "others")
    classifier = scripted([0] * 120, [[0, 0, 0]] * 120, [1.0] * 120)
    paths[3].write_bytes(b"")
    others, leaves = read_non_plants(tmp_path / "others"), leaves_of([0], ["Rose"])
    for which in ("non-plants", "unseen-plants"):
        given = (others, None) if which == "non-plants" else (None, others)
        run = measure_rejection(classifier, classifier, leaves, *given)
        assert run.rejection.non_plants.images + run.rejection.unseen_plants.images == 119
        scored = {"non-plants": run.non_plants, "unseen-plants": run.unseen_plants}
        assert [image.path for image in scored.pop(which).unreadable] == [paths[3]]
        assert [other.unreadable for other in scored.values()] == [()]
    paths[4].write_bytes(b"")
    with pytest.raises(DataError, match="cannot be read"):
        measure(classifier, leaves, others)


def test_unseen_plants_are_counted_by_themselves(
    numbered_images: Callable[..., list[Path]], scripted: type, tmp_path: Path
) -> None:
    numbered_images(6, "unseen/ferns")
    numbered_images(4, "unseen/moss", first=6)
    classifier = scripted([1] * 10, [[0, 0, 0]] * 10, [0, 2, 2, 0, 0, 0, 2, 2, 2, 0], threshold=1.0)
    run = measure(classifier, leaves_of([0, 5], ["Rose"] * 2), None, read_non_plants(tmp_path / "unseen"))
    assert run.rejection.unseen_plants == Proportion(5, 10)
    assert set(run.rejection.separation_by_unseen_source) == {"ferns", "moss"}
    assert run.rejection.by_unseen_source == {"ferns": Proportion(2, 6), "moss": Proportion(3, 4)}
    assert (run.rejection.non_plants, run.rejection.by_source) == (Proportion(0, 0), {})
    assert sum(run.rejection.histogram.unseen_plants) == 10
    assert {row.set for row in run.unseen_plants.rows} == {"unseen-plants"}


def test_different_decisions_of_fp16_are_counted_over_all_images(
    numbered_images: Callable[..., list[Path]], scripted: type, tmp_path: Path
) -> None:
    numbered_images(8, "others")
    int8 = scripted([0] * 9, [[0, 0, 0]] * 9, [0, 0, 2, 2, 2, 0, 0, 0, 2], threshold=1.0)
    fp16 = replace(int8)
    fp16.embed = lambda pixels: (int8.embed(pixels)[0], int8.embed(pixels)[1] + 1)  # sees the next image's embedding
    leaves = leaves_of([0, 0, 2], ["Rose"] * 3, [0, 2, 2])
    rejection = measure_rejection(fp16, int8, leaves, read_non_plants(tmp_path / "others"), None).rejection
    assert rejection.flips == {"fp16": Proportion(1 + 3, 3 + 8)}


def test_the_detector_scores_pytorchs_embeddings(scripted: type) -> None:
    int8 = scripted([0] * 20, [[0, 0, 0]] * 20, list(range(20)), threshold=1.0)
    pixels = np.stack([np.full((3, 4, 4), number / 255, np.float32) for number in range(19)])

    def network(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        numbers = (images.mean(dim=(1, 2, 3)) * 255).round()
        return numbers, (numbers + (numbers >= 15))[:, None]  # the last four see another embedding

    assert score_in_pytorch(network, int8, pixels).tolist() == [*range(15), *range(16, 20)]
    assert score_in_pytorch(network, int8, pixels[:0]).tolist() == []


def test_the_interval_of_precision_covers_it_as_often_as_it_says() -> None:
    rng = np.random.default_rng(8)
    truth = 0.96 / (0.96 + 0.02)
    covered = []
    for plants, others in zip(rng.binomial(800, 0.02, 2000), rng.binomial(300, 0.96, 2000), strict=True):
        interval = make_rejection(Proportion(int(plants), 800), Proportion(int(others), 300)).precision_interval
        assert interval is not None
        covered.append(interval[0] <= truth <= interval[1])
    assert 0.93 < np.mean(covered) < 0.97


def test_the_interval_of_precision_at_the_edges() -> None:
    for plants, others in ((0, 300), (800, 0), (5, 300)):
        rejection = make_rejection(Proportion(plants, 800), Proportion(others, 300))
        low, high = rejection.precision_interval or (None, None)
        assert 0 < low < high < 1
    assert make_rejection(Proportion(0, 800), Proportion(0, 0)).precision_interval is None


def test_counts_that_do_not_fit_the_edges_are_refused() -> None:
    with pytest.raises(ValueError, match="2 bins need as many counts, got 2, 1, 2"):
        Histogram((0.0, 1.0, 2.0), (1, 2), (3,), (0, 0))
