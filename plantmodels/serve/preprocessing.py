"""From an encoded image to the network's input, in the same way for fitting, verifying and serving.

The result equals timm's evaluation transform with the same config: resize the shorter side, crop the centre, scale,
normalize. A large image is reduced first (`Preprocessing.recipe`), and its result is close to timm's. EXIF orientation
is applied. CMYK, palette, grey, alpha and 16-bit images become 8-bit RGB.

>>> from plantmodels.bundle.metadata import read_metadata
>>> preprocessing = read_metadata(bundle).preprocessing
>>> preprocess(decode_image(image.read_bytes(), preprocessing), preprocessing).shape
(3, 224, 224)
"""

import base64
import importlib.util
import io
import os
import re
import struct
import zlib
from functools import cache, lru_cache
from pathlib import Path
from threading import Lock
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from plantmodels.arrays import Inputs, Pixels
from plantmodels.bundle.metadata import Interpolation, Preprocessing
from plantmodels.errors import ImageError
from plantmodels.foreign_text import quote_error, shorten

FORMATS: Final = ("JPEG", "PNG", "WEBP")
"""Many phones write MPO into a .jpg. Pillow opens it as JPEG, and its first image is the one that was taken."""

_MAGIC: Final = (b"\xff\xd8", b"\x89PNG", b"RIFF")

HEIC_SUFFIXES: Final = (".heic", ".heif", ".hif")
_HEIC_BRANDS: Final = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
"""What an iPhone writes. Pillow reads it only with the package pillow-heif, which is optional."""

_FIRST_IMAGE_COUNTS: Final = ("MPO", "HEIF")
"""Formats whose files may hold further images, such as a depth map; the first one is what was taken."""

MAX_SCANS: Final = 100
"""Scans of a progressive JPEG. Cameras and programs write about ten. A scan takes only some ten bytes of the file, but
decoding it takes time for every pixel, so a small file could otherwise keep the process busy for minutes."""

_DATA_URI: Final = re.compile(rb"\s*data:[\w.+/-]*(?:;[\w.+=-]+)*;base64,", re.IGNORECASE)
"""What browsers write before base64 of an image."""

_NOT_BASE64: Final = re.compile(rb"[^A-Za-z0-9+/_=\s-]")

_PLAIN_BASE64: Final = bytes.maketrans(b"-_", b"+/")
"""URL-safe base64 has two other characters."""

_JPEG_MARKER: Final = re.compile(rb"\xff([^\x00\x01\xff\xd0-\xd7])", re.DOTALL)
"""A marker with a length: 0xFF inside a scan's data is followed by a zero, and restart markers have no length."""

_END_OF_IMAGE: Final = b"\xd9"
_START_OF_SCAN: Final = b"\xda"

MAX_PIXELS: Final = 120_000_000
"""More than the 108 megapixels of phones. A header with more is treated as a decompression bomb."""

MAX_ASPECT: Final = 32
"""Long side divided by short side. Bounds the size of the resized image."""

MIN_SIDE: Final = 16
"""Pixels. A smaller image cannot show a leaf."""

_GAP: Final = 2
"""How many times larger than the resized image a reduced one is at least: the resize still averages its pixels."""

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
"""Keys are EXIF orientations. `ImageOps.exif_transpose` would rewrite the EXIF data, which fails for damaged data."""

PILLOW_ERRORS: Final = (
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
"""What Pillow raises for damaged files. Pillow's warnings are left to the caller's filters: silencing them here would
change the filters of the whole process, and two threads that do so at once can leave them changed for good."""


_CALLERS_IMAGES: Final = Lock()
"""A Pillow image reads its pixels when they are first needed. Two threads that do so with one image break it."""


def decode_image(data: bytes | str, preprocessing: Preprocessing | None = None) -> Image.Image:
    """Return one still image as upright 8-bit RGB.

    The size is checked on the header, before any pixel is decoded.

    Args:
        data: an encoded image or its base64 text. Base64 may come as bytes too: MLflow's scoring server passes
            `instances` and `inputs` on without decoding them.
        preprocessing: what the image is decoded for. By recipe 2 a large JPEG is then decoded at a half, a quarter or
            an eighth of its size, in much less time. None decodes every pixel.

    Raises:
        ImageError: the image is empty, truncated, animated, of another format, of a size outside the limits, or has
            more than `MAX_SCANS` scans.
    """
    data = _decode_base64(data)
    if not data:
        raise ImageError("zero bytes: expected an encoded image")
    if (scans := _count_scans(data)) > MAX_SCANS:
        raise ImageError(f"{scans:,} scans, at most {MAX_SCANS} are decoded")
    try:
        image = Image.open(io.BytesIO(data), formats=_load_heic_format() if is_heic(data) else FORMATS)
    except UnidentifiedImageError as error:
        raise ImageError(f"not an image of format {', '.join(FORMATS)} ({len(data):,} bytes)") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"too many pixels, at most {MAX_PIXELS:,} are decoded ({quote_error(error)})") from error
    except PILLOW_ERRORS as error:
        raise ImageError(f"cannot be decoded ({quote_error(error)})") from error
    return _load_upright(
        image, None if preprocessing is None or preprocessing.recipe == 1 else preprocessing.resized_side
    )


def has_image_magic(data: bytes) -> bool:
    """Return whether bytes begin as an image of a format that can be decoded, HEIC included."""
    return data.startswith(_MAGIC) or is_heic(data)


def is_heic(data: bytes) -> bool:
    """Return whether bytes begin as a HEIC image does."""
    return data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS


@cache
def can_read_heic() -> bool:
    """Return whether the optional package pillow-heif is installed."""
    return importlib.util.find_spec("pillow_heif") is not None


def _load_heic_format() -> tuple[str, ...]:
    """Teach Pillow to read HEIC; return the name of the format.

    Raises:
        ImageError: pillow-heif is not installed.
    """
    if not can_read_heic():
        raise ImageError("a HEIC image: to read it, install pillow-heif (pip install 'plantmodels[heic]')")
    import pillow_heif

    pillow_heif.register_heif_opener()
    return ("HEIF",)


def _count_scans(data: bytes) -> int:
    """Return the number of scans in the first image of a JPEG file; 0 for other files."""
    if not data.startswith(b"\xff\xd8"):
        return 0
    scans, position = 0, 2
    while (found := _JPEG_MARKER.search(data, position)) and found[1] != _END_OF_IMAGE:
        scans += found[1] == _START_OF_SCAN
        position = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return scans


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Return the content of an image's file.

    Raises:
        ImageError: the file is missing, is not a regular file, or cannot be read.
    """
    try:
        if Path(path).is_dir():
            raise ImageError(f"a folder, expected an image file: {shorten(str(path), 200)!r}")
        if not Path(path).is_file():
            raise ImageError(f"no such file: {shorten(str(path), 200)!r}")
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # too long a name, a null character
        raise ImageError(f"cannot be read: {shorten(str(path), 200)!r} ({error})") from error


def _decode_base64(data: bytes | str) -> bytes:
    """Return the bytes behind base64 text; bytes that are an image, or no base64, are returned as they are."""
    raw = data.encode("utf-8", "replace") if isinstance(data, str) else data
    if has_image_magic(raw):
        return raw
    prefix = _DATA_URI.match(raw)
    plain = raw[prefix.end() :] if prefix else raw
    if _NOT_BASE64.search(plain, 0, 1000):  # so that megabytes of noise are not copied while other threads wait
        plain = b""
    text = plain.translate(_PLAIN_BASE64, b" \t\r\n").rstrip(b"=")  # encoders break lines
    try:
        decoded = base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except ValueError:
        decoded = b""
    if isinstance(data, str) and raw and not has_image_magic(decoded):  # a path may be valid base64, too
        raise ImageError(f"text that is not base64 of an image: {data[:40]!r} (file paths are not read)")
    return decoded if has_image_magic(decoded) else raw


def upright_rgb(image: Image.Image) -> Image.Image:
    """Return a Pillow image as upright 8-bit RGB.

    The size is checked on the header, before any pixel is decoded.

    Raises:
        ImageError: the image is truncated, animated, of a size outside the limits, or has a mode without RGB.
    """
    with _CALLERS_IMAGES:
        return _load_upright(image, None)


def _load_upright(image: Image.Image, resized_side: int | None) -> Image.Image:
    """Return an image as `upright_rgb` does; if it will be resized to a shorter side, a JPEG is decoded smaller."""
    try:
        _check_header(image)
        if resized_side is not None:
            image.draft(None, (_GAP * resized_side, _GAP * resized_side))
        image.load()
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
        return to_rgb(image if turn is None else image.transpose(turn))
    except PILLOW_ERRORS as error:
        raise ImageError(f"cannot be decoded ({quote_error(error)})") from error


def _check_header(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(f"{image.width}x{image.height} pixels, at most {MAX_PIXELS:,} are decoded")
    if min(image.size) < MIN_SIDE:
        raise ImageError(f"{image.width}x{image.height} pixels, each side must have at least {MIN_SIDE}")
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise ImageError(f"{image.width}x{image.height} pixels, one side is over {MAX_ASPECT} times the other")
    if image.format not in _FIRST_IMAGE_COUNTS and getattr(image, "n_frames", 1) > 1:
        raise ImageError(f"animated with {getattr(image, 'n_frames', 0)} frames: expected one still image")


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image of any Pillow mode as 8-bit RGB. 16-bit grey keeps its upper byte; alpha is dropped."""
    if image.mode.startswith("I"):
        upper = np.asarray(image) >> 8
        grey = np.empty(upper.shape, np.uint8)
        np.clip(upper, 0, 255, out=grey, casting="unsafe")
        return Image.fromarray(grey).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def resize_and_crop(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Resize the shorter side to `image_size / crop_pct` pixels and return the central square of `image_size` pixels.

    Args:
        image: an RGB image.
        preprocessing: size, resize filter and crop.
    """
    size, shorter = preprocessing.image_size, preprocessing.resized_side
    width, height = image.size
    if width <= height:
        resized = (shorter, int(shorter * height / width))
    else:
        resized = (int(shorter * width / height), shorter)
    left, top = round((resized[0] - size) / 2), round((resized[1] - size) / 2)
    gap = None if preprocessing.recipe == 1 else _GAP
    small = image.resize(resized, _RESAMPLING[preprocessing.interpolation], reducing_gap=gap)
    return small.crop((left, top, left + size, top + size))


def preprocess(image: Image.Image, preprocessing: Preprocessing) -> Inputs:
    """Return the network's input for an RGB image: (3, P, P) float32, `(pixel / 255 - mean) / std` per channel."""
    return normalize(np.asarray(resize_and_crop(image, preprocessing)), preprocessing)


def normalize(pixels: Pixels, preprocessing: Preprocessing) -> Inputs:
    """Return the network's input for an image that is resized and cropped already.

    Args:
        pixels: (P, P, 3) uint8, RGB.
        preprocessing: mean and standard deviation.
    """
    inputs = np.empty((3, *pixels.shape[:2]), np.float32)
    for channel, values in enumerate(_normalize_levels(preprocessing.mean, preprocessing.std)):
        np.take(values, pixels[:, :, channel], out=inputs[channel], mode="clip")  # "raise" would copy the result
    return inputs


@lru_cache(maxsize=8)
def _normalize_levels(mean: tuple[float, ...], std: tuple[float, ...]) -> NDArray[np.float32]:
    """Return the normalized value of each of the 256 levels of each channel, (3, 256)."""
    levels = np.tile(np.arange(256, dtype=np.float32), (3, 1)) / np.float32(255)
    levels -= np.asarray(mean, dtype=np.float32)[:, None]
    levels /= np.asarray(std, dtype=np.float32)[:, None]
    levels.setflags(write=False)
    return levels
