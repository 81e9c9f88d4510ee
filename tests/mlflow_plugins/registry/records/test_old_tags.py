"""Registries that kept decisions, waivers and stamps in tags: what they hold is moved into the tables, once."""

import json
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersionTag, RegisteredModelTag
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

from mlflow_plugins.registry.audit import Decision, DecisionQuery
from mlflow_plugins.registry.records import old_tags
from mlflow_plugins.registry.store import build_gated_store
from plantmodels.report.gates import GateValue, judge_gate
from tests.fixtures.databases import ON_EVERY_DATABASE

NAME = "plant-disease"
WAIVER = {"measured": 0.5, "manifest_sha256": "ab" * 32, "reason": "greenhouse only", "user": "ada", "at": "2026-11-24"}


def tag(number: int, version: str | None, action: str, *, allowed: bool = True) -> tuple[str, str]:
    """A tag as the registry of version 0.2 wrote it."""
    at = f"2026-11-24T1{number}:00:00.000000Z"
    decision = {"at": at, "user": "ada", "version": version, "action": action, "allowed": allowed}
    rest = {"reason": "all gates passed", "manifest_sha256": "ab" * 32, "number": number}
    return f"plantmodels.audit.{at.replace(':', '')}.00000{number}", json.dumps(decision | rest)


@pytest.fixture
def old_registry(registry_database: str) -> str:
    """A registry with two versions; the first was promoted, and the second took its place."""
    store = SqlAlchemyStore(registry_database)
    store.create_registered_model(NAME, [RegisteredModelTag("plantmodels.guarded", "true")])
    stamps = {"manifest_sha256": "ab" * 32, "model_sha256": "cd" * 32, "gates": "passed"}
    for _ in range(2):
        store.create_model_version(
            NAME, "nowhere", tags=[ModelVersionTag(f"plantmodels.{key}", value) for key, value in stamps.items()]
        )
    for version, entry in (
        ("1", tag(1, "1", "register a version")),
        ("1", tag(2, "1", "promote to stage Production")),
        ("2", tag(3, "2", "set alias production", allowed=False)),
        ("2", tag(4, "2", "set alias production")),
        ("2", ("plantmodels.waive.ood_recall", json.dumps(WAIVER))),
        ("2", ("plantmodels.waive.latency", "a person's text, from a registry without the gate")),
    ):
        store.set_model_version_tag(NAME, version, ModelVersionTag(*entry))
    store.set_registered_model_tag(NAME, RegisteredModelTag(*tag(5, "2", "delete alias production")))
    store.set_registered_model_tag(NAME, RegisteredModelTag("plantmodels.decisions", "5"))
    return registry_database


def read(store: Any) -> list[Decision]:
    return list(store._audit.find(DecisionQuery(NAME)))


@ON_EVERY_DATABASE
def test_everything_is_moved_once_and_in_its_order(old_registry: str) -> None:
    store = build_gated_store(old_registry)
    decisions = read(store)
    assert [(d.version, d.action, d.allowed, d.production) for d in decisions] == [
        ("1", "register a version", True, None),
        ("1", "promote to stage Production", True, 1),
        ("2", "set alias production", False, None),
        ("2", "set alias production", True, 2),
        ("2", "delete alias production", True, 0),
    ]
    assert [d.carried_out_at == d.at for d in decisions] == [False, True, False, True, True]
    assert {(d.user, d.reason, d.manifest_sha256) for d in decisions} == {("ada", "all gates passed", "ab" * 32)}
    failed = judge_gate("ood_recall", [GateValue("", 0.95, 0.5)], samples=9)
    waiver = store._waivers.find(NAME, "2", failed, "ab" * 32)
    assert (waiver.user, waiver.reason) == ("ada", "greenhouse only")
    assert store._stamps.find(NAME, "2").model_sha256 == "cd" * 32

    client = MlflowClient(registry_uri=old_registry)
    assert set(client.get_registered_model(NAME).tags) == {"plantmodels.guarded", "plantmodels.id"}
    assert client.get_model_version(NAME, "2").tags == {
        "plantmodels.manifest_sha256": "ab" * 32,
        "plantmodels.model_sha256": "cd" * 32,
        "plantmodels.gates": "passed",
        "plantmodels.waive.ood_recall": "waived by ada on 2026-11-24: greenhouse only",
        "plantmodels.waive.latency": "a person's text, from a registry without the gate",
    }
    assert read(build_gated_store(old_registry)) == decisions


def test_a_crash_between_the_tables_and_the_tags_moves_nothing_twice(
    old_registry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(old_tags, "_drop", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build_gated_store(old_registry)
    assert len(read(build_gated_store(old_registry))) == 5


def test_what_an_older_server_writes_later_is_moved_at_the_next_start(old_registry: str) -> None:
    build_gated_store(old_registry)
    late = ModelVersionTag(*tag(6, "1", "set alias production"))
    SqlAlchemyStore(old_registry).set_model_version_tag(NAME, "1", late)
    assert [d.production for d in read(build_gated_store(old_registry))][-2:] == [0, 1]


def test_a_registry_without_old_tags_is_not_searched_for_them(
    registry_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(old_tags, "_read_models", lambda _: 1 / 0)
    build_gated_store(registry_database)
