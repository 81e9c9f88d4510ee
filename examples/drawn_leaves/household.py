"""Images of household things: tools, crockery and patterned cloth.

>>> draw_tools(np.random.default_rng(0)).size
(256, 256)
"""

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
    ellipse,
    fill,
    fractal,
    noise,
    rectangle,
    relief,
    step,
)
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


def _turn_and_move(points: Points, angle: float, centre: tuple[float, float]) -> Points:
    """Return points turned around (0, 0) and then moved to `centre`."""
    cos, sin = np.cos(angle), np.sin(angle)
    turned: Points = points @ np.array([[cos, sin], [-sin, cos]]) + centre
    return turned


def _hammer() -> tuple[list[Points], list[Points]]:
    head = [(-34, -88), (26, -88), (44, -80), (44, -62), (26, -56), (-34, -56), (-46, -50), (-46, -94)]
    return [rectangle(-8, -58, 8, 100)], [np.array(head)]


def _screwdriver() -> tuple[list[Points], list[Points]]:
    grip = [(-13, 20), (-15, 60), (-12, 98), (12, 98), (15, 60), (13, 20), (7, 8), (-7, 8)]
    return [np.array(grip)], [np.array([(-4, 10), (-4, -84), (-7, -98), (7, -98), (4, -84), (4, 10)])]


def _wrench() -> tuple[list[Points], list[Points]]:
    jaw = [(-10, 70), (-10, -50), (-28, -66), (-28, -98), (-12, -98), (-12, -76), (12, -76), (12, -98), (28, -98)]
    jaw += [(28, -66), (10, -50), (10, 70)]
    return [], [np.array(jaw), ellipse((0.0, 78.0), 23, 23)]


def _saw() -> tuple[list[Points], list[Points]]:
    edge = np.arange(-104, 60, 8.0)
    teeth = np.stack([np.tile([27.0, 20.0], len(edge)), np.repeat(edge, 2)], axis=1)
    blade = np.concatenate([teeth, [(20, 60), (-30, 60), (-6, -104)]])
    return [np.array([(-36, 104), (-34, 56), (28, 56), (44, 84), (30, 110)])], [blade]


def _scissors() -> tuple[list[Points], list[Points]]:
    blades = [np.array([(-4, 12), (s * 4, 20), (s * 22, -98), (s * 12, -98)]) for s in (1, -1)]
    arms = [np.array([(s * 2, 8), (-s * 4, 18), (s * 22, 50), (s * 30, 44)]) for s in (1, -1)]
    return [ellipse((s * 32.0, 72.0), 20, 30) for s in (1, -1)] + arms, blades


_TOOLS: Final = (_hammer, _screwdriver, _wrench, _saw, _scissors)


def _lay_tool(
    rng: Generator, light: tuple[float, float], scene: Array, centre: tuple[float, float], angle: float, size: float
) -> Array:
    kind = _TOOLS[rng.integers(len(_TOOLS))]

    def drawn(parts: list[Points]) -> Array:
        return fill(*(_turn_and_move(part * size, angle, centre) for part in parts))

    grip, metal = (drawn(parts) for parts in kind())
    if kind is _wrench:
        metal = metal - drawn([ellipse((0.0, 78.0), 12, 12)])
    if kind is _scissors:
        grip = grip - drawn([ellipse((s * 32.0, 72.0), 12, 21) for s in (1, -1)])
    scene = cast_shadow(scene, np.clip(grip + metal, 0, 1), light, rng.uniform(4, 9))
    brushed = 1 + 0.06 * noise(rng, 4, 120) + 0.25 * noise(rng, 2)
    for shape, colour in (
        (grip, pick_colour(rng, (*PAINT, (0.5, 0.33, 0.18)))),
        (metal, pick_colour(rng, ((0.6, 0.61, 0.63),))),
    ):
        height = 8 * blur(shape, 9) + 4 * blur(shape, 4)
        shade = relief(height, (0.7 * light[0], 0.7 * light[1])).clip(0.4, 1.9) * brushed
        scene = blend(scene, colour * shade[..., None], shape)
    return scene


def _pegboard(rng: Generator) -> Array:
    """Return a painted board with rows of holes."""
    pitch = rng.uniform(14, 22)
    y, x = np.mgrid[:SIZE, :SIZE] / pitch
    holes = step(-np.hypot(x % 1 - 0.5, y % 1 - 0.5), -0.17, 0.06)
    board = np.broadcast_to(pick_colour(rng, WALL), (SIZE, SIZE, 3)) * (1 + 0.03 * fractal(rng, 8, 3))[..., None]
    return blend(board, DARK, 0.8 * holes)


def draw_tools(rng: Generator) -> Image.Image:
    """Draw a hammer, screwdriver, wrench, saw or scissors on a background, or a row of them on a pegboard."""
    light = draw_light(rng)
    if rng.random() < 0.3:
        turn, size = rng.uniform(0, 2 * np.pi), rng.uniform(0.95, 1.15)
        return develop_image(_lay_tool(rng, light, draw_background(rng), (SIZE / 2, SIZE / 2), turn, size), rng)
    scene, count = _pegboard(rng), int(rng.integers(3, 5))
    for place in range(count):
        centre = (SIZE * (place + 0.5) / count, SIZE / 2 + rng.uniform(-12, 12))
        scene = _lay_tool(rng, light, scene, centre, rng.normal(0, 0.06), rng.uniform(0.75, 1.0))
    return develop_image(scene, rng)


def _motif(rng: Generator, x: float, y: float, wide: float, high: float) -> Array:
    """Return the print on a mug: bands, a chequered pattern, dots or a word."""
    stencil = Stencil()
    kind = rng.choice(["bands", "chequer", "dots", "word"])
    if kind == "word":
        for letter in np.linspace(x - 0.6 * wide, x + 0.6 * wide, int(rng.integers(4, 7))):
            for part in range(3):
                stencil.polygon(rectangle(letter - 5, y + 9 * part - 12, letter + rng.uniform(-2, 6), y + 9 * part - 7))
            stencil.polygon(rectangle(letter - 6, y - 13, letter - 2, y + 14))
        return stencil.array()
    pitch = rng.uniform(11, 18)
    for row, low in enumerate(np.arange(y - 0.45 * high, y + 0.4 * high, pitch)):
        if kind == "bands":
            stencil.polygon(rectangle(x - wide, low, x + wide, low + pitch / 2))
            continue
        for left in np.arange(x - wide + pitch * (row % 2), x + wide, 2 * pitch):
            if kind == "dots":
                stencil.polygon(ellipse((left + pitch / 2, low + pitch / 2), 0.33 * pitch, 0.33 * pitch, 16))
            else:
                stencil.polygon(rectangle(left, low, left + pitch, low + pitch))
    return stencil.array()


def _mug(
    rng: Generator, light: tuple[float, float], scene: Array, foot: tuple[float, float], wide: float, high: float
) -> Array:
    """Return the scene with a mug that stands at `foot`, of the given half width and height."""
    x, top = foot[0], foot[1] - high
    round_foot = ellipse(foot, wide * 0.88, 0.25 * wide)
    body = np.concatenate([[(x - wide, top)], round_foot[30::-1], [(x + wide, top)]])
    centre = (x + rng.choice([-1, 1]) * wide, top + high * 0.5)
    handle = fill(ellipse(centre, 0.62 * wide, 0.3 * high)) - fill(ellipse(centre, 0.4 * wide, 0.2 * high))
    lip, drink = fill(ellipse((x, top), wide, 0.27 * wide)), fill(ellipse((x, top + 1), wide * 0.9, 0.22 * wide))
    shape = np.maximum(fill(body), lip)
    colour, white = pick_colour(rng, PAINT), pick_colour(rng, ((0.85, 0.84, 0.8),))
    across = (np.arange(SIZE, dtype=np.float32)[None, :] - x) / wide
    round_ = 0.7 + 0.5 * np.exp(-((across - light[0] * 0.5) ** 2) * 2.2) + 0.3 * (np.abs(across + 0.55) < 0.06)
    scene = cast_shadow(scene, np.clip(shape + handle, 0, 1), light, 0.2 * wide)
    scene = blend(scene, colour * 0.85 * relief(6 * blur(handle, 5), light)[..., None].clip(0.4, 1.5), handle)
    glazed = blend(np.broadcast_to(colour, (SIZE, SIZE, 3)), white, _motif(rng, x, top + 0.55 * high, wide, high))
    scene = blend(scene, glazed * round_[..., None], shape)
    scene = blend(scene, colour * 1.1, lip)
    return blend(scene, pick_colour(rng, ((0.2, 0.11, 0.06), (0.85, 0.84, 0.8))) * 0.8, drink)


def _one_mug(rng: Generator, light: tuple[float, float]) -> Array:
    scene, wide, high = draw_background(rng), rng.uniform(44, 62), rng.uniform(100, 140)
    foot = (SIZE / 2 + rng.uniform(-15, 15), SIZE / 2 + high / 2)
    if rng.random() < 0.5:
        scene = _plate(rng, light, scene, ((foot[0], foot[1] + 2), wide * 1.8, 0.28))
    return _mug(rng, light, scene, foot, wide, high)


def _shelf(rng: Generator, light: tuple[float, float]) -> Array:
    """Return a scene with two shelves of mugs."""
    wall, board = (
        pick_colour(rng, WALL, 0.03),
        pick_colour(rng, ((0.5, 0.36, 0.22), (0.3, 0.22, 0.16), (0.8, 0.78, 0.74))),
    )
    scene = np.broadcast_to(wall, (SIZE, SIZE, 3)) * (1 + 0.04 * fractal(rng, 8, 3))[..., None]
    wide = rng.uniform(20, 27)
    for foot in (rng.uniform(104, 116), rng.uniform(222, 236)):
        edge = fill(rectangle(-9, foot, SIZE + 9, foot + 13))
        scene = blend(cast_shadow(scene, edge, (0.0, -1.0), 7), board * (1 + 0.1 * noise(rng, 3, 90))[..., None], edge)
        for x in np.arange(rng.uniform(24, 44), SIZE - 18, 3.1 * wide):
            scene = _mug(rng, light, scene, (float(x), foot), wide, wide * rng.uniform(2, 2.8))
    return scene


def _plate(
    rng: Generator,
    light: tuple[float, float],
    scene: Array,
    place: tuple[tuple[float, float], float, float],
) -> Array:
    """Return the scene with a plate of the given centre, radius and ratio of height to width."""
    centre, radius, squash = place
    rings = [fill(ellipse(centre, radius * share, radius * share * squash)) for share in (1, 0.93, 0.66, 0.62)]
    scene = cast_shadow(scene, rings[0], light, 7)
    glaze = pick_colour(rng, (*PAINT, (0.85, 0.84, 0.8), (0.85, 0.84, 0.8)), 0.05)
    bowl = relief(6 * blur(rings[0], 8) - 10 * blur(rings[2], 10), (0.5 * light[0], 0.5 * light[1])).clip(0.5, 1.5)
    scene = blend(scene, glaze * bowl[..., None], rings[0])
    return blend(scene, pick_colour(rng, PAINT), 0.8 * (rings[0] - rings[1]) + 0.6 * (rings[2] - rings[3]))


def _cutlery(rng: Generator, light: tuple[float, float], scene: Array) -> Array:
    """Return the scene with a knife and a fork beside the plate."""
    knife = [(232, 40), (240, 60), (241, 130), (238, 140), (240, 225), (231, 225), (232, 140)]
    fork = [
        rectangle(12, 118, 19, 225),
        rectangle(6, 96, 25, 118),
        *(rectangle(6 + 7 * k, 50, 11 + 7 * k, 98) for k in range(3)),
    ]
    shape = fill(np.array(knife), *fork)
    steel = pick_colour(rng, ((0.62, 0.63, 0.65),)) * relief(5 * blur(shape, 4), light).clip(0.5, 1.8)[..., None]
    return blend(cast_shadow(scene, shape, light, 4), steel, shape)


def _table(rng: Generator, light: tuple[float, float]) -> Array:
    """Return a scene with a plate, a knife and a fork on a tablecloth."""
    scene = _woven(rng, light, 0.3)
    x, y = SIZE / 2 + rng.uniform(-6, 6, 2)
    place = ((float(x), float(y)), rng.uniform(76, 92), rng.uniform(0.8, 1))
    return _plate(rng, light, _cutlery(rng, light, scene), place)


def draw_crockery(rng: Generator) -> Image.Image:
    """Draw a printed mug, shelves of mugs, or a plate with knife and fork from above."""
    light = draw_light(rng)
    kind = (_one_mug, _shelf, _table)[rng.choice(3, p=(0.2, 0.45, 0.35))]
    return develop_image(kind(rng, light), rng)


def _woven(rng: Generator, light: tuple[float, float], creases: float) -> Array:
    """Return a cloth with checks, stripes, dots or a knitted pattern."""
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    angle, pitch = rng.uniform(0, np.pi), rng.uniform(14, 44)
    folds = creases * fractal(rng, 2.5, 2)
    u = (x * np.cos(angle) + y * np.sin(angle) + 7 * folds) / pitch
    v = (y * np.cos(angle) - x * np.sin(angle) + 7 * folds) / pitch
    stripes_u, stripes_v = step(np.sin(2 * np.pi * u), 0, 0.3), step(np.sin(2 * np.pi * v), 0, 0.3)
    patterns = {
        "check": 0.5 * (stripes_u + stripes_v),
        "stripe": stripes_u,
        "dot": step(-np.hypot(u % 1 - 0.5, v % 1 - 0.5), -0.28, 0.05),
        "knit": 0.5 + 0.5 * np.sin(2 * np.pi * (3 * u + np.abs(2 * (3 * v % 1) - 1))),
    }
    pattern = patterns[str(rng.choice(list(patterns)))].astype(np.float32)
    ground = np.broadcast_to(pick_colour(rng, (*PAINT, *WALL)), (SIZE, SIZE, 3))
    weave = 1 + 0.05 * noise(rng, 128, 60) + 0.05 * noise(rng, 60, 128)
    shade: Array = relief(9 * folds, light).clip(0.45, 1.55) * weave
    return blend(ground, pick_colour(rng, PAINT), pattern) * shade[..., None]


def draw_fabric(rng: Generator) -> Image.Image:
    """Draw a patterned cloth with folds."""
    return develop_image(_woven(rng, draw_light(rng), 1.0), rng)
