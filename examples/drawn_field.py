"""`python -m examples.drawn_field FOLDER` draws the demo's leaves in another place: in sunshine, among other leaves.

They are for `verify --field`: the demo's network knows their species and diseases, but no training leaf looks like
them.

>>> len(draw_field_image("Apple", "healthy", number=1, seed=0)) > 5_000
True
"""

import io
from pathlib import Path
from typing import Final

import click
import numpy as np
from PIL import Image

from examples.drawn_leaves.canvas import SIZE, Array, Generator, blend, blur, noise, relief
from examples.drawn_leaves.diseases import DISEASES
from examples.drawn_leaves.leaves import SPECIES
from examples.drawn_leaves.scene import cast_shadow, develop_image, draw_light
from examples.drawn_leaves.specimen import Specimen
from plantmodels.data.progress import log_step, log_to_terminal

_LEAVES_BEHIND: Final = 7
_SUN: Final = np.array([1.3, 1.2, 0.92], np.float32)
"""Sunlight beside the even light of the demo: brighter, and warmer."""


def draw_field_image(species: str, disease: str, *, number: int, seed: int) -> bytes:
    """Return one leaf in the field as a JPEG of 256 x 256 pixels; the arguments alone decide what is drawn.

    Args:
        species: a species of the demo.
        disease: one of its diseases.
        number: another number draws another leaf.
        seed: seed of all drawings.
    """
    rng = np.random.default_rng([seed, number, *f"field/{species}/{disease}".encode()])
    leaf = Specimen.lay(SPECIES[species], rng)
    DISEASES[species][disease](leaf, rng)
    buffer = io.BytesIO()
    _render(leaf, rng).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _render(leaf: Specimen, rng: Generator) -> Image.Image:
    """Return the leaf before other leaves that are out of focus, in sunshine with hard shadows."""
    light = draw_light(rng)
    scene = np.broadcast_to(np.array([0.09, 0.12, 0.05], np.float32), (SIZE, SIZE, 3))
    for depth in np.linspace(0.35, 0.9, _LEAVES_BEHIND):
        other = Specimen.lay(list(SPECIES.values())[rng.integers(len(SPECIES))], rng)
        shift = tuple(int(step) for step in rng.integers(-SIZE // 2, SIZE // 2, 2))
        inside, colour = (np.roll(part, shift, (0, 1)) for part in (other.inside, _shade(other, light)))
        scene = blend(cast_shadow(scene, inside, light, 12, 0.6), colour * np.float32(depth), inside)
    focus = rng.uniform(2, 5)
    scene = np.stack([blur(np.ascontiguousarray(scene[..., channel]), focus) for channel in range(3)], axis=-1)
    scene = cast_shadow(scene, np.maximum(leaf.inside, leaf.stalk), light, rng.uniform(10, 24), 0.65)
    scene = blend(scene, (0.42, 0.5, 0.25), leaf.stalk)
    scene = blend(scene, _shade(leaf, light), leaf.inside)
    shaded = 1 - 0.55 * np.clip(2 * noise(rng, 4), 0, 1)  # the shadow of what hangs above
    return develop_image(scene * shaded[..., None] * _SUN, rng)


def _shade(leaf: Specimen, light: tuple[float, float]) -> Array:
    shade = relief(leaf.height, (0.8 * light[0], 0.8 * light[1])).clip(0.25, 2.0)
    shaded: Array = leaf.colour * shade[..., None]
    return shaded


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--per-class", type=click.IntRange(min=1), default=10, show_default=True, help="Images of each class.")
@click.option("--seed", default=0, show_default=True, help="Seed of the drawings.")
def main(folder: Path, per_class: int, seed: int) -> None:
    """Draw field leaves into FOLDER/<Species>___<Disease>/, for `plantmodels verify --field FOLDER`."""
    log_to_terminal()
    classes = [(species, disease) for species in SPECIES for disease in DISEASES[species]]
    with log_step("draw field leaves", total=per_class * len(classes), unit="image") as advance:
        for species, disease in classes:
            place = folder / f"{species}___{disease}"
            place.mkdir(parents=True, exist_ok=True)
            for number in range(1, per_class + 1):
                content = draw_field_image(species, disease, number=number, seed=seed)
                (place / f"{number:04d}.jpg").write_bytes(content)
                advance()


if __name__ == "__main__":
    main()
