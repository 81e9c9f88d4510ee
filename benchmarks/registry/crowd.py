"""Many models promoted at once through a server of one worker, while somebody reads.

python -m benchmarks.registry crowd public/models postgresql+psycopg2://mlflow@localhost/bench
"""

import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click
import mlflow
import requests

from benchmarks.driver import PATH
from benchmarks.processes import read_group_s
from mlflow_plugins import flavor

BARS: Final = {"slowest promotion, s": 5.0, "slowest reader, s": 0.5, "refused": 0.0}

_API: Final = "api/2.0/mlflow"


@dataclass
class Measured:
    """What was seen in one round.

    Attributes:
        promotions_s: time of each promotion.
        reads_s: time of each read.
        refused: answers that are no success.
        processor_s: processor time of the server while it promoted.
    """

    promotions_s: list[float] = field(default_factory=list)
    reads_s: list[float] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    processor_s: float = 0.0

    def summarize(self) -> dict[str, float]:
        """Return the values that have bars, and the medians."""
        return {
            "slowest promotion, s": max(self.promotions_s),
            "median promotion, s": statistics.median(self.promotions_s),
            "slowest reader, s": max(self.reads_s),
            "median reader, s": statistics.median(self.reads_s),
            "processor each, s": self.processor_s / len(self.promotions_s),
            "refused": float(len(self.refused)),
        }


@dataclass(frozen=True)
class Server:
    """A running `mlflow server`.

    Attributes:
        address: its URL.
        group: process group of the server and its worker.
    """

    address: str
    group: int

    def read_processor_s(self) -> float:
        """Return the processor time of all its processes so far, in seconds."""
        return read_group_s(self.group)


@contextmanager
def serve(database: str, folder: Path, prefix: str = "plantmodels:") -> Iterator[Server]:
    """Run `mlflow server` with one worker until the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    stores = ["--backend-store-uri", database, "--registry-store-uri", f"{prefix}{database}"]
    where = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--artifacts-destination", str(folder)]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "OMP_NUM_THREADS": "1"}
    with (folder / "server.log").open("w") as log:
        command = [sys.executable, "-m", "mlflow", "server", *stores, *where]
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        while not _answers(address):
            if server.poll() is not None:
                raise click.ClickException((folder / "server.log").read_text())
            time.sleep(0.2)
        yield Server(address, server.pid)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _answers(address: str) -> bool:
    try:
        return requests.get(f"{address}/health", timeout=5).ok
    except requests.RequestException:
        return False


def register(bundle: Path, address: str, models: int) -> None:
    """Log a bundle once, and register it as version 1 of so many models."""
    mlflow.set_tracking_uri(address)
    with mlflow.start_run():
        info = flavor.log_model(bundle, name="m")
    for number in range(models):
        mlflow.register_model(f"models:/{info.model_id}", f"plant-{number}")


def promote_all(server: Server, models: int) -> Measured:
    """Ask for the alias of every model at once, and read one of them all the while."""
    found, stop, start, address = Measured(), threading.Event(), threading.Barrier(models), server.address
    before_s = server.read_processor_s()

    def read() -> None:
        while not stop.is_set():
            _ask(found.reads_s, found.refused, "GET", f"{address}/{_API}/registered-models/get?name=plant-0")
            time.sleep(0.02)

    def promote(number: int) -> None:
        asked = {"name": f"plant-{number}", "alias": "production", "version": "1"}
        start.wait()
        _ask(found.promotions_s, found.refused, "POST", f"{address}/{_API}/registered-models/alias", asked)

    threads = [threading.Thread(target=promote, args=(number,)) for number in range(models)]
    reader = threading.Thread(target=read)
    for thread in (reader, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    reader.join()
    found.processor_s = server.read_processor_s() - before_s
    return found


def _ask(times: list[float], refused: list[str], method: str, url: str, body: Any = None) -> None:
    began = time.perf_counter()
    answer = requests.request(method, url, json=body, timeout=600)
    times.append(time.perf_counter() - began)
    if not answer.ok:
        refused.append(answer.text[:300])


@click.command()
@click.argument("bundle", type=PATH)
@click.argument("database")
@click.option("--models", default=64, show_default=True, help="Models that are promoted at once.")
@click.option("--rounds", default=5, show_default=True, help="The first round is the first promotion of each model.")
@click.option("--ungated", is_flag=True, help="Measure MLflow's own registry instead.")
def crowd(bundle: Path, database: str, models: int, rounds: int, ungated: bool) -> None:
    """Promote many models at once through one worker; all gates of BUNDLE must pass, and DATABASE must be empty."""
    with tempfile.TemporaryDirectory() as folder:
        prefix = "" if ungated else "plantmodels:"
        with serve(database, Path(folder), prefix) as server:
            register(bundle, server.address, models)
        with serve(database, Path(folder), prefix) as server:  # a server that has read no report yet
            found = [promote_all(server, models) for _ in range(rounds)]
    summaries = [measured.summarize() for measured in found]
    click.echo(f"{'of ' + str(models) + ' at once':24}" + "".join(f"{f'round {n + 1}':>10}" for n in range(rounds)))
    for name in summaries[0]:
        values = "".join(f"{summary[name]:10.3f}" for summary in summaries)
        click.echo(f"{name:24}{values}   {f'bar {BARS[name]:g}' if name in BARS else ''}")
    for text in dict.fromkeys(text for measured in found for text in measured.refused):
        click.echo(text)
