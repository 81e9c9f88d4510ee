"""The files of a model on this machine.

Digests are not remembered: a write through a memory map changes neither size, inode nor times of a file. Reading
100 MB takes less than 0.1 s.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from functools import cached_property
from io import BufferedReader
from pathlib import Path
from typing import Final

from plantmodels.bundle.manifest import FileDigest
from plantmodels.errors import BundleError

NO_FOLDER: Final = "no such folder in the artifact store"
"""What is said of a model whose files are gone."""

_BLOCK_BYTES: Final = 2**18


class LocalFiles:
    """The files of a model in a folder of this machine."""

    def __init__(self, folder: Path) -> None:
        """Take the model folder."""
        self._folder = folder

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Size in bytes of every file by its name; see `ModelFiles`."""
        if not self._folder.is_dir():
            raise BundleError(NO_FOLDER)
        return dict(sorted(_walk(str(self._folder), "")))

    def read(self, name: str, max_bytes: int) -> bytes:
        """Return the content of a file; see `ModelFiles`."""
        with self._open(name) as file:
            size = os.fstat(file.fileno()).st_size
            content = file.read(min(size, max_bytes) + 1)  # no room for more: the limit is large, most files are small
            if len(content) > size:  # it has grown since
                content += file.read(max_bytes)
            if len(content) > max_bytes:
                size = os.fstat(file.fileno()).st_size
                raise BundleError(f"{name}: {size:,} bytes, at most {max_bytes:,} are read")
            return content

    def digest(self, names: Iterable[str]) -> dict[str, FileDigest]:
        """Return size and SHA-256 of files; see `ModelFiles`."""
        block = memoryview(bytearray(_BLOCK_BYTES))  # one for all files: new memory takes as long as reading into it
        return {name: self._digest_one(name, block) for name in names}

    def _digest_one(self, name: str, block: memoryview) -> FileDigest:
        sha256, size = hashlib.sha256(), 0
        with self._open(name) as file:
            while count := file.raw.readinto(block):
                sha256.update(block[:count])
                size += count
        return FileDigest(size, sha256.hexdigest())

    def _open(self, name: str) -> BufferedReader:
        """Open a regular file. Errors name the file, but not the folder, which is the server's own matter."""
        try:
            descriptor = os.open(f"{self._folder}/{name}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError as error:
            raise FileNotFoundError(name) from error
        except OSError as error:
            problem = "expected a regular file" if error.errno == errno.ELOOP else f"cannot be read ({error.strerror})"
            raise BundleError(f"{name}: {problem}") from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise BundleError(f"{name}: expected a regular file")
        return os.fdopen(descriptor, "rb")


def _walk(folder: str, prefix: str) -> Iterator[tuple[str, int]]:
    """Yield name and size of every file below a folder."""
    with os.scandir(folder) as entries:
        for entry in entries:
            name = f"{prefix}{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path, f"{name}/")
            elif entry.is_file(follow_symlinks=False):
                yield name, entry.stat(follow_symlinks=False).st_size
            else:
                raise BundleError(f"{name}: a bundle holds plain files and folders only")
