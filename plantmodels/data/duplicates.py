"""Finds the same image again: byte by byte, or encoded anew, resized, slightly cropped, mirrored or turned.

A perceptual hash proposes candidates quickly, and a comparison of small thumbnails confirms them. Another photograph of
the same leaf is a different image.

>>> from PIL import Image
>>> smaller = tmp / "smaller.jpg"
>>> Image.open(image).resize((120, 120)).save(smaller, quality=70)
>>> index = DuplicateIndex([take_fingerprint(image, all_views=True)], max_distance=44)
>>> index.find(take_fingerprint(image)), index.find(take_fingerprint(tmp / "gone.jpg"))
([Match(position=0, distance=0)], [])
>>> [match.position for match in index.find(take_fingerprint(smaller))]
[0]
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dct

from plantmodels.errors import ImageError
from plantmodels.serve.preprocessing import decode_image

HASH_BITS: Final = 256
"""Bits of the perceptual hash: signs of the 16 x 16 lowest frequencies. With 64 bits, leaves on a uniform background
collide: of 6 million pairs of different leaves 82 were within 8 bits, as far as a crop by 1 % moves an image."""

MAX_DIFFERENCE: Final = 0.25
"""Largest difference of the thumbnails, in units of their contrast. Of the 44 pairs of different leaves within 64 bits
it lets 9 pass; a crop of 5 % makes at most 0.24."""

_HASH_SIDE: Final = 16
_SIDE: Final = 64
"""Pixels of the thumbnail that the hash is computed from: four for each of its rows, as in pHash."""

_CHECKED_SIDE: Final = 32
"""Pixels of the thumbnail that confirms a candidate: coarse enough to tolerate a crop between two of the margins."""

_TURNS: Final = (
    Image.Transpose.FLIP_LEFT_RIGHT,
    Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_180,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSPOSE,
    Image.Transpose.TRANSVERSE,
)
_MARGINS: Final = (0.02, 0.04, -0.02, -0.04)
"""Part of the side that a view cuts off on every side, or adds: a crop in between changes few bits of one of them."""

_EVERY_SECOND: Final = np.where(np.arange(_HASH_SIDE) % 2, -1.0, 1.0)
"""The signs that mirroring gives the frequencies of an axis."""

_WORDS: Final = HASH_BITS // 64
_VIEWS: Final = 1 + len(_TURNS) + len(_MARGINS)
_READERS: Final = 2
"""Threads that read and decode."""

_CHUNK: Final = 64
"""Images that are read before the first of them is yielded."""


@dataclass(frozen=True)
class Fingerprint:
    """What identifies the content of an image file.

    Attributes:
        sha256: digest of the bytes; "" if the file cannot be read.
        hashes: (V, 4) uint64, the perceptual hash of the image, followed by those of its other views if an index
            needs them; V is 0 if the file cannot be decoded as an image.
        thumbnail: (32, 32, 3) uint8; zeros if V is 0.
    """

    sha256: str
    hashes: NDArray[np.uint64]
    thumbnail: NDArray[np.uint8]


@dataclass(frozen=True)
class Match:
    """An image of an index that shows the same as another one.

    Attributes:
        position: position of the image in the index.
        distance: number of bits in which the perceptual hashes differ; 0 for identical bytes.
    """

    position: int
    distance: int


def take_fingerprint(path: Path, *, all_views: bool = False) -> Fingerprint:
    """Return the fingerprint of an image file, which is read once. A file that cannot be read is like no other one.

    Args:
        path: the image file.
        all_views: whether to hash the other views as well, as an index needs them; this takes longer.
    """
    nothing = np.zeros((0, _WORDS), np.uint64), np.zeros((_CHECKED_SIDE, _CHECKED_SIDE, 3), np.uint8)
    try:
        content = path.read_bytes()
    except OSError:
        return Fingerprint("", *nothing)
    sha256 = hashlib.sha256(content).hexdigest()
    try:
        image = decode_image(content).resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    except ImageError:
        return Fingerprint(sha256, *nothing)
    grey = image.convert("L")
    thumbnail = image.resize((_CHECKED_SIDE, _CHECKED_SIDE), Image.Resampling.BOX)
    return Fingerprint(sha256, _hash_views(grey) if all_views else _hash(np.asarray(grey)[None]), np.asarray(thumbnail))


def take_fingerprints(paths: Iterable[Path], *, all_views: bool = False) -> Iterator[Fingerprint]:
    """Yield the fingerprint of each image file; memory does not grow with their number."""
    remaining = iter(paths)
    with ThreadPoolExecutor(_READERS) as pool:
        while chunk := list(islice(remaining, _CHUNK)):
            yield from pool.map(lambda path: take_fingerprint(path, all_views=all_views), chunk)


class DuplicateIndex:
    """Images among which others are searched; an image takes 4 kilobytes."""

    def __init__(self, fingerprints: Sequence[Fingerprint], *, max_distance: int) -> None:
        """Prepare the search.

        Args:
            fingerprints: fingerprints of N images with all views. The images are numbered from 0.
            max_distance: number of differing bits up to which two hashes may belong to the same image.

        Raises:
            ValueError: a fingerprint lacks the other views.
        """
        self._max_distance = max_distance
        self._by_digest: dict[str, list[int]] = defaultdict(list)
        for position, fingerprint in enumerate(fingerprints):
            if len(fingerprint.hashes) not in (0, _VIEWS):
                raise ValueError(f"fingerprint {position} has {len(fingerprint.hashes)} of {_VIEWS} views")
            if fingerprint.sha256:
                self._by_digest[fingerprint.sha256].append(position)
        decoded = [position for position, fingerprint in enumerate(fingerprints) if len(fingerprint.hashes)]
        hashes = [fingerprints[position].hashes for position in decoded]
        self._positions = np.array(decoded, np.int64)
        self._thumbnails = [fingerprints[position].thumbnail for position in decoded]
        self._words = np.ascontiguousarray(np.concatenate([np.zeros((0, _WORDS), np.uint64), *hashes]).T)

    def find(self, fingerprint: Fingerprint) -> list[Match]:
        """Return every image of the index that shows the same, in the order of their positions."""
        found = dict.fromkeys(self._by_digest.get(fingerprint.sha256, ()), 0)
        if len(fingerprint.hashes):
            for position, distance in self._find_alike(fingerprint, frozenset(found)):
                found[position] = min(distance, found.get(position, distance))
        return [Match(position, found[position]) for position in sorted(found)]

    def _find_alike(self, fingerprint: Fingerprint, identical: Set[int]) -> Iterator[tuple[int, int]]:
        """Yield position and distance of views that show the same, but for images that are known to be identical."""
        for place, distance in self._list_near(fingerprint.hashes[0]):
            rank, view = divmod(place, _VIEWS)
            position = int(self._positions[rank])
            if position in identical:
                continue
            if _compare(self._thumbnails[rank], view, fingerprint.thumbnail) <= MAX_DIFFERENCE:
                yield position, distance

    def _list_near(self, words: NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
        """Yield the places of views whose hash differs in few bits, and in how many."""
        half = _WORDS // 2
        halves = _count_bits(self._words[:half], words[:half])
        near = np.flatnonzero(halves <= self._max_distance)  # of unlike images, half of the bits tell nearly always
        distances = halves[near].astype(np.int64) + _count_bits(self._words[half:, near], words[half:])
        for place, distance in zip(near.tolist(), distances.tolist(), strict=True):
            if distance <= self._max_distance:
                yield place, distance


def _count_bits(words: NDArray[np.uint64], others: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Return in how many bits each of N halves of hashes (2, N) differs from another one (2,): at most 128."""
    first, second = (np.bitwise_count(own ^ other) for own, other in zip(words, others, strict=True))
    return np.asarray(first + second, np.uint8)


def _hash_views(grey: Image.Image) -> NDArray[np.uint64]:
    """Return the perceptual hash of every view of a grey thumbnail, (12, 4), in the order of `_view`.

    Mirroring only changes the sign of every second frequency, and transposing swaps rows and columns. So one cosine
    transform serves all eight turns.
    """
    margins = (_change_margin(grey, margin) for margin in _MARGINS)
    plain, *others = _transform(np.stack([np.asarray(image) for image in (grey, *margins)]))
    turned, columns, rows = plain.T, _EVERY_SECOND, _EVERY_SECOND[:, None]
    turns = plain * columns, plain * rows, turned * rows, plain * rows * columns, turned * columns, turned
    return _take_bits(np.stack([plain, *turns, turned * rows * columns, *others]))


def _hash(images: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return the perceptual hashes (N, 4) of grey thumbnails (N, 64, 64)."""
    return _take_bits(_transform(images))


def _transform(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the lowest frequencies (N, 16, 16) of the cosine transforms of grey thumbnails (N, 64, 64).

    Only the columns' lowest frequencies are transformed along the rows. Each of them is computed as in a whole
    transform, to the last bit: rounding decides bits of images without contrast.
    """
    columns = dct(images.astype(np.float64), axis=1)[:, :_HASH_SIDE]
    return np.asarray(dct(columns, axis=2)[:, :, :_HASH_SIDE])


def _take_bits(frequencies: NDArray[np.float64]) -> NDArray[np.uint64]:
    """Return the bits that say which of (N, 16, 16) frequencies lie above their median, as four words an image."""
    flat = frequencies.reshape(len(frequencies), -1)
    first, second = HASH_BITS // 2 - 1, HASH_BITS // 2
    middle = np.partition(flat, (first, second), axis=1)[:, first : second + 1]
    medians = middle.sum(axis=1, keepdims=True) / 2  # `np.median` takes longer
    return np.packbits(flat > medians, axis=1).view(np.uint64)


def _view(image: Image.Image, number: int) -> Image.Image:
    """Return a view of a square image, 0 to 11: as it is, mirrored and turned, margins cut off, or margins added."""
    if number == 0:
        return image
    if number <= len(_TURNS):
        return image.transpose(_TURNS[number - 1])
    return _change_margin(image, _MARGINS[number - 1 - len(_TURNS)])


def _change_margin(image: Image.Image, margin: float) -> Image.Image:
    """Cut off a part of a square image on every side, or repeat its edge if the part is negative; keep the size."""
    side = image.width
    border = math.ceil(side * max(0.0, -margin))
    low, high = border + side * margin, border + side * (1 - margin)
    padded = _repeat_edge(image, border) if border else image
    return padded.resize(image.size, Image.Resampling.BICUBIC, box=(low, low, high, high))


def _repeat_edge(image: Image.Image, border: int) -> Image.Image:
    """Return a square image with so many more pixels on every side (`np.pad` takes four times as long)."""
    places = np.arange(-border, image.width + border).clip(0, image.width - 1)
    return Image.fromarray(np.asarray(image).take(places, axis=0).take(places, axis=1))


def _compare(own: NDArray[np.uint8], view: int, other: NDArray[np.uint8]) -> float:
    """Return the root mean square difference of a view of one thumbnail from another, in units of their contrast."""
    seen, shown = (np.asarray(image, np.float64) for image in (_view(Image.fromarray(own), view), other))
    contrast = sum(_root_mean_square(image - image.mean(axis=(0, 1))) for image in (seen, shown))
    return _root_mean_square(seen - shown) / (contrast + 1.0)


def _root_mean_square(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(values**2)))
