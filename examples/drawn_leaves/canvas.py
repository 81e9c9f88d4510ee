"""Brushes of the drawn data set: antialiased shapes, noise and slopes as float32 arrays.

All images are square with sides of `SIZE` pixels, and colours are float32 in [0, 1]. Shapes are drawn `_OVERSAMPLING`
times larger and averaged down. All randomness comes from the generator that the caller passes.

>>> stencil = Stencil()
>>> stencil.polygon(np.array([[10, 10], [200, 10], [100, 200]]))
>>> stencil.array().shape
(256, 256)
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SIZE: Final = 256
_OVERSAMPLING: Final = 3

Array = NDArray[np.floating]
Points = NDArray[np.float64]
"""x and y coordinates: (N, 2)."""
Generator = np.random.Generator


class Stencil:
    """A grey image to draw polygons and tapered strokes into; later shapes cover earlier ones."""

    def __init__(self) -> None:
        """Start with a black image."""
        self._image = Image.new("L", (SIZE * _OVERSAMPLING, SIZE * _OVERSAMPLING))
        self._draw = ImageDraw.Draw(self._image)

    def polygon(self, points: Points, value: float = 1.0) -> None:
        """Fill a polygon.

        Args:
            points: (N, 2) x and y in pixels of the finished image, at least three rows.
            value: grey in [0, 1].
        """
        self._draw.polygon((points * _OVERSAMPLING).ravel().tolist(), fill=round(value * 255))

    def stroke(self, points: Points, start: float, end: float, value: float = 1.0) -> None:
        """Draw a line whose width changes evenly from `start` to `end`.

        Args:
            points: (N, 2) x and y in pixels of the finished image, at least two rows.
            start: width at the first point, in pixels.
            end: width at the last point, in pixels.
            value: grey in [0, 1].
        """
        along = np.gradient(points, axis=0)
        across = np.stack([-along[:, 1], along[:, 0]], axis=1)
        across /= np.maximum(np.hypot(across[:, :1], across[:, 1:]), 1e-6)
        across *= np.linspace(start / 2, end / 2, len(points))[:, None]
        self.polygon(np.concatenate([points + across, (points - across)[::-1]]), value)

    def array(self) -> Array:
        """Return the image averaged down to (SIZE, SIZE), float32 in [0, 1]."""
        return np.asarray(self._image.reduce(_OVERSAMPLING), np.float32) / 255


def noise(rng: Generator, cells_x: float, cells_y: float | None = None) -> Array:
    """Return smooth noise with a standard deviation of about 1.

    Args:
        rng: source of randomness.
        cells_x: number of bumps across the image.
        cells_y: number of bumps down the image; `cells_x` by default.

    Returns:
        (SIZE, SIZE) float32.
    """
    cells_y = cells_x if cells_y is None else cells_y
    grid = rng.standard_normal((int(cells_y) + 5, int(cells_x) + 5), np.float32)
    box = (1.5, 1.5, 1.5 + cells_x, 1.5 + cells_y)
    return np.asarray(Image.fromarray(grid).resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box)) * 1.4


def fractal(rng: Generator, cells: float, octaves: int) -> Array:
    """Return (SIZE, SIZE) float32 noise: a sum in which each term is twice as fine and half as high as the last."""
    return sum((noise(rng, cells * 2**k) * 0.5**k for k in range(octaves)), np.zeros((SIZE, SIZE), np.float32))


def blur(image: Array, radius: float) -> Array:
    """Return a (SIZE, SIZE) image smoothed over about `radius` pixels."""
    small = max(4, round(SIZE / radius))
    shrunk = Image.fromarray(image).resize((small, small), Image.Resampling.BILINEAR)
    return np.asarray(shrunk.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def step(image: Array, edge: float, softness: float) -> Array:
    """Return an image that rises from 0 to 1 where `image` passes `edge`, over about `softness` of its values."""
    ramp: Array = np.clip((image - edge) / softness + 0.5, 0, 1)
    return ramp


def blend(below: Array, above: Array | tuple[float, float, float], alpha: Array) -> Array:
    """Return a colour image with a colour, or another colour image, laid over it.

    Args:
        below: (SIZE, SIZE, 3) image at the bottom.
        above: (SIZE, SIZE, 3) image on top, or one colour.
        alpha: (SIZE, SIZE) opacity of `above`, in [0, 1].
    """
    return below + alpha[..., None] * (np.asarray(above, np.float32) - below)


def relief(height: Array, light: tuple[float, float]) -> Array:
    """Return the brightness of a bumpy surface: about 1, and more on slopes that face the light.

    Args:
        height: (SIZE, SIZE) height of the surface, in pixels.
        light: x and y of the direction that the light comes from.
    """
    down, right = (np.asarray(slope) for slope in np.gradient(height))
    slope: Array = right * np.float32(light[0]) + down * np.float32(light[1])
    return 1 - slope


def spline(points: Points, per_segment: int = 8) -> Points:
    """Return an open Catmull-Rom curve through (N, 2) points, as ((N - 1) * per_segment + 1, 2) points."""
    padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    before, start, end, after = padded[:-3], padded[1:-2], padded[2:-1], padded[3:]
    t = (np.arange(per_segment) / per_segment)[None, :, None]
    p0, p1, p2, p3 = (p[:, None, :] for p in (before, start, end, after))
    curve = 2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3
    return np.concatenate([curve.reshape(-1, 2) / 2, points[-1:]])


def fill(*polygons: Points) -> Array:
    """Return a (SIZE, SIZE) image that is 1 inside any of the polygons and 0 elsewhere."""
    stencil = Stencil()
    for polygon in polygons:
        stencil.polygon(polygon)
    return stencil.array()


def rectangle(left: float, top: float, right: float, bottom: float) -> Points:
    """Return the corners of an upright rectangle: (4, 2)."""
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float64)


def ellipse(centre: tuple[float, float], radius_x: float, radius_y: float, points: int = 60) -> Points:
    """Return the outline of an upright ellipse, clockwise from its right end: (points, 2)."""
    turn = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.asarray(centre) + np.stack([radius_x * np.cos(turn), radius_y * np.sin(turn)], axis=1)
