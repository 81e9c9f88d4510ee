"""A server that dies between two steps of a change: alias, stage and audit agree again after `reconcile`."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import mlflow
import pytest
import sqlalchemy
from mlflow import MlflowClient
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

from mlflow_plugins.registry import locks
from mlflow_plugins.registry.audit import read_clock
from mlflow_plugins.registry.commands.admin import reconcile_model
from mlflow_plugins.registry.commands.history import examine_models, find_production
from mlflow_plugins.registry.store import build_gated_store
from tests.fixtures.databases import ON_EVERY_DATABASE
from tests.fixtures.registry import register_bundle

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated since 2.9.0:FutureWarning")  # stages

NAME = "plant-disease"
KILLED = 9
_WRITES = ("INSERT", "UPDATE", "DELETE")


def die_before_commit(number: int) -> None:
    """End this process at once before so many transactions that write, plus one, are committed."""
    seen = [0]

    def note(connection: Any, cursor: Any, statement: str, *_: object) -> None:
        if statement.startswith(_WRITES):
            connection.info["writes"] = True

    def count(connection: Any) -> None:
        if connection.info.pop("writes", False):
            seen[0] += 1
            if seen[0] > number:
                os._exit(KILLED)

    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", note)
    sqlalchemy.event.listen(sqlalchemy.Engine, "commit", count)


def run_in_child(database: str, change: Callable[[Any], object], die_before: int) -> int:
    """Make a change in a process that dies before one of its commits, and return its exit status; 0 if it survived."""
    child = os.fork()
    if child == 0:
        try:
            parents, SqlAlchemyStore._engine_map = SqlAlchemyStore._engine_map, {}  # whose connections it must not use
            locks._find_process_locks.cache_clear()
            store = build_gated_store(database)
            die_before_commit(die_before)
            change(store)
            os._exit(0 if parents else 1)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def served() -> tuple[list[str], str | None]:
    """Versions in stage Production, and the version of alias production."""
    client = MlflowClient()
    stage = [str(v.version) for v in client.search_model_versions(f"name='{NAME}'") if v.current_stage == "Production"]
    alias = client.get_registered_model(NAME).aliases.get("production")
    return stage, None if alias is None else str(alias)


def kill_at_each_step(database: str, make_change: Callable[[], Callable[[Any], object]]) -> Iterator[int]:
    """Yield how many transactions were committed, for each moment at which the process was killed."""
    for step in range(30):
        change = make_change()
        status = run_in_child(database, change, step)
        assert status in (0, KILLED)
        if status == 0:
            return
        yield step
    pytest.fail("the change was never completed")


def check_agreement() -> None:
    """Check that nothing disagrees once everything is at rest."""
    reconcile_model(NAME)
    stage, alias = served()
    assert stage == ([] if alias is None else [alias])
    assert find_production(NAME, read_clock()).version == alias
    assert examine_models((NAME,)) == {NAME: []}


@ON_EVERY_DATABASE
def test_a_promotion_that_dies_at_any_step_is_mended(registry_database, good_bundle):
    mlflow.set_registry_uri(f"plantmodels:{registry_database}")
    client = MlflowClient()
    versions = [register_bundle(good_bundle, NAME), register_bundle(good_bundle, NAME)]
    client.set_registered_model_alias(NAME, "production", versions[0])

    def promote_the_other() -> Callable[[Any], object]:
        other = next(version for version in versions if version != served()[1])
        return lambda store: store.set_registered_model_alias(NAME, "production", other)

    steps = []
    for step in kill_at_each_step(registry_database, promote_the_other):
        check_agreement()
        steps.append(step)
    check_agreement()
    assert len(steps) >= 4  # decision, alias, stage, outcome; then the descriptions


@ON_EVERY_DATABASE
def test_archiving_that_dies_at_any_step_is_mended(registry_database, good_bundle):
    mlflow.set_registry_uri(f"plantmodels:{registry_database}")
    client, version = MlflowClient(), register_bundle(good_bundle, NAME)

    def archive() -> Callable[[Any], object]:
        if served()[1] is None:
            client.set_registered_model_alias(NAME, "production", version)
        return lambda store: store.transition_model_version_stage(NAME, version, "Archived", False)

    steps = []
    for step in kill_at_each_step(registry_database, archive):
        check_agreement()
        steps.append(step)
    check_agreement()
    assert len(steps) >= 4 and served() == ([], None)
