"""Checks that a version is refused for a loss beyond noise alone, image by image where both saw the same images."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from plantmodels.report.evidence.columns import ImageTable
from plantmodels.report.evidence.regression import (
    Loss,
    TooFewImagesError,
    judge_regression,
    measure_losses,
    regression_not_measured,
)
from plantmodels.report.gates import GATES, PROMOTION_GATES, GateResult
from plantmodels.report.per_image import ImageRow
from plantmodels.report.policy import GatePolicy

POLICY = GatePolicy()


def leaf(number: int, *, right: bool = True, rejected: bool = False, disease: str = "rust") -> ImageRow:
    answer = ("Apple", disease) if right else ("Mint", "")
    return ImageRow(
        set="val",
        source=f"Apple___{disease}",
        name=f"{number}.jpg",
        species="Apple",
        disease=disease,
        fp16_species="Apple",
        fp16_disease=disease,
        int8_species=answer[0],
        int8_disease=disease,
        int8_routed_disease=answer[1],
        int8_soft_disease=answer[1],
        species_probability=0.9,
        ood_score=1.0,
        rejected=rejected,
        sha256=f"{number:064x}",
    )


def other(number: int, *, rejected: bool = True) -> ImageRow:
    names = ("source", "species", "disease", "int8_species", "int8_disease", "int8_routed_disease")
    row = replace(leaf(number), **dict.fromkeys(names, ""), set="non-plants", rejected=rejected)
    return replace(row, sha256=f"f{number:063x}")


def judge(before: Sequence[ImageRow], now: Sequence[ImageRow], policy: GatePolicy, production: str) -> GateResult:
    return judge_regression(ImageTable.from_rows(before), ImageTable.from_rows(now), policy, production)


def measure(before: Sequence[ImageRow], now: Sequence[ImageRow], *, min_images: int) -> tuple[Loss, ...]:
    return measure_losses(ImageTable.from_rows(before), ImageTable.from_rows(now), min_images=min_images)


def rows(right: Sequence[bool], rejected: Sequence[bool], *, first: int = 0, alarms: int = 0) -> tuple[ImageRow, ...]:
    leaves = (leaf(first + i, right=value, rejected=i < alarms) for i, value in enumerate(right))
    return (*leaves, *(other(first + i, rejected=value) for i, value in enumerate(rejected)))


def share(count: int, images: int) -> list[bool]:
    return [i < count for i in range(images)]


GOOD = rows(share(450, 500), share(195, 200), alarms=2)


def test_the_gate_is_none_of_the_report() -> None:
    assert set(PROMOTION_GATES) == {"no_regression"}
    assert not set(PROMOTION_GATES) & set(GATES)


def test_an_equal_version_passes() -> None:
    gate = judge(GOOD, GOOD, POLICY, "version 1")
    assert (gate.status, gate.measured, gate.samples) == ("passed", 0.0, 200)
    assert gate.measured_text == "0.00 points lost"
    assert "end to end 90.00 %, before 90.00 % (95 % interval of the loss" in gate.detail
    assert "the same 500 images" in gate.detail


def test_a_better_version_passes() -> None:
    gate = judge(GOOD, rows(share(490, 500), share(200, 200)), POLICY, "version 1")
    assert gate.passed
    assert gate.measured is not None and gate.measured <= 0


@pytest.mark.parametrize(
    ("now", "text"),
    [
        (rows(share(430, 500), share(195, 200), alarms=2), "end to end 86.00 %, before 90.00 %"),
        (rows(share(450, 500), share(180, 200), alarms=2), "OOD recall 90.00 %, before 97.50 %"),
        (rows(share(450, 500), share(195, 200), alarms=40), "OOD precision 92.42 %, before 99.59 %"),
    ],
)
def test_a_loss_beyond_noise_fails_with_both_figures(now: Sequence[ImageRow], text: str) -> None:
    gate = judge(GOOD, now, POLICY, "version 1")
    assert gate.status == "failed"
    assert gate.detail.startswith("against version 1: ")
    assert text in gate.detail
    assert gate.limit_text == "≤ 1 point"


def test_pairs_show_what_unpaired_images_cannot() -> None:
    """Thirteen leaves of 500 lost: certain image by image, noise between two sets of 500."""
    now, elsewhere = (rows(share(437, 500), share(195, 200), first=first, alarms=2) for first in (0, 10_000))
    assert judge(GOOD, now, POLICY, "version 1").status == "failed"
    unpaired = judge(GOOD, elsewhere, POLICY, "version 1")
    assert unpaired.passed
    assert "500 images, 500 others before" in unpaired.detail


def test_a_large_loss_on_other_images_fails() -> None:
    now = rows(share(350, 500), share(195, 200), first=10_000, alarms=2)
    assert judge(GOOD, now, POLICY, "version 1").status == "failed"


def test_a_loss_within_the_limit_passes_however_certain() -> None:
    before, now = rows(share(10_000, 10_000), share(200, 200)), rows(share(9_950, 10_000), share(200, 200))
    gate = judge(before, now, POLICY, "version 1")
    assert gate.passed
    assert gate.measured == pytest.approx(0.005)
    strict = replace(POLICY, no_regression_max_drop=0.004)
    assert judge(before, now, strict, "version 1").status == "failed"


def test_images_are_paired_by_content_and_label_and_not_by_name() -> None:
    renamed = [replace(row, name=f"new {row.name}", source="elsewhere") for row in GOOD]
    leaves, _, others = measure(GOOD, renamed, min_images=100)
    assert leaves.images == "the same 500 images"
    assert others.images == "the same 200 images"
    relabelled = [replace(row, disease="scab") if row.set == "val" else row for row in GOOD]
    assert "others" in measure(GOOD, relabelled, min_images=100)[0].images


def test_99_shared_images_are_too_few_to_pair() -> None:
    for shared, paired in ((99, False), (100, True)):
        now = rows(share(450, 500), share(195, 200), first=500 - shared)
        assert (measure(GOOD, now, min_images=100)[0].images == f"the same {shared} images") is paired


def test_an_image_twice_in_a_set_is_one_pair() -> None:
    twice = (*GOOD, GOOD[0])
    assert measure(twice, GOOD, min_images=100)[0].images == "the same 500 images"


@pytest.mark.parametrize(
    ("before", "now", "match"),
    [
        (GOOD[:99], GOOD, r"the version before was measured on 99 images of the set 'val', at least 100"),
        (GOOD, GOOD[:500], r"the new version was measured on 0 images of the set 'non-plants'"),
    ],
)
def test_too_few_images_are_not_compared(before, now, match: str) -> None:
    with pytest.raises(TooFewImagesError, match=match):
        measure(before, now, min_images=100)
    gate = judge(before, now, POLICY, "version 7")
    assert gate.status == "not measured"
    assert gate.detail.endswith("are needed to compare (version 7)")


def test_what_cannot_be_compared_does_not_pass() -> None:
    gate = regression_not_measured("its report is of format 2", POLICY)
    assert (gate.status, gate.detail, gate.passed) == ("not measured", "its report is of format 2", False)


def test_where_nothing_is_rejected_precision_is_not_defined_and_recall_is_lost() -> None:
    now = rows(share(450, 500), share(0, 200))
    precision = measure(GOOD, now, min_images=100)[1]
    assert (precision.lost, precision.beyond_noise) == (None, 0.0)
    gate = judge(GOOD, now, POLICY, "version 1")
    assert gate.status == "failed"
    assert "OOD precision is not defined where nothing is rejected" in gate.detail


def test_equal_networks_are_refused_about_once_in_forty_times() -> None:
    """Two networks of the same accuracy on the same images: a loss beyond noise is chance in 2.5 % of all cases."""
    rng = np.random.default_rng(0)
    before = rows((rng.random(400) < 0.9).tolist(), share(200, 200))
    refused = 0
    for _ in range(60):
        now = rows((rng.random(400) < 0.9).tolist(), share(200, 200))
        refused += measure(before, now, min_images=100)[0].beyond_noise > 0.01
    assert refused <= 5
