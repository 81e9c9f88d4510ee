"""Only one process may write a bundle at a time. A second one fails immediately and names the first.

The writer locks a hidden file beside the bundle. On file systems without locks, writers do not see each other, and
nothing that another writer left is removed.

>>> with lock_bundle(tmp / "models"):
...     sorted(path.name for path in tmp.iterdir())
['.models.lock']
"""

import logging
import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from plantmodels.bundle.file_lock import LockedError, hold_file_lock
from plantmodels.errors import ExportError
from plantmodels.export.staging import check_replaceable, discard_staging, disk_errors, find_staging

_TIMEOUT_S: Final = 0.1
"""Just long enough to find the lock free that another writer releases at this moment."""

_LOGGER: Final = logging.getLogger(__name__)


@contextmanager
def lock_bundle(bundle: Path) -> Iterator[None]:
    """Keep all other processes and threads from writing a bundle during the block. Readers are not affected.

    First removes what killed writers left: their staging folders, after putting back an old bundle that was being
    replaced. The lock file `.<name>.lock` is removed at the end; if the process is killed, the next one takes it over.

    Args:
        bundle: folder of the bundle, which need not exist; its parent folders are created.

    Raises:
        ExportError: another process is writing it (the message names it), or the folder cannot be written or is not a
            bundle.
    """
    check_replaceable(bundle)
    bundle = bundle.resolve()
    with disk_errors(bundle):
        bundle.parent.mkdir(parents=True, exist_ok=True)
    path = bundle.parent / f".{bundle.name}.lock"
    lock = hold_file_lock(path, timeout_s=_TIMEOUT_S, holder=f"process {os.getpid()} on {platform.node()}")
    with ExitStack() as stack:
        try:
            with disk_errors(bundle):
                is_held = stack.enter_context(lock)
        except LockedError as error:
            holder = error.holder or "a process that has just started"
            raise ExportError(f"{bundle}: {holder} is writing it; nothing was changed") from error
        if is_held:
            _remove_abandoned(bundle)
        yield


def _remove_abandoned(bundle: Path) -> None:
    with disk_errors(bundle):
        for folder in find_staging(bundle):
            discard_staging(folder, bundle)
            _LOGGER.info("%s: removed; an interrupted run had left it", folder)
