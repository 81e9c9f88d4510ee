"""The look of diseases: each function changes a `Specimen` in place, and only inside the blade.

`DISEASES` maps each species to its diseases, in the order of the demo's logits, and each disease to its function.

>>> from examples.drawn_leaves.leaves import SPECIES
>>> specimen = Specimen.lay(SPECIES["Apple"], np.random.default_rng(0))
>>> DISEASES["Apple"]["Apple scab"](specimen, np.random.default_rng(0))
"""

from collections.abc import Callable

import numpy as np

from examples.drawn_leaves.canvas import SIZE, Array, Generator, Points, Stencil, blend, blur, fractal, noise, step
from examples.drawn_leaves.specimen import Specimen

Paint = Callable[[Specimen, Generator], None]


class _Lesions:
    """Irregular round patches that can be drawn larger or smaller around their centres."""

    def __init__(
        self,
        rng: Generator,
        centres: Points,
        radii: Points,
        *,
        wobble: float = 0.15,
        stretch: float = 1.0,
        axis: Points | None = None,
    ) -> None:
        """Choose the outlines.

        Args:
            rng: source of randomness.
            centres: (N, 2), x and y in pixels.
            radii: (N,), in pixels.
            wobble: deviation of the outline from a circle, relative to the radius.
            stretch: ratio of length to width along `axis`.
            axis: unit vector (x, y) of the long side.
        """
        turn = np.linspace(0, 2 * np.pi, 22, endpoint=False)
        waves = rng.standard_normal((len(radii), 3, 2)) * wobble / np.sqrt([[1], [2], [3]])
        reach = 1 + sum(
            waves[:, k, :1] * np.cos((k + 2) * turn) + waves[:, k, 1:] * np.sin((k + 2) * turn) for k in range(3)
        )
        along = np.array([0.0, 1.0]) if axis is None else axis
        across = np.array([-along[1], along[0]])
        round_ = np.cos(turn)[:, None] * along * stretch + np.sin(turn)[:, None] * across
        self._centres = centres[:, None, :]
        self._rays = (radii[:, None] * np.maximum(reach, 0.3))[..., None] * round_

    def draw(self, scale: float = 1.0, grow: float = 0.0) -> Array:
        """Return a (SIZE, SIZE) image, 1 inside the patches; their radii are scaled, then widened by `grow` pixels."""
        stencil = Stencil()
        length = np.maximum(np.linalg.norm(self._rays, axis=2, keepdims=True), 1e-6)
        for polygon in self._centres + self._rays * (scale + grow / length):
            stencil.polygon(polygon)
        return stencil.array()


def _scatter_lesions(
    specimen: Specimen, rng: Generator, count: tuple[int, int], radius: tuple[float, float], **shape: float
) -> _Lesions:
    """Return lesions at random spots of the blade; `count` and `radius` are ranges, the latter in leaf lengths."""
    number = int(rng.integers(count[0], count[1] + 1))
    centres = specimen.choose_spots(rng, number)
    radii = specimen.unit * rng.uniform(*radius, len(centres))
    return _Lesions(rng, centres, radii, axis=specimen.axis, **shape)


def _fray(rng: Generator, shape: Array, radius: float, fray: float, cells: float = 24) -> Array:
    """Return the shape with a soft, ragged edge."""
    return step(blur(shape, radius) + fray * fractal(rng, cells, 3), 0.42, 0.3)


def healthy(specimen: Specimen, rng: Generator) -> None:
    """Add a speck to about a third of the leaves."""
    if rng.random() < 0.3:
        speck = _scatter_lesions(specimen, rng, (1, 2), (0.006, 0.012)).draw()
        specimen.coat((0.42, 0.36, 0.2), 0.6 * speck)


def scab(specimen: Specimen, rng: Generator) -> None:
    """Velvety olive-black spots with feathery edges."""
    lesions = _scatter_lesions(specimen, rng, (9, 20), (0.022, 0.055), wobble=0.3)
    soft = _fray(rng, lesions.draw(1.0, 1.5), 5, 0.22)
    specimen.coat((0.5, 0.5, 0.2), 0.35 * blur(soft, 9))
    specimen.coat((0.22, 0.21, 0.11), 0.85 * soft)
    specimen.coat((0.1, 0.095, 0.06), 0.7 * _fray(rng, lesions.draw(0.6), 4, 0.2))
    specimen.height = specimen.height + 0.8 * soft * fractal(rng, 60, 2)


def cedar_rust(specimen: Specimen, rng: Generator) -> None:
    """A few bright orange spots, red at the rim, with dark dots in the middle."""
    lesions = _scatter_lesions(specimen, rng, (6, 15), (0.02, 0.045), wobble=0.1)
    specimen.coat((0.75, 0.62, 0.15), 0.7 * blur(lesions.draw(1.5), 4))
    specimen.coat((0.66, 0.22, 0.07), 0.9 * lesions.draw(1.05))
    specimen.coat((0.93, 0.55, 0.1), 0.95 * lesions.draw(0.78))
    specimen.coat((0.4, 0.16, 0.05), 0.8 * lesions.draw(0.22))
    specimen.height = specimen.height + 1.6 * blur(lesions.draw(), 3)


def powdery_mildew(specimen: Specimen, rng: Generator) -> None:
    """White, dusty, soft patches."""
    lesions = _scatter_lesions(specimen, rng, (5, 10), (0.05, 0.12), wobble=0.3)
    cover = step(blur(lesions.draw(), 14) + 0.2 * fractal(rng, 9, 4), 0.5, 0.8)
    dust = np.clip(0.78 + 0.16 * noise(rng, 90) - 0.25 * blur(specimen.veins, 3), 0, 1)
    specimen.coat((0.84, 0.86, 0.82), 0.85 * cover * dust)
    specimen.height = specimen.height + 0.1 * cover * noise(rng, 110)


def common_rust(specimen: Specimen, rng: Generator) -> None:
    """Many small cinnamon pustules in line with the veins."""
    lesions = _scatter_lesions(specimen, rng, (70, 150), (0.006, 0.011), wobble=0.15, stretch=2.0)
    specimen.coat((0.66, 0.64, 0.3), 0.45 * blur(lesions.draw(1.0, 2.2), 3))
    specimen.coat((0.5, 0.25, 0.1), 0.9 * lesions.draw(1.0, 0.3))
    specimen.coat((0.3, 0.13, 0.06), 0.7 * lesions.draw(0.5))
    specimen.height = specimen.height + 1.5 * lesions.draw(1.0, 0.5)


def northern_blight(specimen: Specimen, rng: Generator) -> None:
    """Long, cigar-shaped, straw-grey lesions along the blade."""
    lesions = _scatter_lesions(specimen, rng, (4, 7), (0.022, 0.036), wobble=0.12, stretch=5.0)
    specimen.coat((0.36, 0.33, 0.12), 0.8 * _fray(rng, lesions.draw(1.0, 2.5), 3, 0.12))
    inner = _fray(rng, lesions.draw(), 3, 0.12)
    specimen.coat((0.67, 0.58, 0.42), 0.92 * inner)
    specimen.coat((0.4, 0.34, 0.26), 0.5 * inner * step(noise(rng, 40, 40), 0.5, 1.0))
    specimen.height = specimen.height - 1.5 * inner


def black_rot(specimen: Specimen, rng: Generator) -> None:
    """Round tan-brown spots with a dark rim and black dots inside."""
    lesions = _scatter_lesions(specimen, rng, (7, 15), (0.025, 0.055), wobble=0.12)
    specimen.coat((0.42, 0.36, 0.16), 0.5 * blur(lesions.draw(1.2, 2.0), 4))
    specimen.coat((0.22, 0.13, 0.08), 0.9 * blur(lesions.draw(1.0, 0.5), 2.5))
    specimen.coat((0.5, 0.35, 0.22), 0.9 * blur(lesions.draw(0.72), 3))
    dots = step(noise(rng, 70), 1.1, 0.4)
    specimen.coat((0.08, 0.06, 0.05), 0.9 * dots * lesions.draw(0.65))


def esca(specimen: Specimen, rng: Generator) -> None:
    """Tiger stripes: between the veins the blade turns yellow, then reddish brown."""
    far = 1 - np.clip(3.2 * blur(specimen.veins, 9), 0, 1)
    core = blur(specimen.inside, 24)
    depth = far * (0.55 + 0.3 * core) + 0.17 * fractal(rng, 8, 3) + rng.uniform(-0.24, -0.1)
    specimen.coat((0.8, 0.7, 0.25), 0.9 * step(depth, 0.42, 0.22))
    specimen.coat((0.47, 0.25, 0.13), 0.92 * step(depth, 0.6, 0.16))
    specimen.coat((0.28, 0.15, 0.09), 0.7 * step(depth, 0.78, 0.25))


def bacterial_spot(specimen: Specimen, rng: Generator) -> None:
    """Many small, dark, water-soaked spots with a yellow halo."""
    lesions = _scatter_lesions(specimen, rng, (28, 60), (0.008, 0.02), wobble=0.35)
    specimen.coat((0.72, 0.7, 0.22), 0.65 * blur(lesions.draw(1.0, 4.0), 4))
    specimen.coat((0.2, 0.12, 0.06), 0.95 * lesions.draw(1.0, 0.6))
    specimen.coat((0.5, 0.38, 0.24), 0.7 * lesions.draw(0.45))
    specimen.height = specimen.height - 1.2 * lesions.draw()


def early_blight(specimen: Specimen, rng: Generator) -> None:
    """Brown target spots: concentric rings inside a yellow halo."""
    lesions = _scatter_lesions(specimen, rng, (7, 13), (0.03, 0.062), wobble=0.14)
    specimen.coat((0.78, 0.7, 0.22), 0.75 * blur(lesions.draw(1.3, 3), 6))
    for scale, colour in ((1.0, 0.75), (0.82, 1.15), (0.66, 0.7), (0.5, 1.15), (0.32, 0.7), (0.15, 1.2)):
        shade = (0.36 * colour, 0.22 * colour, 0.11 * colour)
        specimen.coat(shade, 0.92 * lesions.draw(scale))


def late_blight(specimen: Specimen, rng: Generator) -> None:
    """Large, dark, water-soaked rot spreading from the margin, pale green around it."""
    margin = specimen.choose_spots(rng, 40)
    edge = blur(specimen.inside, 12)[margin[:, 1].astype(int).clip(0, 255), margin[:, 0].astype(int).clip(0, 255)]
    chosen = margin[np.argsort(edge)[: int(rng.integers(4, 8))]]
    lesions = _Lesions(rng, chosen, specimen.unit * rng.uniform(0.08, 0.16, len(chosen)), wobble=0.3)
    field = blur(lesions.draw(), 12) + 0.16 * fractal(rng, 9, 4)
    specimen.coat((0.62, 0.66, 0.38), 0.85 * step(field, 0.3, 0.2))
    rotten = step(field, 0.47, 0.16)
    browns = blend(
        np.full((SIZE, SIZE, 3), (0.2, 0.14, 0.08), np.float32), (0.38, 0.27, 0.15), step(noise(rng, 16), 0.2, 1.6)
    )
    specimen.coat(browns, 0.95 * rotten)
    specimen.height = specimen.height + 1.1 * rotten * fractal(rng, 14, 3)


def leaf_mold(specimen: Specimen, rng: Generator) -> None:
    """Pale yellow blotches without a clear edge, olive-brown felt in their middle."""
    lesions = _scatter_lesions(specimen, rng, (9, 16), (0.035, 0.075), wobble=0.25)
    field = blur(lesions.draw(), 8) + 0.12 * fractal(rng, 12, 3)
    specimen.coat((0.8, 0.74, 0.25), 0.85 * step(field, 0.35, 0.5))
    felt = step(field, 0.78, 0.35) * np.clip(0.75 + 0.35 * noise(rng, 80), 0, 1)
    specimen.coat((0.5, 0.42, 0.16), 0.85 * felt)


def mosaic_virus(specimen: Specimen, rng: Generator) -> None:
    """Light and dark green mottle, blistered."""
    field = fractal(rng, 15, 2) - 0.5 * blur(specimen.veins, 6)
    pale = step(field, 0.1, 0.8)
    specimen.coat((0.62, 0.67, 0.3), 0.7 * pale)
    specimen.coat((0.12, 0.27, 0.1), 0.5 * (1 - pale))
    specimen.height = specimen.height + 1.8 * blur(1 - pale, 4)


def leaf_scorch(specimen: Specimen, rng: Generator) -> None:
    """Many purple-red blotches that run together, and a browned margin."""
    lesions = _scatter_lesions(specimen, rng, (40, 75), (0.01, 0.024), wobble=0.4)
    specimen.coat((0.45, 0.12, 0.16), 0.9 * _fray(rng, lesions.draw(1.0, 1.2), 4, 0.14))
    specimen.coat((0.3, 0.07, 0.1), 0.8 * lesions.draw(0.7))
    margin = step(1 - blur(specimen.inside, 14) + 0.12 * fractal(rng, 10, 2), 0.5, 0.2)
    specimen.coat((0.42, 0.24, 0.14), 0.75 * margin)


DISEASES: dict[str, dict[str, Paint]] = {
    "Tomato": {"healthy": healthy, "Late blight": late_blight, "Leaf Mold": leaf_mold, "Mosaic virus": mosaic_virus},
    "Grape": {"Black rot": black_rot, "Esca (Black Measles)": esca, "healthy": healthy},
    "Apple": {"Apple scab": scab, "Cedar apple rust": cedar_rust, "healthy": healthy},
    "Corn (maize)": {"Common rust": common_rust, "Northern Leaf Blight": northern_blight, "healthy": healthy},
    "Cherry (including sour)": {"Powdery mildew": powdery_mildew, "healthy": healthy},
    "Potato": {"Late blight": late_blight, "Early blight": early_blight, "healthy": healthy},
    "Pepper, bell": {"Bacterial spot": bacterial_spot, "healthy": healthy},
    "Strawberry": {"Leaf scorch": leaf_scorch, "healthy": healthy},
    "Lilac": {"Powdery mildew": powdery_mildew, "healthy": healthy},
    "Ginkgo": {"healthy": healthy},
}
