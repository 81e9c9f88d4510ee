"""Sends the files of a folder to an MLflow server and reads them back, many at once.

MLflow sends one after the other and reads four at once on two cores. Its server holds each answer back for 40 ms: with
several workers, uvicorn leaves Nagle's algorithm on, so a file's bytes wait until the client confirms the headers.

>>> with parallel_transfers():
...     pass  # mlflow.log_artifacts(folder); mlflow.artifacts.download_artifacts(uri, dst_path=folder)
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from threading import Event, Lock
from typing import Final
from unittest.mock import patch

from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository

from mlflow_plugins._mlflow_compat import download_file, prepare_for_many_requests
from plantmodels.data.progress import show_bar

_UPLOADS: Final = 8
"""Files that are sent at once. MLflow's server answers with four processes; twice as many keep them busy."""

_READS: Final = 32
"""Files that are read at once. Each waits 40 ms, so as many keep two cores busy."""

_LOCK: Final = Lock()

_PATCHES: Final = ExitStack()
"""What undoes the changes to MLflow's client; empty while no block runs."""

_blocks = 0
"""Blocks that run now, in all threads."""


@contextmanager
def parallel_transfers() -> Iterator[None]:
    """Let MLflow's client send and read several files of a folder at once while the block runs, with a bar.

    If a file is refused, those that wait are not sent, and its error is raised. Stores that are no MLflow server are
    left as they are. The client changes in all threads. If blocks overlap, it changes back when the last one ends.
    """
    global _blocks
    with _LOCK:
        if not _blocks:
            _PATCHES.enter_context(_change_client())
        _blocks += 1
    try:
        yield
    finally:
        with _LOCK:
            _blocks -= 1
            if not _blocks:
                _PATCHES.close()


@contextmanager
def _change_client() -> Iterator[None]:
    original = HttpArtifactRepository.download_artifacts

    def download_artifacts(repository: HttpArtifactRepository, artifact_path: str, dst_path: str | None = None) -> str:
        if artifact_path or dst_path is None:
            return str(original(repository, artifact_path, dst_path))  # type: ignore[no-untyped-call]
        return _download_all(repository, dst_path)

    with (
        patch.object(HttpArtifactRepository, "log_artifacts", _log_artifacts),
        patch.object(HttpArtifactRepository, "download_artifacts", download_artifacts),  # inherited, so deleted again
        prepare_for_many_requests(_READS),
    ):
        yield


def _log_artifacts(repository: HttpArtifactRepository, local_dir: str, artifact_path: str | None = None) -> None:
    """Do what `HttpArtifactRepository.log_artifacts` does, with several files at once."""
    folder = Path(local_dir)
    files = [Path(root) / name for root, _, names in os.walk(folder) for name in names]
    places = [_name_folder(file.parent.relative_to(folder), artifact_path) for file in files]
    work = [partial(repository.log_artifact, str(file), place) for file, place in zip(files, places, strict=True)]
    _do_all(work, _UPLOADS, "upload")


def _name_folder(below: Path, artifact_path: str | None) -> str | None:
    """Return the folder of a file in the store; None for its root."""
    return "/".join((*filter(None, [artifact_path]), *below.parts)) or None


def _download_all(repository: HttpArtifactRepository, target: str) -> str:
    """Download every file of a repository into an existing folder, and return the folder."""
    folder = Path(target)
    names = list(_list_names(repository, None))
    for parent in {(folder / name).parent for name in names}:
        parent.mkdir(parents=True, exist_ok=True)
    _do_all([partial(download_file, repository, name, folder / name) for name in names], _READS, "read back")
    return target


def _list_names(repository: HttpArtifactRepository, folder: str | None) -> Iterator[str]:
    """Yield the name of every file below a folder of a repository, which refuses names that lead out of it."""
    for info in repository.list_artifacts(folder):
        if info.is_dir:
            yield from _list_names(repository, info.path)
        else:
            yield info.path


def _do_all(work: Sequence[Callable[[], object]], at_once: int, description: str) -> None:
    """Call functions in threads and show a bar. After an error no other is begun, and it is raised."""
    failed = Event()

    def attempt(do: Callable[[], object]) -> None:
        if failed.is_set():
            return
        try:
            do()
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(at_once) as pool, show_bar(description, total=len(work), unit="file") as advance:
        futures = [pool.submit(attempt, do) for do in work]
        try:
            for future in as_completed(futures):
                future.result()
                advance()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
