"""Uploads to a server: several files at once, each under the name that MLflow would give it."""

import threading
from pathlib import Path

import pytest
from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository

from mlflow_plugins.jobs.uploads import parallel_uploads

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
    repository = HttpArtifactRepository("http://localhost/api/2.0/mlflow-artifacts/artifacts")
    repository.log_artifacts(str(folder), place)
    expected = sent.copy()
    sent.clear()
    with parallel_uploads():
        repository.log_artifacts(str(folder), place)
    assert sent == expected and len(sent) == len(FILES)


def test_several_files_are_sent_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each upload waits for the four others, so one after the other would never end."""
    sent = record_uploads(monkeypatch, threading.Barrier(len(FILES)))
    with parallel_uploads():
        HttpArtifactRepository("http://localhost/api/2.0/mlflow-artifacts/artifacts").log_artifacts(str(folder))
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
    with pytest.raises(OSError, match="is too large"), parallel_uploads():
        HttpArtifactRepository("http://localhost/api/2.0/mlflow-artifacts/artifacts").log_artifacts(str(folder))
    assert len(sent) < 505
    assert HttpArtifactRepository.log_artifacts is original
