"""The ModelHandle service of docs/service.md answers, refuses what is no image, follows the alias, and the webhook."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from mlflow import MlflowClient

from tests.fixtures.registry import promote, register_bundle
from tests.fixtures.tracking import free_port, responds

ROOT = Path(__file__).resolve().parents[2]
NAME = "plant-disease"
SECRET = "of the test"


def ask(url: str, body: bytes | None = None) -> dict[str, Any]:
    with urllib.request.urlopen(url, body, timeout=600) as answer:
        return json.load(answer)


@pytest.fixture
def serve_code(tmp_path: Path, wait_for: Callable[..., None]) -> Callable[..., AbstractContextManager[str]]:
    """`with serve_code(code, NAME=value) as address`: the page's service, with these environment variables."""

    @contextmanager
    def start(code: str, **variables: str) -> Iterator[str]:
        (tmp_path / "service.py").write_text(code)
        address = f"127.0.0.1:{free_port()}"
        with (tmp_path / "service.log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "uvicorn", "service:app", "--port", address.partition(":")[2]],
                cwd=tmp_path,
                env=os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}"} | variables,
                stdout=log,
                stderr=log,
            )
        try:
            wait_for(lambda: process.poll() is not None or responds(f"http://{address}/health"), 600)
            assert process.poll() is None, (tmp_path / "service.log").read_text()
            yield f"http://{address}"
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()

    return start


@pytest.fixture
def service(embedded_mlflow: str, verified_bundle: Path, code_blocks, serve_code) -> Iterator[str]:
    """The page's service on version 1, which looks at the alias every 0.2 s; its address."""
    promote(register_bundle(verified_bundle, NAME), NAME)
    code = code_blocks("service.md", "python")[0]
    with serve_code(code.replace("interval_s=30", "interval_s=0.2")) as address:
        yield address


@pytest.mark.slow
def test_the_service(
    service: str, verified_bundle: Path, tiny_data: Path, code_blocks, wait_for: Callable[..., None]
) -> None:
    image = next(path for path in sorted(tiny_data.glob("val/*/*")) if path.suffix == ".jpg").read_bytes()
    answer = ask(f"{service}/predict", image)
    assert answer["version"] == "1"
    assert answer["error"] is None
    example = [block for block in code_blocks("service.md", "console") if "curl" in block][-1]
    shown = json.loads(example.partition("\n")[2])
    assert list(shown) == list(answer), "the page shows the answer's fields"

    with pytest.raises(urllib.error.HTTPError) as refused:
        ask(f"{service}/predict", b"not an image")
    assert refused.value.code == 422

    promote(register_bundle(verified_bundle, NAME), NAME)
    wait_for(lambda: ask(f"{service}/health") == {"version": "2", "failure": None})
    assert ask(f"{service}/predict", image) == answer | {"version": "2"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is deprecated since 2.9.0:FutureWarning")  # stages
def test_the_service_switches_when_mlflow_calls(
    start_server, failing_bundle: Path, code_blocks, serve_code, monkeypatch, wait_for: Callable[..., None]
) -> None:
    """The handle itself looks only once an hour; promotions go by stage, for which plain MLflow sends nothing."""
    start_server(
        "--workers",
        "1",
        MLFLOW_WEBHOOK_ALLOWED_SCHEMES="http",
        MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS="true",
        MLFLOW_WEBHOOK_CACHE_TTL="1",
        MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY="MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=",
    )
    client = MlflowClient()
    for version in (register_bundle(failing_bundle, NAME), register_bundle(failing_bundle, NAME)):
        client.set_model_version_tag(NAME, version, "plantmodels.waive.int8_accuracy", "a test")
    client.transition_model_version_stage(NAME, "1", "Production")
    code, receiver, subscription = code_blocks("service.md", "python")
    with serve_code(f"{code}\n{receiver}".replace("interval_s=30", "interval_s=3600"), WEBHOOK_SECRET=SECRET) as url:
        monkeypatch.setenv("WEBHOOK_SECRET", SECRET)
        exec(subscription.replace("https://service.example.org", url), {})
        client.transition_model_version_stage(NAME, "2", "Production")
        wait_for(lambda: ask(f"{url}/health") == {"version": "2", "failure": None}, 60)

        forged = {"X-MLflow-Signature": "v1,AAAA", "X-MLflow-Timestamp": str(int(time.time()))}
        assert requests.post(f"{url}/promoted", data=b"{}", headers=forged, timeout=60).status_code == 401
