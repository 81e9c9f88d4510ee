import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from mlflow_plugins.registry.audit import Decision, read_clock, read_decisions

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


def test_a_decision_is_one_sentence() -> None:
    decision = Decision("2026-11-24T10:00:00.000001Z", None, "3", "set alias production", False, "x", "ab" * 32)
    assert decision.to_sentence() == (
        "2026-11-24T10:00:00.000001Z  REFUSED: an unknown user asked to set alias production "
        "(version 3, manifest abababababab): x"
    )
    of_a_model = dataclasses.replace(decision, user="ada", version=None, manifest_sha256=None, action="rename a to b")
    assert of_a_model.to_sentence() == "2026-11-24T10:00:00.000001Z  REFUSED: ada asked to rename a to b: x"


def test_times_have_one_length_so_that_they_sort_as_text() -> None:
    assert len(read_clock()) == len("2026-11-24T10:00:00.000001Z") and read_clock() <= read_clock()
