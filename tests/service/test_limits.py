"""What is too large, too slow or too much is refused at once, and nothing of it stays in memory."""

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from plantmodels.serve.classifier import PlantClassifier
from plantmodels.service import headers
from plantmodels.service.settings import Limits, Settings
from tests.service.conftest import Running
from tests.service.test_predict import MULTIPART, multipart

POST = ("POST /predict HTTP/1.1", "Host: localhost", "Content-Type: image/jpeg")


def holds_nothing(running: Running) -> bool:
    admission = running.service.admission
    return admission.requests == 0 == admission.held_bytes


@pytest.fixture
def blocked(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, list[bytes]]]:
    """Every prediction waits for this event; the list holds the images that were predicted."""
    free, seen, predict = threading.Event(), [], PlantClassifier.predict

    def wait_and_predict(self: PlantClassifier, images: list[bytes], **options: object) -> object:
        free.wait(60)
        seen.extend(bytes(image) for image in images)
        return predict(self, images, **options)

    monkeypatch.setattr(PlantClassifier, "predict", wait_and_predict)
    yield free, seen
    free.set()


def test_an_announced_body_that_is_too_large_is_refused_before_it_comes(service: Running) -> None:
    with service.connect(*POST, "Content-Length: 104857600") as connection:
        answer = service.read(connection)
    assert (answer.status, answer.error) == (413, "the body is larger than 20,971,520 bytes")


def test_a_body_of_100_mb_is_refused_while_it_comes(service: Running, wait_for: Callable[..., None]) -> None:
    block = bytes(2**20)
    with service.connect(*POST, "Transfer-Encoding: chunked") as connection:
        for _ in range(100):  # the service reads on and forgets, so that the client gets to the answer
            connection.sendall(b"100000\r\n" + block + b"\r\n")
        connection.sendall(b"0\r\n\r\n")
        answer = service.read(connection)
        assert (answer.status, answer.error) == (413, "the body is larger than 20,971,520 bytes")
        assert holds_nothing(service)


def test_a_body_in_chunks_is_read(service: Running, leaves: list[bytes]) -> None:
    answer = service.ask("/predict", iter([leaves[0][:1000], leaves[0][1000:]]))
    assert answer.status == 200 and answer.document == service.ask("/predict", leaves[0]).document


def test_the_rest_of_a_refused_body_is_discarded_in_large_blocks(
    service: Running, leaves: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, sizes = headers.BoundedHeaders.data_received, []

    def note_size(self: headers.BoundedHeaders, data: bytes) -> None:
        sizes.append(self.transport.max_size)
        read(self, data)

    monkeypatch.setattr(headers.BoundedHeaders, "data_received", note_size)
    length = f"Content-Length: {len(leaves[0])}"
    with service.connect(POST[0], POST[1], "Content-Type: text/plain", length) as connection:
        assert service.read(connection).status == 415
        until_refused = len(sizes)
        connection.sendall(leaves[0])
        for _ in range(2):
            connection.sendall("\r\n".join([*POST, length, "", ""]).encode())
            connection.sendall(leaves[0])
            assert service.read(connection).status == 200
    assert set(sizes[:until_refused]) == {65_536}
    assert sizes[until_refused] == 2**20 and sizes[-1] == 65_536


@pytest.mark.parametrize("parts", [65, 10_000])
def test_too_many_parts_are_refused(service: Running, parts: int) -> None:
    answer = service.ask("/predict", multipart(*[("a.jpg", b"x")] * parts), MULTIPART)
    assert (answer.status, answer.error) == (413, "the multipart body has more than 64 parts")


def test_a_header_of_a_part_without_end_is_refused(service: Running) -> None:
    body = multipart(("a" * 1_000_000, b"x"))
    answer = service.ask("/predict", body, MULTIPART)
    assert answer.status == 400 and "the multipart body is malformed" in answer.error


def test_a_body_that_does_not_come_is_refused_in_time(run_service: Callable[..., Running]) -> None:
    running = run_service(body_timeout_s=0.3)
    start = time.monotonic()
    with running.connect(*POST, "Content-Length: 1000", body=b"half") as connection:
        answer = running.read(connection)
        assert (answer.status, answer.error) == (408, "the body did not arrive in 0.3 s; 4 bytes came")
        assert connection.recv(1) == b"", "the connection ends"
    assert time.monotonic() - start >= 0.3
    assert holds_nothing(running)


def test_a_body_that_drips_is_refused_in_time(run_service: Callable[..., Running]) -> None:
    running = run_service(body_timeout_s=0.5)
    with running.connect(*POST, "Content-Length: 1000") as connection:
        for _ in range(3):
            connection.sendall(b"x")
            time.sleep(0.1)
        answer = running.read(connection)
    assert answer.status == 408 and answer.error.endswith("; 3 bytes came")


@pytest.mark.parametrize("sent", [b"POST /pre", b"POST /predict HTTP/1.1\r\nHost: x\r\nX-Half: "])
def test_headers_that_do_not_come_are_refused_in_time(
    service: Running, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(headers, "HEADER_TIMEOUT_S", 0.3)
    with socket.create_connection(("127.0.0.1", service.port), timeout=60) as connection:
        connection.sendall(sent)
        answer = service.read(connection)
        assert (answer.status, answer.text) == (400, "The headers did not arrive in 0.3 s.")
        assert connection.recv(1) == b"", "the connection ends"


def test_a_second_request_has_headers_in_time_too(
    service: Running, leaves: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headers, "HEADER_TIMEOUT_S", 0.3)
    with service.connect(*POST, f"Content-Length: {len(leaves[0])}", body=leaves[0]) as connection:
        assert service.read(connection).status == 200
        connection.sendall(b"POST /predict HTTP/1.1\r\nX-Half: ")
        assert service.read(connection).text == "The headers did not arrive in 0.3 s."


def test_a_long_answer_is_not_cut_off_by_the_next_request(
    run_service: Callable[..., Running], blocked, leaves: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    free, _ = blocked
    monkeypatch.setattr(headers, "HEADER_TIMEOUT_S", 0.1)
    running = run_service()
    with running.connect(*POST, f"Content-Length: {len(leaves[0])}", body=leaves[0]) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nX-Half: ")
        time.sleep(0.4)
        free.set()
        assert running.read(connection).status == 200


@pytest.mark.parametrize("sent", [b"", b"\r\n"])
def test_a_connection_that_asks_nothing_is_closed_without_an_answer(
    service: Running, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(headers, "HEADER_TIMEOUT_S", 0.3)
    with socket.create_connection(("127.0.0.1", service.port), timeout=60) as connection:
        connection.sendall(sent)
        assert connection.recv(1) == b""


@pytest.mark.parametrize("drip", [b"a", b"\r\n", b"1\r\nx\r\n"], ids=["trailer", "blank lines", "body"])
def test_a_connection_that_drips_after_its_answer_is_closed(
    service: Running, monkeypatch: pytest.MonkeyPatch, drip: bytes
) -> None:
    monkeypatch.setattr(headers, "HEADER_TIMEOUT_S", 0.3)
    begin = {b"a": b"0\r\n", b"\r\n": b"0\r\n\r\n"}.get(drip, b"")
    with service.connect("GET /health HTTP/1.1", "Transfer-Encoding: chunked", body=begin) as connection:
        assert service.read(connection).status == 200
        assert drip_until_closed(connection, drip) == b""


def drip_until_closed(connection: socket.socket, drip: bytes) -> bytes:
    """Send these bytes every 50 ms, for at most 3 s, until the connection ends. Return what was read."""
    connection.settimeout(0.05)
    for _ in range(60):
        try:
            connection.sendall(drip)
            return connection.recv(100)
        except TimeoutError:
            continue
        except ConnectionError:
            return b""
    pytest.fail("the connection stays open")


LARGE = f"The headers are larger than {headers.MAX_HEADER_BYTES:,} bytes."


def test_headers_without_end_are_refused(service: Running) -> None:
    with socket.create_connection(("127.0.0.1", service.port), timeout=60) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nX-Long: ")
        time.sleep(0.1)
        connection.sendall(b"a" * (headers.MAX_HEADER_BYTES + 1))
        answer = service.read(connection)
    assert (answer.status, answer.text) == (400, LARGE)


@pytest.mark.parametrize(
    "lines",
    [
        ["GET /health HTTP/1.1", "X-Long: " + "a" * 100_000],
        ["GET /health HTTP/1.1", *["X-Many: " + "a" * 90] * 1000],
        ["GET /health?" + "a" * 100_000 + " HTTP/1.1"],
    ],
    ids=["one", "many", "URL"],
)
def test_complete_headers_that_are_too_large_are_refused(service: Running, lines: list[str]) -> None:
    with service.connect(*lines) as connection:
        answer = service.read(connection)
        assert (answer.status, answer.text) == (400, LARGE)
        assert connection.recv(1) == b"", "the connection ends"


def test_headers_up_to_the_limit_are_read(service: Running) -> None:
    name = "X-Long"
    longest = headers.MAX_HEADER_BYTES - len("/health") - len(f"{name}:\r\n")
    for size, status in ((longest, 200), (longest + 1, 400)):
        with service.connect("GET /health HTTP/1.1", f"{name}:" + "a" * size) as connection:
            assert service.read(connection).status == status


def test_each_request_has_headers_of_its_own(service: Running) -> None:
    with service.connect("GET /health HTTP/1.1", "X-Long: " + "a" * 40_000) as connection:
        assert service.read(connection).status == 200
        connection.sendall(b"GET /health HTTP/1.1\r\nX-Long: " + b"a" * 40_000 + b"\r\n\r\n")
        assert service.read(connection).status == 200


def test_trailers_that_are_too_large_are_refused(service: Running) -> None:
    trailers = b"0\r\n" + b"X-T: a\r\n" * 10_000
    with service.connect(*POST, "Transfer-Encoding: chunked", body=trailers) as connection:
        answer = service.read(connection)
        assert (answer.status, answer.text) == (400, LARGE)
        assert connection.recv(1) == b"", "the connection ends"


def test_trailers_after_the_answer_that_are_too_large_end_the_connection(service: Running) -> None:
    with service.connect("GET /health HTTP/1.1", "Transfer-Encoding: chunked", body=b"0\r\n") as connection:
        assert service.read(connection).status == 200
        assert drip_until_closed(connection, b"X-T: a\r\n" * 5000) == b"", "nothing comes after the answer"


def test_a_body_in_tiny_chunks_is_read(service: Running) -> None:
    body = b"1\r\nx\r\n" * 30_000 + b"0\r\n\r\n"  # 150 KB that are not the body
    with service.connect(*POST, "Transfer-Encoding: chunked", body=body) as connection:
        assert service.read(connection).status == 422, "the body is no image"


def test_a_broken_chunk_is_refused_while_the_body_is_awaited(service: Running) -> None:
    with service.connect(*POST, "Transfer-Encoding: chunked", body=b"1\r\nx\r\n") as connection:
        connection.sendall(b"no size\r\n")
        answer = service.read(connection)
        assert (answer.status, answer.text) == (400, "Invalid HTTP request received.")


@pytest.mark.parametrize(
    "second",
    [b"GET /health HTTP/1.1\r\nX-Long: " + b"a" * 200_000, b"GET /health HTTP/1.1\r\n" + b"X: a\r\n" * 40_000, b"?"],
    ids=["without end", "many", "no HTTP"],
)
def test_a_request_is_answered_though_the_next_one_is_refused(
    run_service: Callable[..., Running], blocked, leaves: list[bytes], second: bytes
) -> None:
    free, _ = blocked
    running = run_service()
    with running.connect(*POST, f"Content-Length: {len(leaves[0])}", body=leaves[0]) as connection:
        connection.sendall(second)
        time.sleep(0.2)
        free.set()
        answer = running.read(connection)
        assert answer.status == 200 and "species" in answer.text
        assert connection.recv(1) == b"", "the connection ends, and no answer to the second request confuses the client"


def test_nothing_is_kept_of_a_client_that_goes(service: Running, wait_for: Callable[..., None]) -> None:
    with service.connect(*POST, "Content-Length: 1000", body=b"half"):
        wait_for(lambda: service.service.admission.held_bytes == 1000)
    wait_for(lambda: holds_nothing(service))


def test_a_waiting_request_whose_client_goes_is_dropped(
    run_service: Callable[..., Running], blocked, leaves: list[bytes], wait_for: Callable[..., None]
) -> None:
    free, seen = blocked
    running = run_service()
    cores = running.service.work.cores
    length = f"Content-Length: {len(leaves[0])}"
    askers = [threading.Thread(target=running.ask, args=("/predict", leaves[0])) for _ in range(cores + 1)]
    for asker in askers:
        asker.start()
    wait_for(lambda: running.service.work.is_full)
    with running.connect(*POST, length, body=leaves[1].ljust(len(leaves[0]))[: len(leaves[0])]):
        wait_for(lambda: running.service.admission.requests == cores + 2)
    wait_for(lambda: running.service.admission.requests == cores + 1)
    free.set()
    for asker in askers:
        asker.join()
    wait_for(lambda: holds_nothing(running))
    assert seen == [leaves[0]] * (cores + 1)


def test_a_full_service_says_so_at_once(
    run_service: Callable[..., Running], blocked, leaves: list[bytes], wait_for: Callable[..., None]
) -> None:
    free, _ = blocked
    running = run_service(requests=2)
    answers: list[int] = []
    askers = [
        threading.Thread(target=lambda: answers.append(running.ask("/predict", leaves[0]).status)) for _ in range(2)
    ]
    for asker in askers:
        asker.start()
    wait_for(lambda: running.service.admission.requests == 2)
    refused = running.ask("/predict", leaves[0])
    assert (refused.status, refused.error) == (503, "2 requests are waiting; try again later")
    assert refused.headers["retry-after"] == "1"
    assert running.ask("/health").status == 200 and running.ask("/ready").status == 200
    free.set()
    for asker in askers:
        asker.join()
    assert answers == [200, 200]
    assert running.ask("/predict", leaves[0]).status == 200


def test_bodies_together_are_bounded(run_service: Callable[..., Running], wait_for: Callable[..., None]) -> None:
    running = run_service(body_bytes=1000, held_bytes=1500)
    with running.connect(*POST, "Content-Length: 1000", body=b"half"):
        wait_for(lambda: running.service.admission.held_bytes == 1000)
        announced = running.ask("/predict", bytes(501))
        assert (announced.status, announced.error) == (
            503,
            "other requests fill the memory for bodies; try again later",
        )
        assert running.ask("/predict", iter([bytes(501)])).status == 503, "in chunks"
        assert running.ask("/predict", bytes(500)).status == 422, "this one fits"
    wait_for(lambda: holds_nothing(running))
    assert running.ask("/predict", bytes(1000)).status == 422


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Limits(requests=0), "requests must be greater than 0, got 0"),
        (lambda: Limits(body_timeout_s=-1), "body_timeout_s must be greater than 0, got -1"),
        (lambda: Limits(body_bytes=2, held_bytes=1), "held_bytes must be at least body_bytes, 2, got 1"),
        (lambda: Settings("models", interval_s=0), "interval_s must be greater than 0, got 0"),
    ],
)
def test_a_wrong_limit_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
