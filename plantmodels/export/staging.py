"""Replaces a whole bundle folder as one step: readers and crashes see the old bundle or the new.

>>> with lock_bundle(out), staged_bundle(out) as folder:  # doctest: +SKIP
...     write_everything(folder)
"""

import ctypes
import errno
import os
import re
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

_OLD: Final = "old bundle"
"""Name of an older bundle in a staging folder while two renames replace it."""

_REFUSALS: Final = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the disk is read-only",
    errno.EFBIG: "files may not become so large",
}
"""What nothing but a disk that is written to answers."""


@contextmanager
def staged_bundle(out: Path, *, start_from: Path | None = None) -> Iterator[Path]:
    """Yields a temporary folder that takes the place of `out` when the block ends without an error.

    On any error `out` is untouched. The folder lies in a hidden one beside `out` (`.<name>.staging-*`), which goes
    with the block; a killed run leaves it to the next one that holds `out` (`holding`). The caller holds `out`.

    Args:
        out: where the bundle shall lie; may hold an older bundle, which is replaced.
        start_from: a bundle whose files, its report excepted, are in the temporary folder at the start (as
            hard links where the file system has them: replace such files, never write into them).

    Raises:
        ExportError: `out` is no folder, holds something other than a bundle, or cannot be written.
    """
    check_replaceable(out)
    out = out.resolve()
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=_staging_prefix(out), dir=out.parent))
    try:
        with _refused_writes(out):
            bundle = staging / out.name
            bundle.mkdir(mode=0o755)
            bundle.chmod(0o755)  # whatever the umask is
            if start_from is not None:
                _link_files(start_from, bundle)
            yield bundle
        _swap(bundle, out, staging / _OLD)
    finally:
        discard_staging(staging, out)


def _staging_prefix(out: Path) -> str:
    return f".{out.name}.staging-"


def find_staging(out: Path) -> tuple[Path, ...]:
    """The staging folders beside a bundle's folder: of killed runs, where the caller holds it and has none itself."""
    name = re.compile(re.escape(_staging_prefix(out)) + "[a-z0-9_]{8}")
    return tuple(path for path in out.parent.iterdir() if name.fullmatch(path.name) and path.is_dir())


def discard_staging(staging: Path, out: Path) -> None:
    """Removes a staging folder; an old bundle that was on its way out of its place goes back where none is now.

    Raises:
        ExportError: it cannot go back; nothing was removed.
    """
    old = staging / _OLD
    if old.is_dir() and not out.exists():
        try:
            os.rename(old, out)
        except OSError as error:
            raise ExportError(f"{out}: the old bundle cannot be put back ({error.strerror}); it is {old}") from error
    shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def disk_errors(out: Path) -> Iterator[None]:
    """Turns what a disk refuses into an `ExportError`.

    Raises:
        ExportError: naming the folder.
    """
    try:
        with _refused_writes(out):
            yield
    except OSError as error:
        raise ExportError(f"{out}: cannot be written ({error.strerror}: {error.filename})") from error


@contextmanager
def _refused_writes(out: Path) -> Iterator[None]:
    """The same for `_REFUSALS` alone: another error may be about a file that is read."""
    try:
        yield
    except OSError as error:
        reason = _REFUSALS.get(error.errno or 0)
        if reason is None:
            raise
        where = f" ({error.filename})" if error.filename else ""
        raise ExportError(f"{out}: {reason}{where}; nothing was changed") from error


def check_replaceable(out: Path) -> None:
    """Refuses a target that a bundle must not replace; changes nothing.

    Raises:
        ExportError: `out` is not a folder, the folder above it is not writable, or it holds files but no bundle.
    """
    try:
        _check_replaceable(out)
    except OSError as error:
        raise ExportError(f"{out}: cannot be looked at ({error.strerror})") from error


def _check_replaceable(out: Path) -> None:
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise ExportError(f"{out}: exists and is not a folder")
    existing = next(parent for parent in out.absolute().parents if parent.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ExportError(f"{out}: {existing} is not writable")
    if out.is_dir() and not os.access(out, os.W_OK | os.X_OK):  # the kernel asks for it when a folder is moved away
        raise ExportError(f"{out}: is not writable, so it cannot be replaced")
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


def _swap(bundle: Path, out: Path, aside: Path) -> None:
    try:
        if not out.exists():
            os.rename(bundle, out)
        elif not _exchange(bundle, out):
            os.rename(out, aside)
            os.rename(bundle, out)
    except OSError as error:
        raise ExportError(f"{out}: cannot be replaced ({error.strerror}); nothing was changed") from error


def _exchange(first: Path, second: Path) -> bool:
    """Swaps two folders atomically where the kernel can (Linux); False where it cannot."""
    if sys.platform != "linux":
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    paths = (os.fsencode(first), os.fsencode(second))
    return bool(renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0)
