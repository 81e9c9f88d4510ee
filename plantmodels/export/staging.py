"""Replaces a whole bundle in one step: readers, and crashes, see either the old bundle or the new one.

>>> with staged_bundle(tmp / "models") as folder:
...     _ = (folder / "model.onnx").write_bytes(b"new")
>>> (tmp / "models" / "model.onnx").read_bytes()
b'new'
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
"""Name of the old bundle in the staging folder while two renames replace it."""

_DISK_ERRORS: Final = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the disk is read-only",
    errno.EFBIG: "files may not become so large",
}
"""System errors that only a failed write can cause."""


@contextmanager
def staged_bundle(bundle: Path, *, start_from: Path | None = None) -> Iterator[Path]:
    """Yield a temporary folder that replaces a bundle when the block ends without an error.

    On any error the bundle stays untouched. The temporary folder lies in a hidden folder beside the bundle
    (`.<name>.staging-*`), which is removed at the end. If the process is killed, the next `lock_bundle` removes it. The
    caller must hold `lock_bundle`.

    Args:
        bundle: folder of the bundle; an older bundle there is replaced.
        start_from: a bundle whose files, except its report, are in the temporary folder at the start. They are hard
            links where the file system has them: replace such files, never write into them.

    Raises:
        ExportError: the target is not a folder, contains something other than a bundle, or cannot be written.
    """
    check_replaceable(bundle)
    bundle = bundle.resolve()
    with disk_errors(bundle):
        bundle.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=_staging_prefix(bundle), dir=bundle.parent))
    try:
        with _name_disk_errors(bundle):
            folder = staging / bundle.name
            folder.mkdir(mode=0o755)
            folder.chmod(0o755)  # whatever the umask is
            if start_from is not None:
                _link_files(start_from, folder)
            yield folder
        _replace(bundle, folder, staging / _OLD)
    finally:
        discard_staging(staging, bundle)


def _staging_prefix(bundle: Path) -> str:
    return f".{bundle.name}.staging-"


def find_staging(bundle: Path) -> tuple[Path, ...]:
    """Return the staging folders beside a bundle. If the caller holds the lock, they are those of killed processes."""
    name = re.compile(re.escape(_staging_prefix(bundle)) + "[a-z0-9_]{8}")
    return tuple(path for path in bundle.parent.iterdir() if name.fullmatch(path.name) and path.is_dir())


def discard_staging(staging: Path, bundle: Path) -> None:
    """Remove a staging folder; if it contains the old bundle and no new one took its place, put it back first.

    Raises:
        ExportError: the old bundle cannot be put back; then nothing was removed.
    """
    old = staging / _OLD
    if old.is_dir() and not bundle.exists():
        try:
            os.rename(old, bundle)
        except OSError as error:
            raise ExportError(f"{bundle}: the old bundle cannot be put back ({error.strerror}); it is {old}") from error
    shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def disk_errors(bundle: Path) -> Iterator[None]:
    """Turn every `OSError` of the block into an `ExportError` that names the bundle. Use it around writes only."""
    try:
        with _name_disk_errors(bundle):
            yield
    except OSError as error:
        raise ExportError(f"{bundle}: cannot be written ({error.strerror}: {error.filename})") from error


@contextmanager
def _name_disk_errors(bundle: Path) -> Iterator[None]:
    """Turn the errors in `_DISK_ERRORS` into an `ExportError`; any other error may come from a file that is read."""
    try:
        yield
    except OSError as error:
        reason = _DISK_ERRORS.get(error.errno or 0)
        if reason is None:
            raise
        where = f" ({error.filename})" if error.filename else ""
        raise ExportError(f"{bundle}: {reason}{where}; nothing was changed") from error


def check_replaceable(bundle: Path) -> None:
    """Check that a folder may be replaced by a bundle; changes nothing.

    Raises:
        ExportError: the path is not a folder, its parent is not writable, or it contains files but is not a bundle.
    """
    try:
        _check_replaceable(bundle)
    except OSError as error:
        raise ExportError(f"{bundle}: cannot be inspected ({error.strerror})") from error


def _check_replaceable(bundle: Path) -> None:
    if bundle.is_symlink() or (bundle.exists() and not bundle.is_dir()):
        raise ExportError(f"{bundle}: exists and is not a folder")
    existing = next(parent for parent in bundle.absolute().parents if parent.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ExportError(f"{bundle}: {existing} is not writable")
    if bundle.is_dir() and not os.access(bundle, os.W_OK | os.X_OK):  # the kernel requires it to move a folder
        raise ExportError(f"{bundle}: is not writable, so it cannot be replaced")
    if bundle.is_dir() and any(bundle.iterdir()):
        if not (bundle / MANIFEST_FILE).is_file():
            raise ExportError(
                f"{bundle}: contains files but no {MANIFEST_FILE}: it is not a bundle, so it is not replaced"
            )
        try:
            read_manifest(bundle)
        except BundleError as error:
            raise ExportError(f"{bundle}: is not a bundle, so it is not replaced ({error})") from error


def _link_files(source: Path, target: Path) -> None:
    """Link, or copy, all files of a bundle except its report into another folder."""
    for name in (*list_files(source), MANIFEST_FILE):
        if is_report(name):
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source / name, target / name)
        except OSError:
            shutil.copyfile(source / name, target / name)


def _replace(bundle: Path, new: Path, aside: Path) -> None:
    """Put a new folder into the place of a bundle; the old bundle ends in the staging folder."""
    try:
        if not bundle.exists():
            os.rename(new, bundle)
        elif not _exchange(new, bundle):
            os.rename(bundle, aside)
            os.rename(new, bundle)
    except OSError as error:
        raise ExportError(f"{bundle}: cannot be replaced ({error.strerror}); nothing was changed") from error


def _exchange(first: Path, second: Path) -> bool:
    """Swap two folders atomically and return True; return False where the kernel cannot do it (it can on Linux)."""
    if sys.platform != "linux":
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    paths = (os.fsencode(first), os.fsencode(second))
    return bool(renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0)
