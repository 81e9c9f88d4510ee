"""Promotion of a model of many files in S3: requests and seconds, the first time and the second time.

python -m benchmarks.registry bucket models-of-330-species

The S3 server is moto in a process of its own. `python -m benchmarks.many_species write` makes a checkpoint of 330
species; export and verify it first.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import click
import mlflow
import requests
from mlflow.entities.model_registry import ModelVersionTag
from mlflow.exceptions import MlflowException

from benchmarks.driver import PATH
from mlflow_plugins import flavor
from mlflow_plugins._mlflow_compat import find_s3_folder, locate_artifacts
from mlflow_plugins.registry.artifacts import s3
from mlflow_plugins.registry.config import RegistryConfig
from mlflow_plugins.registry.evidence import read_evidence
from mlflow_plugins.registry.store import build_gated_store
from mlflow_plugins.registry.tags import WAIVE_TAG
from plantmodels.report.policy import GatePolicy

BARS: Final = {"requests": 40, "seconds": 0.5}
"""Largest accepted values of the second promotion."""

_BUCKET: Final = "models"
_NAME: Final = "plant-disease"


def start_server(port: int) -> subprocess.Popen[bytes]:
    """Start moto's S3 server, and make this process use it."""
    address = f"http://127.0.0.1:{port}"
    os.environ |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ["MLFLOW_S3_ENDPOINT_URL"] = address
    code = "import sys; from moto.server import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "-H", "127.0.0.1", "-p", str(port)]
    quiet = subprocess.DEVNULL
    server = subprocess.Popen(command, stdout=quiet, stderr=quiet, start_new_session=True)
    while server.poll() is None:
        try:
            requests.put(f"{address}/{_BUCKET}", timeout=5)
            return server
        except requests.ConnectionError:
            time.sleep(0.2)
    raise click.ClickException("moto's server did not start; is moto[server] installed?")


class Counter:
    """Counts the requests of boto3's client, by method."""

    def __init__(self) -> None:
        """Listen to the client that MLflow uses for the bucket."""
        folder = find_s3_folder(locate_artifacts(f"s3://{_BUCKET}")[0], "")
        self.found: dict[str, int] = {}
        if folder is not None:
            folder.client.meta.events.register("before-send.s3", self._note)

    def _note(self, request: Any, **_: object) -> None:
        self.found[request.method] = self.found.get(request.method, 0) + 1

    def measure(self, store: Any, version: str) -> tuple[float, int, str]:
        """Ask for the alias; return seconds, requests, and the answer."""
        self.found.clear()
        began, answer = time.perf_counter(), "promoted"
        try:
            store.set_registered_model_alias(_NAME, "production", version)
        except MlflowException as error:
            answer = f"refused: {error.message.partition(': refused to ')[2][:60]}"
        return time.perf_counter() - began, sum(self.found.values()), answer


def waive_failures(store: Any, location: str, version: str) -> None:
    """Waive every gate that BUNDLE fails: a model that was made for its size alone proves nothing else."""
    for gate in read_evidence(location).find_failures(GatePolicy()):
        store.set_model_version_tag(_NAME, version, ModelVersionTag(f"{WAIVE_TAG}{gate.name}", "a benchmark"))


@click.command()
@click.argument("bundle", type=PATH)
@click.option("--port", default=5599, show_default=True, help="Port of the S3 server.")
@click.option("--rounds", default=5, show_default=True, help="Promotions after the first one.")
def bucket(bundle: Path, port: int, rounds: int) -> None:
    """Promote BUNDLE from a bucket again and again, and be refused once by a stricter limit."""
    server = start_server(port)
    try:
        with tempfile.TemporaryDirectory() as folder:
            database = f"sqlite:///{folder}/mlflow.db"
            mlflow.set_tracking_uri(database)
            experiment = mlflow.create_experiment("e", artifact_location=f"s3://{_BUCKET}")
            with mlflow.start_run(experiment_id=experiment):
                info = flavor.log_model(bundle, name="m")
            store = build_gated_store(database, RegistryConfig())
            store.create_registered_model(_NAME)
            location = mlflow.get_logged_model(info.model_id).artifact_location
            version = str(store.create_model_version(_NAME, location).version)
            time.sleep(2.5)  # younger objects are not remembered
            strict = build_gated_store(database, RegistryConfig(policy=GatePolicy(latency_max_median_ms=1e-9)))
            counter = Counter()
            turns = {"refused": counter.measure(strict, version)}
            waive_failures(store, location, version)
            s3._known.clear()
            turns["first"] = counter.measure(store, version)
            turns |= {f"again {n + 1}": counter.measure(store, version) for n in range(rounds)}
    finally:
        os.killpg(server.pid, signal.SIGKILL)
    click.echo(
        f"{'promotion':12}{'seconds':>9}{'requests':>10}   bar {BARS['seconds']} s and {BARS['requests']} requests"
    )
    for what, (seconds, count, answer) in turns.items():
        click.echo(f"{what:12}{seconds:9.3f}{count:10}   {answer}")
