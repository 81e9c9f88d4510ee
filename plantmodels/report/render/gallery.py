"""Small images for the pages of a report, as values: who draws them needs no template.

>>> Gallery((Thumbnail(b"...", "Apple", (CaptionLine("INT8: Mint", False),)),), 3).left_out
2
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class CaptionLine:
    """A line of text below a thumbnail.

    Attributes:
        text: what the line says.
        right: whether the answer in the line is right; None when the line is not about an answer.
    """

    text: str
    right: bool | None = None


@dataclass(frozen=True)
class Thumbnail:
    """A small image with its caption.

    Attributes:
        jpeg: bytes of a JPEG file.
        title: first line of the caption.
        lines: further lines of the caption.
    """

    jpeg: bytes
    title: str
    lines: tuple[CaptionLine, ...]


@dataclass(frozen=True)
class Gallery:
    """Thumbnails of some of a number of images.

    Attributes:
        thumbnails: the images that are shown.
        total: how many images there are, shown or not.
    """

    thumbnails: tuple[Thumbnail, ...]
    total: int

    @property
    def left_out(self) -> int:
        """How many images are not shown."""
        return self.total - len(self.thumbnails)
