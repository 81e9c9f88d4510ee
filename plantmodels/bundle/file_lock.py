"""A lock between processes that share a file system, on the library filelock.

The operating system releases the lock when the process that holds it ends, however it ends. So a killed process
blocks nobody; it only leaves the lock file, which the next process takes over.

>>> with hold_file_lock(tmp / "a.lock", holder="process 1") as is_held:
...     is_held
True
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_WITHOUT_LOCKS: Final = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP})
"""What file systems without locks answer, such as some network file systems."""

_MAX_HOLDER_BYTES: Final = 200


class LockedError(Exception):
    """Another process, or another thread, holds the lock.

    Attributes:
        holder: what the holder wrote about itself; "" if it wrote nothing.
    """

    def __init__(self, holder: str) -> None:
        """Keep the holder as an attribute."""
        super().__init__(holder)
        self.holder = holder


@contextmanager
def hold_file_lock(path: Path, *, timeout_s: float = 0.0, holder: str = "") -> Iterator[bool]:
    """Hold a lock for as long as the block, and yield whether it is held.

    The answer is False if the file system has no locks; the block runs all the same. The lock is not reentrant: a
    second call in the same process waits as well. The lock file is removed at the end; filelock opens a new one if the
    file that it has locked is not at its place any more.

    Args:
        path: the lock file. Its content is lost. A symbolic link is refused.
        timeout_s: how long to wait for the lock, in seconds.
        holder: what others are told about the holder, such as its process id.

    Raises:
        LockedError: it was not free within the timeout.
        OSError: the lock file cannot be written.
    """
    import filelock

    def write_holder(descriptor: int) -> None:
        try:
            os.ftruncate(descriptor, 0)
            if holder:
                os.write(descriptor, holder.encode()[:_MAX_HOLDER_BYTES])
        except OSError:
            _remove(path)
            raise

    lock = filelock.FileLock(path, thread_local=False, fallback_to_soft=False, on_acquired=write_holder)
    try:
        lock.acquire(timeout=timeout_s)
    except filelock.Timeout as error:
        raise LockedError(_read_holder(path)) from error
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
        _remove(path)
    if not lock.is_locked:
        yield False
        return
    try:
        yield True
    finally:
        _remove(path)
        lock.release()


def _read_holder(path: Path) -> str:
    try:
        return path.read_bytes()[:_MAX_HOLDER_BYTES].decode(errors="replace")
    except OSError:  # it has just ended, or this system does not let others read a locked file
        return ""


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
