"""The threads in which a service computes: one for each core, first come first served.

An image is decoded when its turn comes; until then a request holds only its encoded body. If the client of a waiting
request goes, the request is dropped.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from starlette.requests import Request

from plantmodels.serve.cores import count_cores
from plantmodels.service.bodies import ClientGoneError

_Result = TypeVar("_Result")

_READY: Final = 1
"""Number of functions that wait in the pool itself, so that no core waits for the event loop."""


class Work:
    """Runs functions in threads, no more at once than there are cores.

    Attributes:
        cores: number of threads.
    """

    def __init__(self) -> None:
        """Start no thread yet."""
        self.cores = count_cores()
        self._pool = ThreadPoolExecutor(self.cores, thread_name_prefix="predict")
        self._places = asyncio.Semaphore(self.cores + _READY)

    @property
    def is_full(self) -> bool:
        """Whether further work would wait."""
        return self._places.locked()

    async def run(self, request: Request, function: Callable[[], _Result]) -> _Result:
        """Run a function in a thread when its turn comes, and return its result.

        Args:
            request: the request for which it runs; its body must have been read.
            function: the work.

        Raises:
            ClientGoneError: the client closed the connection while the request waited.
        """
        if self.is_full:
            await self._wait_for_place(request)
        else:
            await self._places.acquire()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, function)
        finally:
            self._places.release()

    async def _wait_for_place(self, request: Request) -> None:
        turn = asyncio.ensure_future(self._places.acquire())
        gone = asyncio.ensure_future(request.receive())  # after the body, nothing comes but the end of the connection
        try:
            await asyncio.wait({turn, gone}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            if turn.done():
                self._places.release()
            turn.cancel()
            raise
        finally:
            gone.cancel()
        if not turn.done():
            turn.cancel()
            raise ClientGoneError

    def close(self) -> None:
        """End the threads when their work is done."""
        self._pool.shutdown(wait=False, cancel_futures=True)
