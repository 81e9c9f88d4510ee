"""The report's sections on rejection: counts, sources, decisions that differ, and the detectors that were tried."""

import re
from collections.abc import Callable
from dataclasses import asdict, replace

import pytest

from plantmodels.ood.cross_validation import DetectorTrial
from plantmodels.report.gate_report import GateReport
from plantmodels.report.render.gallery import CaptionLine, Gallery, Thumbnail
from plantmodels.report.render.page import render_report
from plantmodels.report.results import Rejection
from plantmodels.report.statistics import Proportion


@pytest.fixture
def rejection(report: Callable[..., GateReport]) -> Rejection:
    found = report().rejection
    assert found is not None
    return found


def make_trial(method: str, served: bool, exposed: bool = False, new: float | None = 0.9) -> DetectorTrial:
    sources = {"bricks": 1.0, "rocks": 0.88}
    unseen = {} if new is None else {"bricks": new, "rocks": new - 0.1}
    return DetectorTrial(method, served, exposed, 0.9971, 0.0123, 0.948, sources, unseen, 0.26 if new else None)


@pytest.fixture
def render(report: Callable[..., GateReport]) -> Callable[..., str]:
    """`render(rejection, selection, galleries)`: the sections on rejection, white space as a browser shows it."""

    def build(rejection: Rejection, selection: dict | None = None, galleries: dict | None = None) -> str:
        page = render_report(report(rejection=rejection), {}, {}, selection or {}, galleries or {})
        part = page[page.index("<h2>Out-of-distribution rejection") : page.index("<h2>Parity")]
        return re.sub(r">\s+<", "><", " ".join(part.split()))

    return build


def test_counts_are_said_in_words(render: Callable[..., str], rejection: Rejection) -> None:
    page = render(rejection)
    half = "the half that was not used to choose the detector"
    assert f"(false alarms): 1 of 200. Non-plants rejected: 49 of 50 ({half})." in page
    assert "false-alarm rate) = 99.49 %." in page
    assert "3 of 10 were rejected. No gate checks this." in page
    assert "AUROC 0.9981 (0.9952 to 0.9997)" in page
    assert "0.50 % (0.00 to 1.50 %)" in page
    assert "FP16 decides 2 of 260 images differently. FP32 decides 1 of 128 images differently." in page
    rows = [re.findall(r"<td.*?>(.*?)</td>", row) for row in re.findall(r"<tr>(<td.*?)</tr>", page)]
    assert [row[0] for row in rows[:2]] == ["bricks", "rocks"]
    assert rows[2][0] == 'ferns<span class="what">plants of unknown species</span>'
    assert rows[0][3:] == ["–", "–"]
    assert rows[1][2] == "99.49 %" and rows[1][3] == '0.9700<span class="what">0.9500 to 0.9900</span>'
    assert rows[2][2] == "–" and rows[2][4] == '90.00 %<span class="what">80.00 to 100.00 %</span>'


def test_what_was_not_measured_is_left_out(render: Callable[..., str], rejection: Rejection) -> None:
    none = Proportion(0, 0)
    page = render(
        replace(rejection, non_plants=none, unseen_plants=none, separation=None, roc=(), flips={"fp16": none})
    )
    assert "No non-plants were measured." in page
    assert not re.search("All non-plants: AUROC|decides|No gate checks|Choice of the detector", page)
    nothing = render(replace(rejection, plants=Proportion(0, 9), non_plants=Proportion(0, 9), held_out=False))
    assert "0 of 9 (all that were given)" in nothing
    assert "It is not defined, because both are 0." in nothing


def test_the_detectors_that_were_tried_are_a_table(render: Callable[..., str], rejection: Rejection) -> None:
    trials = [
        make_trial("gaussian_ratio", True, True),
        make_trial("energy", False),
        make_trial("logistic", False, True, new=None),
    ]
    selection = {"reason": "of 286 non-plants, most", "trials": [asdict(trial) for trial in trials]}
    page = render(rejection, selection)
    rows = [re.findall(r"<td.*?>(.*?)</td>", row) for row in re.findall(r"<tr>(<td.*?)</tr>", page)][-3:]
    assert rows[0] == ["ratio of two Gaussians *", "0.9971", "1.2", "94.8", "100.0", "88.0", "85.0", "26.0"]
    assert rows[1][0] == "energy"
    assert rows[2][-2:] == ["–", "–"]
    assert "Reason for the choice: of 286 non-plants, most." in page


def test_the_page_says_why_no_detector_was_tried(render: Callable[..., str], rejection: Rejection) -> None:
    page = render(rejection, {"reason": "0 non-plants to choose by", "trials": []})
    assert "Only the classic detector was fitted: 0 non-plants to choose by." in page


def test_wrong_decisions_are_shown_as_thumbnails(render: Callable[..., str], rejection: Rejection) -> None:
    shown = Gallery((Thumbnail(b"bytes", "rocks", (CaptionLine("12.1: Rose"),)),), 1)
    page = render(rejection, galleries={"let through": shown, "rejected": Gallery((), 0)})
    assert "Non-plants that were accepted" in page
    assert "Plants that were rejected" not in page
    assert "12.1: Rose" in page
