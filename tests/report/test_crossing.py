"""Groups in both train and val: counted from the image rows, said in words, on the page and as metrics."""

import csv
import io
import json
import re
from dataclasses import replace

import pytest

from plantmodels.bundle.manifest import Manifest
from plantmodels.errors import BundleError
from plantmodels.report.evidence.columns import ImageTable
from plantmodels.report.gate_report import GateReport, parse_report
from plantmodels.report.leakage import count_crossing
from plantmodels.report.per_image import COLUMNS_WITHOUT_GROUP, ImageRow, format_image_rows, parse_image_rows
from plantmodels.report.render.page import render_report
from plantmodels.report.statistics import Proportion
from tests.fixtures.reports import TAXONOMY, make_report
from tests.fixtures.rows import agree, make_leaf_rows, make_other_rows

LEAVES = tuple(make_leaf_rows(TAXONOMY, 100, threshold=12.5, wrong=0.1))
SHARED = tuple(replace(row, group=f"plant {place % 4}" if place % 10 == 0 else "") for place, row in enumerate(LEAVES))
OTHERS = tuple(make_other_rows(TAXONOMY, 60, threshold=12.5))


def report_on(leaves: tuple[ImageRow, ...]) -> GateReport:
    return agree(make_report(), (*leaves, *OTHERS))


def read(report: GateReport, images: bytes) -> GateReport:
    return parse_report(json.dumps(report.to_dict()).encode(), images, Manifest(report.files))


def test_leaves_are_counted_with_and_without_the_groups_one_by_one() -> None:
    crossing = count_crossing(ImageTable.from_rows(SHARED))
    assert crossing is not None
    assert (crossing.groups, crossing.leaves) == (2, Proportion(10, 100))
    for counted, rows in (
        (crossing.shared, [row for row in SHARED if row.group]),
        (crossing.without, [row for row in SHARED if not row.group]),
    ):
        with_head = [row for row in rows if row.disease]
        species = sum(row.int8_species == row.species for row in rows)
        both = sum((row.int8_species, row.int8_disease) == (row.species, row.disease) for row in rows)
        assert counted.species == Proportion(species, len(rows))
        assert counted.disease == Proportion(sum(r.int8_disease == r.disease for r in with_head), len(with_head))
        assert counted.end_to_end == Proportion(both, len(rows))


def test_all_leaves_together_are_what_the_section_on_accuracy_says() -> None:
    report = report_on(SHARED)
    crossing, int8 = report.leakage.crossing, report.accuracy.int8
    for name in ("species", "disease", "end_to_end"):
        parts = [getattr(side, name) for side in (crossing.shared, crossing.without)]
        assert Proportion(*(sum(getattr(p, of) for p in parts) for of in ("count", "images"))) == getattr(int8, name)


def test_terminal_page_and_metrics_show_the_accuracy_without_the_groups() -> None:
    report = report_on(SHARED)
    without = report.leakage.crossing.without
    line = next(line for line in report.table().splitlines() if "same group" in line)
    assert line.startswith(
        "10 of 100 validation images (10.0 %) are of the same group as a training image, in 2 groups."
    )
    assert f"the species is right for {without.species.value:.1%}".replace("%", " %") in line
    page = render_report(report, {})
    part = page[page.index("<h2>Groups in both train and val</h2>") :]
    part = part[: part.index("</section>")]
    cells = re.findall(r'<span class="of">(\d+ of \d+)</span>', part)
    assert cells[:3] == [
        f"{right.count} of {right.images}"
        for right in (report.accuracy.int8.species, without.species, report.leakage.crossing.shared.species)
    ]
    metrics = report.metrics()
    assert (metrics["crossing.groups"], metrics["crossing.share"]) == (2, 0.1)
    assert metrics["crossing.without.end_to_end"] == without.end_to_end.value


def test_a_report_without_such_groups_says_so_and_what_is_not_found() -> None:
    report = report_on(LEAVES)
    line = next(line for line in report.table().splitlines() if "same group" in line)
    assert line == (
        "None of 100 validation images is of the same group as a training image. Another photograph of the same leaf "
        "is found only if a group names it."
    )
    assert line in render_report(report, {})
    assert report.metrics()["crossing.groups"] == 0
    assert (
        "in 1 group. Without them, no images are left"
        in count_crossing(ImageTable.from_rows([replace(row, group="all") for row in LEAVES])).describe()
    )


def test_reading_counts_the_groups_again() -> None:
    report, images = report_on(SHARED), format_image_rows((*SHARED, *OTHERS))
    assert read(report, images) == report
    with pytest.raises(BundleError, match=r"leakage\.crossing\.groups is 2, but its image rows make it 0"):
        read(report, format_image_rows((*LEAVES, *OTHERS)))


def drop_groups(images: bytes) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(line[:-1] for line in csv.reader(io.StringIO(images.decode(), newline="")))
    return text.getvalue().encode()


def test_first_reports_of_format_4_are_read_and_show_no_groups() -> None:
    report, images = report_on(LEAVES), drop_groups(format_image_rows((*LEAVES, *OTHERS)))
    assert tuple(images.decode().partition("\r\n")[0].split(",")) == COLUMNS_WITHOUT_GROUP
    document = report.to_dict()
    del document["leakage"]["crossing"]
    older = parse_report(json.dumps(document).encode(), images, Manifest(report.files))
    assert older == replace(report, leakage=replace(report.leakage, crossing=None))
    assert older.passed == report.passed
    assert "same group" not in older.table() and "Groups in both" not in render_report(older, {})
    assert "crossing.groups" not in older.metrics()
    assert parse_image_rows(images) == (*LEAVES, *OTHERS)
    with pytest.raises(BundleError, match=r"leakage\.crossing"):
        read(report, images)
