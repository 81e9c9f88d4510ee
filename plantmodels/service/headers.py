"""Bounds the headers of a request in size and in time. The application bounds the body.

uvicorn itself waits for the end of the headers for ever, and keeps all that came. Use it as
`uvicorn.run(…, http=BoundedHeaders)`.
"""

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEADER_BYTES: Final = 65_536
"""Eight times what nginx lets through."""

HEADER_TIMEOUT_S: Final = 30.0

_BLOCK_BYTES: Final = 65_536
"""Number of bytes that are read from a connection at once. With asyncio's 256 KB, 64 connections held up to 20 MB that
had not been looked at. Each connection also waited longer for its turn: in a crowd, refusals took twice as long."""


class BoundedHeaders(HttpToolsProtocol):
    """Answers 400 and closes the connection if the headers of a request are too large or too slow."""

    _waiting: asyncio.TimerHandle | None = None
    _header_bytes = 0

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for the first request."""
        super().connection_made(transport)
        if hasattr(transport, "max_size"):
            transport.max_size = _BLOCK_BYTES
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on, unless it is the headers that do not end."""
        self._header_bytes += len(data)
        super().data_received(data)
        if self._waiting and self._header_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
            self.send_400_response(f"The headers are larger than {MAX_HEADER_BYTES:,} bytes.")

    def on_message_begin(self) -> None:
        """Begin to wait for the end of the headers."""
        self._header_bytes = 0
        self._wait()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Wait no longer."""
        self._stop_waiting()
        super().on_headers_complete()

    def _wait(self) -> None:
        self._stop_waiting()
        self._waiting = self.loop.call_later(HEADER_TIMEOUT_S, self._end_waiting)

    def _stop_waiting(self) -> None:
        if self._waiting:
            self._waiting.cancel()
            self._waiting = None

    def _end_waiting(self) -> None:
        if self.cycle and not self.cycle.response_complete:
            self._wait()  # the request before this one is still being answered
        elif not self.transport.is_closing():
            self.send_400_response(f"The headers did not arrive in {HEADER_TIMEOUT_S:g} s.")
