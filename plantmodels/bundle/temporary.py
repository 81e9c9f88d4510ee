"""Temporary folders that are removed even if their process is killed: the next one removes them.

Each folder has a lock file beside it, which its process holds. If the lock is free, the process has ended and the
folder is abandoned. Serving does not need filelock: without it, folders have no lock file, so nobody takes them for
abandoned.

>>> with temporary_folder("load") as folder:
...     folder.is_dir()
True
"""

import contextlib
import importlib.util
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from plantmodels.bundle.file_lock import LockedError, hold_file_lock

_PREFIX: Final = "plantmodels-temporary-"

_TIMEOUT_S: Final = 5.0
"""Longest wait for a lock file of our own, which another process may try to lock while it looks for abandoned ones."""


@contextmanager
def temporary_folder(purpose: str) -> Iterator[Path]:
    """Make a folder in TMPDIR for as long as the block; folders that killed processes left are removed first.

    Args:
        purpose: becomes part of the folder's name.

    Raises:
        OSError: TMPDIR cannot be written.
    """
    folder = Path(tempfile.gettempdir(), f"{_PREFIX}{purpose}-{secrets.token_hex(8)}")
    with contextlib.ExitStack() as stack:
        if importlib.util.find_spec("filelock") is not None:
            _remove_abandoned()
            stack.enter_context(hold_file_lock(_lock_file(folder), timeout_s=_TIMEOUT_S))
        folder.mkdir(mode=0o700)
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        yield folder


@contextmanager
def redirect_temporary_files(purpose: str) -> Iterator[None]:
    """Put all temporary files of this process, those of libraries too, into one `temporary_folder` during the block."""
    before = tempfile.tempdir
    with temporary_folder(purpose) as folder:
        tempfile.tempdir = str(folder)
        try:
            yield
        finally:
            tempfile.tempdir = before


def _lock_file(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")


def _remove_abandoned() -> None:
    """Remove every folder whose lock file no process holds; what cannot be removed stays."""
    for path in Path(tempfile.gettempdir()).glob(_lock_file(Path(f"{_PREFIX}*")).name):
        with contextlib.suppress(OSError, LockedError), hold_file_lock(path) as is_held:
            if is_held:
                shutil.rmtree(path.with_name(path.name.removeprefix(".").removesuffix(".lock")), ignore_errors=True)
