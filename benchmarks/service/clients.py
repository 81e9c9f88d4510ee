"""Clients in a process of their own: `python -m benchmarks.service.clients`.

`steady` keeps some connections busy and measures each answer. `crowd` sends photographs of 4 MB from many clients and
compares every answer with the expected one. Some of these clients send malformed requests, some send slowly, and some
close the connection early. All clients are threads on plain sockets, and each request is a block of bytes that was made
before. So the clients take little of the processors, which they share with the server.
"""

import json
import random
import select
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click

from benchmarks.driver import PATH

_TIMEOUT_S: Final = 120

_RETRY_S: Final = 1.0
"""What `Retry-After` says."""

_BLOCK_BYTES: Final = 65536


@click.group()
def main() -> None:
    """Ask a server."""


class Connection:
    """One client's connection, opened anew when it was closed."""

    def __init__(self, port: int) -> None:
        """Remember the port."""
        self._port = port
        self._socket: socket.socket | None = None

    def ask(self, request: bytes) -> tuple[int, bytes]:
        """Send a request, and return status and body of the answer, which may come before all was sent."""
        connection = self._open()
        rest = memoryview(request)
        connection.setblocking(False)
        try:
            while rest:
                readable, writable, _ = select.select([connection], [connection], [], _TIMEOUT_S)
                if readable:
                    break
                if not writable:
                    raise TimeoutError("the server takes nothing")
                rest = rest[connection.send(rest[: 4 * _BLOCK_BYTES]) :]
        except OSError:
            self.close()
            raise
        connection.settimeout(_TIMEOUT_S)
        status, body = self._read(connection)
        if rest:
            self.close()
        return status, body

    def send_part(self, part: bytes) -> None:
        """Send the next part of a request."""
        self._open().sendall(part)

    def is_answered(self) -> bool:
        """Return whether an answer has begun to come."""
        return bool(select.select([self._open()], [], [], 0)[0])

    def read(self) -> tuple[int, bytes]:
        """Return the answer to what was sent."""
        return self._read(self._open())

    def close(self) -> None:
        """Close the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _open(self) -> socket.socket:
        if self._socket is None:
            self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=_TIMEOUT_S)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._socket

    def _read(self, connection: socket.socket) -> tuple[int, bytes]:
        received = b""
        while b"\r\n\r\n" not in received:
            received += self._receive(connection)
        head, _, body = received.partition(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        length = next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
        while len(body) < length:
            body += self._receive(connection)
        if b"connection: close" in lines:
            self.close()
        return int(head.split()[1]), body

    def _receive(self, connection: socket.socket) -> bytes:
        if not (block := connection.recv(_BLOCK_BYTES)):
            self.close()
            raise ConnectionResetError("the server closed the connection")
        return block


def make_request(path: str, content_type: str, body: bytes, length: int | None = None) -> bytes:
    """Return the bytes of a request; `length` is announced in place of the true one."""
    size = len(body) if length is None else length
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\nContent-Length: {size}\r\n\r\n"
    return head.encode() + body


@main.command()
@click.argument("port", type=int)
@click.argument("path")
@click.argument("content_type")
@click.argument("bodies", type=PATH)
@click.option("--clients", type=int, required=True)
@click.option("--seconds", type=float, required=True)
def steady(port: int, path: str, content_type: str, bodies: Path, clients: int, seconds: float) -> None:
    """Keep CLIENTS connections busy, and print how many answers came and how long each took."""
    requests = [make_request(path, content_type, file.read_bytes()) for file in sorted(bodies.iterdir())]
    taken: list[float] = []
    end = time.perf_counter() + seconds

    def work(number: int) -> None:
        connection, turn = Connection(port), number
        while (start := time.perf_counter()) < end:
            status, _ = connection.ask(requests[turn % len(requests)])
            if status != 200:
                raise RuntimeError(f"status {status}")
            taken.append(time.perf_counter() - start)
            turn += clients
        connection.close()

    begin, own = time.perf_counter(), time.process_time()
    run_threads([lambda number=number: work(number) for number in range(clients)])  # type: ignore[misc]
    elapsed = time.perf_counter() - begin
    click.echo(json.dumps({"elapsed_s": elapsed, "client_s": time.process_time() - own, "seconds": taken}))


def run_threads(works: Sequence[Callable[[], None]]) -> None:
    """Run functions in threads, and end the process with status 1 if one of them fails."""
    failures: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        sys.exit(f"{len(failures)} clients failed: {failures[0]!r}")


@dataclass
class Tally:
    """What a crowd has seen.

    Attributes:
        answers: number of answers by kind of client and status.
        wrong: descriptions of wrong answers.
        refused_s: seconds from the beginning of a request to the end of its refusal, with status 413, 415 or 503.
        answered_s: seconds from the beginning of a request to the end of its 200.
    """

    answers: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    answered_s: list[float] = field(default_factory=list)


class Crowd:
    """Clients of several kinds that ask one server until a time is over."""

    def __init__(self, port: int, photographs: Sequence[bytes], expected: Sequence[dict[str, Any]], end: float) -> None:
        """Prepare the requests.

        Args:
            port: the server's port.
            photographs: encoded images.
            expected: the right answer to each, without the version.
            end: when to stop, on the clock `time.perf_counter`.
        """
        self.tally = Tally()
        self._port, self._end, self._expected = port, end, expected
        self._good = [make_request("/predict", "image/jpeg", image) for image in photographs]
        self._bad = self._make_bad(photographs[0])

    def _make_bad(self, image: bytes) -> dict[int, list[bytes]]:
        """Return malformed requests by the status that each must get."""
        noise = random.Random(0).randbytes(len(image))
        many = b"".join(b'--b\r\nContent-Disposition: form-data; name="i"\r\n\r\nx\r\n' for _ in range(10_000))
        return {
            400: [make_request("/predict", "multipart/form-data; boundary=b", image)],
            413: [
                make_request("/predict", "multipart/form-data; boundary=b", many + b"--b--\r\n"),
                make_request("/predict", "image/jpeg", image, length=100_000_000),
            ],
            415: [make_request("/predict", "text/plain", image)],
            422: [
                make_request("/predict", "image/jpeg", noise),
                make_request("/predict", "image/jpeg", image[: len(image) // 2]),
            ],
        }

    def _until_end(self, act: Callable[[Connection, random.Random], None], seed: int) -> None:
        choose, connection = random.Random(seed), Connection(self._port)
        while time.perf_counter() < self._end:
            try:
                act(connection, choose)
            except OSError as error:
                connection.close()
                self.tally.answers[f"{act.__name__.strip('_')}: {type(error).__name__}"] += 1
        connection.close()

    def _note(self, kind: str, status: int, start: float) -> None:
        taken = time.perf_counter() - start
        self.tally.answers[f"{kind}: {status}"] += 1
        if status in (413, 415, 503):
            self.tally.refused_s.append(taken)
        if status == 200:
            self.tally.answered_s.append(taken)
        if status == 503:
            time.sleep(_RETRY_S)

    def _good_client(self, connection: Connection, choose: random.Random) -> None:
        which, start = choose.randrange(len(self._good)), time.perf_counter()
        status, body = connection.ask(self._good[which])
        self._note("good", status, start)
        if status == 200:
            found = json.loads(body)
            del found["version"]
            if found != self._expected[which]:
                self.tally.wrong.append(f"photograph {which}: {found}")
        elif status != 503:
            self.tally.wrong.append(f"photograph {which}: status {status} {body[:200]!r}")

    def _malformed_client(self, connection: Connection, choose: random.Random) -> None:
        expected = choose.choice(list(self._bad))
        start = time.perf_counter()
        status, body = connection.ask(choose.choice(self._bad[expected]))
        self._note("malformed", status, start)
        if expected == 413:
            connection.close()  # the server waits for a body that does not come
        if status not in (expected, 503) or b'{"error": ' not in body or body.count(b"\n") != 1:
            self.tally.wrong.append(f"malformed: status {status}, expected {expected}: {body[:200]!r}")

    def _slow_client(self, connection: Connection, choose: random.Random) -> None:
        request, start = self._good[0], time.perf_counter()
        for part in range(0, len(request), 1000):
            connection.send_part(request[part : part + 1000])
            time.sleep(0.5)
            if connection.is_answered() or time.perf_counter() > self._end:
                break
        if time.perf_counter() < self._end:
            status, _ = connection.read()
            self._note("slow", status, start if status != 503 else time.perf_counter())
            if status not in (408, 503):
                self.tally.wrong.append(f"slow: status {status}")
        connection.close()

    def _gone_client(self, connection: Connection, choose: random.Random) -> None:
        request = choose.choice(self._good)
        connection.send_part(request[: choose.randrange(len(request) + 1)])
        connection.close()
        self.tally.answers["gone"] += 1
        time.sleep(0.2)

    def run(self, clients: int) -> None:
        """Run so many clients: a third malformed, an eighth slow, an eighth gone, the others good.

        A gone client closes the connection before it is answered.
        """
        slow = gone = max(1, clients // 8)
        kinds = [self._slow_client] * slow + [self._gone_client] * gone + [self._malformed_client] * (clients // 3)
        kinds += [self._good_client] * (clients - len(kinds))
        run_threads([lambda act=act, seed=seed: self._until_end(act, seed) for seed, act in enumerate(kinds)])  # type: ignore[misc]


@main.command()
@click.argument("port", type=int)
@click.argument("photographs", type=PATH)
@click.argument("expected", type=PATH)
@click.option("--clients", type=int, required=True)
@click.option("--seconds", type=float, required=True)
def crowd(port: int, photographs: Path, expected: Path, clients: int, seconds: float) -> None:
    """Ask with photographs of which EXPECTED holds the right answers; print what came."""
    images = [file.read_bytes() for file in sorted(photographs.iterdir())]
    crowd_ = Crowd(port, images, json.loads(expected.read_text()), time.perf_counter() + seconds)
    crowd_.run(clients)
    tally = crowd_.tally
    result = {"answers": tally.answers, "wrong": len(tally.wrong), "first_wrong": tally.wrong[:3]}
    click.echo(json.dumps(result | {"refused_s": tally.refused_s, "answered_s": tally.answered_s}))


if __name__ == "__main__":
    main()
