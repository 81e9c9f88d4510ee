"""What the gate asks of an artifact store: the files of a model with their sizes, their contents and their digests.

>>> (tmp / "MLmodel").write_text("flavors: {}")
11
>>> files = open_files(str(tmp))
>>> dict(files.sizes), files.read("MLmodel", 100)
({'MLmodel': 11}, b'flavors: {}')
"""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from mlflow_plugins._mlflow_compat import find_local_folder, find_s3_folder, locate_artifacts
from mlflow_plugins.registry.artifacts.local import LocalFiles
from mlflow_plugins.registry.artifacts.other import OtherFiles
from mlflow_plugins.registry.artifacts.s3 import S3Files
from plantmodels.bundle.manifest import FileDigest


class ModelFiles(Protocol):
    """The files of one model. Nothing that was read before is read again to judge it."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """Size in bytes of every file, by its POSIX name below the model folder.

        Raises:
            BundleError: there is no such folder, or it holds a link, a special file or a name that could leave it.
        """

    def read(self, name: str, max_bytes: int) -> bytes:
        """Return the content of a file.

        Raises:
            FileNotFoundError: there is no such file.
            BundleError: it is larger than `max_bytes`, or not a regular file.
        """

    def digest(self, names: Iterable[str]) -> dict[str, FileDigest]:
        """Return size and SHA-256 of files."""


def open_files(location: str) -> ModelFiles:
    """Return the files at a URI; nothing is read yet."""
    folder = find_local_folder(location)
    if folder is not None:
        return LocalFiles(folder)
    repository, path, folder = locate_artifacts(location)
    if folder is not None:
        return LocalFiles(folder)
    return _open_remote(repository, path)


def _open_remote(repository: Any, path: str) -> ModelFiles:
    bucket_folder = find_s3_folder(repository, path)
    return OtherFiles(repository, path) if bucket_folder is None else S3Files(bucket_folder)
