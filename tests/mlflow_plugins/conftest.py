"""Fixtures of the MLflow edge: judged bundles, saved models, databases, servers and faulty proxies."""

import contextlib
import dataclasses
import http.client
import http.server
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy

from plantmodels.bundle.detector import read_detector, write_detector
from plantmodels.bundle.files import write_json
from plantmodels.bundle.layout import DETECTOR_FILE, GATE_REPORT_FILE
from plantmodels.bundle.manifest import write_manifest
from plantmodels.report.gate_report import read_report
from plantmodels.report.gates import GATES, judge_gate

PASSING = {"parity": 0.001, "int8_accuracy": 0.0, "ood_precision": 0.995, "ood_recall": 0.97, "latency": 5.0}
"""What these gates measured; the others have their true values."""


@pytest.fixture(autouse=True)
def _own_mlflow(embedded_mlflow: str) -> None:
    """Every test of the plugins has a tracking server of its own."""


@pytest.fixture(scope="session")
def judged_bundle(tmp_path_factory: pytest.TempPathFactory, verified_bundle: Path) -> Callable[..., Path]:
    """`judged_bundle(ood_recall=0.5)`: the verified bundle with a report of these values, the rest passing."""

    def build(**measured: float) -> Path:
        bundle = Path(shutil.copytree(verified_bundle, tmp_path_factory.mktemp("judged") / "models"))
        report = read_report(bundle)
        values = {gate.name: gate.measured for gate in report.gates} | PASSING | measured
        gates = tuple(judge_gate(name, values[name], limit=report.policy.limit_of(name), samples=9) for name in GATES)
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


@pytest.fixture(scope="session")
def lenient_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_bundle) -> Path:
    """The same but for a threshold under which everything is rejected: an answer tells which version gave it."""
    bundle = Path(shutil.copytree(tiny_bundle.bundle, tmp_path_factory.mktemp("lenient") / "models"))
    detector = read_detector(bundle / DETECTOR_FILE)
    write_detector(bundle / DETECTOR_FILE, dataclasses.replace(detector, threshold=-1e9))
    write_manifest(bundle)
    return bundle


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
    port = _free_port()

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


class GatedServer:
    """`mlflow server` with the gated registry, or with MLflow's own; its processes are a group of their own."""

    def __init__(self, folder: Path, *arguments: str, database: str, gated: bool, variables: dict[str, str]) -> None:
        self.port = _free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        registry = f"{'plantmodels:' if gated else ''}{database}"
        stores = ["--backend-store-uri", database, "--registry-store-uri", registry]
        options = ["--host", "127.0.0.1", "--port", str(self.port), *stores]
        self._command = [sys.executable, "-m", "mlflow", "server", *options, *arguments]
        self._folder, self._variables = folder, variables

    def start(self, wait_for: Callable[..., None], answers: Callable[[str], bool]) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # starts five more processes, which no test asks
        log = self._folder / "server.log"
        with log.open("a") as file:
            process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                env=environment | self._variables,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self.process = process
        wait_for(lambda: process.poll() is not None or answers(f"{self.address}/health"), 90)
        assert process.poll() is None, log.read_text()

    def kill(self) -> None:
        """Ends all its processes as a power cut would."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


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
        server = GatedServer(tmp_path, *arguments, database=database, gated=gated, variables=variables)
        started.append(server)
        server.start(wait_for, answers)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
        mlflow.set_tracking_uri(server.address)
        mlflow.set_registry_uri(None)
        return server

    yield start
    for server in started:
        server.kill()


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the proxy gives back; of the body only this part (0 to 1) before it ends the connection."""

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    cut_at: float = 1.0


@dataclasses.dataclass(frozen=True)
class Call:
    """One request on its way through the proxy."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    address: str

    def forward(self, body: bytes | None = None) -> Answer | None:
        """The server's answer; None when there is no server."""
        connection = http.client.HTTPConnection(self.address, timeout=120)
        try:
            connection.request(self.method, self.path, self.body if body is None else body, self.headers)
            answer = connection.getresponse()
            return Answer(answer.status, answer.read(), answer.getheader("Content-Type") or "application/json")
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def forward_part(self, size_bytes: int) -> None:
        """Breaks off after so many bytes of the body: the server gets a part, the client no answer."""
        with socket.create_connection(self.address.split(":")) as server:
            headers = self.headers | {"Content-Length": str(len(self.body))}
            lines = [f"{self.method} {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
            server.sendall("\r\n".join([*lines, "", ""]).encode() + self.body[:size_bytes])


Fault = Callable[[Call], Answer | None]
"""Makes the answer to one request; None ends the connection without one."""


class FaultyProxy:
    """An HTTP proxy before a server, which does to requests what a test says."""

    def __init__(self, server: GatedServer) -> None:
        self.server = server
        self._rules: list[tuple[str, str, Fault, list[int]]] = []
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                with contextlib.suppress(ConnectionError):
                    super().handle_one_request()

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {
                    name: value
                    for name, value in self.headers.items()
                    if name.lower() not in ("content-length", "connection", "accept-encoding")
                }
                call = Call(self.command, self.path, headers, body, proxy.server.address.removeprefix("http://"))
                self.close_connection = True
                if (answer := proxy._find_fault(call)(call)) is None:
                    return
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.content_type)
                self.send_header("Content-Length", str(len(answer.body)))
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(answer.body[: int(answer.cut_at * len(answer.body))])

            do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815 - http.server's names

            def log_message(self, *_: object) -> None:
                pass

        self._listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._listener.server_port}"
        threading.Thread(target=self._listener.serve_forever, daemon=True).start()

    def on(self, method: str, part: str, fault: Fault, *, times: int = 1_000_000) -> None:
        """Does this to the next requests of this method whose path holds a text."""
        self._rules.append((method, part, fault, [times]))

    def mend(self) -> None:
        self._rules.clear()

    @staticmethod
    def answer(status: int, body: bytes = b"") -> Fault:
        return lambda call: Answer(status, body)

    @staticmethod
    def drop_request(size_bytes: int) -> Fault:
        """The connection ends after so many bytes of the request's body."""
        return lambda call: call.forward_part(size_bytes)

    @staticmethod
    def truncate_request(size_bytes: int) -> Fault:
        """The server gets so many bytes and answers that all is well."""
        return lambda call: call.forward(call.body[:size_bytes])

    @staticmethod
    def lose_answer() -> Fault:
        """The server does what was asked, and the client does not hear of it."""
        return lambda call: call.forward() and None

    @staticmethod
    def twice() -> Fault:
        return lambda call: call.forward() and call.forward()

    @staticmethod
    def change_answer(change: Callable[[bytes], bytes], cut_at: float = 1.0) -> Fault:
        """Another body, of which only this part (0 to 1) arrives before the connection ends."""

        def fault(call: Call) -> Answer | None:
            answer = call.forward()
            return answer and dataclasses.replace(answer, body=change(answer.body), cut_at=cut_at)

        return fault

    @staticmethod
    def first(do: Callable[[], object]) -> Fault:
        """Something happens before the request goes on."""

        def fault(call: Call) -> Answer | None:
            do()
            return call.forward()

        return fault

    def close(self) -> None:
        self._listener.shutdown()
        self._listener.server_close()

    def _find_fault(self, call: Call) -> Fault:
        for method, part, fault, left in self._rules:
            if call.method == method and part in call.path and left[0] > 0:
                left[0] -= 1
                return fault
        return Call.forward


@pytest.fixture(scope="session")
def _proxied_server(
    tmp_path_factory: pytest.TempPathFactory, wait_for: Callable[..., None], answers: Callable[[str], bool]
) -> Iterator[FaultyProxy]:
    folder = tmp_path_factory.mktemp("proxied")
    server = GatedServer(
        folder,
        *("--workers", "1", "--artifacts-destination", str(folder / "artifacts")),
        database="sqlite:///server.db",
        gated=True,
        variables={},
    )
    server.start(wait_for, answers)
    proxy = FaultyProxy(server)
    yield proxy
    proxy.close()
    server.kill()


@pytest.fixture
def _use_proxy(
    embedded_mlflow: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[FaultyProxy], FaultyProxy]:
    import mlflow

    def use(proxy: FaultyProxy) -> FaultyProxy:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.address)
        mlflow.set_tracking_uri(proxy.address)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
        monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", mlflow.create_experiment(os.urandom(8).hex()))
        (tmp_path / "temporary files").mkdir()
        monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary files"))
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary files"))
        return proxy

    return use


@pytest.fixture
def proxy(_proxied_server: FaultyProxy, _use_proxy: Callable[[FaultyProxy], FaultyProxy]) -> Iterator[FaultyProxy]:
    """A gated server behind a faulty proxy, shared by all tests, each with an experiment and a TMPDIR of its own.

    It is the tracking server. MLflow's client tries again, twice and at once.
    """
    yield _use_proxy(_proxied_server)
    _proxied_server.mend()


@pytest.fixture
def proxy_before(_use_proxy: Callable[[FaultyProxy], FaultyProxy]) -> Iterator[Callable[[GatedServer], FaultyProxy]]:
    """`proxy_before(server)`: the same before a server of the test's own."""
    made: list[FaultyProxy] = []

    def make(server: GatedServer) -> FaultyProxy:
        made.append(FaultyProxy(server))
        return _use_proxy(made[-1])

    yield make
    for proxy in made:
        proxy.close()


@dataclasses.dataclass(frozen=True)
class SmallDisk:
    folder: Path

    def fill(self) -> None:
        with contextlib.suppress(OSError), (self.folder / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def make_space(self) -> None:
        (self.folder / "filler").unlink()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], SmallDisk]]:
    """`small_disk("artifacts")`: a folder that is a file system of 32 MB; skips where none can be mounted."""
    made: list[SmallDisk] = []

    def mount(name: str) -> SmallDisk:
        (tmp_path / name).mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(tmp_path / name)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("file systems cannot be mounted here")
        made.append(SmallDisk(tmp_path / name))
        return made[-1]

    yield mount
    for disk in made:
        subprocess.run(["umount", "--lazy", str(disk.folder)], check=True)
