"""Every kind of image that a caller may give, as the network's input.

>>> from plantmodels.bundle.metadata import Preprocessing
>>> preprocessing = Preprocessing(image_size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
>>> image_to_input(np.full((64, 48, 3), 255, np.uint8), preprocessing).shape
(3, 32, 32)
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from plantmodels.arrays import Inputs, Pixels
from plantmodels.bundle.metadata import Preprocessing
from plantmodels.errors import ImageError
from plantmodels.foreign_text import shorten
from plantmodels.serve.preprocessing import decode_image, preprocess, read_file, upright_rgb

ImageLike = bytes | bytearray | memoryview | str | os.PathLike[str] | Image.Image | Pixels | Inputs
"""Encoded bytes or their base64 text, a Pillow image, an array, or a path where paths are allowed."""

_NULLS_OF_PANDAS: Final = ("NAType", "NaTType")
"""Names of types, since serving does not need pandas."""

_MAX_PATH: Final = 4096
"""Characters; a longer text cannot be a path, so no file is looked for."""


def image_to_input(image: Any, preprocessing: Preprocessing, *, allow_paths: bool = False) -> Inputs:
    """Return the network's input for one image, (3, P, P) float32.

    Args:
        image: encoded bytes or their base64 text (also URL-safe, unpadded or a `data:` URI), a dict with the key
            `bytes` as in Parquet files of Hugging Face, a Pillow image, an (H, W, 3) uint8 array, a normalized
            (3, P, P) float32 array, which is returned as it is, or a path.
        preprocessing: the bundle's preprocessing.
        allow_paths: whether a path, also as text, is read.

    Raises:
        ImageError: the image cannot be decoded, has another type, shape or dtype, or is a path that may not be read.
    """
    if isinstance(image, Mapping) and "bytes" in image:
        image = image["bytes"]
    if _is_missing(image):
        raise ImageError("the image is missing (null)")
    if isinstance(image, os.PathLike) and not allow_paths:
        raise ImageError(f"file paths are not read: {shorten(str(image), 200)!r}")
    if isinstance(image, os.PathLike) or (allow_paths and isinstance(image, str) and _is_file(image)):
        image = read_file(image)
    if isinstance(image, bytes | bytearray | memoryview | str):
        encoded = image if isinstance(image, str) else bytes(image)
        return preprocess(decode_image(encoded, preprocessing), preprocessing)
    if isinstance(image, Image.Image):
        return preprocess(upright_rgb(image), preprocessing)
    if not isinstance(image, np.ndarray):
        raise ImageError(f"expected encoded bytes, base64 text, a Pillow image or an array, got {type(image).__name__}")
    if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
        return preprocess(upright_rgb(Image.fromarray(image)), preprocessing)
    size = preprocessing.image_size
    if image.dtype != np.float32 or image.shape != (3, size, size):
        raise ImageError(
            f"an array must be (H, W, 3) uint8 or (3, {size}, {size}) float32, got {image.shape} {image.dtype}"
        )
    if not np.isfinite(image).all():
        raise ImageError("the float32 input holds NaN or infinity")
    return image.astype(np.float32, copy=False)


def _is_missing(image: Any) -> bool:
    """Return whether an image is null: None, NaN, or what pandas writes for it."""
    return (
        image is None
        or (isinstance(image, float | np.floating) and bool(np.isnan(image)))
        or type(image).__name__ in _NULLS_OF_PANDAS
    )


def _is_file(text: str) -> bool:
    try:
        return len(text) <= _MAX_PATH and Path(text).is_file()
    except (OSError, ValueError):  # too long a name, a null character
        return False
