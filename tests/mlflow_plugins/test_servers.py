"""Servers that are down or wrong are found within seconds, and no command makes an empty database."""

import http.server
import os
import re
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from importlib.metadata import entry_points
from pathlib import Path

import mlflow
import pytest

from mlflow_plugins import servers
from mlflow_plugins.jobs.main import run_register
from mlflow_plugins.jobs.run import job_run
from mlflow_plugins.project_run import ProjectRunCheck, is_run_of_this_project
from mlflow_plugins.servers import check_servers
from plantmodels.errors import DataError, RegistrationError
from tests.fixtures.tracking import free_port

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that accepts connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def wrong() -> Iterator[str]:
    """The address of a web server that knows nothing of MLflow."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def use(monkeypatch: pytest.MonkeyPatch, tracking: str, registry: str | None = None) -> None:
    mlflow.set_tracking_uri(tracking)
    mlflow.set_registry_uri(registry)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking)


def test_a_working_store_passes(embedded_mlflow: str) -> None:
    mlflow.search_experiments()
    check_servers()


def test_a_server_that_is_down_wrong_or_silent(embedded_mlflow, monkeypatch, silent: str, wrong: str) -> None:
    monkeypatch.setattr(servers, "LIMIT_S", 1.0)
    monkeypatch.setattr(servers, "PATIENCE_S", 2.0)
    down = f"http://127.0.0.1:{free_port()}"
    for uri, match in {
        down: f"the tracking server {down} cannot be used: .*Connection refused.* \\(MLFLOW_TRACKING_URI names it\\)",
        wrong: f"the tracking server {wrong} cannot be used: .*(404|501)",
        f"http://{silent}": "cannot be used: (it accepts connections, but did not answer within 2 s|.*timed out)",
        f"postgresql+psycopg2://u:secret@{silent}/db": r"postgresql.psycopg2://\*\*\*@127.*: it accepts connections, ",
        "http://no-such-host.invalid": "cannot be used: .*(resolve|known|resolution)",
    }.items():
        use(monkeypatch, uri)
        start = time.monotonic()
        with pytest.raises(RegistrationError, match=match) as caught:
            check_servers(creates=True)
        assert time.monotonic() - start < 8 and "\n" not in str(caught.value) and "secret" not in str(caught.value)
        assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


@pytest.fixture
def slow(embedded_mlflow: str) -> Iterator[str]:
    """The address of a server that answers every question, after 1.5 seconds."""

    class Slow(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            time.sleep(1.5)
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(b"{}")

        do_GET = do_POST  # noqa: N815 - the name that the class looks for

        def log_message(self, *arguments: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_slow_server_is_waited_for_and_a_line_says_so(slow: str, monkeypatch, caplog) -> None:
    monkeypatch.setattr(servers, "LIMIT_S", 0.3)
    use(monkeypatch, slow)
    check_servers()

    (line,) = [record.getMessage() for record in caplog.records if record.name.endswith("servers")]
    assert line == f"the tracking server {slow} is slow: no answer within 0.3 seconds. Waiting up to 30 seconds"


def test_a_server_behind_a_proxy_is_waited_for(monkeypatch) -> None:
    """Only the proxy knows whether it is there; the request itself says so."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert servers._accepts_connections("http://mlflow.example")
    assert not servers._accepts_connections(f"postgresql://u@127.0.0.1:{free_port()}/db")
    assert servers._accepts_connections("postgresql:///mlflow"), "a socket in the file system"


def test_a_registry_that_is_down_is_named(embedded_mlflow: str, monkeypatch) -> None:
    down = f"http://127.0.0.1:{free_port()}"
    use(monkeypatch, embedded_mlflow, down)

    match = f"the model registry {down} cannot be used.*MLFLOW_REGISTRY_URI"
    with pytest.raises(RegistrationError, match=match), job_run("export"):
        pass


@pytest.mark.parametrize("prefix", ["", "plantmodels:"])
def test_a_question_makes_no_database(embedded_mlflow: str, monkeypatch, tmp_path: Path, prefix: str) -> None:
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        database.execute("CREATE TABLE something (x)")
    use(monkeypatch, embedded_mlflow, f"{prefix}sqlite:///{tmp_path}/typo.db")

    with pytest.raises(RegistrationError, match=r"cannot be used: there is no database .*/typo.db"):
        check_servers()
    assert not (tmp_path / "typo.db").exists()
    check_servers(creates=True)


def test_a_file_that_is_no_database_is_named_at_once(embedded_mlflow: str, monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_text("no database, but quite some text " * 50)
    use(monkeypatch, f"sqlite:///{tmp_path}/notes.db")

    with pytest.raises(RegistrationError, match=r"notes.db cannot be used: DatabaseError: file is not a database"):
        check_servers(creates=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["mlflow_plugins.cli", "audit", "plants"],
        ["mlflow_plugins.cli", "load-check", "models:/plants/1"],
        ["mlflow_plugins.jobs", "score", "--model", "models:/plants/1", "--images", ".", "--output", "scores"],
    ],
    ids=lambda arguments: arguments[1],
)
@pytest.mark.parametrize("is_down", [True, False], ids=["down", "variable missing"])
def test_every_command_says_it_in_one_line(tmp_path: Path, arguments: list[str], is_down: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment |= {"PYTHONPATH": str(ROOT)}
    if is_down:
        environment["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    expected = "Connection refused" if is_down else "there is no database .*MLFLOW_TRACKING_URI is not set"
    assert re.search(expected, done.stderr), done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("program", ["/x/bin/mlflow", "/x/mlflow/__main__.py"])
def test_mlflow_run_asks_the_server_first(embedded_mlflow, monkeypatch, capsys, program: str) -> None:
    use(monkeypatch, f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr(ProjectRunCheck, "_is_done", False)
    monkeypatch.setattr(sys, "argv", [program, "run", "--env-manager", "local", str(ROOT), "-P", "a=b"])
    with pytest.raises(SystemExit) as ended:
        ProjectRunCheck().in_context()

    assert ended.value.code == 1 and "cannot be used: " in capsys.readouterr().err
    assert ProjectRunCheck().in_context() is False, "the check itself must not ask again"


@pytest.mark.parametrize("words", [["server"], ["run", "."], ["models", "serve"], []])
def test_other_commands_of_mlflow_are_left_alone(tmp_path: Path, monkeypatch, words: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("MLproject").write_text("name: another\n")
    assert not is_run_of_this_project(["/x/bin/mlflow", *words])
    assert not is_run_of_this_project(["/x/bin/pytest", "run", str(ROOT)]) and not is_run_of_this_project([])


@pytest.mark.slow
def test_mlflow_run_says_it_too(tmp_path: Path) -> None:
    """MLflow creates the run itself, and would repeat its request for minutes."""
    groups = ("mlflow.default_experiment_provider", "mlflow.request_header_provider")
    installed = [point.value for group in groups for point in entry_points(group=group, name="plantmodels")]
    assert installed == ["mlflow_plugins.project_run:ProjectRunCheck"] * 2, (
        "install the project again: pip install -e ."
    )
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{free_port()}", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "mlflow", "run", str(ROOT), "--env-manager", "local", "-e", "show", "-P", "data=x"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)

    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("Error: the tracking server http://127.0.0.1")


def test_a_job_inside_an_active_run_is_its_child(embedded_mlflow: str, verified_bundle: Path) -> None:
    with mlflow.start_run() as outer:
        assert run_register(verified_bundle, "plants", None).name == "plants"
        with pytest.raises(DataError, match="absent: no such image"):
            run_register(verified_bundle, "plants", Path("absent"))
        assert mlflow.active_run().info.run_id == outer.info.run_id
    inner = mlflow.search_runs(filter_string=f"tags.mlflow.parentRunId = '{outer.info.run_id}'", output_format="list")

    assert sorted(run.info.status for run in inner) == ["FAILED", "FINISHED"]
    assert mlflow.get_run(outer.info.run_id).info.status == "FINISHED"
