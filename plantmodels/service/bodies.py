"""Bodies of requests: admitted only while there is room for them, and read with a limit on size and time.

A request is refused before its body is read if its headers say enough. An admitted request reserves the size that it
announces, so all bodies together never take more memory than `Limits.held_bytes`.
"""

import asyncio
import io
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request

from plantmodels.service.settings import Limits

RETRY_AFTER: Final = {"Retry-After": "1"}
"""Headers of status 503. A full service has answered its queue within a second or two."""


class ClientGoneError(Exception):
    """The client closed its connection before it was answered."""


class Admission:
    """Counts the requests that are held and their bytes."""

    def __init__(self, limits: Limits) -> None:
        """Start empty."""
        self.limits = limits
        self.requests = 0
        self.held_bytes = 0

    @contextmanager
    def admit(self, announced: int | None) -> Iterator["Reservation"]:
        """Hold a request until the block is left.

        Args:
            announced: the size of the body by its header; None if it has no such header.

        Raises:
            HTTPException: the body is too large (413), or there is no room for the request (503).
        """
        if self.requests >= self.limits.requests:
            raise HTTPException(503, f"{self.requests} requests are waiting; try again later", RETRY_AFTER)
        reservation = Reservation(self)
        self.requests += 1
        try:
            reservation.grow_to(announced or 0)
            yield reservation
        finally:
            self.requests -= 1
            self.held_bytes -= reservation.size_bytes


class Reservation:
    """The bytes that one request has reserved."""

    def __init__(self, admission: Admission) -> None:
        """Reserve nothing yet."""
        self._admission = admission
        self.size_bytes = 0

    def grow_to(self, size_bytes: int) -> None:
        """Reserve up to this size.

        Raises:
            HTTPException: the body is too large (413), or there is no room for it (503).
        """
        limits, more = self._admission.limits, size_bytes - self.size_bytes
        if size_bytes > limits.body_bytes:
            raise HTTPException(413, f"the body is larger than {limits.body_bytes:,} bytes")
        if more > 0:
            if self._admission.held_bytes + more > limits.held_bytes:
                raise HTTPException(503, "other requests fill the memory for bodies; try again later", RETRY_AFTER)
            self._admission.held_bytes += more
            self.size_bytes = size_bytes


def read_announced_size(request: Request) -> int | None:
    """Return the size of the body by its header; None if it comes in chunks.

    Raises:
        HTTPException: the body is compressed (415), or its announced size is not a number (400).
    """
    if (coding := request.headers.get("content-encoding", "identity").lower()) != "identity":
        raise HTTPException(415, f"Content-Encoding is {coding!r:.60}; send the body as it is")
    announced = request.headers.get("content-length")
    if announced is None:
        return None
    if not announced.isdecimal():
        raise HTTPException(400, f"Content-Length is {announced!r:.60}; expected a number")
    return int(announced)


async def read_chunks(request: Request, reservation: Reservation, timeout_s: float) -> AsyncGenerator[bytes, None]:
    """Yield the parts of a body as they arrive.

    Args:
        request: the request.
        reservation: the request's reservation; it grows with a body that does not announce its size.
        timeout_s: seconds in which all of the body must arrive.

    Raises:
        ClientGoneError: the client closed the connection.
        HTTPException: the body is too large (413), too slow (408), or there is no room for it (503).
    """
    end, size = asyncio.get_running_loop().time() + timeout_s, 0
    while True:
        try:
            async with asyncio.timeout_at(end):
                message = await request.receive()
        except TimeoutError as error:
            raise HTTPException(
                408, f"the body did not arrive in {timeout_s:g} s; {size:,} bytes came", {"Connection": "close"}
            ) from error
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        chunk: bytes = message.get("body", b"")
        size += len(chunk)
        reservation.grow_to(size)
        if chunk:
            yield chunk
        if not message.get("more_body", False):
            return


async def read_whole(chunks: AsyncIterator[bytes]) -> bytes:
    """Return the parts of a body as one. The memory never holds more of it than what has come."""
    body = io.BytesIO()  # unlike a list of parts, it grows in one block, and its value is not a copy
    async for chunk in chunks:
        body.write(chunk)
    return body.getvalue()
