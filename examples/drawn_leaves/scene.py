"""The scene around a drawn thing: colours, backgrounds, light, shadow and the finished image.

>>> develop_image(draw_background(np.random.default_rng(0)), np.random.default_rng(0)).size
(256, 256)
"""

from typing import Final

import numpy as np
from PIL import Image

from examples.drawn_leaves.canvas import SIZE, Array, Generator, blur, fractal, noise, relief

Colour = tuple[float, float, float]

PAINT: Final = ((0.62, 0.18, 0.14), (0.2, 0.34, 0.52), (0.28, 0.46, 0.22), (0.8, 0.78, 0.72), (0.75, 0.58, 0.2))
WALL: Final = ((0.72, 0.66, 0.54), (0.6, 0.32, 0.25), (0.78, 0.77, 0.74), (0.46, 0.55, 0.42), (0.5, 0.58, 0.66))
DARK: Final = (0.07, 0.07, 0.08)


def speckle_colour(rng: Generator, colour: Colour, spread: float) -> Colour:
    """Return a similar colour: brightness and each channel vary with standard deviation `spread`."""
    varied = np.asarray(colour) * (1 + spread * rng.standard_normal()) + spread * 0.12 * rng.standard_normal(3)
    red, green, blue = np.clip(varied, 0.02, 0.98).tolist()
    return red, green, blue


def pick_colour(rng: Generator, colours: tuple[Colour, ...], spread: float = 0.08) -> Array:
    """Return one of the colours with a slight random change: (3,)."""
    return np.asarray(speckle_colour(rng, colours[rng.integers(len(colours))], spread), np.float32)


def _flat(colour: Colour) -> Array:
    return np.broadcast_to(np.asarray(colour, np.float32), (SIZE, SIZE, 3))


def _table(rng: Generator) -> Array:
    grey = rng.uniform(0.42, 0.72)
    tint = (grey + 0.02 * rng.standard_normal(), grey, grey + 0.03 * rng.standard_normal())
    return _flat(tint) * (1 + 0.03 * fractal(rng, 6, 4))[..., None]


def _cloth(rng: Generator) -> Array:
    weave = noise(rng, 128, 24) + noise(rng, 24, 128)
    return _flat(speckle_colour(rng, (0.13, 0.13, 0.15), 0.25)) * (1 + 0.12 * weave + 0.15 * noise(rng, 3))[..., None]


def _soil(rng: Generator) -> Array:
    clods = fractal(rng, 14, 4)
    shade = relief(clods * 2.2, (-0.25, -0.25)) * (1 + 0.12 * noise(rng, 5))
    soil: Array = _flat(speckle_colour(rng, (0.34, 0.265, 0.19), 0.15)) * shade[..., None]
    return soil


def _paper(rng: Generator) -> Array:
    fibres = 0.012 * fractal(rng, 40, 2) + 0.02 * noise(rng, 2)
    paper: Array = _flat(speckle_colour(rng, (0.86, 0.84, 0.79), 0.04)) * (1 + fibres)[..., None]
    return paper


def _wood(rng: Generator) -> Array:
    warp = noise(rng, 2, 3)
    rings = np.sin((np.linspace(0, rng.uniform(18, 40), SIZE, dtype=np.float32)[:, None] + 3 * warp) * 1.5)
    grain = 0.07 * rings + 0.08 * noise(rng, 5, 110)
    planks = _flat(speckle_colour(rng, (0.55, 0.40, 0.26), 0.15)) * (1 + grain)[..., None]
    return np.ascontiguousarray(planks.swapaxes(0, 1)) if rng.random() < 0.5 else planks


def _stone(rng: Generator) -> Array:
    slab = fractal(rng, 8, 5)
    shade = relief(slab * 1.1, (-0.2, -0.2)) * (1 + 0.05 * noise(rng, 60))
    return _flat(speckle_colour(rng, (0.55, 0.54, 0.50), 0.12)) * shade[..., None]


_BACKGROUNDS: Final = (_table, _cloth, _soil, _paper, _wood, _stone)


def draw_background(rng: Generator) -> Array:
    """Return a (SIZE, SIZE, 3) surface to lie on: a table, dark cloth, soil, paper, wood or stone."""
    return _BACKGROUNDS[rng.integers(len(_BACKGROUNDS))](rng)


def cast_shadow(scene: Array, shape: Array, light: tuple[float, float], distance: float, depth: float = 0.5) -> Array:
    """Return the scene, darkened where a shape that lies on it keeps the light away.

    Args:
        scene: (SIZE, SIZE, 3) colours without the shadow.
        shape: (SIZE, SIZE), 1 inside the shape and 0 outside.
        light: x and y of the direction that the light comes from.
        distance: length of the shadow, in pixels.
        depth: how dark the shadow is, from 0 to 1.
    """
    right, down = round(light[0] * distance), round(light[1] * distance)
    margin = max(abs(right), abs(down))
    wide = np.pad(blur(shape, 2 + distance * 0.8), margin, mode="edge")
    fallen = wide[margin + down :, margin + right :][:SIZE, :SIZE]
    contact = blur(shape, 3)
    darkened: Array = scene * (1 - depth * np.maximum(fallen, 0.6 * contact))[..., None]
    return darkened


def draw_light(rng: Generator) -> tuple[float, float]:
    """Return a random unit vector towards the light, which comes from above and more often from the left."""
    angle = rng.normal(-2.2, 0.45)
    return float(np.cos(angle)), float(np.sin(angle))


def develop_image(scene: Array, rng: Generator) -> Image.Image:
    """Return the scene as an 8-bit RGB image with a camera's uneven light, exposure, white balance and noise."""
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j].astype(np.float32)
    slope = 0.07 * rng.standard_normal(2)
    falloff = 1 + slope[0] * x + slope[1] * y - 0.06 * (x * x + y * y)
    balance = rng.normal(1.04, 0.08) * (1 + 0.025 * rng.standard_normal(3))
    lit = scene * falloff[..., None].astype(np.float32) * balance.astype(np.float32)
    grain = rng.standard_normal((SIZE, SIZE), np.float32)[..., None] * 0.012
    return Image.fromarray((np.clip(lit + grain, 0, 1) * 255).astype(np.uint8), "RGB")
