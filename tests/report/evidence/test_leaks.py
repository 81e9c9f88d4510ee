from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.report.evidence.columns import ImageTable
from plantmodels.report.evidence.recount import check_leaks
from plantmodels.report.leakage import Leak, Leakage, Twin
from plantmodels.report.per_image import ImageRow
from tests.fixtures.rows import make_leaf_rows, make_other_rows

TAXONOMY = Taxonomy(("Mint", "Rose"), {"Rose": ("spot", "healthy")})
ROWS = (*make_leaf_rows(TAXONOMY, 6), *make_other_rows(TAXONOMY, 4))
MINT, SPOT, ROCK = ROWS[0], ROWS[1], ROWS[-1]


def twin_of(row: ImageRow, **changes: Any) -> Twin:
    return replace(Twin(row.set, row.name, row.source, row.sha256, 12), **changes)  # type: ignore[arg-type]


def leak_of(row: ImageRow, twin: Twin, **changes: Any) -> Leak:
    return replace(Leak(row.name, row.source, row.sha256, twin), **changes)


def check(*leaks: Leak, rows: tuple[ImageRow, ...] = ROWS, val: int = 6, others: int = 4) -> None:
    check_leaks(Leakage({"train": 10, "val": val, "non-plants": others}, leaks), ImageTable.from_rows(rows), 4)


TRAIN = Twin("train", "train/Rose___spot/1.jpg", "Rose___spot", "a" * 64, 12)


def test_leaks_that_agree_with_the_rows_are_accepted() -> None:
    check()
    check(leak_of(MINT, TRAIN), leak_of(SPOT, twin_of(MINT)))
    check(leak_of(MINT, twin_of(ROCK)), leak_of(SPOT, replace(TRAIN, sha256=SPOT.sha256, distance=0)))
    check(leak_of(MINT, twin_of(ROCK, name="rocks/of the other half.png", sha256="b" * 64)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: check(val=7), r"leakage\.compared\.val is 7, but there are 6 such images"),
        (lambda: check(others=5), r"leakage\.compared\.non-plants is 5, but there are 4 such images"),
        (lambda: check(leak_of(MINT, TRAIN), leak_of(MINT, twin_of(ROCK))), "names 'val/0.jpg' more than once"),
        (lambda: check(leak_of(MINT, TRAIN, sha256="c" * 64)), "of 'val/0.jpg' does not agree with the rows"),
        (lambda: check(leak_of(MINT, TRAIN, name="val/99.jpg")), "of 'val/99.jpg' does not agree with the rows"),
        (lambda: check(leak_of(MINT, twin_of(SPOT, sha256="c" * 64))), "of 'val/0.jpg' does not agree with the rows"),
        (lambda: check(leak_of(MINT, twin_of(ROCK, sha256="c" * 64))), "of 'val/0.jpg' does not agree with the rows"),
        (lambda: check(leak_of(MINT, twin_of(ROWS[3]))), "names an image of the same class and set"),
        (lambda: check(leak_of(MINT, replace(TRAIN, distance=-1))), "has the distance -1, which is impossible"),
        (lambda: check(leak_of(MINT, replace(TRAIN, distance=45))), "has the distance 45, which is impossible"),
        (lambda: check(leak_of(MINT, replace(TRAIN, sha256=MINT.sha256))), "has the distance 12, which is impossible"),
    ],
)
def test_a_leak_that_contradicts_the_rows_is_refused_by_name(make: Callable[[], None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("other", [SPOT, ROCK])
def test_identical_images_among_the_rows_cannot_be_left_out(other: ImageRow) -> None:
    rows = tuple(replace(row, sha256=MINT.sha256) if row == other else row for row in ROWS)
    with pytest.raises(ValueError, match=r"leakage leaves out 'val/0\.jpg', whose content occurs again"):
        check(rows=rows)


def test_one_image_twice_in_its_class_is_no_leak() -> None:
    check(rows=tuple(replace(row, sha256=MINT.sha256) if row == ROWS[3] else row for row in ROWS))


def test_two_images_of_one_name_may_both_leak() -> None:
    """Images outside the folder of the data are named by their last part alone."""
    twin = replace(ROWS[3], name=MINT.name, sha256="d" * 64)
    rows = tuple(twin if row == ROWS[3] else row for row in ROWS)
    assert (twin.source, twin.name) == (MINT.source, MINT.name)
    check(leak_of(MINT, TRAIN), leak_of(twin, TRAIN), rows=rows)
    with pytest.raises(ValueError, match=r"names 'val/0\.jpg' more than once"):
        check(leak_of(MINT, TRAIN), leak_of(MINT, TRAIN), rows=rows)
