"""Bounds the headers of a request in size and in time. The application bounds the body.

uvicorn itself waits for the end of the headers for ever, and keeps all that came. It treats trailers, which are headers
after a body in chunks, in the same way. Use it as `uvicorn.run(…, http=BoundedHeaders)`.
"""

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEADER_BYTES: Final = 65_536
"""Eight times what nginx lets through. The URL and the trailers count too. While a header is unfinished, one block more
may be held."""

HEADER_TIMEOUT_S: Final = 30.0

_BLOCK_BYTES: Final = 65_536
"""Number of bytes that are read from a connection at once. With asyncio's 256 KB, 64 connections held up to 16 MB that
had not been looked at. Each connection also waited longer for its turn: in a crowd, refusals took twice as long.
uvloop and TLS have no such attribute and read in blocks of their own."""

_DISCARDED_BLOCK_BYTES: Final = 2**20
"""The same for the rest of a body whose request was refused. The next request on that connection waits until the rest
is discarded, and each block waits for its turn: 4 MB in blocks of 64 KB took 100 ms in a crowd."""

_TOO_LARGE: Final = f"The headers are larger than {MAX_HEADER_BYTES:,} bytes."


class BoundedHeaders(HttpToolsProtocol):
    """Closes a connection if its headers are too large, or if it has no request to answer for too long."""

    scope: Any  # None until the first request begins
    _timer: asyncio.TimerHandle | None = None
    _header_bytes = 0  # of the headers and trailers of this request that are complete
    _unfinished_bytes = 0  # that came after the last complete header or part of the body
    _is_refused = False

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._read_in_blocks(_BLOCK_BYTES)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on, unless it is a header that does not end."""
        if self._is_refused:
            return
        self._unfinished_bytes += len(data)
        super().data_received(data)
        if self._header_bytes + self._unfinished_bytes > MAX_HEADER_BYTES and not self._is_refused:
            self.send_400_response(_TOO_LARGE)

    def on_message_begin(self) -> None:
        """Begin to wait for the end of the headers, unless an earlier request is being answered."""
        self._header_bytes = self._unfinished_bytes = 0
        self._read_in_blocks(_BLOCK_BYTES)
        if not self._is_answering:
            self._wait()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Count a part of the URL."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header or a trailer, with its colon and its line end."""
        self._count(len(name) + len(value) + 3)
        super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        """Leave the body to the application."""
        self._unfinished_bytes = 0
        super().on_body(body)

    def on_headers_complete(self) -> None:
        """Wait no longer: the application answers."""
        self._stop_waiting()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """Begin to wait for the end of the request, or for the next one."""
        super().on_response_complete()
        if not self._is_answering:
            self._wait()
            if self.cycle.more_body:
                self._read_in_blocks(_DISCARDED_BLOCK_BYTES)

    def send_400_response(self, msg: str) -> None:
        """Read no more and close the connection, after status 400 if the client waits for no other answer."""
        self._is_refused, cycle = True, self.cycle
        is_new = cycle is None or cycle.scope is not self.scope  # the headers of what is refused are not complete
        if self._is_answering and (is_new or not cycle.more_body):
            cycle.keep_alive = False  # an earlier request is being answered; the connection ends after that
        elif is_new or not (cycle.response_started or self.pipeline):
            super().send_400_response(_TOO_LARGE if self._header_bytes > MAX_HEADER_BYTES else msg)
        else:
            self.transport.close()

    def _count(self, size_bytes: int) -> None:
        self._header_bytes += size_bytes
        self._unfinished_bytes = 0
        if self._header_bytes > MAX_HEADER_BYTES:
            raise ValueError(_TOO_LARGE)  # the parser stops, and uvicorn calls `send_400_response`

    def _read_in_blocks(self, size_bytes: int) -> None:
        if hasattr(self.transport, "max_size"):
            self.transport.max_size = size_bytes

    def _wait(self) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(HEADER_TIMEOUT_S, self._end_waiting)

    def _stop_waiting(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _end_waiting(self) -> None:
        if self.scope is None:  # some clients open connections ahead
            self.transport.close()
        else:
            self.send_400_response(f"The headers did not arrive in {HEADER_TIMEOUT_S:g} s.")
