"""The service of docs/service.md answers, refuses what is no image, and follows the alias."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient

from mlflow_plugins import flavor
from tests.fixtures.tracking import free_port, responds

ROOT = Path(__file__).resolve().parents[2]
NAME = "plant-disease"


def register(bundle: Path) -> str:
    with mlflow.start_run():
        uri = flavor.log_model(bundle, name="model").model_uri
    return str(mlflow.register_model(uri, NAME).version)


def ask(url: str, body: bytes | None = None) -> dict[str, Any]:
    with urllib.request.urlopen(url, body, timeout=600) as answer:
        return json.load(answer)


@pytest.fixture
def service(
    embedded_mlflow: str,
    verified_bundle: Path,
    code_blocks,
    tmp_path: Path,
    wait_for: Callable[..., None],
) -> Iterator[str]:
    """The page's service on version 1, which looks at the alias every 0.2 s; its address."""
    MlflowClient().set_registered_model_alias(NAME, "production", register(verified_bundle))
    (code,) = code_blocks("service.md", "python")
    (tmp_path / "service.py").write_text(code.replace("interval_s=30", "interval_s=0.2"))
    address = f"127.0.0.1:{free_port()}"
    with (tmp_path / "service.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "service:app", "--port", address.partition(":")[2]],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}"},
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


@pytest.mark.slow
def test_the_service(
    service: str, verified_bundle: Path, tiny_data: Path, code_blocks, wait_for: Callable[..., None]
) -> None:
    image = next(path for path in sorted(tiny_data.glob("val/*/*")) if path.suffix == ".jpg").read_bytes()
    answer = ask(f"{service}/predict", image)
    assert answer["version"] == "1"
    assert answer["error"] is None
    (example,) = (block for block in code_blocks("service.md", "console") if "curl" in block)
    shown = json.loads(example.partition("\n")[2])
    assert list(shown) == list(answer), "the page shows the answer's fields"

    with pytest.raises(urllib.error.HTTPError) as refused:
        ask(f"{service}/predict", b"not an image")
    assert refused.value.code == 422

    MlflowClient().set_registered_model_alias(NAME, "production", register(verified_bundle))
    wait_for(lambda: ask(f"{service}/health") == {"version": "2", "failure": None})
    assert ask(f"{service}/predict", image) == answer | {"version": "2"}
