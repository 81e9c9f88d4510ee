"""Downloads that fail, are cut off or bring other bytes: a model is whole, or there is none."""

import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mlflow_plugins import flavor
from mlflow_plugins.loading.handle import ModelHandle
from mlflow_plugins.loading.native import load_model
from plantmodels.bundle.layout import MANIFEST_FILE, PACKED_HEADS_FILE, SPECIES_FILES, serving_files
from plantmodels.errors import BundleError

pytestmark = pytest.mark.slow

FILES = ("MLmodel", MANIFEST_FILE, *serving_files("int8"))


@pytest.fixture(scope="module")
def registered() -> dict[str, str]:
    """Name of the model that the tests of this module share, once one of them has registered it."""
    return {}


@pytest.fixture
def name(proxy, registered: dict[str, str], good_bundle: Path, lenient_bundle: Path) -> str:
    """Two versions; the second rejects everything. The alias `served` is on the first."""
    if not registered:
        registered["name"] = f"plants-{time.monotonic_ns()}"
        for bundle in (good_bundle, lenient_bundle):
            with mlflow.start_run():
                info = flavor.log_model(bundle, name="plants")
            mlflow.register_model(info.model_uri, registered["name"])
    serve(registered["name"], "1")
    return registered["name"]


def serve(name: str, version: str) -> None:
    MlflowClient().set_registered_model_alias(name, "served", version)


def temporary() -> list[Path]:
    return list(Path(tempfile.gettempdir()).iterdir())


def flip(at: float) -> Callable[[bytes], bytes]:
    def change(body: bytes) -> bytes:
        place = int(at * len(body))
        return body[:place] + bytes([body[place] ^ 0x20]) + body[place + 1 :]

    return change


def shorten(at: float) -> Callable[[bytes], bytes]:
    return lambda body: body[: int(at * len(body))]


@pytest.mark.parametrize("file", FILES)
def test_no_damaged_download_loads(proxy, name: str, file: str, leaf: bytes) -> None:
    """Cut off, shortened with a length to match, and one bit flipped, at random places; an error; no answer at all.

    Of MLmodel the native loader reads one digest: damage beside it changes no answer.
    """
    rng = random.Random(file)
    expected = load_model(f"models:/{name}/1", threads=1).predict([leaf])
    places = [0.0, *(rng.random() for _ in range(3)), 1 - 1e-9]
    damages = [proxy.change_answer(change(at)) for change in (shorten, flip) for at in places]
    failures = [proxy.change_answer(bytes, cut_at=at) for at in places]
    failures += [proxy.answer(404), proxy.answer(500), lambda call: None]
    for fault in damages + failures:
        proxy.mend()
        proxy.on("GET", f"/{file}", fault)
        try:
            loaded = load_model(f"models:/{name}/1", threads=1)
        except BundleError as error:
            assert file in str(error) and "\n" not in str(error)
        else:
            assert file == "MLmodel" and fault in damages and loaded.predict([leaf]) == expected
        assert temporary() == []


@pytest.mark.parametrize("change", [shorten(0.5), flip(0.5)])
def test_no_damaged_download_loads_as_pyfunc(proxy, name: str, change) -> None:
    proxy.on("GET", f"/{SPECIES_FILES['int8']}", proxy.change_answer(change))
    with pytest.raises(BundleError, match=rf"changed: {SPECIES_FILES['int8']}"):
        mlflow.pyfunc.load_model(f"models:/{name}/1")


def test_a_download_cut_off_does_not_load_as_pyfunc(proxy, name: str) -> None:
    proxy.on("GET", f"/{SPECIES_FILES['int8']}", proxy.change_answer(bytes, cut_at=0.5))
    with pytest.raises(MlflowException, match=SPECIES_FILES["int8"]):
        mlflow.pyfunc.load_model(f"models:/{name}/1")


@pytest.mark.parametrize(
    "break_",
    [
        lambda proxy: proxy.on("GET", f"/{PACKED_HEADS_FILE}", proxy.change_answer(shorten(0.5))),
        lambda proxy: proxy.on("GET", f"/{PACKED_HEADS_FILE}", proxy.change_answer(bytes, cut_at=0.1)),
        lambda proxy: proxy.on("GET", "registered-models/alias", proxy.answer(200, b'{"model_version": ')),
        lambda proxy: proxy.on("GET", "registered-models/alias", proxy.answer(200, b'{"model_version": 7}')),
        lambda proxy: proxy.on("GET", "registered-models/alias", proxy.answer(200, b"[]")),
        lambda proxy: proxy.on("GET", "model-versions/get", proxy.answer(200, b"{}")),
        lambda proxy: proxy.on("GET", "", proxy.answer(200, b"<html>Please log in</html>")),
    ],
    ids=["truncated", "cut off", "half JSON", "other JSON", "a list", "nothing", "a page"],
)
def test_a_service_keeps_its_version_until_the_download_works(proxy, name: str, leaf: bytes, break_) -> None:
    handle = ModelHandle(f"models:/{name}@served", interval_s=0, threads=1)
    assert handle.predict([leaf])[0].rejected is False
    serve(name, "2")
    break_(proxy)
    with pytest.raises(Exception) as caught:
        handle.refresh()
    assert str(caught.value)
    assert handle.current.version == "1" and handle.predict([leaf])[0].rejected is False and temporary() == []
    proxy.mend()
    assert handle.refresh() and handle.predict([leaf])[0].rejected is True


@pytest.mark.parametrize("load", [load_model, mlflow.pyfunc.load_model])
def test_an_alias_moved_during_the_download_gives_one_version(proxy, name: str, leaf: bytes, load) -> None:
    proxy.on("GET", "/manifest.json", proxy.first(lambda: serve(name, "2")), times=1)
    rows = load(f"models:/{name}@served").predict([leaf])
    assert (rows[0].rejected if load is load_model else rows.loc[0, "rejected"]) is False
    assert MlflowClient().get_model_version_by_alias(name, "served").version in (2, "2")


def test_a_full_disk_is_named_and_nothing_is_left(
    proxy, name: str, small_disk, leaf: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = small_disk(32 * 1024, "full")
    monkeypatch.setattr(tempfile, "tempdir", str(disk.folder))
    handle = ModelHandle(f"models:/{name}@served", interval_s=0, threads=1)
    serve(name, "2")
    proxy.on("GET", f"/{SPECIES_FILES['int8']}", proxy.first(disk.fill), times=1)
    with pytest.raises(BundleError, match=rf"{SPECIES_FILES['int8']} cannot be downloaded .*No space left on device"):
        handle.refresh()
    assert handle.predict([leaf])[0].rejected is False
    with pytest.raises(BundleError, match=r"models:/.*cannot be downloaded \(.*No space left on device"):
        handle.refresh()
    with pytest.raises((MlflowException, OSError), match="No space left on device"):
        mlflow.pyfunc.load_model(f"models:/{name}/1")
    disk.make_space()
    assert handle.refresh() and handle.predict([leaf])[0].rejected is True
    assert not list(disk.folder.glob("plantmodels-*"))
