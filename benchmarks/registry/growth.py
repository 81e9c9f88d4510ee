"""What takes longer as a registry grows: models of many versions, and models with many decisions.

python -m benchmarks.registry growth sqlite:///growth.db

Each call is made on MLflow's store and on ours in turn, so the table says which part of a time is MLflow's own.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any, Final

import click
from mlflow.entities.model_registry import RegisteredModelTag
from mlflow.store.model_registry.dbmodels.models import SqlModelVersion
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

from mlflow_plugins.registry.config import RegistryConfig
from mlflow_plugins.registry.records.tables import DECISIONS
from mlflow_plugins.registry.store import build_gated_store
from mlflow_plugins.registry.tags import ALIAS, GUARDED_TAG

BAR_S: Final = 0.2
"""Longest accepted time of a call on a model of 1,000 versions."""


def make_model(store: Any, name: str, versions: int, *, guarded: bool) -> None:
    """Make a registered model with so many versions, the seventh of which has the alias."""
    store.create_registered_model(name, [RegisteredModelTag(GUARDED_TAG, "true")] if guarded else None)
    with store.ManagedSessionMaker(read_only=False) as session:
        for number in range(1, versions + 1):
            session.add(SqlModelVersion(name=name, version=number, source="x", workspace="default"))
    store.set_registered_model_alias(name, ALIAS, "7")


def time_calls(store: Any, name: str) -> dict[str, float]:
    """Return the seconds of each call that reads or changes a whole model."""
    renamed = f"{name}-renamed"
    calls: dict[str, Callable[[], object]] = {
        "delete alias": lambda: store.delete_registered_model_alias(name, ALIAS),
        "rename": lambda: store.rename_registered_model(name, renamed),
        "delete model": lambda: store.delete_registered_model(renamed),
    }
    return {what: _time(call) for what, call in calls.items()}


def time_decisions(store: Any, counts: tuple[int, ...]) -> dict[int, float]:
    """Return the median seconds of writing a decision down, by the number of decisions before it."""
    name = f"decided-{time.time_ns()}"
    store.create_registered_model(name)
    found, row = {}, {"workspace": "default", "name": name, "at": "2026-11-24T10:00:00.000000Z", "action": "x"}
    identity = store._audit._identities.find(name)
    for before, count in zip((0, *counts), counts, strict=False):
        rows = [{**row, "model_id": identity, "allowed": True, "reason": "r"}] * (count - before)
        with store._audit._records.begin() as connection:
            connection.execute(DECISIONS.insert(), rows)
        turns = [_time(lambda: store._audit.record(name, None, "x", allowed=True, reason="r")) for _ in range(50)]
        found[count] = statistics.median(turns)
    return found


def _time(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


@click.command()
@click.argument("database")
@click.option("--versions", default=1000, show_default=True, help="Versions of each model.")
@click.option("--rounds", default=9, show_default=True, help="Calls of each kind on each store.")
def growth(database: str, versions: int, rounds: int) -> None:
    """Time calls on models of many versions, and decisions after many decisions."""
    stores = {"MLflow": SqlAlchemyStore(database), "gated": build_gated_store(database, RegistryConfig())}
    times: dict[str, dict[str, list[float]]] = {}
    for turn in range(rounds):
        for which, store in stores.items():
            name = f"{which}-{turn}-{time.time_ns()}"
            make_model(stores["MLflow"], name, versions, guarded=which == "gated")
            for what, seconds in time_calls(store, name).items():
                times.setdefault(what, {}).setdefault(which, []).append(seconds)
    click.echo(f"{f'{versions} versions':16} {'MLflow, s':>10} {'gated, s':>10} {'ratio':>6}   bar {BAR_S} s")
    for what, found in times.items():
        plain, gated = (statistics.median(found[which]) for which in stores)
        click.echo(f"{what:16} {plain:10.4f} {gated:10.4f} {gated / plain:6.2f}")
    for count, seconds in time_decisions(stores["gated"], (10, 10_000)).items():
        click.echo(f"a decision after {count:,} decisions: {1000 * seconds:.2f} ms")
