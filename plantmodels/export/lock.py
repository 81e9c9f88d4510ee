"""One writer at a time for a bundle's folder, and an end to what killed ones left beside it.

The writer holds a lock of the kernel's (`flock`) on a hidden file beside the folder, which the kernel lets go of when
the process ends, however it ends. Where there are no such locks (Windows, some network file systems) writers do not
see each other, and nothing is taken for a dead one's.

>>> with lock_bundle(out), staged_bundle(out) as folder:  # doctest: +SKIP
...     write_everything(folder)
"""

import contextlib
import logging
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from plantmodels.errors import ExportError
from plantmodels.export.staging import check_replaceable, discard_staging, disk_errors, find_staging

_MAX_HOLDER: Final = 200

_LOGGER: Final = logging.getLogger(__name__)


@contextmanager
def lock_bundle(out: Path) -> Iterator[None]:
    """Keeps every other process, and every other thread, from writing a bundle's folder; readers are not kept.

    What killed writers left is removed first: their staging folders, after an old bundle that was half-way out of
    its place is back. The lock file `.<name>.lock` goes with the block; a killed process leaves it, some 30 bytes
    that hold nobody up, and the next one takes it over.

    Args:
        out: where a bundle lies or shall lie; the folders above it are made.

    Raises:
        ExportError: another process holds it, named with its id; or `out` cannot be written or is no bundle.
    """
    check_replaceable(out)
    out = out.resolve()
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _open_lock(out)
    try:
        if descriptor is not None:
            _remove_abandoned(out)
        yield
    finally:
        if descriptor is not None:
            with contextlib.suppress(OSError):
                _lock_file(out).unlink()
            os.close(descriptor)


def _remove_abandoned(out: Path) -> None:
    with disk_errors(out):
        for folder in find_staging(out):
            discard_staging(folder, out)
            _LOGGER.info("%s: removed, a killed run had left it", folder)


def _lock_file(out: Path) -> Path:
    return out.parent / f".{out.name}.lock"


def _open_lock(out: Path) -> int | None:
    """The descriptor that holds the lock; None where the system has none."""
    path = _lock_file(out)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            if not _try_lock(descriptor):
                with contextlib.suppress(OSError):  # another one that does not see this one may have done it
                    path.unlink()
                os.close(descriptor)
                return None
            if _is_same(path, descriptor):  # else its holder removed it between our opening and our locking
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {platform.node()}"[:_MAX_HOLDER].encode())
                return descriptor
        except BlockingIOError as error:
            holder = os.read(descriptor, _MAX_HOLDER).decode(errors="replace") or "a process that has just started"
            os.close(descriptor)
            raise ExportError(f"{out}: {holder} is writing it; nothing was changed") from error
        except OSError:
            with contextlib.suppress(OSError):
                path.unlink()  # it is this process' own by now: what failed is to write into it
            os.close(descriptor)
            raise
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    """Takes the lock, which ends with the process; False where there are none.

    Raises:
        BlockingIOError: another one holds it.
    """
    if sys.platform == "win32":
        return False
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # ENOLCK, EOPNOTSUPP, ENOSYS: as the file system has it
        return False
    return True


def _is_same(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
