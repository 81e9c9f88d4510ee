"""The page's preprocessing equals `plantmodels.serve.preprocessing` to the last bit, on the same decoded pixels."""

import json
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plantmodels.bundle.metadata import INTERPOLATIONS, RECIPES, Interpolation, Preprocessing
from plantmodels.serve.preprocessing import preprocess

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parents[1] / "page" / "src"

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES = ((256, 256), (64, 64), (640, 480), (479, 641), (1000, 37), (33, 1000), (16, 16), (701, 700), (1201, 800))

pytestmark = pytest.mark.skipif(not shutil.which("node"), reason="node is not installed")


def draw_pixels(width: int, height: int) -> Image.Image:
    """Noise over slopes: every filter overshoots at its edges, so that clipping is tried as well."""
    rng = np.random.default_rng(width * 10_007 + height)
    slopes = np.add.outer(np.arange(height) * 3, np.arange(width) * 2)[..., None] % (251, 256, 239)
    noise = rng.choice([0, 40, 255], (height, width, 3), p=[0.2, 0.6, 0.2])
    return Image.fromarray(np.where(rng.random((height, width, 1)) < 0.5, slopes, noise).astype(np.uint8))


def run_in_node(images: list[Image.Image], settings: list[Preprocessing], folder: Path) -> list[np.ndarray]:
    lines = []
    for number, (image, preprocessing) in enumerate(zip(images, settings, strict=True)):
        file = folder / f"{number}.rgba"
        file.write_bytes(image.convert("RGBA").tobytes())
        case = {"width": image.width, "height": image.height, "file": str(file)}
        lines.append(json.dumps(case | {"preprocessing": asdict(preprocessing)}))
    command = ["node", str(HERE / "preprocess.mjs"), str(SOURCES)]
    ran = subprocess.run(command, input="\n".join(lines).encode(), capture_output=True, check=False)
    assert ran.returncode == 0, ran.stderr.decode()
    sides = [preprocessing.image_size for preprocessing in settings]
    values = np.split(np.frombuffer(ran.stdout, np.float32), np.cumsum([3 * side**2 for side in sides])[:-1])
    return [value.reshape(3, side, side) for value, side in zip(values, sides, strict=True)]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_the_networks_input_is_equal_bit_for_bit(interpolation: Interpolation, recipe: int, tmp_path: Path) -> None:
    images, settings = [], []
    for size in SIZES:
        side, crop = ((64, 1.0), (224, 0.875), (25, 0.9))[len(images) % 3]
        images.append(draw_pixels(*size))
        settings.append(Preprocessing(side, MEAN, STD, interpolation, crop, recipe))

    found = run_in_node(images, settings, tmp_path)

    for image, preprocessing, value in zip(images, settings, found, strict=True):
        expected = preprocess(image, preprocessing)
        assert np.array_equal(value, expected), f"{image.size} {preprocessing}: {abs(value - expected).max()}"
