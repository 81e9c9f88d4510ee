"""Encoded photographs to the network's input: the one preprocessing of fitting, verifying and serving.

It equals timm's evaluation transform of the same config: resize the shorter side, centre crop, scale,
normalise. EXIF orientation is honoured; CMYK, palette, grey, alpha and 16-bit images become 8-bit RGB.

>>> pixels = preprocess(decode_image(data), preprocessing)  # doctest: +SKIP
>>> pixels.shape  # doctest: +SKIP
(3, 224, 224)
"""

import base64
import io
import math
import os
import re
import struct
import zlib
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from plantmodels.bundle.metadata import Interpolation, Preprocessing
from plantmodels.errors import ImageError

FORMATS: Final = ("JPEG", "PNG", "WEBP")
"""Pillow opens MPO, which many telephones write into a .jpg, as JPEG; its first picture is the photograph."""

_MAGIC: Final = (b"\xff\xd8", b"\x89PNG", b"RIFF")

MAX_SCANS: Final = 100
"""Passes over the picture of a progressive JPEG: cameras and programs write some ten, and each costs time for all of
its pixels and some ten bytes of the file."""

_JPEG_MARKER: Final = re.compile(rb"\xff([^\x00\x01\xff\xd0-\xd7])", re.DOTALL)
"""In the data of a scan 0xFF is stuffed with a zero, and restart markers have no length."""

_END_OF_IMAGE: Final = b"\xd9"
_START_OF_SCAN: Final = b"\xda"

MAX_PIXELS: Final = 120_000_000
"""Above every telephone's 108 megapixels; a larger header is taken for a decompression bomb."""

MAX_ASPECT: Final = 32
"""Long side over short side; bounds the resized picture, and no photograph of a leaf is a ribbon."""

MIN_SIDE: Final = 16
"""Pixels; below it a picture cannot show a leaf."""

_RESAMPLING: Final[dict[Interpolation, Image.Resampling]] = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By EXIF orientation. `ImageOps.exif_transpose` writes the EXIF data anew, which damaged data do not survive."""

_PILLOW_ERRORS: Final = (
    ArithmeticError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
    Warning,
    struct.error,
    zlib.error,
)
"""What Pillow raises for damaged files. Its warnings are left to the caller's filters: to silence them here would
change the filters of the whole process, and two threads that do so at once leave it silent for good."""


def decode_image(data: bytes | str) -> Image.Image:
    """Decodes one still photograph to upright 8-bit RGB.

    The size is checked on the header, before any pixel is decoded.

    Args:
        data: an encoded image, or the base64 text of one (as text or as ASCII bytes: MLflow's scoring server
            hands `instances` and `inputs` over undecoded).

    Raises:
        ImageError: empty, of another format, truncated, animated, of a size outside the limits, or of more than
            `MAX_SCANS` scans.
    """
    data = _encoded_bytes(data)
    if not data:
        raise ImageError("zero bytes: expected an encoded image")
    if (scans := _count_scans(data)) > MAX_SCANS:
        raise ImageError(f"{scans:,} scans, at most {MAX_SCANS} are decoded")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ImageError(f"not an image of format {', '.join(FORMATS)} ({len(data):,} bytes)") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"too many pixels, at most {MAX_PIXELS:,} are decoded ({error})") from error
    except _PILLOW_ERRORS as error:
        raise ImageError(f"cannot be decoded ({error})") from error
    return upright_rgb(image)


def _count_scans(data: bytes) -> int:
    """Scans of the first picture of a JPEG file; 0 for other files."""
    if not data.startswith(b"\xff\xd8"):
        return 0
    scans, position = 0, 2
    while (found := _JPEG_MARKER.search(data, position)) and found[1] != _END_OF_IMAGE:
        scans += found[1] == _START_OF_SCAN
        position = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return scans


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Reads an encoded image from a regular file.

    Raises:
        ImageError: no such file, no regular file, or one that cannot be read.
    """
    try:
        if not Path(path).is_file():
            raise ImageError(f"no such file: {str(path)[:200]!r}")
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # too long a name, a null character
        raise ImageError(f"cannot be read: {str(path)[:200]!r} ({error})") from error


def _encoded_bytes(data: bytes | str) -> bytes:
    raw = data.encode("utf-8", "replace") if isinstance(data, str) else data
    if raw.startswith(_MAGIC):
        return raw
    try:
        decoded = base64.b64decode(raw.translate(None, b" \t\r\n"), validate=True)  # encoders break lines
    except ValueError:
        decoded = b""
    if isinstance(data, str) and raw and not decoded:
        raise ImageError(f"text that is not base64 of an image: {data[:40]!r} (file paths are not read)")
    return decoded if decoded.startswith(_MAGIC) else raw


def upright_rgb(image: Image.Image) -> Image.Image:
    """Turns a Pillow image into upright 8-bit RGB.

    The size is checked on the header, before any pixel is decoded.

    Raises:
        ImageError: truncated, animated, of a size outside the limits, or of a mode that has no RGB.
    """
    try:
        _check_header(image)
        image.load()
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
        return to_rgb(image if turn is None else image.transpose(turn))
    except _PILLOW_ERRORS as error:
        raise ImageError(f"cannot be decoded ({error})") from error


def _check_header(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(f"{image.width}x{image.height} pixels, at most {MAX_PIXELS:,} are decoded")
    if min(image.size) < MIN_SIDE:
        raise ImageError(f"{image.width}x{image.height} pixels, each side must have at least {MIN_SIDE}")
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise ImageError(f"{image.width}x{image.height} pixels, one side is over {MAX_ASPECT} times the other")
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise ImageError(f"animated with {getattr(image, 'n_frames', 0)} frames: expected one still photograph")


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts any Pillow mode to 8-bit RGB; 16-bit grey keeps its upper byte, alpha is dropped."""
    if image.mode.startswith("I"):
        upper = np.asarray(image) >> 8
        grey = np.empty(upper.shape, np.uint8)
        np.clip(upper, 0, 255, out=grey, casting="unsafe")
        return Image.fromarray(grey).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def resize_and_crop(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Resizes the shorter side to `image_size / crop_pct` and cuts out the centre square.

    Args:
        image: RGB.
        preprocessing: size, filter and crop.

    Returns:
        RGB image of image_size × image_size.
    """
    size = preprocessing.image_size
    shorter = math.floor(size / preprocessing.crop_pct)
    width, height = image.size
    if width <= height:
        resized = (shorter, int(shorter * height / width))
    else:
        resized = (int(shorter * width / height), shorter)
    left, top = round((resized[0] - size) / 2), round((resized[1] - size) / 2)
    return image.resize(resized, _RESAMPLING[preprocessing.interpolation]).crop((left, top, left + size, top + size))


def preprocess(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Turns an RGB image into the network's input.

    Returns:
        (3, S, S) float32, `(pixel / 255 - mean) / std` for each channel.
    """
    pixels = np.asarray(resize_and_crop(image, preprocessing), dtype=np.float32)
    pixels /= np.float32(255)
    pixels -= np.asarray(preprocessing.mean, dtype=np.float32)
    pixels /= np.asarray(preprocessing.std, dtype=np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))
