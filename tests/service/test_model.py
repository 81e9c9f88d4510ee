"""The model of a service: opened while the service already answers, and tried again until it opens."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from plantmodels.bundle.layout import MANIFEST_FILE
from plantmodels.errors import ServiceError
from plantmodels.service import model
from plantmodels.service.app import create_app
from plantmodels.service.model import ServedModel, find_opener
from plantmodels.service.settings import Settings
from tests.service.conftest import Running


def test_it_waits_for_a_bundle_and_says_so(
    run_service: Callable[..., Running], bundle_copy: Path, leaves: list[bytes], wait_for: Callable[..., None]
) -> None:
    manifest = bundle_copy / MANIFEST_FILE
    content = manifest.read_bytes()
    manifest.unlink()
    running = run_service(model=str(bundle_copy), wait=False)
    wait_for(lambda: running.service.model.failure is not None)
    waiting = running.ask("/ready")
    assert waiting.status == 503 and waiting.headers["retry-after"] == "1"
    assert waiting.error.startswith(f"waiting for {bundle_copy}: ") and MANIFEST_FILE in waiting.error
    assert running.ask("/predict", leaves[0]).error == waiting.error
    assert running.ask("/health").document == {"status": "alive"}
    assert running.ask("/version").document["model"] is None
    manifest.write_bytes(content)
    wait_for(lambda: running.ask("/ready").status == 200)
    assert running.ask("/ready").document == {"version": running.service.model.wait(0).version, "failure": None}
    assert running.ask("/predict", leaves[0]).status == 200


def test_the_same_failure_is_logged_once(caplog: pytest.LogCaptureFixture, wait_for: Callable[..., None]) -> None:
    tries = []

    def fail() -> model.Handle:
        tries.append(1)
        raise OSError("the registry is gone")

    with ServedModel(fail, retry_s=0.01) as served:
        wait_for(lambda: len(tries) > 2)
        with pytest.raises(TimeoutError, match="no version was opened in 0 s: the registry is gone"):
            served.wait(0)
    assert caplog.text.count("no version to serve yet: the registry is gone") == 1


def test_a_handle_that_opens_after_the_end_is_closed(bundle_copy: Path) -> None:
    closed = []

    class Opened(model.BundleHandle):
        def close(self) -> None:
            closed.append(self)

    with ServedModel(lambda: served.close() or Opened(bundle_copy, threads=1), retry_s=1) as served:  # type: ignore[func-returns-value]
        served.wait(60)
        served._thread.join()
        assert len(closed) == 1


def test_what_cannot_be_served_is_said_at_once(tmp_path: Path, bundle_copy: Path) -> None:
    with pytest.raises(ServiceError, match=r"nowhere: no such folder; expected a bundle or an address such as models:"):
        find_opener(str(tmp_path / "nowhere"), interval_s=1)
    with pytest.raises(ServiceError, match=r"s3://b/c: nothing that is installed opens addresses .* \(known: models\)"):
        find_opener("s3://b/c", interval_s=1)
    with pytest.raises(ServiceError, match="s3://b/c: nothing that is installed"):
        create_app(Settings("s3://b/c"))
    with pytest.raises(ValueError, match="threads must be"):
        create_app(Settings(str(bundle_copy), threads=-1))


def test_settings_survive_the_way_to_a_worker(tmp_path: Path) -> None:
    settings = Settings("models:/plants@production", 5, "fp16", 2, tmp_path / "public.pem")
    assert Settings.from_json(settings.to_json()) == settings
    assert Settings.from_json(Settings("models").to_json()) == Settings("models")


def test_a_replaced_folder_is_another_version(bundle_copy: Path, tiny_bundle, tmp_path: Path) -> None:
    first = model.BundleHandle(bundle_copy, threads=1).current
    assert first.version == model.BundleHandle(tiny_bundle.bundle, threads=1).current.version
    shutil.rmtree(bundle_copy)
    assert first.name == str(bundle_copy)
