import io
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image

from examples.drawn_leaves.draw import TAXONOMY as DRAWN
from examples.drawn_leaves.draw import draw_image
from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.data.leaves import read_leaves
from plantmodels.data.non_plants import read_non_plants
from plantmodels.report.leakage import Leak
from plantmodels.report.per_image import ImageRow
from plantmodels.report.statistics import Proportion
from plantmodels.verify.leakage import LeakageRun, measure_leakage, read_training_leaves

TAXONOMY = Taxonomy(("Oak", "Sage"), {"Sage": ("healthy", "rust")})
LEAF = next(f"{species}___{diseases[0]}" for species, diseases in DRAWN.items())
FOLDERS = ("Oak___any", "Sage___healthy", "Sage___rust")


@dataclass
class Data:
    """Two drawn validation leaves and two training leaves of every class, and two non-plants."""

    root: Path
    drawn: int = field(default=0)

    @property
    def leaves(self) -> Path:
        return self.root / "data"

    @property
    def non_plants(self) -> Path:
        return self.root / "non_plants"

    def draw(self, path: Path) -> None:
        self.drawn += 1
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(draw_image(f"data/val/{LEAF}/{self.drawn:04d}.jpg", seed=1))

    def search(self, others: bool = True) -> LeakageRun:
        leaves = read_leaves(self.leaves, "val", TAXONOMY)
        train = read_training_leaves(self.leaves, TAXONOMY)
        assert train is not None
        rows = [make_row(path.relative_to(self.leaves).as_posix()) for path in leaves.paths]
        return measure_leakage(
            leaves.samples, rows, train, read_non_plants(self.non_plants) if others else None, TAXONOMY
        )


def make_row(name: str) -> ImageRow:
    source = name.split("/")[1].replace("Oak___any", "Oak")
    return ImageRow("val", source, name, "", "", "", "", "", "", "", "", 0.5, 0.0, False)


def summarize(leaks: Sequence[Leak]) -> list[tuple[str, str, str, str]]:
    return [(leak.name, leak.kind, leak.twin.set, leak.twin.name) for leak in leaks]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Data:
    made = Data(tmp_path)
    for folder in FOLDERS:
        for split in ("train", "val"):
            for number in (1, 2):
                made.draw(made.leaves / split / folder / f"{number}.jpg")
    for number in (1, 2):
        made.draw(made.non_plants / "rocks" / f"{number}.jpg")
    return made


def encode_anew(source: Path, target: Path) -> None:
    image = Image.open(io.BytesIO(source.read_bytes()))
    image.resize((180, 180)).save(target, "JPEG", quality=60)


def test_different_images_are_no_leaks(data: Data) -> None:
    run = data.search()
    assert run.leakage.leaks == () and run.pairs == ()
    assert run.leakage.compared == {"val": 6, "train": 6, "non-plants": 2}
    assert run.leakage.share == 0.0
    assert run.leakage.crossing is not None and run.leakage.crossing.groups == 0
    assert data.search(others=False).leakage.compared["non-plants"] == 0


def test_a_training_image_is_found_whatever_its_class_and_encoding(data: Data) -> None:
    val, train = data.leaves / "val", data.leaves / "train"
    shutil.copy(val / "Oak___any" / "1.jpg", train / "Sage___rust" / "copy.jpg")
    encode_anew(val / "Sage___rust" / "2.jpg", train / "Sage___rust" / "again.jpg")
    run = data.search()
    assert summarize(run.leakage.leaks) == [
        ("val/Oak___any/1.jpg", "identical", "train", "train/Sage___rust/copy.jpg"),
        ("val/Sage___rust/2.jpg", "visually the same", "train", "train/Sage___rust/again.jpg"),
    ]
    assert run.leakage.share == 2 / 6
    assert [path.name for pair in run.pairs for path in pair] == ["1.jpg", "copy.jpg", "2.jpg", "again.jpg"]
    assert [(leak.source, leak.twin.source) for leak in run.leakage.leaks] == [
        ("Oak", "Sage___rust"),
        ("Sage___rust", "Sage___rust"),
    ]


def test_one_image_with_two_labels_is_two_leaks_and_one_twice_in_its_class_is_none(data: Data) -> None:
    val = data.leaves / "val"
    shutil.copy(val / "Sage___rust" / "1.jpg", val / "Sage___healthy" / "two labels.jpg")
    shutil.copy(val / "Sage___rust" / "2.jpg", val / "Sage___rust" / "twice.jpg")
    assert summarize(data.search().leakage.leaks) == [
        ("val/Sage___healthy/two labels.jpg", "identical", "val", "val/Sage___rust/1.jpg"),
        ("val/Sage___rust/1.jpg", "identical", "val", "val/Sage___healthy/two labels.jpg"),
    ]


def test_a_plant_among_the_non_plants_is_found(data: Data) -> None:
    encode_anew(data.leaves / "val" / "Oak___any" / "2.jpg", data.non_plants / "rocks" / "green.jpg")
    leaks = data.search().leakage.leaks
    assert summarize(leaks) == [("val/Oak___any/2.jpg", "visually the same", "non-plants", "rocks/green.jpg")]
    assert leaks[0].twin.source == "rocks"


def test_an_image_is_named_once_with_its_most_similar_twin(data: Data) -> None:
    image = data.leaves / "val" / "Oak___any" / "1.jpg"
    encode_anew(image, data.leaves / "train" / "Oak___any" / "again.jpg")
    shutil.copy(image, data.non_plants / "rocks" / "copy.jpg")
    assert summarize(data.search().leakage.leaks) == [
        ("val/Oak___any/1.jpg", "identical", "non-plants", "rocks/copy.jpg")
    ]


def test_groups_that_are_in_train_and_val_are_named_in_the_rows_and_counted(data: Data) -> None:
    val, train = data.leaves / "val", data.leaves / "train"
    for split, number in ((val, 1), (train, 2)):
        film = split / "Sage___rust" / "group=film 3"
        film.mkdir()
        (split / "Sage___rust" / f"{number}.jpg").rename(film / f"{number}.jpg")
    (val / "Oak___any" / "group=val only").mkdir()
    (val / "Oak___any" / "1.jpg").rename(val / "Oak___any" / "group=val only" / "1.jpg")
    encode_anew(val / "Sage___healthy" / "1.jpg", val / "Sage___healthy" / "again.jpg")
    shutil.copy(val / "Sage___healthy" / "1.jpg", train / "Sage___healthy" / "copy.jpg")
    run = data.search()
    shared = {row.name: row.group for row in run.rows if row.group}
    assert set(shared) == {
        "val/Sage___healthy/1.jpg",
        "val/Sage___healthy/again.jpg",
        "val/Sage___rust/group=film 3/1.jpg",
    }
    assert shared["val/Sage___rust/group=film 3/1.jpg"] == "Sage/film 3"
    assert shared["val/Sage___healthy/1.jpg"] == shared["val/Sage___healthy/again.jpg"]
    assert run.leakage.crossing is not None
    assert (run.leakage.crossing.groups, run.leakage.crossing.leaves) == (2, Proportion(3, 7))
    assert run.leakage.crossing.without.species.images == 4


def test_an_image_that_cannot_be_decoded_is_compared_by_its_bytes(data: Data) -> None:
    for split in ("train", "val"):
        (data.leaves / split / "Oak___any" / "broken.jpg").write_bytes(b"\xff\xd8 broken")
    assert [leak.name for leak in data.search().leakage.leaks] == ["val/Oak___any/broken.jpg"]


def test_without_training_leaves_nothing_is_compared_and_a_warning_says_why(
    data: Data, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(data.leaves / "train")
    with caplog.at_level(logging.WARNING):
        assert read_training_leaves(data.leaves, TAXONOMY) is None
    assert "the gate leakage cannot be measured: " in caplog.text and "train" in caplog.text
