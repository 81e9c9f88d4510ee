import json
import sys
import time
from pathlib import Path

import click
import numpy as np
import pytest

from benchmarks.driver import (
    QUIET,
    Patience,
    Turn,
    Workers,
    alternate,
    ask_quietly,
    describe_turns,
    run_child,
    summarize,
)

FAKE = """
import json, sys
name, log = sys.argv[1:3]
for number, line in enumerate(sys.stdin):
    request = json.loads(line)
    if request["do"] == "fail":
        sys.exit("the reason")
    with open(log, "a") as file:
        file.write(f"{name} {request['case']['batch']}\\n")
    answer = {"seconds": [float(name == "slow") + i for i in range(request["repeats"])]}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def commands(tmp_path):
    return {name: [sys.executable, "-c", FAKE, name, str(tmp_path / "log")] for name in ("slow", "fast")}


def _state(worker):
    return Path(f"/proc/{worker._process.pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_round_asks_everyone_the_same_case_and_later_rounds_start_elsewhere(commands, tmp_path):
    turns = [(name, {"batch": batch}, 3) for batch in (1, 32) for name in commands]
    with Workers(commands) as workers:
        measured = alternate(workers, turns, rounds=2, patience=Patience(0))
    asked = (tmp_path / "log").read_text().splitlines()
    assert asked == ["slow 1", "fast 1", "slow 32", "fast 32", "slow 32", "fast 32", "slow 1", "fast 1"]
    assert {key: [turn.seconds for turn in found] for key, found in measured.items()} == {
        (name, json.dumps({"batch": batch})): [middle] * 2
        for name, middle in (("slow", 2.0), ("fast", 1.0))
        for batch in (1, 32)
    }


def test_who_is_not_asked_is_stopped_and_all_end_with_the_block(commands):
    with Workers(commands) as workers:
        for worker in workers.values():
            worker.ask(do="time", case={"batch": 1}, repeats=1)
        deadline = time.monotonic() + 5
        while [_state(worker) for worker in workers.values()] != ["T", "T"] and time.monotonic() < deadline:
            time.sleep(0.01)
        assert [_state(worker) for worker in workers.values()] == ["T", "T"]
        processes = [worker._process for worker in workers.values()]
    assert [process.returncode for process in processes] == [0, 0]


def test_a_worker_that_ends_says_why(commands):
    with Workers(commands) as workers, pytest.raises(click.ClickException, match=r"(?s)slow: .*the reason"):
        workers["slow"].ask(do="fail")


def test_the_least_disturbed_attempt_counts_and_not_the_fastest(commands, monkeypatch):
    # Seconds that the machine was busy: before and after each of three attempts, two of them disturbed.
    busy = iter([0, 50.0, 100, 120.0, 200, 290.0])
    monkeypatch.setattr("benchmarks.driver.read_busy_s", lambda: next(busy))
    monkeypatch.setattr(Patience, "wait", lambda self: None)
    with Workers(commands) as workers:
        answers = iter([3.0, 2.0, 1.0])
        monkeypatch.setattr(workers["fast"], "ask", lambda **request: (time.sleep(0.01), next(answers))[1])
        answer, foreign = ask_quietly(workers["fast"], Patience(1))
    assert answer == 2.0
    assert foreign > QUIET


def test_without_patience_a_disturbed_turn_is_not_taken_again(commands, monkeypatch):
    busy = iter([0.0, 50.0])
    monkeypatch.setattr("benchmarks.driver.read_busy_s", lambda: next(busy))
    with Workers(commands) as workers:
        ask_quietly(workers["fast"], Patience(0), do="time", case={"batch": 1}, repeats=1)
    assert next(busy, None) is None


def test_patience_is_spent_while_others_run_and_then_waits_no_more(monkeypatch):
    busy = iter(range(0, 10_000, 10))
    monkeypatch.setattr("benchmarks.driver.read_busy_s", lambda: float(next(busy)))
    patience = Patience(0.3)
    patience.wait()
    assert patience.left_s <= 0
    used = next(busy)
    patience.wait()
    assert next(busy) == used + 10


def test_disturbed_rounds_are_left_out_while_half_are_quiet():
    quiet, disturbed = [Turn(1.0, 0.0), Turn(3.0, QUIET)], [Turn(9.0, 0.5), Turn(8.0, 0.9)]
    described = describe_turns(quiet + disturbed)
    assert (described["median_s"], described["disturbed"]) == (2.0, False)
    assert described["rounds_s"] == [1.0, 3.0, 9.0, 8.0]
    described = describe_turns([*quiet[:1], *disturbed])
    assert (described["median_s"], described["disturbed"]) == (8.0, True)


@pytest.mark.parametrize("values", [[2.0], [1.0, 4.0], [5.0, 1.0, 2.0, 9.0, 4.0]])
def test_a_summary_is_numpys_percentiles(values):
    found = summarize(values)
    expected = np.percentile(values, [0, 25, 50, 75, 100])
    np.testing.assert_allclose([found[k] for k in ("min_s", "q1_s", "median_s", "q3_s", "max_s")], expected)


@pytest.mark.parametrize("counted", [{}, {"foreign": 0.125}])
def test_a_child_that_counts_other_programs_itself_is_believed(tmp_path, monkeypatch, counted):
    (tmp_path / "child.py").write_text(f"import json; print(json.dumps({counted}))")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    answer = run_child("child", [])
    assert answer["process_s"] > 0 and answer["foreign"] >= 0
    assert answer | counted == answer


def test_a_child_that_fails_is_an_error():
    with pytest.raises(click.ClickException, match="failed"):
        run_child("benchmarks.absent", [])
