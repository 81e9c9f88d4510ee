"""An upload that a proxy refuses as too large says which file, and where the limit is set."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest
import requests
from mlflow import MlflowClient

from mlflow_plugins import flavor
from mlflow_plugins.flavor import describe_refused_upload
from mlflow_plugins.jobs.registration import register_bundle
from plantmodels.errors import RegistrationError
from plantmodels.report.gate_report import read_report
from tests.fixtures.tracking import free_port, responds, wait_for

REFUSED = (
    r"^the bundle could not be uploaded: [\w.-]+ of \d\.\d MB was refused as too large \(HTTP 413\) by the server or a "
    r"proxy in front of it; in nginx, raise client_max_body_size$"
)


@pytest.fixture
def start_nginx(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """`start_nginx(server)`: the address of an nginx in front of a server, which passes bodies of up to 100 KB."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("nginx is not installed")
    started: list[subprocess.Popen[bytes]] = []

    def start(server: str) -> str:
        port, settings = free_port(), tmp_path / "nginx.conf"
        folders = "".join(f"{kind}_temp_path {tmp_path};" for kind in ("proxy", "fastcgi", "uwsgi", "scgi"))
        user = "user root;" if os.geteuid() == 0 else ""  # nobody may not write into a test's folder
        here = f"listen 127.0.0.1:{port}; location / {{ proxy_pass {server}; proxy_set_header Host $http_host; }}"
        settings.write_text(
            f"daemon off; {user} pid {tmp_path}/pid; error_log {tmp_path}/log; events {{}}\n"
            f"http {{ access_log off; client_body_temp_path {tmp_path}; {folders} client_max_body_size 100k;\n"
            f"server {{ {here} }} }}\n"
        )
        started.append(subprocess.Popen([program, "-c", str(settings)], stderr=subprocess.DEVNULL))
        address = f"http://127.0.0.1:{port}"
        wait_for(lambda: responds(f"{address}/health"), 60)
        return address

    yield start
    for process in started:
        process.terminate()
        process.wait()


def test_a_file_that_nginx_refuses_is_named_in_one_line(proxy, start_nginx, good_bundle, monkeypatch):
    address = start_nginx(proxy.server.address)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    mlflow.set_tracking_uri(address)
    with mlflow.start_run(), pytest.raises(RegistrationError, match=REFUSED):
        flavor.log_model(good_bundle, name="m")
    with mlflow.start_run(), pytest.raises(RegistrationError, match=REFUSED):
        register_bundle(good_bundle, read_report(good_bundle), "refused-by-nginx", None)
    assert [model.name for model in MlflowClient().search_registered_models() if "nginx" in model.name] == []


def test_other_errors_are_not_taken_for_it() -> None:
    answer = requests.Response()
    for status in (400, 403, 500, 507):
        answer.status_code = status
        assert describe_refused_upload(requests.HTTPError(response=answer)) is None
    assert describe_refused_upload(OSError("413")) is None
    answer.status_code = 413
    assert (describe_refused_upload(requests.HTTPError(response=answer)) or "").startswith("a file was refused as too")
