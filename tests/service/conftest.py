"""A running service: uvicorn in a thread of the test, on the tiny bundle, asked over real sockets."""

import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from plantmodels.serve.classifier import PlantClassifier
from plantmodels.service.app import Service, create_app
from plantmodels.service.headers import BoundedHeaders
from plantmodels.service.settings import Limits, Settings
from tests.fixtures.tracking import wait_for

JPEG = {"Content-Type": "image/jpeg"}


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def document(self) -> Any:
        return json.loads(self.text)

    @property
    def error(self) -> str:
        """The error, which must be all of the answer and one line."""
        assert self.headers["content-type"] == "application/json" and self.text.count("\n") == 1
        (error,) = self.document.values()
        return str(error)


@dataclass(frozen=True)
class Running:
    """A service, and the port where it listens."""

    port: int
    service: Service

    def ask(
        self, path: str, body: Any = None, headers: Mapping[str, str] = JPEG, *, method: str | None = None
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            verb = method or ("GET" if body is None else "POST")
            connection.request(verb, path, body, dict(headers) if body is not None else {})
            return self._read(connection.getresponse())
        finally:
            connection.close()

    @contextmanager
    def connect(self, *lines: str, body: bytes = b"") -> Iterator[socket.socket]:
        """A connection on which these lines of a request, and the beginning of a body, were sent."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
            yield connection

    def read(self, connection: socket.socket) -> Answer:
        response = http.client.HTTPResponse(connection)
        response.begin()
        return self._read(response)

    def _read(self, response: http.client.HTTPResponse) -> Answer:
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, headers, response.read().decode())


def start(settings: Settings) -> tuple[Running, Callable[[], None]]:
    app = create_app(settings)
    server = uvicorn.Server(uvicorn.Config(app, port=0, http=BoundedHeaders, log_level="warning", lifespan="on"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_for(lambda: server.started or not thread.is_alive(), 60)
    port = server.servers[0].sockets[0].getsockname()[1]

    def stop() -> None:
        server.should_exit = True
        thread.join(60)

    return Running(port, app.state.service), stop


@pytest.fixture
def run_service(tiny_bundle) -> Iterator[Callable[..., Running]]:
    """`run_service(body_bytes=1000)`: a service of the tiny bundle, or of `model=…`, with these limits."""
    started = []

    def run(*, model: str | None = None, wait: bool = True, **limits: Any) -> Running:
        settings = Settings(model or str(tiny_bundle.bundle), threads=1, limits=Limits(**limits))
        running, stop = start(settings)
        started.append(stop)
        if wait:
            running.service.model.wait(60)
        return running

    yield run
    for stop in started:
        stop()


@pytest.fixture(scope="module")
def service(tiny_bundle) -> Iterator[Running]:
    """A service of the tiny bundle with the default limits, for all tests of a module."""
    running, stop = start(Settings(str(tiny_bundle.bundle), threads=1))
    running.service.model.wait(60)
    yield running
    stop()


@pytest.fixture(scope="session")
def leaves(tiny_bundle) -> list[bytes]:
    return [path.read_bytes() for path in sorted(tiny_bundle.data.glob("val/*/*.jpg"))[:4]]


@pytest.fixture(scope="session")
def classifier(tiny_bundle) -> PlantClassifier:
    return PlantClassifier.load(Path(tiny_bundle.bundle), threads=1)
