"""What a registered version costs to load, cold start and memory, and whether a long run stays right.

python -m benchmarks.serving soak public/models leaves/val

Each cold start is a process of its own, the two loaders in turn; the files are in the page cache. `python -m
benchmarks` measures it together with everything else.
"""

import dataclasses
import json
import math
import os
import statistics
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import click

from benchmarks.driver import Patience, Turn, describe_turns, find_photographs, run_child, run_quietly
from benchmarks.machine import read_memory

PATH = click.Path(path_type=Path)
MODULE: Final = "benchmarks.serving"
LOADERS: Final = ("native", "pyfunc", "mlflow alone")


@click.group()
def main() -> None:
    """Measure what serving a registered version costs."""


def measure_cold_starts(bundle: Path, photograph: Path, rounds: int, patience: Patience) -> dict[str, Any]:
    """Registers a bundle in a store of its own, loads it in fresh processes and asks it once.

    Returns:
        `download` (files and MB of each loader), `cold_start` and `memory` by loader.
    """
    with tempfile.TemporaryDirectory(prefix="plantmodels-bench-") as temporary:
        environment = _own_store(temporary)
        sizes = run_child(MODULE, ["register", str(bundle), temporary], environment)
        cold: dict[str, list[dict[str, float]]] = {loader: [] for loader in LOADERS}
        for i in range(rounds):
            for loader in LOADERS:
                cold[loader].append(run_quietly(patience, MODULE, ["cold", loader, str(photograph)], environment))
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


def _own_store(folder: str) -> dict[str, str]:
    """Environment of processes whose MLflow writes into a folder."""
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }
    environment.pop("MLFLOW_REGISTRY_URI", None)
    return environment


@main.command()
@click.argument("bundle", type=PATH)
@click.argument("images", type=PATH)
@click.option("--predictions", default=20_000, show_default=True, help="Of one image each, in all.")
@click.option("--workers", default=8, show_default=True, help="Threads that ask one classifier.")
def soak(bundle: Path, images: Path, predictions: int, workers: int) -> None:
    """Ask one handle from many threads, and move the alias to a second version in the middle."""
    photographs = [path.read_bytes() for path in find_photographs(images)[:64]]
    with tempfile.TemporaryDirectory(prefix="plantmodels-bench-") as temporary:
        environment = _own_store(temporary)
        for _ in range(2):
            run_child(MODULE, ["register", str(bundle), temporary], environment)
        os.environ.update(environment)
        import mlflow

        from mlflow_plugins.handle import ModelHandle

        client = mlflow.MlflowClient()
        client.set_registered_model_alias("bench", "production", "1")
        with ModelHandle("models:/bench@production", interval_s=0.5, threads=1) as handle:
            expected = handle.predict(photographs)
            count, wrong, lock = 0, 0, threading.Lock()
            marks = []

            def ask(worker: int) -> None:
                nonlocal count, wrong
                for i in range(predictions // workers):
                    which = (worker * 31 + i) % len(photographs)
                    row = handle.predict([photographs[which]])[0]
                    bad = dataclasses.replace(row, ood_score=None) != dataclasses.replace(
                        expected[which], ood_score=None
                    ) or not math.isclose(row.ood_score or 0, expected[which].ood_score or 0, rel_tol=1e-9)
                    with lock:
                        count, wrong = count + 1, wrong + bad
                        if count % (predictions // 20) == 0:
                            marks.append({"predictions": count, "version": handle.current.version, **read_memory()})
                            click.echo(json.dumps(marks[-1]), err=True)
                        if count == predictions // 2:
                            client.set_registered_model_alias("bench", "production", "2")

            start = time.perf_counter()
            with ThreadPoolExecutor(workers) as pool:
                list(pool.map(ask, range(workers)))
            seconds = time.perf_counter() - start
            result = {"predictions": count, "wrong": wrong, "seconds": seconds, "failure": str(handle.failure)}
        click.echo(json.dumps({**result, "memory": marks}, indent=1))


@main.command(hidden=True)
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


@main.command(hidden=True)
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
