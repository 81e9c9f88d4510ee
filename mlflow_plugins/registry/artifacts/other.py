"""The files of a model in an artifact store that MLflow alone knows how to read."""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from mlflow_plugins.registry.artifacts.local import NO_FOLDER, LocalFiles
from plantmodels.bundle.manifest import FileDigest
from plantmodels.bundle.temporary import temporary_folder
from plantmodels.errors import BundleError

MAX_FILES: Final = 100_000
"""Files and folders of one model; a bundle of 1,000 species has about 1,020."""


class OtherFiles:
    """The files of a model below a path of one of MLflow's artifact repositories."""

    def __init__(self, repository: Any, path: str) -> None:
        """Take MLflow's repository and the model folder's path in it."""
        self._repository = repository
        self._path = path.strip("/")

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Size in bytes of every file by its name; see `ModelFiles`."""
        found: dict[str, int] = {}
        folders, count = [self._path], 0
        while folders:
            folder = folders.pop()
            for entry in self._repository.list_artifacts(folder or None):
                count += 1
                name = check_child(folder, str(entry.path))
                if count > MAX_FILES:
                    raise BundleError(f"more than {MAX_FILES:,} files and folders")
                if entry.is_dir:
                    folders.append(name)
                else:
                    found[name.removeprefix(self._path).lstrip("/")] = entry.file_size or 0
        if not found:
            raise BundleError(NO_FOLDER)
        return dict(sorted(found.items()))

    def read(self, name: str, max_bytes: int) -> bytes:
        """Return the content of a file; see `ModelFiles`."""
        path = f"{self._path}/{name}".lstrip("/")
        parent = path.rpartition("/")[0]
        size = {str(entry.path): entry.file_size for entry in self._repository.list_artifacts(parent or None)}
        if path not in size:
            raise FileNotFoundError(name)
        if (size[path] or 0) > max_bytes:
            raise BundleError(f"{name}: {size[path]:,} bytes, at most {max_bytes:,} are read")
        with temporary_folder("registry") as temporary:
            copy = Path(self._repository.download_artifacts(path, str(temporary)))
            return LocalFiles(copy.parent).read(copy.name, max_bytes)

    def digest(self, names: Iterable[str]) -> dict[str, FileDigest]:
        """Return size and SHA-256 of files, which MLflow downloads in parallel; see `ModelFiles`."""
        with temporary_folder("registry") as temporary:
            folder = Path(self._repository.download_artifacts(self._path, str(temporary)))
            return LocalFiles(folder).digest(names)


def check_child(folder: str, path: str) -> str:
    """Return a listed path without outer slashes.

    Raises:
        BundleError: it does not lie directly in the folder that was listed.
    """
    name = path.strip("/")
    last = name.rsplit("/", 1)[-1]
    if name != f"{folder}/{last}".lstrip("/") or last in ("", ".", ".."):
        raise BundleError(f"{path!r:.200} is not a plain name inside the model folder")
    return name
