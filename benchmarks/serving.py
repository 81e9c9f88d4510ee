"""Measure what a registered version costs to load: cold start, download and memory.

Each cold start is a new process, and the two loaders take turns; the files are in the page cache. `python -m
benchmarks` runs this part, too.
"""

import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any, Final

import click

from benchmarks.driver import PATH, Patience, Turn, describe_turns, run_child, run_quietly
from benchmarks.processes import read_memory

MODULE: Final = "benchmarks.serving"
LOADERS: Final = ("native", "pyfunc", "mlflow alone")


@click.group()
def main() -> None:
    """Measure what serving a registered version costs."""


def measure_cold_starts(bundle: Path, image: Path, rounds: int, patience: Patience) -> dict[str, Any]:
    """Register a bundle in a new store, load it in fresh processes and ask it once.

    Returns:
        `download` (files and MB), `cold_start` and `memory`, each by loader.
    """
    with tempfile.TemporaryDirectory(prefix="plantmodels-bench-") as temporary:
        environment = make_store_environment(temporary)
        sizes = run_child(MODULE, ["register", str(bundle), temporary], environment)
        cold: dict[str, list[dict[str, float]]] = {loader: [] for loader in LOADERS}
        for i in range(rounds):
            for loader in LOADERS:
                cold[loader].append(run_quietly(patience, MODULE, ["cold", loader, str(image)], environment))
                click.echo(f"  {i + 1}/{rounds}, {loader}: {cold[loader][-1]['process_s']:.2f} s", err=True)
    return {
        "download": sizes,
        "cold_start": {
            loader: describe_turns([Turn(run["process_s"], run["foreign"]) for run in runs])
            for loader, runs in cold.items()
        },
        "memory": {
            loader: {key: statistics.median(run[key] for run in runs) for key in ("resident_mb", "peak_mb")}
            for loader, runs in cold.items()
        },
    }


def make_store_environment(folder: str) -> dict[str, str]:
    """Return the environment of processes whose MLflow writes into a folder."""
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }
    environment.pop("MLFLOW_REGISTRY_URI", None)
    return environment


@main.command()
@click.argument("bundle", type=PATH)
@click.argument("folder", type=PATH)
def register(bundle: Path, folder: Path) -> None:
    """Make the version that is measured."""
    import mlflow

    from mlflow_plugins.flavor import log_model
    from plantmodels.bundle.layout import MANIFEST_FILE, serving_files

    if mlflow.get_experiment_by_name("bench") is None:
        mlflow.create_experiment("bench", artifact_location=(folder / "artifacts").as_uri())
    mlflow.set_experiment("bench")
    with mlflow.start_run():
        info = log_model(bundle, name="bench")
    mlflow.register_model(info.model_uri, "bench")
    description = next((folder / "artifacts").rglob("MLmodel"))
    files = [path for path in description.parent.rglob("*") if path.is_file()]
    native = [description, *(description.parent / "data/bundle" / n for n in (MANIFEST_FILE, *serving_files("int8")))]
    click.echo(
        json.dumps(
            {
                "native_int8_mb": sum(path.stat().st_size for path in native) / 1e6,
                "native_int8_files": len(native),
                "pyfunc_mb": sum(path.stat().st_size for path in files) / 1e6,
                "pyfunc_files": len(files),
            }
        )
    )


@main.command()
@click.argument("version")
def move(version: str) -> None:
    """Move the alias that a service follows."""
    from mlflow import MlflowClient

    MlflowClient().set_registered_model_alias("bench", "production", version)
    click.echo("{}")


@main.command()
@click.argument("loader", type=click.Choice(LOADERS))
@click.argument("image", type=PATH)
def cold(loader: str, image: Path) -> None:
    """Load the version and ask it once."""
    if loader == "native":
        from mlflow_plugins.flavor import load_model

        load_model("models:/bench/1").predict([image.read_bytes()])
    elif loader == "pyfunc":
        import mlflow

        mlflow.pyfunc.load_model("models:/bench/1").predict([image.read_bytes()])
    else:
        import mlflow.pyfunc
    click.echo(json.dumps(read_memory()))


if __name__ == "__main__":
    main()
