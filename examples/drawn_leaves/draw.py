"""Draws a small data set by contract 2: leaves of ten species, healthy and ill, and pictures without a plant.

A picture depends on the seed and on its own place (split, class, number) alone, so it is the same whatever else
is drawn. Nothing is left behind by a run that was broken off but a folder whose name begins with `.drawing-`.

>>> draw_dataset(Path(".demo"), train_per_class=60, val_per_class=20, non_plants=200, seed=0)  # doctest: +SKIP
>>> sorted(path.name for path in Path(".demo/data").iterdir())  # doctest: +SKIP
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
"""Species to disease names, both in logit order."""

_QUALITY: Final = 90
_PROCESSES: Final = 2
_WORTH_PROCESSES: Final = 150
"""Below this many pictures, starting processes takes longer than it saves."""


def draw_picture(place: str, *, seed: int) -> bytes:
    """Draws one picture of the data set.

    Args:
        place: its path below the data set, `data/<split>/<Species>___<Disease>/<number>.jpg` or
            `non_plants/<source>/<number>.jpg`.
        seed: of the whole data set.

    Returns:
        JPEG file, 256 x 256 pixels.

    Raises:
        KeyError: a species, disease or source that is not drawn.
    """
    rng = np.random.default_rng([seed, zlib.crc32(place.encode())])
    kind = Path(place).parent.name
    if place.startswith(f"{NON_PLANTS_FOLDER}/"):
        image = SOURCES[kind](rng)
    else:
        species, _, disease = kind.partition("___")
        specimen = Specimen.lay(SPECIES[species], rng)
        DISEASES[species][disease](specimen, rng)
        image = specimen.photograph(rng)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def draw_dataset(folder: Path, *, train_per_class: int, val_per_class: int, non_plants: int, seed: int) -> None:
    """Draws `folder/data` and `folder/non_plants`; both appear only when all pictures are there.

    Args:
        folder: made if it is not there.
        train_per_class: pictures of each species and disease in `data/train`.
        val_per_class: the same in `data/val`.
        non_plants: pictures without a plant, spread evenly over all sources.
        seed: another seed draws other pictures.

    Raises:
        ValueError: a number below 1.
        DataError: `folder` already holds `data` or `non_plants`, or cannot be written.
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
            raise DataError(f"{folder / name}: is there already; expected a folder without it to draw into")
    places = [*_leaf_places("train", train_per_class), *_leaf_places("val", val_per_class), *_other_places(non_plants)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".drawing-", dir=folder) as scratch:
            _draw_all(Path(scratch), places, seed)
            for name in (DATA_FOLDER, NON_PLANTS_FOLDER):
                os.replace(Path(scratch) / name, folder / name)
    except OSError as error:
        raise DataError(f"{folder}: the data set cannot be written there ({error})") from error


def clear_drawings(folder: Path) -> None:
    """Removes what `draw_dataset` made in a folder, whole or half-finished; nothing else."""
    for path in (folder / DATA_FOLDER, folder / NON_PLANTS_FOLDER, *folder.glob(".drawing-*")):
        shutil.rmtree(path, ignore_errors=True)


def _leaf_places(split: str, per_class: int) -> Iterator[str]:
    for species, diseases in TAXONOMY.items():
        for disease in diseases:
            for number in range(1, per_class + 1):
                yield f"{DATA_FOLDER}/{split}/{species}___{disease}/{number:04d}.jpg"


def _other_places(total: int) -> Iterator[str]:
    sources = list(SOURCES)
    for position in range(total):
        number, source = divmod(position, len(sources))
        yield f"{NON_PLANTS_FOLDER}/{sources[source]}/{number + 1:04d}.jpg"


def _draw_all(root: Path, places: list[str], seed: int) -> None:
    for parent in sorted({(root / place).parent for place in places}):
        parent.mkdir(parents=True)
    tasks = [(root, place, seed) for place in places]
    with log_step("draw images", total=len(tasks), unit="image") as advance:
        if len(tasks) < _WORTH_PROCESSES:
            for task in tasks:
                _draw_one(task)
                advance()
            return
        with multiprocessing.get_context("spawn").Pool(_PROCESSES) as pool:
            for _ in pool.imap_unordered(_draw_one, tasks, chunksize=16):
                advance()


def _draw_one(task: tuple[Path, str, int]) -> None:
    root, place, seed = task
    (root / place).write_bytes(draw_picture(place, seed=seed))
