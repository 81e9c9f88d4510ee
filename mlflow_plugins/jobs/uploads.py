"""Uploads the files of a folder to an MLflow server several at a time, where MLflow sends one after the other.

>>> with parallel_uploads():
...     pass  # mlflow.log_artifacts(folder)
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository

from plantmodels.data.progress import show_bar

_UPLOADS: Final = 8
"""Files that are sent at once. MLflow's server answers with four processes; twice as many keep them busy."""


@contextmanager
def parallel_uploads() -> Iterator[None]:
    """Let MLflow's client send several files of a folder at once while the block runs, with a bar.

    If a file is refused, those that wait are not sent, and its error is raised. Stores that are no MLflow server are
    left as they are.
    """
    original = HttpArtifactRepository.log_artifacts
    HttpArtifactRepository.log_artifacts = _log_artifacts  # type: ignore[method-assign]
    try:
        yield
    finally:
        HttpArtifactRepository.log_artifacts = original  # type: ignore[method-assign]


def _log_artifacts(repository: HttpArtifactRepository, local_dir: str, artifact_path: str | None = None) -> None:
    """Do what `HttpArtifactRepository.log_artifacts` does, with several files at once."""
    folder = Path(local_dir)
    files = [Path(root) / name for root, _, names in os.walk(folder) for name in names]
    places = [_name_folder(file.parent.relative_to(folder), artifact_path) for file in files]
    with ThreadPoolExecutor(_UPLOADS) as pool, show_bar("upload", total=len(files), unit="file") as advance:
        uploads = zip(files, places, strict=True)
        futures = [pool.submit(repository.log_artifact, str(file), place) for file, place in uploads]
        try:
            for future in as_completed(futures):
                future.result()
                advance()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _name_folder(below: Path, artifact_path: str | None) -> str | None:
    """Return the folder of a file in the store; None for its root."""
    return "/".join((*filter(None, [artifact_path]), *below.parts)) or None
