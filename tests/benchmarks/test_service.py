"""The benchmark of the service notices wrong answers, and its tables hold the bars."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import PARTS
from benchmarks.service.clients import Crowd
from benchmarks.service.measure import Plan, summarize
from benchmarks.service.tables import judge, render_service
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
        ("service", 1): (0.005, 200),
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
        "refused": 2,
        "refused_in_time": 1,
        "refused_max_s": 0.2,
    }
    return {"plan": vars(Plan()), "steady": steady, "crowd": crowd}


def test_the_page_lists_every_part() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    listed = re.findall(
        r"^- `([a-z-]+)`", page.partition("The parts are\n")[2].partition("\n\nFuzzing")[0], re.MULTILINE
    )

    assert listed == list(PARTS)


def test_the_bars_are_judged_by_what_was_measured() -> None:
    assert judge(part()) == [
        ("one client, p50 beyond native", "≤ 2 ms", "1.00 ms"),
        ("16 clients, of the native rate", "≥ 90 %", "95%"),
        ("crowd: wrong answers", "0", "0"),
        ("crowd: peak memory", "≤ 400 MB", "300 MB"),
        ("crowd: peaks of the first and the second half", "equal", "299, 300 MB"),
        ("crowd: refused within 100 ms", "all", "1 of 2"),
        ("crowd: slowest refusal", "≤ 0.1 s", "0.200 s"),
    ]


def test_the_tables_say_what_shared_the_cores() -> None:
    text = render_service(part())
    assert "| `plantmodels serve` | 16 | 380 | 40.00 | 40.00 | 0.53 | 0.26 |" in text
    assert "share the cores with the server" in text and "good: 200 3, good: 503 2" in text
