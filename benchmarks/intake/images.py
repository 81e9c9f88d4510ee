"""Images for the benchmarks of many files: copies of a person's, or small drawn ones."""

import io
import os
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from PIL import Image

from plantmodels.data.listing import list_images


def copy_images(source: Path, target: Path, count: int) -> None:
    """Fill a folder with `count` images: those of another folder, as often as needed."""
    target.mkdir(parents=True)
    paths = list_images(source).paths
    for number, path in enumerate(islice(cycle(paths), count)):
        (target / f"{number:06d}{path.suffix}").write_bytes(path.read_bytes())


def draw_data_set(root: Path, count: int) -> None:
    """Write leaf folders with `count` small images in 50 classes, and a tenth as many non-plants in 10 sources.

    Each image has noise of its own, so that no two are the same.
    """
    random = np.random.default_rng(0)
    places = [root / "data" / "train" / f"Species {i // 5}___disease {i % 5}" for i in range(50)]
    others = [root / "non_plants" / f"source {i}" for i in range(10)]
    for folders, number in ((places, count), (others, count // 10)):
        for folder in folders:
            folder.mkdir(parents=True)
        for index in range(number):
            write_image(folders[index % len(folders)] / f"{index:06d}.jpg", random)
    for place in places:
        val = root / "data" / "val" / place.name
        val.mkdir(parents=True)
        write_image(val / "0.jpg", random)


def write_image(path: Path, random: np.random.Generator) -> None:
    """Write one image of 48 pixels, about 1.5 KB."""
    pixels = random.integers(0, 255, (6, 6, 3), np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).resize((48, 48)).save(content, "JPEG")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content.getvalue())
