"""The command `plantmodels serve`: in one process and in several, and what it says if it cannot start."""

import json
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from plantmodels.cli import main
from tests.fixtures.tracking import free_port, responds


@pytest.fixture
def serve(tiny_bundle, tmp_path: Path, wait_for: Callable[..., None]) -> Iterator[Callable[..., tuple[str, Any]]]:
    """`serve("--workers", "2")`: the address of the command's service of the tiny bundle, and its process."""
    started = []

    def start(*options: str) -> tuple[str, Any]:
        port = str(free_port())
        command = [sys.executable, "-m", "plantmodels", "serve", str(tiny_bundle.bundle), "--port", port, *options]
        log = tmp_path / "serve.log"
        with log.open("w") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file)
        started.append(process)
        wait_for(lambda: process.poll() is not None or responds(f"http://127.0.0.1:{port}/ready"), 600)
        assert process.poll() is None, log.read_text()
        return f"http://127.0.0.1:{port}", process

    yield start
    for process in started:
        process.kill()
        process.wait()


def ask(url: str, image: bytes) -> dict[str, Any]:
    request = urllib.request.Request(url, image, {"Content-Type": "image/jpeg"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


@pytest.mark.slow
def test_several_processes_answer_and_count_together(
    serve: Callable[..., tuple[str, Any]], leaves: list[bytes], wait_for: Callable[..., None]
) -> None:
    address, process = serve("--workers", "2", "--threads", "1")

    def read_metrics() -> str:
        with urllib.request.urlopen(f"{address}/metrics", timeout=60) as answer:
            return str(answer.read().decode())

    wait_for(lambda: re.search(r"plantmodels_version_processes{[^}]*} 2\.0", read_metrics()))
    first = ask(f"{address}/predict", leaves[0])
    assert [ask(f"{address}/predict", leaves[0]) for _ in range(9)] == [first] * 9
    assert 'plantmodels_requests_total{path="/predict",status="200"} 10.0' in read_metrics()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert not responds(f"{address}/health")


def test_what_cannot_start_is_one_line(tmp_path: Path, tiny_bundle) -> None:
    nowhere = CliRunner().invoke(main, ["serve", str(tmp_path / "nowhere")])
    assert nowhere.exit_code == 1 and nowhere.output.count("\n") == 1
    assert "no such folder; expected a bundle or an address such as models:/NAME@ALIAS" in nowhere.output
    full = CliRunner().invoke(main, ["serve", str(tiny_bundle.bundle), "--max-body", "5", "--max-held", "4"])
    assert full.exit_code == 2 and "held_bytes must be at least body_bytes" in full.output
