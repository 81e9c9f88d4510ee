"""A leaf as arrays in the image's pixels, which a disease may change before the image is rendered.

>>> from examples.drawn_leaves.leaves import SPECIES
>>> specimen = Specimen.lay(SPECIES["Apple"], np.random.default_rng(0))
>>> specimen.render(np.random.default_rng(1)).size
(256, 256)
"""

from dataclasses import dataclass

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
    fractal,
    noise,
    relief,
    step,
)
from examples.drawn_leaves.leaves import Habit, Leaf, Vein
from examples.drawn_leaves.scene import cast_shadow, develop_image, draw_background, draw_light, speckle_colour


def _choose_place(rng: Generator, leaf: Leaf, habit: Habit) -> tuple[Points, Points, Points]:
    """Return `turn`, `middle` and `centre` such that a leaf's pixels are (points - middle) @ turn + centre."""
    angle = habit.turn * rng.standard_normal()
    size = SIZE * habit.length * rng.uniform(0.95, 1.15)
    points = np.concatenate([blade.outline for blade in leaf.blades])
    middle = (points.min(axis=0) + points.max(axis=0)) / 2
    cos, sin = np.cos(angle) * size, np.sin(angle) * size
    turn = np.array([[cos, sin], [sin, -cos]])
    centre = SIZE / 2 + rng.uniform(-0.06, 0.06, 2) * SIZE
    return turn, middle, centre


@dataclass
class Specimen:
    """A leaf as it lies in the image.

    Attributes:
        inside: (SIZE, SIZE), the part of each pixel that the blades cover, from 0 to 1.
        veins: (SIZE, SIZE), 1 on a vein and 0 elsewhere.
        colour: (SIZE, SIZE, 3), colour of the surface without light and shade.
        height: (SIZE, SIZE), height of the surface in pixels.
        stalk: (SIZE, SIZE), 1 on a stalk and 0 elsewhere.
        axis: unit vector (x, y) from the base to the tip.
        unit: length of the leaf, in pixels.
        habit: the look of its species.
    """

    inside: Array
    veins: Array
    colour: Array
    height: Array
    stalk: Array
    axis: Points
    unit: float
    habit: Habit

    @classmethod
    def lay(cls, habit: Habit, rng: Generator) -> "Specimen":
        """Grow a healthy leaf and lay it near the middle of the image."""
        leaf = habit.grow(rng)
        turn, middle, centre = _choose_place(rng, leaf, habit)
        unit = float(np.hypot(*turn[0]))
        inside, veins, tone, stalk = (Stencil() for _ in range(4))

        def draw(stencil: Stencil, vein: Vein) -> None:
            stencil.stroke((vein.points - middle) @ turn + centre, vein.width * unit, vein.width * unit * 0.3)

        for vein in leaf.stalks:
            draw(stalk, vein)
        for blade in leaf.blades:
            outline = (blade.outline - middle) @ turn + centre
            inside.polygon(outline)
            veins.polygon(outline, 0)
            tone.polygon(outline, rng.uniform(0.35, 0.75))
            for vein in blade.veins:
                draw(veins, vein)
        tip = turn[1] / unit
        surface = _paint_surface(rng, habit, inside.array(), veins.array(), tone.array())
        return cls(inside.array(), veins.array(), *surface, stalk.array(), tip, unit, habit)

    def choose_spots(self, rng: Generator, count: int) -> Points:
        """Return (count, 2) random pixels (x, y) on the blades, or none if no blade is visible."""
        ys, xs = np.nonzero(self.inside[::2, ::2] > 0.9)
        if len(ys) == 0:
            return np.zeros((0, 2))
        chosen = rng.integers(len(ys), size=count)
        return np.stack([xs[chosen], ys[chosen]], axis=1) * 2.0 + rng.uniform(0, 2, (count, 2))

    def coat(self, colour: tuple[float, float, float] | Array, alpha: Array) -> None:
        """Blend a colour into the surface with opacity `alpha`, (SIZE, SIZE) in [0, 1]."""
        self.colour = blend(self.colour, colour, alpha)

    def render(self, rng: Generator) -> Image.Image:
        """Return an 8-bit RGB image of the leaf on a background, with light and shadow."""
        light = draw_light(rng)
        shape = np.maximum(self.inside, self.stalk)
        scene = cast_shadow(draw_background(rng), shape, light, distance=rng.uniform(2, 8), depth=rng.uniform(0.3, 0.6))
        shade = relief(self.height, (0.55 * light[0], 0.55 * light[1]))
        shine = self.habit.gloss * rng.uniform(0.3, 1.0) * step(shade, 1.3, 0.5)
        stalk = (
            np.asarray(speckle_colour(rng, (0.42, 0.5, 0.25), 0.1), np.float32)
            * relief(4 * self.stalk, light).clip(0.4, 1.6)[..., None]
        )
        scene = blend(scene, stalk, self.stalk)
        blade = self.colour * shade.clip(0.35, 1.7)[..., None] + 0.22 * shine[..., None]
        return develop_image(blend(scene, blade, self.inside), rng)


def _paint_surface(rng: Generator, habit: Habit, inside: Array, veins: Array, tone: Array) -> tuple[Array, Array]:
    """Return colour and height of a healthy blade."""
    colour = np.asarray(speckle_colour(rng, habit.colour, 0.09), np.float32)
    wide = blur(veins, 4)
    patches = 1 + 0.07 * noise(rng, 4) + 0.035 * fractal(rng, 24, 3)
    shaded = colour * (patches * (0.86 + 0.28 * tone))[..., None]
    pale = np.clip(colour * habit.vein + (0.03, 0.035, 0.01), 0, 1).astype(np.float32)
    painted = blend(shaded * (1 + 0.25 * wide)[..., None], pale, 0.75 * veins)
    rim = np.clip(inside - blur(inside, 3), 0, 1)
    painted = painted * (1 + 0.35 * rim)[..., None]
    dome = 10 * blur(inside, 26) + 3.0 * blur(inside, 7) + 5 * tone
    puff = -3.2 * blur(veins, 7) + 0.5 * veins
    return painted, dome + puff + 1.6 * noise(rng, 5) + 0.22 * fractal(rng, 40, 2)
