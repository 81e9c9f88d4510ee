"""One step on a large bundle or folder, in a process of its own; prints its figures as JSON.

python -m benchmarks.scale.steps register bundle
python -m benchmarks.scale.steps listing --files 100000
"""

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import click

from benchmarks.driver import PATH, read_busy_s, share_of_cores
from benchmarks.processes import read_group_s, read_memory
from benchmarks.service.servers import Server, run_server

_FOLDERS: Final = 100
_IDLE_S: Final = 2.0


@click.group()
def main() -> None:
    """Run one step and print its figures as JSON."""


@main.command()
@click.argument("bundle", type=PATH)
@click.option("--as-mlflow", is_flag=True, help="Send and read files as MLflow does.")
def register(bundle: Path, *, as_mlflow: bool) -> None:
    """Register a bundle on an `mlflow server` of this machine, with SQLite and its artifacts on the disk."""
    import mlflow

    from mlflow_plugins.jobs import registration
    from plantmodels.report.gate_report import GateReport

    report = GateReport.__new__(GateReport)  # only its tags are asked for, and they are left out here
    with tempfile.TemporaryDirectory() as place:
        stores = {"MLFLOW_BACKEND_STORE_URI": f"sqlite:///{place}/mlflow.db", "MLFLOW_ARTIFACTS_DESTINATION": place}
        with run_server("tracking", os.environ | stores, Path(place) / "log") as server:
            _wait_until_idle(server)
            mlflow.set_tracking_uri(f"http://127.0.0.1:{server.port}")
            os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
            with patch.object(registration, "version_tags", lambda *_: {}), mlflow.start_run():
                way = patch.object(registration, "parallel_transfers", nullcontext) if as_mlflow else nullcontext()
                with way:
                    taken = _time(
                        lambda: registration.register_bundle(bundle, report, "scale", None), server.processor_s
                    )
    click.echo(json.dumps(taken | {"files": sum(path.is_file() for path in bundle.rglob("*"))}))


def _wait_until_idle(server: Server) -> None:
    """Wait until a server that has just started does nothing more: its workers import MLflow one after the other."""
    before = -1.0
    while (now := server.processor_s()) - before > 0.1 * _IDLE_S:
        before = now
        time.sleep(_IDLE_S)


@main.command()
@click.option("--files", type=int, required=True, help="Number of files.")
def listing(files: int) -> None:
    """List a folder that has a URI, as the job `score` does; Spark lists a small one first."""
    from mlflow_plugins.jobs.scoring.hadoop_listing import list_files
    from mlflow_plugins.jobs.scoring.spark import spark_session

    with tempfile.TemporaryDirectory() as place, spark_session("local[*]") as spark:
        small, large = Path(place) / "small", Path(place) / "large"
        _write_files(small, _FOLDERS)
        _write_files(large, files)
        list_files(spark, f"file://{small}")
        with _record_bars() as moments:
            taken = _time(lambda: list_files(spark, f"file://{large}"))
        click.echo(json.dumps(taken | {"silent_s": _longest_gap(moments)}))


def _write_files(folder: Path, files: int) -> None:
    for number in range(files):
        place = folder / str(number % _FOLDERS)
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.jpg").write_bytes(b"x")


@main.command()
@click.argument("bundle", type=PATH)
def load(bundle: Path) -> None:
    """Load a bundle as a service does; say how much memory it added, and how much while it loaded."""
    from plantmodels.serve.classifier import PlantClassifier

    before = read_memory()["resident_mb"]
    loaded = []
    taken = _time(lambda: loaded.append(PlantClassifier.load(bundle, threads=1)))
    memory = read_memory()
    added = {"added_mb": memory["resident_mb"] - before, "loading_mb": memory["peak_mb"] - before}
    click.echo(json.dumps(taken | added))


@main.command()
@click.argument("bundle", type=PATH)
@click.argument("data", type=PATH)
@click.argument("checkpoint", type=PATH)
def verify(bundle: Path, data: Path, checkpoint: Path) -> None:
    """Verify a bundle without non-plants, and say how long no bar moved."""
    from plantmodels.verify.run import verify_bundle

    with _record_bars() as moments:
        taken = _time(lambda: verify_bundle(bundle, data, checkpoint=checkpoint, non_plants=None))
    click.echo(json.dumps(taken | {"silent_s": _longest_gap(moments), "peak_mb": read_memory()["peak_mb"]}))


@contextmanager
def _record_bars() -> Iterator[list[float]]:
    """Yield a list that gets the time of each change of a progress bar, and of the beginning and end of the block."""
    import tqdm

    moments = [time.perf_counter()]

    class RecordedBar(tqdm.tqdm):  # type: ignore[type-arg]
        """A bar that says when it changes."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            moments.append(time.perf_counter())
            super().__init__(*arguments, **options)

        def update(self, n: float | None = 1) -> bool | None:
            moments.append(time.perf_counter())
            return super().update(n)

        def close(self) -> None:
            moments.append(time.perf_counter())
            super().close()

    with patch.object(tqdm, "tqdm", RecordedBar):
        yield moments
    moments.append(time.perf_counter())


def _longest_gap(moments: list[float]) -> float:
    return max(after - before for before, after in pairwise(moments))


def _time(work: Callable[[], object], others_s: Callable[[], float] = lambda: 0.0) -> dict[str, float]:
    """Return the seconds of the clock and of processor time, and the share of the cores that other programs used.

    Args:
        work: what is timed.
        others_s: returns the processor time of processes that work too, and are not of this process's group.
    """
    group = os.getpgrp()  # to which Java belongs
    start, own, others, busy = time.perf_counter(), read_group_s(group), others_s(), read_busy_s()
    work()
    wall, own, others = time.perf_counter() - start, read_group_s(group) - own, others_s() - others
    foreign = share_of_cores(read_busy_s() - busy - own - others, wall)
    return {"wall_s": wall, "cpu_s": own, "server_cpu_s": others, "foreign": foreign}


if __name__ == "__main__":
    main()
