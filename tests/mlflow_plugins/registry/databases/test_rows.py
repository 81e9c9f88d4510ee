"""Rows that the registry reads past MLflow's store: they say what MLflow's store says."""

import sqlite3
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersionTag

from mlflow_plugins.registry.config import RegistryConfig
from mlflow_plugins.registry.guard.rows import Rows
from mlflow_plugins.registry.store import build_gated_store
from tests.fixtures.databases import ON_EVERY_DATABASE
from tests.fixtures.registry import register_bundle

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated since 2.9.0:FutureWarning")  # stages

NAME = "leaves of ö"


@ON_EVERY_DATABASE
def test_a_version_is_read_as_mlflow_reads_it(registry_database: str) -> None:
    store = build_gated_store(registry_database, RegistryConfig())
    rows = Rows(store.engine, lambda: "default")
    store.create_registered_model(NAME)
    for number in ("1", "2"):
        store.create_model_version(NAME, "file:/nowhere", "r" * 32, [ModelVersionTag("k", number)], "link", "text")
    assert dict(rows.read_version(NAME, "1") or ()) == dict(store.get_model_version(NAME, "1"))
    store.set_model_version_tag(NAME, "2", ModelVersionTag("more", "% 'x' :y"))
    for alias in ("a", "b"):
        store.set_registered_model_alias(NAME, alias, "2")
    store.transition_model_version_stage(NAME, "2", "Archived", False)
    ours, theirs = dict(rows.read_version(NAME, "2") or ()), dict(store.get_model_version(NAME, "2"))
    assert sorted(ours.pop("aliases")) == sorted(theirs.pop("aliases")) == ["a", "b"]
    assert ours == theirs
    assert (rows.find_latest_in_stage(NAME, "Archived"), rows.find_latest_in_stage(NAME, "Staging")) == ("2", None)
    store.delete_model_version(NAME, "2")
    assert rows.read_version(NAME, "2") is None
    assert rows.read_version("other", "1") is None


def test_a_promotion_asks_the_database_few_questions(
    registry_database: str, good_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's store asks 14 of them: it sets the alias and the stage, and reads the version for the answer."""
    mlflow.set_registry_uri(f"plantmodels:{registry_database}")
    client, asked = MlflowClient(), list[str]()
    register_bundle(good_bundle, NAME)
    genuine = sqlite3.connect

    def connect(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = genuine(*arguments, **options)
        connection.set_trace_callback(asked.append)
        return connection

    monkeypatch.setattr(sqlite3, "connect", connect)
    client.set_registered_model_alias(NAME, "production", "1")
    assert sum(text.startswith(("SELECT", "INSERT", "UPDATE", "DELETE")) for text in asked) <= 32, asked
