"""Temporary folders that outlive a killed process only until the next one makes its own.

Each is locked (`flock`) by the process that made it, and the system lets go of a dead one's lock: an unlocked folder
of this kind is nobody's. Where there is no `flock` (Windows, some network file systems) none is taken for abandoned.

>>> with temporary_folder("load") as folder:  # doctest: +SKIP
...     download(folder)
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_PREFIX: Final = "plantmodels-scratch-"


@contextmanager
def temporary_folder(purpose: str) -> Iterator[Path]:
    """A folder in TMPDIR for as long as the block; those that killed processes left there are removed first.

    Args:
        purpose: becomes part of its name.

    Raises:
        OSError: TMPDIR cannot be written.
    """
    _remove_abandoned()
    folder, lock = _make(purpose)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


@contextmanager
def redirect_temporary_files(purpose: str) -> Iterator[None]:
    """Within it all temporary files of this process, libraries' ones too, lie in one `temporary_folder`."""
    before = tempfile.tempdir
    with temporary_folder(purpose) as folder:
        tempfile.tempdir = str(folder)
        try:
            yield
        finally:
            tempfile.tempdir = before


def _remove_abandoned() -> None:
    """Removes every folder of this kind that no process holds; what cannot be removed stays."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError, ImportError):
            lock = _lock(folder)
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _make(purpose: str) -> tuple[Path, int | None]:
    """A new folder and the descriptor that holds its lock; None where there is no `flock`."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{purpose}-"))
        try:
            return folder, _lock(folder)
        except (FileNotFoundError, BlockingIOError):  # a neighbour took it for abandoned before it was locked
            continue
        except (OSError, ImportError):
            return folder, None


def _lock(folder: Path) -> int:
    """Locks a folder and returns the descriptor that holds the lock.

    Raises:
        BlockingIOError: another process holds it.
        FileNotFoundError: another process has just removed it.
        OSError: its file system has no `flock`.
        ImportError: the system has none.
    """
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        folder.stat()
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
