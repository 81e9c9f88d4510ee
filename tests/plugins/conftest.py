"""Fixtures of the MLflow edge: one verified tiny bundle."""

import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy

from plantmodels.bundle.documents import write_json
from plantmodels.bundle.layout import GATE_REPORT_FILE
from plantmodels.bundle.manifest import write_manifest
from plantmodels.verify.gates import GATES, judge
from plantmodels.verify.policy import read_policy
from plantmodels.verify.report import read_report
from plantmodels.verify.run import verify_bundle

PASSING = {"parity": 0.001, "int8_accuracy": 0.0, "ood_precision": 0.995, "ood_recall": 0.97, "latency": 5.0}
"""What these gates measured; the others have their true values."""


@pytest.fixture(autouse=True)
def _own_mlflow(embedded_mlflow: str) -> None:
    """Every test of the plugins has a tracking server of its own."""


@pytest.fixture(scope="session")
def verified_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_bundle) -> Path:
    """A copy of the tiny bundle with its gate report; read-only."""
    bundle = Path(shutil.copytree(tiny_bundle.bundle, tmp_path_factory.mktemp("verified") / "models"))
    verify_bundle(
        bundle,
        tiny_bundle.data,
        checkpoint=tiny_bundle.checkpoint,
        non_plants=tiny_bundle.non_plants,
        policy=read_policy(None),
    )
    return bundle


@pytest.fixture(scope="session")
def judged_bundle(tmp_path_factory: pytest.TempPathFactory, verified_bundle: Path) -> Callable[..., Path]:
    """`judged_bundle(ood_recall=0.5)`: the verified bundle with a report of these values, the rest passing."""

    def build(**measured: float) -> Path:
        bundle = Path(shutil.copytree(verified_bundle, tmp_path_factory.mktemp("judged") / "models"))
        report = read_report(bundle)
        values = {gate.name: gate.measured for gate in report.gates} | PASSING | measured
        gates = tuple(judge(name, values[name], limit=report.policy.limit_of(name), samples=9) for name in GATES)
        write_json(bundle / GATE_REPORT_FILE, dataclasses.replace(report, gates=gates).to_dict())
        write_manifest(bundle)
        return bundle

    return build


@pytest.fixture(scope="session")
def good_bundle(judged_bundle) -> Path:
    return judged_bundle()


@pytest.fixture(scope="session")
def bad_bundle(judged_bundle) -> Path:
    return judged_bundle(ood_recall=0.5)


@pytest.fixture
def leaf(tiny_bundle) -> bytes:
    """One encoded validation leaf."""
    return _read_leaf(tiny_bundle.data)


def _read_leaf(data: Path) -> bytes:
    return next(path for path in sorted(data.glob("val/*/*")) if path.suffix == ".jpg").read_bytes()


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory: pytest.TempPathFactory, tiny_bundle) -> Path:
    """The tiny bundle as a model folder with an input example; read-only."""
    from mlflow_plugins import flavor

    path = tmp_path_factory.mktemp("saved") / "model"
    flavor.save_model(tiny_bundle.bundle, path, input_example=_read_leaf(tiny_bundle.data))
    return path


@pytest.fixture
def model(saved_model: Path, tmp_path: Path) -> Path:
    """A private copy of the saved model folder, to attack."""
    return Path(shutil.copytree(saved_model, tmp_path / "model"))


@pytest.fixture(scope="session")
def postgresql_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Debian's PostgreSQL on a port of its own, with MLflow's tables in the database `template`; its address."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        pytest.skip("PostgreSQL is not installed")
    as_postgres = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []  # it refuses to run as root
    folder = Path(subprocess.check_output([*as_postgres, "mktemp", "-d"], text=True).strip())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def call(program: str, *arguments: str) -> None:
        subprocess.run(
            [*as_postgres, str(programs[-1] / program), "-D", str(folder / "data"), *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd="/",
        )

    options = f"-p {port} -k {folder} -c fsync=off -c max_connections=400"
    call("initdb", "--username=plantmodels", "--auth=trust", "--locale=C.UTF-8")
    call("pg_ctl", "-w", "-l", str(folder / "log"), "-o", options, "start")
    address = f"postgresql+psycopg2://plantmodels@127.0.0.1:{port}"
    try:
        _run_sql(address, "CREATE DATABASE template")
        from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

        SqlAlchemyStore(f"{address}/template")._dispose_engine()
        yield address
    finally:
        call("pg_ctl", "-m", "immediate", "stop")
        shutil.rmtree(folder)


@pytest.fixture
def postgresql_database(postgresql_server: str) -> str:
    """A fresh database with MLflow's tables."""
    name = f"test_{os.urandom(6).hex()}"
    _run_sql(postgresql_server, f"CREATE DATABASE {name} TEMPLATE template")
    return f"{postgresql_server}/{name}"


def _run_sql(address: str, statement: str) -> None:
    engine = sqlalchemy.create_engine(f"{address}/postgres", isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(statement))
    engine.dispose()


@dataclasses.dataclass(frozen=True)
class GatedServer:
    """A running `mlflow server` with the gated registry; `process` leads a process group of its own."""

    address: str
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        """Ends all its processes as a power cut would."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def start_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait_for: Callable[..., None], answers: Callable[[str], bool]
) -> Iterator[Callable[..., GatedServer]]:
    """`start_server("--app-name", "basic-auth", database=…, NAME=value)`: makes it the tracking server, too.

    `gated=False` starts it with MLflow's own registry.
    """
    import mlflow

    started: list[GatedServer] = []

    def start(
        *arguments: str, database: str = "sqlite:///server.db", gated: bool = True, **variables: str
    ) -> GatedServer:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        stores = [
            "--backend-store-uri",
            database,
            "--registry-store-uri",
            f"{'plantmodels:' if gated else ''}{database}",
        ]
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), *stores]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        with (tmp_path / "server.log").open("a") as log:
            process = subprocess.Popen(
                [*command, *arguments],
                cwd=tmp_path,
                env=environment | variables,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        started.append(GatedServer(f"http://127.0.0.1:{port}", process))
        wait_for(lambda: process.poll() is not None or answers(f"{started[-1].address}/health"), 90)
        assert process.poll() is None, (tmp_path / "server.log").read_text()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", started[-1].address)
        mlflow.set_tracking_uri(started[-1].address)
        mlflow.set_registry_uri(None)
        return started[-1]

    yield start
    for server in started:
        if server.process.poll() is None:
            server.kill()
