"""The events that the registry sends for the alias, beside those of MLflow's own request handlers."""

from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.webhooks import delivery

from mlflow_plugins.registry import webhooks
from tests.fixtures.registry import register_bundle

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated since 2.9.0:FutureWarning")  # stages


@pytest.fixture
def client(embedded_mlflow: str) -> MlflowClient:
    mlflow.set_registry_uri(f"plantmodels:{embedded_mlflow}")
    return MlflowClient()


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, str]]]:
    """Action and payload of each event, as a server would send them."""
    events: list[tuple[str, dict[str, str]]] = []

    def deliver(*, event: Any, payload: Any, store: Any) -> None:
        events.append((f"{event.entity.value}.{event.action.value}", dict(payload)))

    monkeypatch.setattr(delivery, "deliver_webhook", deliver)
    monkeypatch.setattr(webhooks, "is_serving", lambda: True)
    return events


def test_a_stage_that_moves_the_alias_sends_its_events(client, good_bundle, sent):
    first, second = register_bundle(good_bundle), register_bundle(good_bundle)
    created = "model_version_alias.created"
    client.transition_model_version_stage("leaves", first, "Production")
    assert sent == [(created, {"name": "leaves", "alias": "production", "version": first})]
    client.transition_model_version_stage("leaves", second, "Production")
    assert sent[1:] == [(created, {"name": "leaves", "alias": "production", "version": second})]
    client.transition_model_version_stage("leaves", second, "Archived")
    assert sent[2:] == [("model_version_alias.deleted", {"name": "leaves", "alias": "production"})]


def test_nothing_is_sent_twice(client, good_bundle, sent):
    """MLflow's handlers send the events of the alias themselves, and a stage that moves no alias has none."""
    first, second = register_bundle(good_bundle), register_bundle(good_bundle)
    client.set_registered_model_alias("leaves", "production", first)
    client.transition_model_version_stage("leaves", first, "Production")
    client.transition_model_version_stage("leaves", second, "Staging")
    client.transition_model_version_stage("leaves", second, "Archived")
    client.delete_registered_model_alias("leaves", "production")
    assert sent == []


def test_without_a_server_nothing_is_sent(client, good_bundle, monkeypatch):
    monkeypatch.setattr(delivery, "deliver_webhook", lambda **event: pytest.fail("an event was sent"))
    client.transition_model_version_stage("leaves", register_bundle(good_bundle), "Production")
