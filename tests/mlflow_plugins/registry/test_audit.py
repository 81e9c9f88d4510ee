import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_plugins.registry.audit import AuditLog, Decision, DecisionQuery, read_clock
from mlflow_plugins.registry.store import build_gated_store
from tests.fixtures.databases import ON_EVERY_DATABASE


@pytest.fixture
def log(registry_database: str) -> AuditLog:
    return build_gated_store(registry_database)._audit


@ON_EVERY_DATABASE
@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")
def test_decisions_come_back_whole_and_in_order(log: AuditLog) -> None:
    """Whatever the database compares and however it orders text: any characters, but for NUL, which none can hold."""
    text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
    written: list[Decision] = []

    @settings(max_examples=25)
    @given(st.none() | st.integers(1, 9), text, st.booleans(), text, st.none() | st.integers(0, 9))
    def write(version: int | None, action: str, allowed: bool, reason: str, production: int | None) -> None:
        number = None if version is None else str(version)
        made = log.record("Ä 植物", number, action, allowed=allowed, reason=reason, production=production)
        if production is not None:
            log.confirm(made)
        written.append(Decision("", None, number, action, allowed, reason, None, made, "Ä 植物", production))

    write()
    found = log.find(DecisionQuery("Ä 植物"))
    assert [(d.carried_out_at is not None) for d in found] == [(d.production is not None) for d in written]
    assert [dataclasses.replace(d, at="", user=None, carried_out_at=None) for d in found] == written
    assert [d.number for d in log.find(DecisionQuery("Ä 植物", newest_first=True, limit=3))] == [
        d.number for d in written[:-4:-1]
    ]
    assert {d.version for d in log.find(DecisionQuery("Ä 植物", version="3"))} <= {"3"}
    assert log.find(DecisionQuery("Ä 植物", until="2026-01-01T00:00:00.000000Z")) == []
    assert log.find(DecisionQuery("another")) == []


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
