"""What the gate costs those whom it does not concern: MLflow's store and ours in turn, on unguarded models.

python -m benchmarks.registry overhead --versions 1000 --rounds 200

Both stores work on one sqlite database, each on a model of its own with as many versions. Calls alternate, so that both
meet the same load of the machine. The median of each operation is compared. The last column compares the processor's
time instead: on a busy machine, waiting for the disk and for other programs hides what the gate costs.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import mlflow
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

from mlflow_plugins.registry.config import RegistryConfig
from mlflow_plugins.registry.store import build_gated_store

BAR: Final = 1.2
"""Largest accepted ratio of the medians."""

Call = Callable[[Any, str, int], object]
"""An operation on a store, a model's name and the round's number."""


def prepare(folder: Path, versions: int) -> tuple[dict[str, Any], str]:
    """Make a database with two models of so many versions, and return both stores and a logged model's URI."""
    database = f"sqlite:///{folder / 'mlflow.db'}"
    mlflow.set_tracking_uri(database)
    experiment = mlflow.create_experiment("overhead", artifact_location=str(folder / "artifacts"))
    with mlflow.start_run(experiment_id=experiment):
        logged = mlflow.pyfunc.log_model(name="other", python_model=_Echo(), pip_requirements=[]).model_uri
    stores = {"plain": SqlAlchemyStore(database), "gated": build_gated_store(database, RegistryConfig())}
    location = mlflow.get_logged_model(logged.removeprefix("models:/")).artifact_location
    for name in stores:
        stores["plain"].create_registered_model(name)
        for _ in range(versions):
            stores["plain"].create_model_version(name, location)
    return stores, logged


class _Echo(mlflow.pyfunc.PythonModel):
    def predict(self, context: Any, model_input: list[str], params: Any = None) -> list[str]:
        return model_input


def list_operations(logged: str, location: str) -> dict[str, Call]:
    """Return the operations that a team does every day, by name."""
    stages = ("Production", "Staging", "Archived")
    return {
        "create a version of a path": lambda store, name, _: store.create_model_version(name, location),
        "create a version of a logged model": lambda store, name, _: store.create_model_version(name, logged),
        **{
            f"move to stage {stage}": lambda store, name, turn, stage=stage: store.transition_model_version_stage(
                name, str(turn + 1), stage, False
            )
            for stage in stages
        },
        "set alias production": lambda store, name, turn: store.set_registered_model_alias(
            name, "production", str(turn + 1)
        ),
        "set alias champion": lambda store, name, turn: store.set_registered_model_alias(
            name, "champion", str(turn + 1)
        ),
        "delete alias production": lambda store, name, _: store.delete_registered_model_alias(name, "production"),
    }


@dataclass(frozen=True)
class Median:
    """Median time of one operation on one store.

    Attributes:
        wall_ms: milliseconds until the answer.
        processor_ms: milliseconds of the processor.
    """

    wall_ms: float
    processor_ms: float


def measure(stores: dict[str, Any], call: Call, rounds: int) -> dict[str, Median]:
    """Return the median times of one operation on each store."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in stores}
    for turn in range(rounds):
        order = list(stores) if turn % 2 else list(reversed(stores))
        for name in order:
            start, used = time.perf_counter(), time.thread_time()
            call(stores[name], name, turn)
            times[name].append((1000 * (time.perf_counter() - start), 1000 * (time.thread_time() - used)))
    return {name: Median(*map(statistics.median, zip(*values, strict=True))) for name, values in times.items()}


@click.command()
@click.option("--versions", default=1000, show_default=True, help="Versions of each model.")
@click.option("--rounds", default=200, show_default=True, help="Calls of each operation on each store.")
def overhead(versions: int, rounds: int) -> None:
    """Print the median time of each operation on MLflow's store and on ours, and their ratio."""
    with tempfile.TemporaryDirectory() as folder:
        stores, logged = prepare(Path(folder), versions)
        location = mlflow.get_logged_model(logged.removeprefix("models:/")).artifact_location
        click.echo(f"{'operation':36} {'MLflow, ms':>10} {'gated, ms':>10} {'ratio':>6} {'of processor time':>18}")
        for name, call in list_operations(logged, location).items():
            found = measure(stores, call, rounds)
            plain, gated = found["plain"], found["gated"]
            ratio, processor = gated.wall_ms / plain.wall_ms, gated.processor_ms / plain.processor_ms
            verdict = "" if ratio <= BAR else f"  over the bar of {BAR}"
            click.echo(f"{name:36} {plain.wall_ms:10.2f} {gated.wall_ms:10.2f} {ratio:6.2f} {processor:18.2f}{verdict}")
