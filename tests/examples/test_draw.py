import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from examples import drawn_field
from examples.drawn_leaves import draw
from examples.drawn_leaves.canvas import SIZE
from examples.drawn_leaves.diseases import DISEASES
from examples.drawn_leaves.draw import TAXONOMY, clear_drawings, draw_dataset, draw_image
from examples.drawn_leaves.leaves import SPECIES
from examples.drawn_leaves.objects import SOURCES
from examples.drawn_leaves.specimen import Specimen
from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.data.leaves import read_field_leaves, read_leaves
from plantmodels.data.non_plants import read_non_plants
from plantmodels.errors import DataError
from plantmodels.serve.preprocessing import decode_image

CLASSES = [(species, disease) for species, diseases in TAXONOMY.items() for disease in diseases]
ILL = [(species, disease) for species, disease in CLASSES if disease != "healthy"]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "new"
    draw_dataset(folder, train_per_class=1, val_per_class=1, non_plants=8, seed=3)
    return folder


def test_names_are_awkward_and_counts_varied():
    assert len(TAXONOMY) >= 8
    assert {len(diseases) for diseases in TAXONOMY.values()} == {1, 2, 3, 4}
    assert "Pepper, bell" in TAXONOMY and "Cherry (including sour)" in TAXONOMY
    assert list(TAXONOMY) != sorted(TAXONOMY), "a sorted order would hide code that sorts"
    assert len(set(Taxonomy(tuple(TAXONOMY), TAXONOMY).slugs)) == len(TAXONOMY)


def test_leaves_follow_contract_2(drawn: Path):
    taxonomy = Taxonomy(tuple(TAXONOMY), TAXONOMY)
    for split in ("train", "val"):
        leaves = read_leaves(drawn / "data", split, taxonomy)
        found = {(s.species_index, s.disease_index) for s in leaves.samples}
        assert len(leaves.samples) == len(found) == len(CLASSES)
        assert all(decode_image(path.read_bytes()).size == (SIZE, SIZE) for path in leaves.paths)


def test_non_plants_come_from_all_sources(drawn: Path):
    others = read_non_plants(drawn / "non_plants")
    assert len(others.paths) == 8
    assert {others.source_of(path) for path in others.paths} == set(SOURCES)


def test_only_the_two_folders_are_left(drawn: Path):
    assert sorted(path.name for path in drawn.iterdir()) == ["data", "non_plants"]


def test_an_image_depends_only_on_seed_and_place(drawn: Path, tmp_path: Path):
    draw_dataset(tmp_path, train_per_class=2, val_per_class=1, non_plants=6, seed=3)
    same = [path.relative_to(drawn) for path in drawn.rglob("0001.jpg")]
    assert len(same) == 2 * len(CLASSES) + 6
    for place in same:
        assert (tmp_path / place).read_bytes() == (drawn / place).read_bytes(), place
    place = "data/val/Grape___Black rot/0001.jpg"
    assert draw_image(place, seed=3) == (drawn / place).read_bytes()
    assert draw_image(place, seed=4) != draw_image(place, seed=3)
    assert draw_image(place.replace("val", "train"), seed=3) != draw_image(place, seed=3)


def test_processes_draw_the_same(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(draw, "_MIN_IMAGES_FOR_PROCESSES", 1)
    draw_dataset(tmp_path, train_per_class=1, val_per_class=1, non_plants=8, seed=3)
    for path in drawn.rglob("*.jpg"):
        assert (tmp_path / path.relative_to(drawn)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(("species", "disease"), ILL)
def test_a_disease_is_visible_and_stays_on_the_leaf(species: str, disease: str):
    for seed in range(3):
        specimen = Specimen.lay(SPECIES[species], np.random.default_rng(seed))
        before = np.asarray(specimen.render(np.random.default_rng(9)), np.float32)
        DISEASES[species][disease](specimen, np.random.default_rng(seed))
        after = np.asarray(specimen.render(np.random.default_rng(9)), np.float32)
        change = np.abs(after - before).max(axis=2)
        outside = specimen.inside == 0
        assert change[outside].max() == 0
        assert (change[specimen.inside > 0.5] > 25).mean() > 0.02


def test_a_healthy_leaf_is_nearly_unmarked():
    specimen = Specimen.lay(SPECIES["Apple"], np.random.default_rng(0))
    colour = specimen.colour.copy()
    DISEASES["Apple"]["healthy"](specimen, np.random.default_rng(2))
    assert (np.abs(specimen.colour - colour).max(axis=2) > 0.1).mean() < 0.005


@pytest.mark.parametrize("species", SPECIES)
def test_a_leaf_fills_a_fair_part_of_the_image(species: str):
    for seed in range(4):
        inside = Specimen.lay(SPECIES[species], np.random.default_rng(seed)).inside
        assert 0.1 < inside.mean() < 0.6


def test_existing_data_is_never_written_over(tmp_path: Path):
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match=r"data: exists already"):
        draw_dataset(tmp_path, train_per_class=1, val_per_class=1, non_plants=1, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_run_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(draw, "draw_image", lambda place, seed: b"" if "train" in place else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        draw_dataset(tmp_path, train_per_class=1, val_per_class=1, non_plants=1, seed=0)
    assert list(tmp_path.iterdir()) == []


def test_unwritable_folder_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file: the data set cannot be written there"):
        draw_dataset(tmp_path / "file", train_per_class=1, val_per_class=1, non_plants=1, seed=0)


@pytest.mark.parametrize("name", ["train_per_class", "val_per_class", "non_plants"])
def test_numbers_below_one_are_refused(tmp_path: Path, name: str):
    numbers = {"train_per_class": 1, "val_per_class": 1, "non_plants": 1, name: 0}
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        draw_dataset(tmp_path, **numbers, seed=0)


def test_clearing_removes_drawings_only(tmp_path: Path):
    for name in ("data/train", "non_plants", ".drawing-x", "mine"):
        (tmp_path / name).mkdir(parents=True)
    clear_drawings(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_non_plants_are_not_told_by_colour_alone():
    def greenness(place: str) -> float:
        red, green, blue = np.asarray(decode_image(draw_image(place, seed=0)), np.float32).mean(axis=(0, 1))
        return float(green - (red + blue) / 2)

    leaves = [greenness(f"data/val/Apple___Apple scab/{k:04d}.jpg") for k in range(9)]
    others = [greenness(f"non_plants/{source}/{k:04d}.jpg") for source in SOURCES for k in range(4)]
    assert max(others) > np.median(leaves)


def test_drawing_needs_no_framework():
    code = (
        "import sys, examples.drawn_leaves.draw, examples.drawn_leaves.prepare, examples.drawn_leaves.__main__\n"
        "loaded = {'torch', 'timm', 'mlflow', 'scipy', 'onnx'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {loaded}' if loaded else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_a_field_leaf_depends_on_seed_class_and_number_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = drawn_field.draw_field_image("Ginkgo", "healthy", number=1, seed=0)
    assert drawn_field.draw_field_image("Ginkgo", "healthy", number=1, seed=0) == first
    monkeypatch.setattr(drawn_field, "draw_field_image", lambda *_, **__: first)
    drawn_field.main([str(tmp_path), "--per-class", "2"], standalone_mode=False)

    taxonomy = Taxonomy(tuple(TAXONOMY), TAXONOMY)
    assert len(read_field_leaves(tmp_path, taxonomy).samples) == 2 * sum(map(len, TAXONOMY.values()))
