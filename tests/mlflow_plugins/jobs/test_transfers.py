"""Transfers to and from a server: several files at once, each under the name that MLflow would give it."""

import os
import threading
from pathlib import Path

import pytest
from mlflow.entities import FileInfo
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository
from mlflow.tracking.request_header import registry

from mlflow_plugins.jobs.transfers import parallel_transfers

ADDRESS = "http://localhost/api/2.0/mlflow-artifacts/artifacts"

FILES = ("MLmodel", "code/a.py", "bundle/heads/one.onnx", "bundle/heads/two.onnx", "bundle/manifest.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def record_uploads(monkeypatch: pytest.MonkeyPatch, wait: threading.Barrier | None = None) -> set[tuple[str, object]]:
    sent: set[tuple[str, object]] = set()

    def log_artifact(_: HttpArtifactRepository, local_file: str, artifact_path: str | None = None) -> None:
        if wait is not None:
            wait.wait(20)
        sent.add((local_file, artifact_path))

    monkeypatch.setattr(HttpArtifactRepository, "log_artifact", log_artifact)
    return sent


@pytest.mark.parametrize("place", [None, "model"])
def test_each_file_gets_the_name_that_mlflow_gives_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, place: str | None
) -> None:
    sent = record_uploads(monkeypatch)
    repository = HttpArtifactRepository(ADDRESS)
    repository.log_artifacts(str(folder), place)
    expected = sent.copy()
    sent.clear()
    with parallel_transfers():
        repository.log_artifacts(str(folder), place)
    assert sent == expected and len(sent) == len(FILES)


def test_several_files_are_sent_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each upload waits for the four others, so one after the other would never end."""
    sent = record_uploads(monkeypatch, threading.Barrier(len(FILES)))
    with parallel_transfers():
        HttpArtifactRepository(ADDRESS).log_artifacts(str(folder))
    assert len(sent) == len(FILES)


def test_a_refused_file_is_raised_and_ends_the_upload(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []

    def refuse(_: HttpArtifactRepository, local_file: str, artifact_path: str | None = None) -> None:
        sent.append(local_file)
        raise OSError(f"{Path(local_file).name} is too large")

    for number in range(500):
        (folder / f"{number}.onnx").touch()
    monkeypatch.setattr(HttpArtifactRepository, "log_artifact", refuse)
    original = HttpArtifactRepository.log_artifacts
    with pytest.raises(OSError, match="is too large"), parallel_transfers():
        HttpArtifactRepository(ADDRESS).log_artifacts(str(folder))
    assert 1 <= len(sent) <= 8  # those that had begun
    assert HttpArtifactRepository.log_artifacts is original


class Store(HttpArtifactRepository):
    """A server that has `FILES`; each holds its own name."""

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        prefix = f"{path}/" if path else ""
        below = {name.removeprefix(prefix).partition("/")[:2] for name in FILES if name.startswith(prefix)}
        return [FileInfo(f"{prefix}{name}", bool(slash), None) for name, slash in sorted(below)]

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        Path(local_path).write_text(remote_file_path)


def test_every_file_is_read_into_the_folder_that_it_has_on_the_server(tmp_path: Path) -> None:
    with parallel_transfers():
        assert Store(ADDRESS).download_artifacts("", str(tmp_path)) == str(tmp_path)
    found = {path.relative_to(tmp_path).as_posix(): path for path in tmp_path.rglob("*") if path.is_file()}
    assert {name: path.read_text() for name, path in found.items()} == {name: name for name in FILES}


def test_several_files_are_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each download waits for the four others, so one after the other would never end."""
    barrier = threading.Barrier(len(FILES))
    monkeypatch.setattr(Store, "_download_file", lambda *_: barrier.wait(20))
    with parallel_transfers():
        Store(ADDRESS).download_artifacts("", str(tmp_path))
    assert not barrier.broken


def test_a_file_that_cannot_be_read_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Store, remote_file_path: str, local_path: str) -> None:
        raise MlflowException(f"{remote_file_path} is gone")

    monkeypatch.setattr(Store, "_download_file", refuse)
    before = dict(vars(HttpArtifactRepository))
    with pytest.raises(MlflowException, match="is gone"), parallel_transfers():
        Store(ADDRESS).download_artifacts("", str(tmp_path))
    assert vars(HttpArtifactRepository) == before, "download_artifacts is inherited again"


def test_a_single_file_is_read_as_mlflow_reads_it(tmp_path: Path) -> None:
    with parallel_transfers():
        assert Path(Store(ADDRESS).download_artifacts("code/a.py", str(tmp_path))).read_text() == "code/a.py"


@pytest.mark.parametrize(("given", "during"), [(None, "32"), ("7", "32"), ("40", "40")])
def test_more_connections_are_kept_only_during_the_transfers(
    monkeypatch: pytest.MonkeyPatch, given: str | None, during: str
) -> None:
    variable = "MLFLOW_HTTP_POOL_MAXSIZE"
    monkeypatch.delenv(variable, raising=False)
    if given is not None:
        monkeypatch.setenv(variable, given)
    with parallel_transfers():
        assert os.environ[variable] == during
    assert os.environ.get(variable) == given


def test_a_request_has_mlflows_headers_and_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, resolve, provided = [], registry.resolve_request_headers, registry.resolve_request_headers()

    def count() -> dict[str, str]:
        asked.append(1)
        return dict(resolve())

    monkeypatch.setattr(registry, "resolve_request_headers", count)
    with parallel_transfers():
        assert registry.resolve_request_headers() == provided and "User-Agent" in provided
        assert registry.resolve_request_headers({"X-Mine": "1"}) == provided | {"X-Mine": "1"}
        assert len(asked) == 1
    assert registry.resolve_request_headers is count


def test_blocks_that_overlap_change_the_client_until_the_last_one_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def read_state() -> tuple[object, ...]:
        changed = os.environ.get("MLFLOW_HTTP_POOL_MAXSIZE"), registry.resolve_request_headers
        return dict(vars(HttpArtifactRepository)), *changed

    monkeypatch.delenv("MLFLOW_HTTP_POOL_MAXSIZE", raising=False)
    first, second, before = parallel_transfers(), parallel_transfers(), read_state()
    first.__enter__()
    during = read_state()
    second.__enter__()
    first.__exit__(None, None, None)
    assert read_state() == during != before
    second.__exit__(None, None, None)
    assert read_state() == before
