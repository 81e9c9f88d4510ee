"""Lets a server answer other requests while a promotion waits for its turn.

MLflow's server answers at most forty requests of a process at a time, each in a thread. Without this module, forty
waiting promotions would keep all readers out.

>>> with lend_place():  # outside a server there is no place to lend
...     pass
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import anyio.from_thread
import anyio.to_thread

_MOST: Final = 400
"""Waiting requests of a process that lend their places; each is a thread. Those beyond wait in their places."""

_lent = threading.Semaphore(_MOST)


@contextmanager
def lend_place() -> Iterator[None]:
    """Let another request be answered during the block, in which the thread only waits."""
    if not _lent.acquire(blocking=False):
        yield
        return
    try:
        is_lent = _add_places(1)
        try:
            yield
        finally:
            if is_lent:
                _add_places(-1)
    finally:
        _lent.release()


def _add_places(count: int) -> bool:
    """Return whether the number of requests that are answered at a time was changed."""

    def change() -> None:
        anyio.to_thread.current_default_thread_limiter().total_tokens += count

    try:
        anyio.from_thread.run_sync(change)
    except RuntimeError:  # this thread belongs to no server, or to one without such a number
        return False
    return True
