"""The images in a request: its whole body, or the parts of a multipart body.

The stated type of a part is ignored, because browsers often state a wrong one. The first bytes tell an image's format.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Final

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.exceptions import HTTPException

from plantmodels.foreign_text import quote_error

IMAGE_TYPES: Final = ("image/jpeg", "image/png", "image/webp")
MULTIPART: Final = "multipart/form-data"


@dataclass
class Part:
    """One part of a multipart body.

    Attributes:
        name: the file's name by its headers, or else the field's name.
        content: its bytes.
    """

    name: str = ""
    content: bytearray = field(default_factory=bytearray)


def check_type(content_type: str | None) -> str:
    """Return the media type of a request for `/predict`, in lower case and without parameters.

    Raises:
        HTTPException: this service does not take the type (415).
    """
    media_type = (content_type or "").partition(";")[0].strip().lower()
    if media_type not in (*IMAGE_TYPES, MULTIPART):
        expected = f"expected {', '.join(IMAGE_TYPES)} or {MULTIPART}"
        raise HTTPException(415, f"Content-Type is {media_type!r:.80}; {expected}" if media_type else expected)
    return media_type


def check_json(content_type: str | None) -> None:
    """Refuse a request for `/invocations` that is not JSON in UTF-8.

    Raises:
        HTTPException: the type is another (415).
    """
    kind, parameters = parse_options_header(content_type or "")
    charset = parameters.get(b"charset", b"utf-8")
    if kind.lower() != b"application/json" or charset.lower() != b"utf-8":
        raise HTTPException(415, f"Content-Type is {content_type or ''!r:.80}; expected application/json in UTF-8")


async def read_parts(content_type: str, chunks: AsyncIterator[bytes], max_parts: int) -> list[Part]:
    """Return the parts of a multipart body.

    Args:
        content_type: the header, which names the boundary.
        chunks: the body.
        max_parts: number of parts that a request may have.

    Raises:
        HTTPException: the body is malformed or has no part (400), or has too many parts (413).
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise HTTPException(400, "the Content-Type of a multipart body must name its boundary")
    try:
        collector = _Collector(boundary, max_parts)
        async for chunk in chunks:
            collector.parser.write(chunk)
        collector.parser.finalize()
    except FormParserError as error:
        raise HTTPException(400, f"the multipart body is malformed ({quote_error(error)})") from error
    if not collector.is_complete:
        raise HTTPException(400, "the multipart body is malformed (its last boundary is missing)")
    if not collector.parts:
        raise HTTPException(400, "the multipart body has no part")
    return collector.parts


class _Collector:
    """Collects the parts that a parser finds."""

    def __init__(self, boundary: bytes, max_parts: int) -> None:
        self.parts: list[Part] = []
        self.is_complete = False
        self._max_parts = max_parts
        self._header, self._value = bytearray(), bytearray()
        self.parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                "on_header_end": self._end_header,
                "on_part_data": lambda data, start, end: self.parts[-1].content.extend(data[start:end]),
                "on_end": self._end,
            },
        )

    def _begin(self) -> None:
        if len(self.parts) == self._max_parts:
            raise HTTPException(413, f"the multipart body has more than {self._max_parts} parts")
        self.parts.append(Part())

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            options = parse_options_header(bytes(self._value))[1]
            name = options.get(b"filename") or options.get(b"name") or b""
            self.parts[-1].name = name.decode("utf-8", "replace")
        self._header.clear()
        self._value.clear()

    def _end(self) -> None:
        self.is_complete = True
