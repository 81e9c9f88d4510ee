"""What serving a registered version costs: cold start, download, memory, images a second.

python -m benchmarks.serving run public/models leaves/val --out public/bench
python -m benchmarks.serving soak public/models leaves/val

Each cold start is a process of its own, the two loaders in turn; the files are in the page cache. Speeds are from
encoded photograph to final row, INT8 and FP16 in turn within one process.
"""

import dataclasses
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import click

PATH = click.Path(path_type=Path)
LOADERS: Final = ("native", "pyfunc", "mlflow alone")
BATCHES: Final = (1, 32)
THREADS: Final = (1, 2)
_SUFFIXES: Final = {".jpg", ".jpeg", ".png", ".webp"}


@click.group()
def main() -> None:
    """Measure what serving a registered version costs."""


@main.command()
@click.argument("bundle", type=PATH)
@click.argument("images", type=PATH)
@click.option("--rounds", default=7, show_default=True, help="Cold starts of each loader, and timings of each batch.")
@click.option("--out", type=PATH, default=Path("public/bench"), show_default=True, help="For serving.json and .md.")
def run(bundle: Path, images: Path, rounds: int, out: Path) -> None:
    """Register BUNDLE in a store of its own and ask it about IMAGES, a folder searched at any depth."""
    photographs = _find(images)
    with tempfile.TemporaryDirectory(prefix="plantmodels-bench-") as temporary:
        environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{temporary}/mlflow.db"}
        environment.pop("MLFLOW_REGISTRY_URI", None)
        sizes = _child(["register", str(bundle), temporary], environment)
        cold: dict[str, list[dict[str, float]]] = {loader: [] for loader in LOADERS}
        for i in range(rounds):
            for loader in LOADERS:
                cold[loader].append(_child(["cold", loader, str(photographs[0])], environment))
                click.echo(f"cold start {i + 1}/{rounds}, {loader}: {cold[loader][-1]['seconds']:.2f} s", err=True)
        speeds = []
        for threads in THREADS:
            speeds += _child(["speed", str(threads), str(rounds), *map(str, photographs[:64])], environment)
            click.echo(f"{threads} threads: done", err=True)
    result = {
        "machine": _describe_machine(),
        "bundle": str(bundle),
        "download": sizes,
        "cold_start": {loader: _summary([run["seconds"] for run in runs]) for loader, runs in cold.items()},
        "memory": {
            loader: {key: statistics.median(run[key] for run in runs) for key in ("resident_mb", "peak_mb")}
            for loader, runs in cold.items()
        },
        "speed": speeds,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "serving.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (out / "serving.md").write_text(_table(result), encoding="utf-8")
    click.echo(_table(result))


def _find(images: Path) -> list[Path]:
    """Photographs of every part of a folder, in an order that mixes its classes but is always the same."""
    found = sorted(path for path in images.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not found:
        raise click.ClickException(f"{images}: holds no image")
    return sorted(found, key=lambda path: zlib.crc32(path.name.encode()))


def _child(arguments: list[str], environment: dict[str, str]) -> Any:
    """Runs a command of this file in a process of its own; adds the seconds from its start to its answer."""
    start = time.perf_counter()
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.serving", *arguments]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [line for line in process.stdout if line.startswith(("{", "["))]
        seconds = time.perf_counter() - start
    if process.returncode or not lines:
        raise click.ClickException(f"{' '.join(arguments[:2])} failed")
    answer = json.loads(lines[-1])
    if isinstance(answer, dict):
        answer["seconds"] = seconds
    return answer


@main.command()
@click.argument("bundle", type=PATH)
@click.argument("images", type=PATH)
@click.option("--predictions", default=20_000, show_default=True, help="Of one image each, in all.")
@click.option("--workers", default=8, show_default=True, help="Threads that ask one classifier.")
def soak(bundle: Path, images: Path, predictions: int, workers: int) -> None:
    """Ask one handle from many threads, and move the alias to a second version in the middle."""
    photographs = [path.read_bytes() for path in _find(images)[:64]]
    with tempfile.TemporaryDirectory(prefix="plantmodels-bench-") as temporary:
        environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{temporary}/mlflow.db"}
        environment.pop("MLFLOW_REGISTRY_URI", None)
        for _ in range(2):
            _child(["register", str(bundle), temporary], environment)
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
                            marks.append({"predictions": count, "version": handle.current.version, **_memory()})
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
    click.echo(json.dumps(_memory()))


def _memory() -> dict[str, float]:
    """Resident and highest resident memory of this process in MB."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    keys = {"resident_mb": "VmRSS", "peak_mb": "VmHWM"}
    return {name: int(status[key].split()[0]) * 1024 / 1e6 for name, key in keys.items()}


@main.command(hidden=True)
@click.argument("threads", type=int)
@click.argument("rounds", type=int)
@click.argument("images", type=PATH, nargs=-1)
def speed(threads: int, rounds: int, images: tuple[Path, ...]) -> None:
    """Time batches, the precisions in turn."""
    from mlflow_plugins.flavor import load_model
    from plantmodels.bundle.layout import PRECISIONS

    data = [path.read_bytes() for path in images]
    classifiers = {name: load_model("models:/bench/1", precision=name, threads=threads) for name in PRECISIONS}
    results = []
    for batch in BATCHES:
        photographs = [data[i % len(data)] for i in range(batch)]
        times: dict[str, list[float]] = {name: [] for name in classifiers}
        repeats = max(1, 32 // batch)
        for classifier in classifiers.values():
            classifier.predict(photographs)
        for _ in range(rounds):
            for name, classifier in classifiers.items():
                start = time.perf_counter()
                for _ in range(repeats):
                    classifier.predict(photographs)
                times[name].append((time.perf_counter() - start) / (repeats * batch))
        for name, seconds in times.items():
            results.append({"precision": name, "threads": threads, "batch": batch, **_summary(seconds)})
    click.echo(json.dumps(results))


def _summary(values: list[float]) -> dict[str, float]:
    return {"median_s": statistics.median(values), "min_s": min(values), "max_s": max(values)}


def _describe_machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    names = ("mlflow", "numpy", "onnxruntime", "pillow")
    return {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "python": platform.python_version()} | {
        name: version(name) for name in names
    }


def _table(result: dict[str, Any]) -> str:
    machine, download = result["machine"], result["download"]
    rows = [f"{machine['cpu']}, {machine['cores']} cores; onnxruntime {machine['onnxruntime']}", ""]
    rows += ["| from a cold process | median s | min–max s | resident MB | peak MB |", "|---|---|---|---|---|"]
    for loader, times in result["cold_start"].items():
        memory = result["memory"][loader]
        what = (
            "`import mlflow.pyfunc` and nothing else" if loader == "mlflow alone" else f"{loader} to first prediction"
        )
        spread = f"{times['min_s']:.2f}–{times['max_s']:.2f}"
        rows.append(
            f"| {what} | {times['median_s']:.2f} | {spread} | {memory['resident_mb']:.0f} | {memory['peak_mb']:.0f} |"
        )
    rows += ["", "| download | files | MB |", "|---|---|---|"]
    for name, title in (("native_int8", "native, INT8"), ("pyfunc", "pyfunc, everything")):
        rows.append(f"| {title} | {download[f'{name}_files']} | {download[f'{name}_mb']:.1f} |")
    rows += ["", "| precision | threads | batch | images a second | ms an image (min–max) |", "|---|---|---|---|---|"]
    for entry in result["speed"]:
        low, middle, high = (1000 * entry[key] for key in ("min_s", "median_s", "max_s"))
        rows.append(
            f"| {entry['precision']} | {entry['threads']} | {entry['batch']} | {1000 / middle:.1f} "
            f"| {middle:.1f} ({low:.1f}–{high:.1f}) |"
        )
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()
