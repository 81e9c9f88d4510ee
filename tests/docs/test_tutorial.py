"""Every command of docs/tutorial.md runs, in its order, on the tiny bundle instead of the one that takes minutes."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fixtures.registry import register_bundle
from tests.fixtures.tracking import free_port, responds

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


class Reader:
    """Does what the tutorial says, in a folder of its own."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.environment = os.environ | {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        }
        self.port = port
        self.server: subprocess.Popen[bytes] | None = None

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )

    def run_well(self, *command: str) -> str:
        ran = self.run(*command)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    def dry_run_make(self, target: str) -> list[str]:
        """The commands that the Makefile has for a target, none of them carried out."""
        ran = subprocess.run(
            ["make", "--dry-run", target, f"PORT={self.port}"],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout.replace("\\\n", " ").splitlines()

    def start_server(self) -> None:
        (command,) = (line for line in self.dry_run_make("server") if "mlflow server" in line)
        with (self.folder / "server.log").open("wb") as log:
            self.server = subprocess.Popen(
                ["bash", "-c", f"exec {command.strip()} --workers 1"],
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop_server(self) -> None:
        if self.server is not None and self.server.poll() is None:
            os.killpg(self.server.pid, signal.SIGKILL)
            self.server.wait()


@pytest.fixture
def reader(embedded_mlflow: str, tmp_path: Path, tiny_data: Path, failing_bundle: Path) -> Iterator[Reader]:
    shutil.copytree(failing_bundle, tmp_path / "public" / "models")
    leaf = tmp_path / ".demo" / "data" / "val" / "Tomato___Late blight" / "0001.jpg"
    leaf.parent.mkdir(parents=True)
    shutil.copy(next(path for path in sorted(tiny_data.glob("val/*/*")) if path.suffix == ".jpg"), leaf)
    reader = Reader(tmp_path, free_port())
    yield reader
    reader.stop_server()


@pytest.mark.slow
def test_the_tutorial(reader: Reader, code_blocks, wait_for: Callable[..., None]) -> None:
    typed = [line for block in code_blocks("tutorial.md", "console") for line in re.findall(r"^\$ (.*)$", block, re.M)]
    promotion, question = code_blocks("tutorial.md", "python")
    steps = iter(typed)

    assert next(steps) == "make demo"
    main_job = " ".join(reader.dry_run_make("demo"))
    assert "examples.drawn_leaves" in main_job
    assert "mlflow run" in main_job
    register_bundle(reader.folder / "public" / "models", "plant-disease")  # stands for the minutes of `make demo`

    assert next(steps) == "source .venv/bin/activate"
    inspected = reader.run_well("bash", "-c", next(steps))
    assert re.search(r"^int8_accuracy .* UNCERTAIN$", inspected, re.MULTILINE)

    assert next(steps) == "make server"
    reader.start_server()
    address = next(steps).removeprefix("export MLFLOW_TRACKING_URI=")
    assert address == "http://127.0.0.1:5000"
    address = address.replace("5000", str(reader.port))
    reader.environment["MLFLOW_TRACKING_URI"] = address
    wait_for(lambda: responds(f"{address}/health"), 600)

    refused = reader.run(sys.executable, "-c", promotion)
    assert refused.returncode == 1
    (shown,) = (block for block in code_blocks("tutorial.md", "") if "refused" in block)
    message, refusal = (re.sub(r"bound [\d.]+", "bound", text) for text in (shown, refused.stderr))
    assert message.removesuffix("…\n").strip() in refusal

    assert "waived" in reader.run_well("bash", "-c", next(steps))
    reader.run_well(sys.executable, "-c", promotion)
    assert reader.run_well(sys.executable, "-c", question).split()[-1] in ("True", "False")
    assert '"candidates": [{' in reader.run_well("bash", "-c", next(steps))
    decisions = reader.run_well("bash", "-c", next(steps)).splitlines()
    # the server stamped no registration here: the version was made before the server began
    assert [line.split()[1].rstrip(":") for line in decisions] == ["REFUSED", "allowed", "allowed"]
    assert "a grey image" in reader.run_well("bash", "-c", next(steps))
    assert list(steps) == []
