"""The servers that are compared, each in processes of its own."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from benchmarks.processes import list_group, read_group_s

MODEL: Final = "models:/bench@production"

_START_S: Final = 300.0
_SAMPLE_S: Final = 0.5


@dataclass(frozen=True)
class Server:
    """A running server: its port, and the process that leads its group."""

    port: int
    process: int

    def processor_s(self) -> float:
        """Return the seconds of processor time that its processes have used."""
        return read_group_s(self.process)

    def resident_mb(self) -> float:
        """Return the resident memory of all its processes in MB."""
        return sum(map(_read_resident_mb, list_group(self.process)))


def _read_resident_mb(process: int) -> float:
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def make_commands(port: int) -> dict[str, tuple[Sequence[str], str]]:
    """Return the command of each server, and the path that says whether it is ready."""
    python, number = (sys.executable, "-m"), str(port)
    return {
        "service": ((*python, "plantmodels", "serve", MODEL, "--port", number), "/ready"),
        "mlflow": (
            (*python, "mlflow", "models", "serve", "-m", MODEL, "--env-manager", "local", "--port", number),
            "/ping",
        ),
        "tracking": ((*python, "mlflow", "server", "--port", number), "/health"),
        "echo": ((*python, "uvicorn", "benchmarks.service.echo:app", "--port", number, "--no-access-log"), "/"),
    }


@contextmanager
def run_server(name: str, environment: Mapping[str, str], log: Path) -> Iterator[Server]:
    """Start a server, wait until it is ready, and end all its processes afterwards.

    Raises:
        click.ClickException: the server ended, or was not ready in time; the message has the end of its log.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command, path = make_commands(port)[name]
    found = f"{Path(sys.executable).parent}:{environment['PATH']}"  # MLflow starts uvicorn by its name
    with log.open("w") as file:
        process = subprocess.Popen(
            list(command), env={**environment, "PATH": found}, stdout=file, stderr=file, start_new_session=True
        )
    try:
        end = time.monotonic() + _START_S
        while not _is_ready(f"http://127.0.0.1:{port}{path}"):
            if process.poll() is not None or time.monotonic() > end:
                raise click.ClickException(f"{name} does not start\n{log.read_text()[-2000:]}")
            time.sleep(0.2)
        yield Server(port, process.pid)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


class MemoryWatch:
    """Samples a server's memory in a thread while the `with` block runs; `samples` are in MB."""

    def __init__(self, server: Server) -> None:
        """Remember the server."""
        self.samples: list[float] = []
        self._server = server
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> "MemoryWatch":
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._done.wait(_SAMPLE_S):
            self.samples.append(self._server.resident_mb())
