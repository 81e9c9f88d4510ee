"""Draw a small data set as contract 2 describes it: leaves of ten species, healthy and ill, and images without a plant.

An image depends only on the seed and on its own place (split, class and number), so it stays the same whatever else is
drawn. An interrupted run leaves at most a folder whose name begins with `.drawing-`.

>>> draw_dataset(tmp, train_per_class=1, val_per_class=1, non_plants=6, seed=0)
>>> sorted(path.name for path in (tmp / "data").iterdir())
['train', 'val']
"""

import io
import multiprocessing
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from examples.drawn_leaves.diseases import DISEASES
from examples.drawn_leaves.leaves import SPECIES
from examples.drawn_leaves.objects import SOURCES
from examples.drawn_leaves.specimen import Specimen
from plantmodels.data.progress import log_step
from plantmodels.errors import DataError

DATA_FOLDER: Final = "data"
NON_PLANTS_FOLDER: Final = "non_plants"
TAXONOMY: Final = {species: tuple(DISEASES[species]) for species in SPECIES}
"""Disease names of each species; species and diseases are in logit order."""

_QUALITY: Final = 90
_PROCESSES: Final = 2
_MIN_IMAGES_FOR_PROCESSES: Final = 150
"""Starting processes pays off from this many images on."""


def draw_image(place: str, *, seed: int) -> bytes:
    """Draw one image of the data set.

    Args:
        place: path of the image in the data set, `data/<split>/<Species>___<Disease>/<number>.jpg` or
            `non_plants/<source>/<number>.jpg`.
        seed: seed of the whole data set.

    Returns:
        Content of a JPEG file of 256 x 256 pixels.

    Raises:
        KeyError: if the data set has no such species, disease or source.
    """
    rng = np.random.default_rng([seed, zlib.crc32(place.encode())])
    kind = Path(place).parent.name
    if place.startswith(f"{NON_PLANTS_FOLDER}/"):
        image = SOURCES[kind](rng)
    else:
        species, _, disease = kind.partition("___")
        specimen = Specimen.lay(SPECIES[species], rng)
        DISEASES[species][disease](specimen, rng)
        image = specimen.render(rng)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def draw_dataset(folder: Path, *, train_per_class: int, val_per_class: int, non_plants: int, seed: int) -> None:
    """Draw `folder/data` and `folder/non_plants`; both appear only when all images are complete.

    Args:
        folder: folder of the data set, which is created if it is missing.
        train_per_class: number of images of each class in `data/train`.
        val_per_class: number of images of each class in `data/val`.
        non_plants: number of images without a plant, spread evenly over all sources.
        seed: seed of all images.

    Raises:
        ValueError: if a number is below 1.
        DataError: if `folder` already holds `data` or `non_plants`, or cannot be written.
    """
    for name, value in (
        ("train_per_class", train_per_class),
        ("val_per_class", val_per_class),
        ("non_plants", non_plants),
    ):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    for name in (DATA_FOLDER, NON_PLANTS_FOLDER):
        if (folder / name).exists():
            raise DataError(f"{folder / name}: exists already; choose a folder without it")
    places = [
        *_list_leaf_places("train", train_per_class),
        *_list_leaf_places("val", val_per_class),
        *_list_non_plant_places(non_plants),
    ]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".drawing-", dir=folder) as unfinished:
            _draw_all(Path(unfinished), places, seed)
            for name in (DATA_FOLDER, NON_PLANTS_FOLDER):
                os.replace(Path(unfinished) / name, folder / name)
    except OSError as error:
        raise DataError(f"{folder}: the data set cannot be written there ({error})") from error


def clear_drawings(folder: Path) -> None:
    """Remove what `draw_dataset` made in a folder, complete or unfinished, and nothing else."""
    for path in (folder / DATA_FOLDER, folder / NON_PLANTS_FOLDER, *folder.glob(".drawing-*")):
        shutil.rmtree(path, ignore_errors=True)


def _list_leaf_places(split: str, per_class: int) -> Iterator[str]:
    for species, diseases in TAXONOMY.items():
        for disease in diseases:
            for number in range(1, per_class + 1):
                yield f"{DATA_FOLDER}/{split}/{species}___{disease}/{number:04d}.jpg"


def _list_non_plant_places(total: int) -> Iterator[str]:
    sources = list(SOURCES)
    for position in range(total):
        number, source = divmod(position, len(sources))
        yield f"{NON_PLANTS_FOLDER}/{sources[source]}/{number + 1:04d}.jpg"


def _draw_all(root: Path, places: list[str], seed: int) -> None:
    for parent in sorted({(root / place).parent for place in places}):
        parent.mkdir(parents=True)
    tasks = [(root, place, seed) for place in places]
    with log_step("draw images", total=len(tasks), unit="image") as advance:
        if len(tasks) < _MIN_IMAGES_FOR_PROCESSES:
            for task in tasks:
                _draw_one(task)
                advance()
            return
        with multiprocessing.get_context("spawn").Pool(_PROCESSES) as pool:
            for _ in pool.imap_unordered(_draw_one, tasks, chunksize=16):
                advance()


def _draw_one(task: tuple[Path, str, int]) -> None:
    root, place, seed = task
    (root / place).write_bytes(draw_image(place, seed=seed))
