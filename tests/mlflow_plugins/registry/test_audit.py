import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_plugins.registry.audit import Decision, Waiver, now, read_decisions
from plantmodels.report.gates import judge_gate

TEXT = st.text(max_size=30)
DECISIONS = st.builds(
    Decision,
    at=st.datetimes().map(lambda moment: moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")),
    user=st.none() | TEXT,
    version=st.none() | TEXT,
    action=TEXT,
    allowed=st.booleans(),
    reason=TEXT,
    manifest_sha256=st.none() | TEXT,
)


@given(st.lists(DECISIONS, max_size=6))
def test_decisions_come_back_whole_and_by_time(decisions: list[Decision]) -> None:
    read = read_decisions([dict([decision.to_tag()]) for decision in decisions] + [{"gates": "passed"}])
    assert [decision.at for decision in read] == sorted(decision.at for decision in decisions)
    assert sorted(map(repr, read)) == sorted(map(repr, decisions))


def test_a_decision_in_one_line() -> None:
    decision = Decision("2026-11-24T10:00:00.000001Z", None, "3", "set alias production", False, "x", "ab" * 32)
    assert decision.describe() == (
        "2026-11-24T10:00:00.000001Z  REFUSED  unknown user: set alias production version 3 [manifest abababababab]: x"
    )


def test_times_are_of_one_length() -> None:
    assert len(now()) == len("2026-11-24T10:00:00.000001Z") and now() <= now()


WAIVER = Waiver(0.5, "ab" * 32, "greenhouse only", "ada", "2026-11-24T10:00:00.000001Z")
FAILED = judge_gate("ood_recall", 0.5, limit=0.95, samples=9)


def test_a_waiver_covers_one_value_of_one_manifest() -> None:
    assert Waiver.from_json(WAIVER.to_json()) == WAIVER
    assert WAIVER.covers(FAILED, "ab" * 32)
    assert not WAIVER.covers(FAILED, "cd" * 32)
    assert not WAIVER.covers(dataclasses.replace(FAILED, measured=0.4), "ab" * 32)


@pytest.mark.parametrize("text", ["", "fine", "[]", "3", "null", "{}", json.dumps({"reason": "x"})])
def test_what_is_no_waiver(text: str) -> None:
    assert Waiver.from_json(text) is None
