"""Lanes: at most so many images are decoded or computed at once, first come, first served.

Every run of a model, and every image while it is decoded, needs memory of its own. With 64 callers and no lanes a
Swin-Tiny takes 950 MB, and most of it stays; two cores compute no faster for it.

>>> lanes = Lanes(2)
>>> with lanes:
...     lanes.free
1
"""

from collections import deque
from collections.abc import Callable
from threading import Lock
from types import TracebackType

CROWD = 8
"""Threads that wait at once. Smaller groups leave little memory behind."""


class Lanes:
    """A context manager that several threads enter at once, up to a number; the others wait in the order they came.

    A thread must not enter again while it is inside: with all lanes taken it would wait for itself.
    """

    def __init__(self, count: int, after_crowd: Callable[[], object] = lambda: None) -> None:
        """Open the lanes.

        Args:
            count: how many threads may be inside at once, at least 1.
            after_crowd: is called when nobody is inside any more, if at least `CROWD` threads have waited at once.
        """
        self._count = self._free = count
        self._after_crowd = after_crowd
        self._crowded = False
        self._waiting: deque[Lock] = deque()
        self._lock = Lock()

    @property
    def free(self) -> int:
        """The number of threads that could enter now without waiting."""
        return self._free

    def __enter__(self) -> None:
        """Wait for a lane."""
        with self._lock:
            if self._free:
                self._free -= 1
                return
            turn = Lock()
            turn.acquire()
            self._waiting.append(turn)
            self._crowded |= len(self._waiting) >= CROWD
        try:
            turn.acquire()
        except BaseException:  # an interrupt: a lane that was given meanwhile goes to the next
            with self._lock:
                if turn in self._waiting:
                    self._waiting.remove(turn)
                else:
                    self._leave()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give the lane to whoever has waited longest."""
        with self._lock:
            self._leave()
            relieved = self._crowded and self._free == self._count
            if relieved:
                self._crowded = False
        if relieved:
            self._after_crowd()

    def _leave(self) -> None:
        if self._waiting:
            self._waiting.popleft().release()
        else:
            self._free += 1
