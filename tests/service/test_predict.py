"""`/predict` answers as the classifier does, for one image and for several, and says what is wrong with the rest."""

import io
import json
from dataclasses import asdict
from typing import Any

import pytest
from PIL import Image

from plantmodels.serve.classifier import PlantClassifier
from tests.service.conftest import JPEG, Running

BOUNDARY = "----boundary"
MULTIPART = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def multipart(*files: tuple[str, bytes]) -> bytes:
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'.encode()
        + b"Content-Type: application/octet-stream\r\n\r\n"
        + content
        + b"\r\n"
        for name, content in files
    ]
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def expect(classifier: PlantClassifier, image: bytes, **options: Any) -> dict[str, Any]:
    row = asdict(classifier.predict([image], **options)[0])
    left_out = {"embedding"} if options.get("top_k") else {"embedding", "candidates"}
    return json.loads(json.dumps({name: value for name, value in row.items() if name not in left_out}))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_image_is_answered_as_the_classifier_answers(
    service: Running, leaves: list[bytes], classifier: PlantClassifier, kind: str
) -> None:
    encoded = io.BytesIO()
    Image.open(io.BytesIO(leaves[0])).save(encoded, kind)
    answer = service.ask("/predict", encoded.getvalue(), {"Content-Type": f"image/{kind.lower()}"})
    assert answer.status == 200, answer.text
    version = answer.document.pop("version")
    assert len(version) == 12 and service.ask("/version").document["model"]["version"] == version
    assert answer.document == {"version": version} | expect(classifier, encoded.getvalue())


def test_options_reach_the_classifier(service: Running, leaves: list[bytes], classifier: PlantClassifier) -> None:
    answer = service.ask("/predict?top_k=2&routing=soft", leaves[0], {"Content-Type": "Image/JPEG; q=1"})
    assert answer.document.items() >= expect(classifier, leaves[0], top_k=2, routing="soft").items()
    assert len(answer.document["candidates"]) == 2


def test_a_bad_file_never_fails_its_neighbours(
    service: Running, leaves: list[bytes], classifier: PlantClassifier
) -> None:
    body = multipart(("a.jpg", leaves[0]), ("bad.png", b"no image"), ("c ü.jpg", leaves[1]))
    answer = service.ask("/predict?top_k=1", body, MULTIPART)
    assert answer.status == 200, answer.text
    first, bad, last = answer.document["predictions"]
    assert first == {"file": "a.jpg"} | expect(classifier, leaves[0], top_k=1)
    assert last == {"file": "c ü.jpg"} | expect(classifier, leaves[1], top_k=1)
    assert bad.pop("error").startswith("not an image of format JPEG, PNG, WEBP (8 bytes)")
    assert bad.pop("file") == "bad.png" and set(bad.values()) == {None}


def test_a_part_without_a_file_name_goes_by_its_field(service: Running, leaves: list[bytes]) -> None:
    body = multipart(("x", leaves[0])).replace(b'; filename="x"', b"")
    (row,) = service.ask("/predict", body, MULTIPART).document["predictions"]
    assert row["file"] == "image" and row["error"] is None


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "message"),
    [
        ("/predict", b"", JPEG, 422, "zero bytes: expected an encoded image"),
        ("/predict", b"no image", JPEG, 422, "not an image of format JPEG, PNG, WEBP (8 bytes)"),
        ("/predict", b"x", {"Content-Type": "text/plain"}, 415, "Content-Type is 'text/plain'; expected image/jpeg, "),
        ("/predict", b"x", {}, 415, "expected image/jpeg, image/png, image/webp or multipart/form-data"),
        ("/predict", b"x", JPEG | {"Content-Encoding": "gzip"}, 415, "Content-Encoding is 'gzip'; send the body as"),
        ("/predict?topk=1", b"x", JPEG, 400, "unknown option 'topk'; expected top_k or routing"),
        ("/predict?top_k=-1", b"x", JPEG, 400, "top_k must be a whole number of at least 0, got '-1'"),
        ("/predict?top_k=9999999", b"x", JPEG, 400, "top_k must be a whole number of at least 0, got '9999999'"),
        ("/predict?routing=firm", b"x", JPEG, 400, "routing must be one of hard, soft, got 'firm'"),
        ("/predict", b"x", {"Content-Type": "multipart/form-data"}, 400, "must name its boundary"),
        ("/predict", b"no boundary", MULTIPART, 400, "the multipart body is malformed"),
        ("/predict", multipart(), MULTIPART, 400, "the multipart body"),
        ("/predict", multipart(("a", b"x"))[:-8], MULTIPART, 400, "its last boundary is missing"),
        ("/predict", b"", MULTIPART, 400, "its last boundary is missing"),
        ("/nowhere", b"x", JPEG, 404, "no such path: '/nowhere'"),
        ("/predict/", b"x", JPEG, 404, "no such path: '/predict/'"),
        ("/health", b"x", JPEG, 405, "POST is not allowed here; expected GET, HEAD"),
    ],
)
def test_a_wrong_request_gets_one_line(
    service: Running, path: str, body: bytes, headers: dict[str, str], status: int, message: str
) -> None:
    answer = service.ask(path, body, headers)
    assert answer.status == status, answer.text
    assert message in answer.error


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_another_method_names_the_right_one(service: Running, method: str) -> None:
    answer = service.ask("/predict", method=method)
    assert answer.status == 405 and answer.headers["allow"] == "POST"
    assert answer.error == f"{method} is not allowed here; expected POST"


def test_a_model_that_fails_and_a_bug_are_one_line_too(
    service: Running, leaves: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    from plantmodels.errors import BundleError

    def fail(error: Exception) -> Any:
        def predict(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(PlantClassifier, "predict", predict)
        return service.ask("/predict", leaves[0])

    failed = fail(BundleError("swin-species-int8.onnx: does not run"))
    assert (failed.status, failed.error) == (500, "swin-species-int8.onnx: does not run")
    full = fail(BundleError("swin-species-int8.onnx: does not run (bad_alloc)"))
    assert (full.status, full.error) == (503, "memory ran out; try again later") and full.headers["retry-after"] == "1"
    bug = fail(ZeroDivisionError("secret"))
    assert (bug.status, bug.error) == (500, "the service failed; its log says why")
    assert service.service.admission.requests == 0 == service.service.admission.held_bytes


def test_http_1_0_is_answered(service: Running, leaves: list[bytes]) -> None:
    lines = ("POST /predict HTTP/1.0", "Content-Type: image/jpeg", f"Content-Length: {len(leaves[0])}")
    with service.connect(*lines, body=leaves[0]) as connection:
        answer = service.read(connection)
        assert answer.status == 200 and answer.document["error"] is None
        assert connection.recv(1) == b"", "the connection ends"


def test_what_is_no_http_is_refused(service: Running) -> None:
    with service.connect("HELLO", "hello: hello") as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 400 Bad Request")
