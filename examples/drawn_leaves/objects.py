"""Images without a plant: stones, house fronts, tools, crockery, fabrics and printed pages.

They share backgrounds, light and often colours (also green) with the leaves, so that colour alone cannot tell them
apart. `SOURCES` maps the name of a folder to the function that draws one image of it.

>>> SOURCES["rocks"](np.random.default_rng(0)).size
(256, 256)
"""

from collections.abc import Callable
from typing import Final

import numpy as np
from PIL import Image

from examples.drawn_leaves.canvas import (
    SIZE,
    Array,
    Generator,
    Points,
    Stencil,
    blend,
    blur,
    fill,
    fractal,
    noise,
    rectangle,
    relief,
    spline,
    step,
)
from examples.drawn_leaves.household import draw_crockery, draw_fabric, draw_tools
from examples.drawn_leaves.scene import (
    DARK,
    PAINT,
    WALL,
    cast_shadow,
    develop_image,
    draw_background,
    draw_light,
    pick_colour,
)

_STONE: Final = ((0.5, 0.49, 0.46), (0.42, 0.36, 0.3), (0.62, 0.55, 0.44), (0.36, 0.42, 0.36), (0.3, 0.31, 0.34))


def _stone_outline(rng: Generator, radius: float) -> Points:
    turn = np.sort(rng.uniform(0, 2 * np.pi, 11))
    reach = radius * rng.uniform(0.78, 1.1, 11)
    corners = np.stack([reach * np.cos(turn) * rng.uniform(1, 1.3), reach * np.sin(turn)], axis=1)
    return spline(np.concatenate([corners, corners[:1]]), 4)


def _boulders(rng: Generator, light: tuple[float, float], count: int) -> Array:
    """Return a scene with a few stones on a background."""
    scene = draw_background(rng)
    for _ in range(count):
        spread = 0 if count == 1 else 0.27 * SIZE
        outline = _stone_outline(rng, rng.uniform(0.28, 0.4) * SIZE / count**0.5)
        shape = fill(outline + SIZE / 2 + rng.uniform(-spread, spread, 2))
        bumps = 22 * blur(shape, 30) + 3.5 * fractal(rng, 5, 5) + 4 * blur(shape, 6)
        shade = relief(bumps, (0.55 * light[0], 0.55 * light[1])).clip(0.3, 1.7)
        grains = 1 + 0.12 * noise(rng, 100) + 0.1 * noise(rng, 6)
        scene = cast_shadow(scene, shape, light, 9)
        scene = blend(scene, pick_colour(rng, _STONE) * (shade * grains)[..., None], shape)
    return scene


def _gravel(rng: Generator, light: tuple[float, float]) -> Array:
    """Return a scene full of pebbles."""
    tone, rim = Stencil(), Stencil()
    size = rng.uniform(14, 34)
    for _ in range(int(2.6 * (SIZE / size) ** 2)):
        middle, outline = rng.uniform(-size, SIZE + size, 2), _stone_outline(rng, size * rng.uniform(0.5, 1.1))
        rim.polygon(middle + outline * 1.08, 0)
        rim.polygon(middle + outline * 0.9, 1)
        tone.polygon(middle + outline, rng.uniform(0.25, 0.9))
    tones, tops = tone.array(), rim.array()
    height = 7 * blur(tops, size * 0.35) + 3 * tones + 0.5 * fractal(rng, 40, 2)
    shade = relief(height, (0.6 * light[0], 0.6 * light[1])).clip(0.35, 1.6) * (0.25 + 0.75 * tops)
    colour = blend(np.broadcast_to(pick_colour(rng, _STONE), (SIZE, SIZE, 3)), pick_colour(rng, _STONE), tones)
    pebbles: Array = colour * (shade * (0.7 + 0.5 * tones))[..., None]
    return pebbles


def draw_rocks(rng: Generator) -> Image.Image:
    """Draw one to five stones on a background, or an image full of pebbles."""
    light = draw_light(rng)
    if rng.random() < 0.6:
        return develop_image(_gravel(rng, light), rng)
    return develop_image(_boulders(rng, light, int(rng.choice([1, 2, 3, 5]))), rng)


def _bricks(rng: Generator, wall: Array) -> Array:
    high = rng.uniform(5, 8)
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    row = np.floor(y / high)
    along = x / (2.4 * high) + 0.5 * (row % 2)
    joint = ((y / high) % 1 < 0.16) | (along % 1 < 0.07)
    tint = rng.normal(1, 0.09, 4096).astype(np.float32)[(row * 61 + np.floor(along)).astype(int) % 4096]
    return np.where(joint[..., None], np.float32(0.66), wall * tint[..., None])


def _window(rng: Generator, scene: Array, box: tuple[float, float, float, float], frame: Array) -> Array:
    left, top, right, bottom = box
    scene = blend(scene, DARK, 0.5 * fill(rectangle(left - 2, top, right + 3, bottom + 4)))
    scene = blend(scene, frame, fill(rectangle(left - 3, top - 3, right + 3, bottom + 2)))
    y = np.linspace(0, 1, SIZE, dtype=np.float32)[:, None]
    glass = np.asarray((0.2, 0.27, 0.35)) + 0.35 * step(noise(rng, 3) + y, 0.4, 1.2)[..., None]
    middle, sill = (left + right) / 2, top + (bottom - top) * 0.45
    panes = fill(rectangle(left, top, middle - 1, sill - 1), rectangle(middle + 1, top, right, sill - 1))
    panes += fill(rectangle(left, sill + 1, middle - 1, bottom), rectangle(middle + 1, sill + 1, right, bottom))
    return blend(scene, glass.astype(np.float32), panes)


def draw_house(rng: Generator) -> Image.Image:
    """Draw a wall with a door and rows of windows, often with a roof and sky above it."""
    wall = np.broadcast_to(pick_colour(rng, WALL), (SIZE, SIZE, 3))
    scene = _bricks(rng, wall) if rng.random() < 0.5 else wall * (1 + 0.05 * fractal(rng, 10, 4))[..., None]
    frame = pick_colour(rng, ((0.85, 0.84, 0.8), (0.3, 0.24, 0.2), (0.24, 0.38, 0.26)))
    columns, rows = int(rng.integers(2, 5)), int(rng.integers(2, 4))
    roof = rng.uniform(30, 75) if rng.random() < 0.7 else 0
    wide, high = SIZE / columns, (SIZE - roof) / rows
    door = int(rng.integers(columns))
    for row in range(rows):
        for column in range(columns):
            left, top = (column + 0.27) * wide, roof + (row + 0.24) * high
            ground = row == rows - 1 and column == door
            box = (left, top, left + 0.46 * wide, top + high * (0.76 if ground else 0.52))
            if ground:
                scene = blend(scene, pick_colour(rng, PAINT), fill(rectangle(*box)))
                scene = blend(scene, DARK, 0.5 * fill(rectangle(box[0], box[1], box[0] + 3, box[3])))
            else:
                scene = _window(rng, scene, box, frame)
    if roof:
        scene = _add_roof(rng, scene, roof)
    return develop_image(scene, rng)


def _add_roof(rng: Generator, scene: Array, roof: float) -> Array:
    y = np.linspace(0, 1, SIZE, dtype=np.float32)[:, None, None]
    sky = np.asarray((0.5, 0.65, 0.85)) + 0.3 * step(fractal(rng, 3, 4), 0.4, 1.2)[..., None] + 0.2 * y
    peak = rng.uniform(0, roof * 0.6)
    scene = blend(scene, sky.astype(np.float32), fill(rectangle(0, 0, SIZE, roof)))
    tiles = pick_colour(rng, ((0.48, 0.22, 0.16), (0.28, 0.28, 0.31), (0.33, 0.4, 0.3)))
    rows = 1 + 0.14 * np.sin(np.arange(SIZE, dtype=np.float32) * 1.1)[:, None] + 0.08 * noise(rng, 60, 30)
    inset = rng.uniform(0, 60)
    slope = fill(np.array([[-8, roof], [inset, peak], [SIZE - inset, peak], [SIZE + 8, roof]]))
    return blend(scene, tiles * rows[..., None], slope)


def _print_words(rng: Generator, stencil: Stencil, left: float, right: float, y: float, high: float) -> None:
    at = left
    while at < right - 6:
        long = min(rng.uniform(6, 30), right - at)
        for letter in np.arange(at, at + long - 2, high * 0.62):
            tall = rng.choice([0.0, 0.0, 0.35])
            stencil.polygon(rectangle(letter, y - tall * high, letter + high * 0.38, y + high * 0.7))
        at += long + 4


def draw_page(rng: Generator) -> Image.Image:
    """Draw a tilted sheet on a background, printed in one or two columns, sometimes with a chart."""
    light = draw_light(rng)
    ink = Stencil()
    high, columns = rng.uniform(3.2, 6), int(rng.integers(1, 3))
    chart = rng.uniform(60, 150) if rng.random() < 0.5 else -99.0
    for column in range(columns):
        left = 34 + column * 98
        right = 34 + (column + 1) * (188 / columns) - 6
        for y in np.arange(30, 226, high * 2.1):
            if not chart - 6 < y < chart + 50:
                short = 0.5 if rng.random() < 0.12 else 1.0
                _print_words(rng, ink, left, left + (right - left) * short, y, high)
    for k, bar in enumerate(rng.uniform(8, 42, 9)):
        ink.polygon(rectangle(50 + 18 * k, chart + 42 - bar, 62 + 18 * k, chart + 42), rng.uniform(0.4, 0.8))
    sheet = fill(rectangle(18, 10, 238, 246))
    angle = float(np.degrees(0.25 * rng.standard_normal()))
    print_, sheet = (_rotate(layer, angle) for layer in (ink.array(), sheet))
    paper = pick_colour(rng, ((0.9, 0.89, 0.85), (0.86, 0.82, 0.7), (0.75, 0.84, 0.72)), 0.04)
    curl = relief(6 * noise(rng, 1.6), light)
    scene = cast_shadow(draw_background(rng), sheet, light, 5)
    return develop_image(
        blend(blend(scene, paper * curl[..., None], sheet), pick_colour(rng, (DARK, (0.1, 0.14, 0.3))), 0.9 * print_),
        rng,
    )


def _rotate(image: Array, degrees: float) -> Array:
    return np.asarray(Image.fromarray(image).rotate(degrees, Image.Resampling.BILINEAR))


SOURCES: dict[str, Callable[[Generator], Image.Image]] = {
    "crockery": draw_crockery,
    "fabrics": draw_fabric,
    "houses": draw_house,
    "pages": draw_page,
    "rocks": draw_rocks,
    "tools": draw_tools,
}
