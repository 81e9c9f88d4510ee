"""Leaf shapes of ten species: outline, teeth, lobes, leaflets and veins.

A leaf grows in its own plane: the base is at (0, 0), the tip near (0, 1), and x points to the right. Each call grows
another individual. `SPECIES` maps the name of a species to its habit.

>>> leaf = SPECIES["Apple"].grow(np.random.default_rng(0))
>>> len(leaf.blades)
1
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from examples.drawn_leaves.canvas import Generator, Points, spline


@dataclass(frozen=True)
class Vein:
    """One vein: (N, 2) points from the root outwards, and its width at the root in leaf lengths."""

    points: Points
    width: float


@dataclass(frozen=True)
class Blade:
    """One flat piece of a leaf: its (N, 2) outline and the veins inside it, the main veins last."""

    outline: Points
    veins: tuple[Vein, ...]

    def place(self, angle: float, size: float, root: tuple[float, float]) -> "Blade":
        """Return the blade turned clockwise by `angle` (in radians), scaled by `size` and moved to `root`."""
        cos, sin = np.cos(angle) * size, np.sin(angle) * size
        turn = np.array([[cos, -sin], [sin, cos]])
        veins = tuple(Vein(vein.points @ turn + root, vein.width * size) for vein in self.veins)
        return Blade(self.outline @ turn + root, veins)


@dataclass(frozen=True)
class Leaf:
    """All blades of a leaf, the lowest first, and its stalks, from the stem outwards."""

    blades: tuple[Blade, ...]
    stalks: tuple[Vein, ...]


@dataclass(frozen=True)
class Habit:
    """The look of a species.

    Attributes:
        grow: function that makes another individual.
        colour: colour of the healthy blade.
        vein: brightness of the veins relative to the blade; below 1 they are darker.
        gloss: how much the surface shines, from 0 to 1.
        length: length of a leaf relative to the side of the image.
        turn: standard deviation of the angle from upright, in radians.
    """

    grow: Callable[[Generator], Leaf]
    colour: tuple[float, float, float]
    vein: float = 1.35
    gloss: float = 0.25
    length: float = 0.8
    turn: float = 0.45


def _jitter(rng: Generator, points: list[tuple[float, float]], amount: float) -> Points:
    """Return the control points with random changes to all but the first and the last."""
    array = np.array(points)
    array[1:-1] += amount * rng.standard_normal(array[1:-1].shape)
    return array


def _cut_teeth(side: Points, teeth: int, depth: float) -> Points:
    """Return one side of an outline with teeth that point to the tip.

    Args:
        side: (N, 2) points from base to tip, with the blade on their left.
        teeth: number of teeth.
        depth: depth of the largest tooth, in leaf lengths.
    """
    length = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(side, axis=0).T))])
    phase = np.concatenate([k + np.array([0.0, 0.45, 0.86]) for k in range(teeth)] + [[teeth]])
    at = phase / teeth * length[-1]
    line = np.stack([np.interp(at, length, side[:, axis]) for axis in (0, 1)], axis=1)
    along = np.gradient(line, axis=0)
    along /= np.maximum(np.hypot(along[:, :1], along[:, 1:]), 1e-9)
    outward = np.stack([along[:, 1], -along[:, 0]], axis=1)
    share = phase / teeth
    rise = (phase % 1)[:, None] * depth * np.clip(6 * np.minimum(share, 1 - share), 0, 1)[:, None]
    toothed: Points = line + rise * (outward + 0.55 * along)
    return toothed


def _outline(
    rng: Generator,
    half: list[tuple[float, float]],
    *,
    vary: float = 0.012,
    teeth: int = 0,
    depth: float = 0.0,
    width: float = 1.0,
) -> Points:
    """Return a closed outline from the control points of its right half; both halves vary independently."""
    sides = []
    stretch = width * rng.normal(1, 0.06)
    for mirror in (1, -1):
        side = spline(_jitter(rng, half, vary)) * (stretch, 1)
        side = _cut_teeth(side, teeth, depth) if teeth else side
        sides.append(side * (mirror, 1))
    return np.concatenate([sides[0], sides[1][-2:0:-1]])


def _edge(outline: Points, height: float, right: bool) -> float:
    """Return the distance from the axis to the outermost point of one side near a height."""
    near = outline[(np.abs(outline[:, 1] - height) < 0.05) & ((outline[:, 0] > 0) == right)]
    return float(np.abs(near[:, 0]).max()) if len(near) else 0.02


def _curve(start: Points, bend: Points, end: Points) -> Points:
    t = np.linspace(0, 1, 7)[:, None]
    return start * (1 - t) ** 2 + bend * 2 * t * (1 - t) + end * t**2


def _pinnate(
    rng: Generator, outline: Points, pairs: int, *, rise: float = 0.16, arch: float = 0.5, first: float = 0.06
) -> tuple[Vein, ...]:
    """Return a midrib with side veins that arch towards the tip."""
    top = outline[:, 1].max()
    veins = []
    for root in np.linspace(first, 0.84, pairs) * top:
        for right in (True, False):
            low = root + 0.012 * rng.standard_normal()
            end_y = min(low + rise * rng.normal(1, 0.12) * (1.1 - low / top * 0.5), 0.97 * top)
            reach = 0.9 * _edge(outline, end_y, right) * (1 if right else -1)
            end = np.array([reach, end_y])
            bend = np.array([reach * arch, low + (end_y - low) * 0.32])
            veins.append(Vein(_curve(np.array([0, low]), bend, end), 0.011))
    midrib = np.stack([np.zeros(9), np.linspace(-0.01, 0.98 * top, 9)], axis=1)
    return (*veins, Vein(midrib, 0.024))


def _bend(blade: Blade, amount: float) -> Blade:
    """Return the blade with its axis curved sideways."""

    def bend(points: Points) -> Points:
        return points + np.stack([amount * points[:, 1] ** 2, np.zeros(len(points))], axis=1)

    return Blade(bend(blade.outline), tuple(replace(vein, points=bend(vein.points)) for vein in blade.veins))


def _stalk(rng: Generator, length: float, width: float = 0.03) -> Vein:
    side = 0.25 * length * rng.standard_normal()
    return Vein(_curve(np.array([0, 0.02]), np.array([0, -length / 2]), np.array([side, -length])), width)


def _simple(rng: Generator, outline: Points, pairs: int, stalk: float, **venation: float) -> Leaf:
    blade = _bend(Blade(outline, _pinnate(rng, outline, pairs, **venation)), 0.07 * rng.standard_normal())
    return Leaf((blade,), (_stalk(rng, stalk),))


def _apple(rng: Generator) -> Leaf:
    half = [(0, 0), (0.16, 0.04), (0.29, 0.2), (0.33, 0.42), (0.28, 0.64), (0.15, 0.84), (0.04, 0.94), (0, 1)]
    return _simple(rng, _outline(rng, half, teeth=26, depth=0.022), int(rng.integers(6, 8)), 0.2)


def _cherry(rng: Generator) -> Leaf:
    half = [(0, 0), (0.1, 0.08), (0.19, 0.28), (0.21, 0.48), (0.17, 0.67), (0.08, 0.83), (0.025, 0.93), (0, 1)]
    return _simple(rng, _outline(rng, half, teeth=34, depth=0.016), int(rng.integers(8, 11)), 0.16, rise=0.13)


def _pepper(rng: Generator) -> Leaf:
    half = [(0, 0), (0.15, 0.05), (0.29, 0.19), (0.31, 0.36), (0.21, 0.6), (0.08, 0.83), (0, 1)]
    outline = _outline(rng, half, vary=0.016)
    return _simple(rng, outline, 5, 0.3, rise=0.3, arch=0.8)


def _lilac(rng: Generator) -> Leaf:
    half = [(0, 0), (0.1, -0.07), (0.25, -0.08), (0.37, 0.04), (0.41, 0.22), (0.33, 0.47), (0.17, 0.73), (0, 1)]
    return _simple(rng, _outline(rng, half, vary=0.01), 6, 0.26, rise=0.2, arch=0.62, first=0.0)


def _lobed_veins(rng: Generator, tips: list[tuple[float, float]], branches: int) -> tuple[Vein, ...]:
    """Return main veins from the base to each lobe, with side branches."""
    mains, sides = [], []
    for side_x, y in [(s * x, y) for x, y in tips for s in ((1, -1) if x else (1,))]:
        tip = 0.93 * np.array([side_x, y])
        mains.append(Vein(np.linspace((0, 0), tip, 7), 0.02))
        normal = np.array([-tip[1], tip[0]])
        for at in np.linspace(0.28, 0.8, branches):
            for side in (1, -1):
                reach = 0.3 * (1.05 - at) * rng.normal(1, 0.1)
                end = tip * (at + 0.19) + side * normal * reach
                sides.append(Vein(_curve(tip * at, tip * (at + 0.06) + side * normal * reach * 0.55, end), 0.009))
    return (*sides, *mains)


def _grape(rng: Generator) -> Leaf:
    half = [(0, 0), (0.05, -0.13), (0.2, -0.24), (0.36, -0.17), (0.47, 0.0), (0.42, 0.1), (0.36, 0.16)]
    half += [(0.5, 0.24), (0.58, 0.42), (0.48, 0.49), (0.3, 0.5), (0.29, 0.6), (0.25, 0.76), (0.12, 0.89), (0, 1)]
    outline = _outline(rng, half, vary=0.014, teeth=17, depth=0.05)
    veins = _lobed_veins(rng, [(0.4, -0.1), (0.53, 0.4), (0.0, 0.98)], 4)
    return Leaf((Blade(outline, veins),), (_stalk(rng, 0.35),))


def _ginkgo(rng: Generator) -> Leaf:
    cleft = rng.uniform(0.5, 0.78)
    half = [(0, 0), (0.08, 0.08), (0.32, 0.25), (0.6, 0.42), (0.66, 0.5), (0.6, 0.66), (0.42, 0.82), (0.2, 0.9)]
    half += [(0.05, 0.88), (0.012, 0.8), (0, cleft)]
    outline = _outline(rng, half, vary=0.014)
    fan = np.linspace(-0.9, 0.9, 46)
    reach = 0.86 * np.cos(fan * 0.35)
    veins = [
        Vein(np.linspace((0, 0), (r * np.sin(a), r * np.cos(a)), 5), 0.006) for a, r in zip(fan, reach, strict=True)
    ]
    kept = tuple(vein for vein in veins if abs(vein.points[-1, 0]) > 0.03)
    return Leaf((Blade(outline, kept),), (_stalk(rng, 0.45, 0.024),))


def _corn(rng: Generator) -> Leaf:
    wave = 0.008 * np.sin(np.linspace(0, 14, 8) + rng.uniform(0, 6))
    heights = (-0.45, -0.2, 0.05, 0.3, 0.55, 0.8, 0.98, 1.12)
    widths = (0.12, 0.125, 0.13, 0.13, 0.12, 0.095, 0.055, 0.0)
    half = [(0, -0.45), *((w + d, h) for w, d, h in zip(widths, wave, heights, strict=True))]
    outline = _outline(rng, half, vary=0.004, width=rng.uniform(0.95, 1.25))
    lanes = [share for share in np.linspace(-0.92, 0.92, 16) if abs(share) > 0.05]
    rise = np.linspace(-0.42, 1.0, 14)
    edge = np.interp(rise, heights, widths)
    veins = [Vein(np.stack([share * edge, rise], axis=1), 0.0045) for share in lanes]
    midrib = Vein(np.stack([np.zeros(14), np.linspace(-0.44, 1.08, 14)], axis=1), 0.03)
    return Leaf((_bend(Blade(outline, (*veins, midrib)), 0.1 * rng.standard_normal()),), ())


def _compound(rng: Generator, leaflet: Callable[[], Blade], places: list[tuple[float, float, float]]) -> Leaf:
    """Return a leaf with leaflets along a stalk.

    Args:
        rng: source of randomness.
        leaflet: function that grows a leaflet of length 1.
        places: height on the stalk, angle to the stalk and size of each leaflet; an angle other than 0 makes a pair.
    """
    blades, stalks = [], []
    for height, angle, size in places:
        for side in (1, -1) if angle else (1,):
            turn = side * angle + 0.09 * rng.standard_normal()
            root = np.array([0, height + 0.01 * rng.standard_normal()])
            away = root + 0.07 * np.array([np.sin(turn), np.cos(turn)]) * (angle != 0)
            blades.append(leaflet().place(turn, size * rng.normal(1, 0.06), tuple(away)))
            stalks.append(Vein(np.linspace(root, away + 0.001, 3), 0.012))
    top = max(height for height, _, _ in places)
    stalks.append(Vein(np.linspace((0.02 * rng.standard_normal(), -0.18), (0, top), 9), 0.026))
    return Leaf(tuple(blades), tuple(stalks))


def _potato(rng: Generator) -> Leaf:
    half = [(0, 0), (0.18, 0.0), (0.34, 0.16), (0.37, 0.42), (0.28, 0.7), (0.12, 0.91), (0, 1)]

    def leaflet() -> Blade:
        outline = _outline(rng, half, vary=0.014)
        return Blade(outline, _pinnate(rng, outline, 5, rise=0.2, arch=0.65))

    places = [(0.02, 1.25, 0.3), (0.2, 1.2, 0.14), (0.3, 1.1, 0.37), (0.55, 0.95, 0.4), (0.6, 0, 0.5)]
    return _compound(rng, leaflet, places)


def _tomato(rng: Generator) -> Leaf:
    half = [(0, 0), (0.1, 0.0), (0.22, 0.1), (0.11, 0.2), (0.27, 0.29), (0.29, 0.4), (0.13, 0.46), (0.2, 0.58)]
    half += [(0.19, 0.66), (0.08, 0.72), (0.07, 0.86), (0, 1)]

    def leaflet() -> Blade:
        outline = _outline(rng, half, vary=0.02, teeth=8, depth=0.03)
        return Blade(outline, _pinnate(rng, outline, 4, rise=0.2))

    places = [
        (0.0, 1.25, 0.36),
        (0.16, 1.3, 0.13),
        (0.28, 1.1, 0.42),
        (0.45, 1.2, 0.14),
        (0.52, 0.9, 0.4),
        (0.58, 0, 0.5),
    ]
    return _compound(rng, leaflet, places)


def _strawberry(rng: Generator) -> Leaf:
    half = [(0, 0), (0.1, 0.07), (0.26, 0.3), (0.36, 0.56), (0.34, 0.8), (0.18, 0.96), (0, 1)]

    def leaflet() -> Blade:
        outline = _outline(rng, half, vary=0.014, teeth=9, depth=0.06)
        return Blade(outline, _pinnate(rng, outline, 7, rise=0.2, arch=0.5))

    blades = [leaflet().place(a + 0.06 * rng.standard_normal(), 0.56, (0.03 * a, 0.4)) for a in (-1.5, 1.5, 0.0)]
    stalk = Vein(np.linspace((0.04 * rng.standard_normal(), -0.1), (0, 0.42), 9), 0.024)
    return Leaf(tuple(blades), (stalk,))


SPECIES: dict[str, Habit] = {
    "Tomato": Habit(_tomato, (0.24, 0.41, 0.17), gloss=0.15, length=0.8),
    "Grape": Habit(_grape, (0.33, 0.49, 0.19), length=0.68),
    "Apple": Habit(_apple, (0.27, 0.42, 0.17)),
    "Corn (maize)": Habit(_corn, (0.33, 0.51, 0.21), vein=1.18, gloss=0.15, length=1.0, turn=0.6),
    "Cherry (including sour)": Habit(_cherry, (0.21, 0.40, 0.16), gloss=0.4, length=0.86),
    "Potato": Habit(_potato, (0.29, 0.42, 0.24), gloss=0.15, length=0.8),
    "Pepper, bell": Habit(_pepper, (0.25, 0.46, 0.18), gloss=0.5, length=0.78),
    "Strawberry": Habit(_strawberry, (0.22, 0.44, 0.18), length=0.86),
    "Lilac": Habit(_lilac, (0.27, 0.44, 0.21), length=0.76),
    "Ginkgo": Habit(_ginkgo, (0.42, 0.56, 0.24), vein=0.86, gloss=0.12, length=0.72),
}
"""Species in the order of the demo's logits; it is not alphabetical, so that code which sorts them is noticed."""
