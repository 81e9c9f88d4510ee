"""Replaces a whole bundle folder as one step: readers and crashes see the old bundle or the new.

>>> with staged_bundle(out) as folder:  # doctest: +SKIP
...     write_everything(folder)
"""

import ctypes
import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from plantmodels.bundle.layout import MANIFEST_FILE, is_report
from plantmodels.bundle.manifest import list_files, read_manifest
from plantmodels.errors import BundleError, ExportError

_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2


@contextmanager
def staged_bundle(out: Path, *, start_from: Path | None = None) -> Iterator[Path]:
    """Yields a temporary folder beside `out` that takes its place when the block ends without an error.

    On any error `out` is untouched and the temporary folder is removed. A killed run leaves it behind, hidden
    beside `out` (`.<name>.staging-*`): another run may be writing there, so nothing but a person deletes it.

    Args:
        out: where the bundle shall lie; may hold an older bundle, which is replaced.
        start_from: a bundle whose files, its report excepted, are in the temporary folder at the start (as
            hard links where the file system has them: replace such files, never write into them).

    Raises:
        ExportError: `out` is no folder, holds something other than a bundle, or cannot be written.
    """
    check_replaceable(out)
    out = out.resolve()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.staging-", dir=out.parent))
    except OSError as error:
        raise ExportError(f"{out}: the folder above it cannot be written ({error.strerror})") from error
    try:
        staging.chmod(0o755)
        if start_from is not None:
            _link_files(start_from, staging)
        yield staging
        _swap(staging, out)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ExportError(f"{out}: the disk is full; nothing was changed") from error
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_replaceable(out: Path) -> None:
    """Refuses a target that a bundle must not replace; changes nothing.

    Raises:
        ExportError: `out` is not a folder, the folder above it is not writable, or it holds files but no bundle.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise ExportError(f"{out}: exists and is not a folder")
    existing = next(parent for parent in out.absolute().parents if parent.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ExportError(f"{out}: {existing} is not writable")
    if out.is_dir() and any(out.iterdir()):
        if not (out / MANIFEST_FILE).is_file():
            raise ExportError(f"{out}: holds files but no {MANIFEST_FILE}: not a bundle, so it is not replaced")
        try:
            read_manifest(out)
        except BundleError as error:
            raise ExportError(f"{out}: not a bundle, so it is not replaced ({error})") from error


def _link_files(source: Path, target: Path) -> None:
    for name in (*list_files(source), MANIFEST_FILE):
        if is_report(name):
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source / name, target / name)
        except OSError:
            shutil.copyfile(source / name, target / name)


def _swap(staging: Path, out: Path) -> None:
    try:
        if not out.exists():
            os.rename(staging, out)
        elif not _exchange(staging, out):
            _rename_twice(staging, out)
    except OSError as error:
        raise ExportError(f"{out}: cannot be replaced ({error.strerror}); nothing was changed") from error


def _rename_twice(staging: Path, out: Path) -> None:
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.staging-", dir=out.parent))
    try:
        os.rename(out, aside / "old")
        try:
            os.rename(staging, out)
        except OSError:
            os.rename(aside / "old", out)
            raise
    finally:
        if out.exists():
            shutil.rmtree(aside, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Swaps two folders atomically where the kernel can (Linux); False where it cannot."""
    if sys.platform != "linux":
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    paths = (os.fsencode(first), os.fsencode(second))
    return bool(renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0)
