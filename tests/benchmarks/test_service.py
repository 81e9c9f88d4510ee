"""The benchmark of the service notices wrong answers, and its tables hold the bars."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import PARTS
from benchmarks.bars import Bar, judge_bars
from benchmarks.service.clients import Crowd
from benchmarks.service.measure import Plan, summarize
from benchmarks.service.tables import render_service
from plantmodels.serve.classifier import PlantClassifier
from plantmodels.service.answers import describe_row
from plantmodels.service.settings import Limits, Settings
from tests.service.conftest import Running, start


@pytest.fixture(scope="module")
def running(tiny_bundle) -> Iterator[Running]:
    running, stop = start(Settings(str(tiny_bundle.bundle), threads=1, limits=Limits(requests=6)))
    running.service.model.wait(60)
    yield running
    stop()


def test_a_crowd_compares_every_answer(running: Running, tiny_bundle) -> None:
    images = [path.read_bytes() for path in sorted(tiny_bundle.data.glob("val/*/*.jpg"))[:2]]
    answers = PlantClassifier.load(tiny_bundle.bundle, threads=1).predict(images)
    expected = [describe_row(answer, top_k=0) for answer in answers]
    crowd = Crowd(running.port, images, expected, time.perf_counter() + 1)
    crowd.run(12)
    assert crowd.tally.wrong == []
    kinds = {answer.partition(":")[0] for answer in crowd.tally.answers}
    assert {"good", "malformed", "gone"} <= kinds and crowd.tally.answers["good: 200"] > 0

    mistaken = Crowd(running.port, images, [expected[1], expected[0]], time.perf_counter() + 0.3)
    mistaken.run(4)
    assert mistaken.tally.wrong and mistaken.tally.wrong[0].startswith("photograph ")


def part() -> dict[str, Any]:
    def turn(seconds: float, answers: int) -> dict[str, Any]:
        return {"seconds": [seconds] * answers, "elapsed_s": 1.0, "server_s": 0.2, "client_s": 0.1, "foreign": 0.01}

    rates = {
        ("native", 1): (0.004, 250),
        ("service", 1): (0.0055, 180),
        ("native", 16): (0.04, 400),
        ("service", 16): (0.04, 380),
    }
    steady = [{"name": name, "clients": clients, **summarize([turn(*rate)])} for (name, clients), rate in rates.items()]
    crowd = {
        "answers": {"good: 200": 3, "good: 503": 2},
        "wrong": 0,
        "foreign": 0.02,
        "peak_mb": 300.0,
        "halves_mb": [299.0, 300.0],
        "answered": 3,
        "answered_p50_s": 1.5,
        "answered_max_s": 2.5,
        "refused": 2,
        "refused_p50_s": 0.05,
        "refused_p99_s": 0.19,
        "refused_max_s": 0.2,
    }
    return {"plan": vars(Plan()), "steady": steady, "crowd": crowd}


def test_the_page_lists_every_part() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    listed = re.findall(
        r"^- `([a-z-]+)`", page.partition("The parts are\n")[2].partition("\n\nFuzzing")[0], re.MULTILINE
    )

    assert listed == list(PARTS)


def judge(measured: dict[str, Any] | None) -> list[Bar]:
    return [bar for bar in judge_bars({"service": measured}) if bar.what.startswith(("service", "crowd"))]


def test_the_bars_are_judged_by_what_was_measured() -> None:
    assert [(bar.what, bar.measured, bar.sense, bar.bar, bar.verdict) for bar in judge(part())] == [
        ("service, one client: p50 above that of the classifier without HTTP", pytest.approx(1.5), "≤", 2, "met"),
        (
            "service, 16 clients: answers a second against the classifier without HTTP",
            pytest.approx(0.95),
            "≥",
            0.9,
            "met",
        ),
        ("crowd: wrong answers", 0, "≤", 0, "met"),
        ("crowd: peak memory", 300.0, "≤", 400, "met"),
        ("crowd: peak memory of the second half against the first", pytest.approx(300 / 299), "≤", 1.05, "met"),
        ("crowd: slowest refusal", 200.0, "≤", 100, "**missed**"),
    ]
    assert not any(bar.disturbed for bar in judge(part()))


def test_a_bar_that_only_some_rounds_meet_is_undecided() -> None:
    measured = part()
    service = next(row for row in measured["steady"] if (row["name"], row["clients"]) == ("service", 1))
    native = next(row for row in measured["steady"] if (row["name"], row["clients"]) == ("native", 1))
    service["rounds_p50_s"], native["rounds_p50_s"] = [0.005, 0.005, 0.009], [0.004] * 3
    assert next(bar.verdict for bar in judge(measured)) == "undecided"


def test_what_was_not_measured_has_no_verdict() -> None:
    assert {bar.verdict for bar in judge(None)} == {"not measured"}
    measured = part()
    measured["crowd"] |= {"refused": 0, "refused_p50_s": None, "refused_p99_s": None, "refused_max_s": None}
    assert [bar.verdict for bar in judge(measured)][-1] == "not measured"
    assert "| refused | 0 |  |  |" in render_service(measured)


def test_other_programs_disturb_a_bar() -> None:
    measured = part()
    measured["crowd"]["foreign"] = measured["steady"][0]["foreign"] = 0.5
    assert [bar.disturbed for bar in judge(measured)] == [True, False, True, True, True, True]


def test_the_tables_say_what_shared_the_cores() -> None:
    text = render_service(part())
    assert "| `plantmodels serve` | 16 | 380 | 40.00 | 40.00 | 0.53 | 0.26 |" in text
    assert "| answered | 3 | 1.500 | 2.500 |" in text and "| refused | 2 | 0.050 | 0.200 |" in text
    assert "share the cores with the server" in text and "good: 200 3, good: 503 2" in text
