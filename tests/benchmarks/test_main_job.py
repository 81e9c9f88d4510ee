"""The steps of a job are taken from what it logs, and add up to all of its time."""

import logging
import time

import pytest

from benchmarks.main_job import BAR_S, Step, StepRecorder, describe, merge_steps
from plantmodels.data.progress import log_step


def test_each_logged_step_ends_one() -> None:
    before = time.perf_counter()
    logger, recorder = logging.getLogger("plantmodels"), StepRecorder()
    start = time.perf_counter()
    logger.addHandler(recorder)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        with log_step("read"):
            pass
        logger.warning("a line that ends no step")
        with log_step("embed leaves", total=1, unit="image"):
            pass
        with log_step("embed leaves", total=3_000, unit="image"):
            sum(range(1_000_000))
    finally:
        logger.removeHandler(recorder)
        logger.setLevel(level)
    end = time.perf_counter()
    recorder.end_step("the rest")

    assert [step.name for step in recorder.steps] == ["read", "embed leaves", "embed leaves", "the rest"]
    assert end - start <= sum(step.clock_s for step in recorder.steps) <= time.perf_counter() - before
    assert recorder.steps[2].processor_s > 0


def test_steps_of_one_name_are_one() -> None:
    steps = [Step("a", 1, 2), Step("b", 3, 3), Step("a", 2, 4)]
    assert merge_steps(steps) == [Step("a", 3, 6), Step("b", 3, 3)]


@pytest.mark.parametrize(("seconds", "foreign", "last"), [(BAR_S, 0.0, "met"), (BAR_S + 5, 0.3, "**missed**")])
def test_table_and_verdict(seconds: float, foreign: float, last: str) -> None:
    steps = [{"name": "embed leaves", "clock_s": 40.0, "processor_s": 76.0}]
    text = describe({"steps": steps, "process_s": seconds, "foreign": foreign})
    assert "| embed leaves | 40.0 | 76.0 | 1.9 |" in text
    assert f"| all | {seconds:.1f} | 76.0 |" in text
    expected = f"main job: {seconds:.0f} s, bar 120 s: {last}"
    assert text.endswith(f"{expected}; other programs used 30% of the processors" if foreign else expected)
