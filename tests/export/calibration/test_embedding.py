"""The embeddings that an export fits and calibrates on: images of a group have one number, so no fold cuts it."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from plantmodels.bundle.metadata import read_metadata
from plantmodels.checkpoint.reading import read_checkpoint
from plantmodels.data import groups
from plantmodels.data.digests import hash_to_fraction
from plantmodels.errors import DetectorError
from plantmodels.export.calibration.embedding import embed_images
from plantmodels.export.inputs import read_inputs
from plantmodels.ood import select
from tests.fixtures.bundles import TinyBundle


def first_leaf(folder: Path) -> Path:
    return min(path for path in folder.iterdir() if path.name.startswith("leaf"))


@pytest.fixture
def data(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A private copy of the leaves: one is there again turned and once under another name, two are of one plant."""
    monkeypatch.setattr(groups, "MAX_DISTANCE", 12)  # small drawings of one class are more alike than leaves are
    data = Path(shutil.copytree(tiny_data, tmp_path / "data"))
    place = data / "train" / "Mint___unlabelled"
    first = first_leaf(place)
    others = sorted(path for path in place.iterdir() if path != first)
    with Image.open(first) as image:
        image.convert("RGB").rotate(90, expand=True).save(place / "turned.png")
    shutil.copy(first, place / f"copied{first.suffix}")
    (place / "group=plant 1").mkdir()
    for path in others[:2]:
        path.rename(place / "group=plant 1" / path.name)
    return data


def test_leaves_and_non_plants_that_belong_together_have_one_number(
    tiny_bundle: TinyBundle, data: Path, tmp_path: Path
) -> None:
    non_plants = Path(shutil.copytree(tiny_bundle.non_plants, tmp_path / "others"))
    first = sorted(path for path in non_plants.rglob("*") if path.is_file())[0]
    name = next(name for name in ("film", "street", "wall", "shelf") if hash_to_fraction(name) < 0.5)
    film = first.parent / f"group={name}"
    film.mkdir()
    for number in range(4):
        shutil.copy(first, film / f"{number}{first.suffix}")
    inputs = read_inputs(read_checkpoint(tiny_bundle.checkpoint), data, non_plants, 0)
    embedded = embed_images(tiny_bundle.bundle, inputs, read_metadata(tiny_bundle.bundle))

    numbered = embedded.fit.embeddings.groups
    number_of = {sample.path: group for sample, group in zip(embedded.fit.samples, numbered.tolist(), strict=True)}
    place = data / "train" / "Mint___unlabelled"
    shown_again = [first_leaf(place), *place.glob("turned.*"), *place.glob("copied.*")]
    together = [[number_of[path] for path in paths] for paths in (shown_again, place.glob("group=plant 1/*"))]
    assert [(len(numbers), len(set(numbers))) for numbers in together] == [(3, 1), (2, 1)]
    assert len(set(numbered.tolist())) == len(embedded.fit.samples) - 3
    others = embedded.non_plants
    assert len(others.groups) == len(others.outputs)
    numbers = [
        n for path, n in zip(inputs.selection.paths, others.groups.tolist(), strict=True) if film in path.parents
    ]
    assert (len(numbers), len(set(numbers))) == (4, 1)


def test_one_plant_of_which_all_leaves_are_is_an_error_before_the_long_work(
    tiny_bundle: TinyBundle, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(select, "MIN_FIT_IMAGES", 180)

    with pytest.raises(DetectorError, match=r"data: groups go whole into a fold .* of 182 training images in 179 grou"):
        read_inputs(read_checkpoint(tiny_bundle.checkpoint), data, None, 0)
