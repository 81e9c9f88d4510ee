"""Parquet files with images, as Hugging Face writes them, as leaves."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.data.inputs import check_data, is_image_table
from plantmodels.data.leaves import digest_leaves, list_classes, read_field_leaves, read_leaves
from plantmodels.errors import DataError

NAMES = ["Mint___unlabelled", "Blueberry___healthy"]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write_table(
    path: Path, images: list[object], labels: list[object], names: list[str] | None = NAMES, **more
) -> Path:
    """A Parquet file as `Dataset.to_parquet` writes it."""
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    metadata = {} if names is None else {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    table = pa.table({"image": pa.array(images, IMAGE), "label": labels, **more}).replace_schema_metadata(metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


@pytest.fixture
def images(tiny_data: Path) -> list[dict[str, object]]:
    """Three images of the class Mint and one of Blueberry."""
    files = [*sorted((tiny_data / "val" / NAMES[0]).iterdir())[:3], min((tiny_data / "val" / NAMES[1]).iterdir())]
    return [{"bytes": path.read_bytes(), "path": path.name} for path in files]


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"),
        ("default/train/0000.parquet", "default/val/0000.parquet"),
        ("train.parquet", "dev.parquet"),
        ("train/0.parquet", "val/0.parquet"),
    ],
)
def test_shards_in_every_layout_are_labelled_leaves(tmp_path: Path, tiny_taxonomy, images, train, val) -> None:
    for root in (tmp_path / "a", tmp_path / "b"):
        write_table(root / train, images, [0, 0, 0, 1])
        write_table(root / val, images[3:], [1])
        (root / "README.md").touch()
    check_data(tmp_path / "a", "train", "val")
    leaves = read_leaves(tmp_path / "a", "train", tiny_taxonomy)

    assert [path.read_bytes() for path in leaves.paths] == [image["bytes"] for image in images]
    assert [sample.species_index for sample in leaves.samples] == [2, 2, 2, 3]
    assert read_leaves(tmp_path / "a", "val", tiny_taxonomy).samples[0].disease_index == 0
    assert digest_leaves(leaves) == digest_leaves(read_leaves(tmp_path / "b", "train", tiny_taxonomy))
    assert list_classes(tmp_path / "a").species == ("Blueberry", "Mint")


def test_one_file_may_have_a_column_split_and_labels_as_text(tmp_path: Path, tiny_taxonomy, images) -> None:
    splits = ["train", "validation", "test", "train"]
    path = write_table(tmp_path / "all.parquet", images, [*[NAMES[0]] * 3, NAMES[1]], None, split=splits)

    leaves = read_leaves(path, "train", tiny_taxonomy)
    assert [file.read_bytes() for file in leaves.paths] == [images[0]["bytes"], images[3]["bytes"]]
    assert [file.stem for file in leaves.paths] == ["0000000", "0000003"], "the row's number"
    assert len(read_leaves(path, "val", tiny_taxonomy).samples) == 1


def test_columns_species_and_disease_and_plain_bytes_will_do(tmp_path: Path, tiny_taxonomy, images) -> None:
    table = {"image": [images[0]["bytes"]], "species": ["Mint"], "disease": [None], "split": ["train"]}
    pq.write_table(
        pa.table(table, pa.schema([(n, pa.binary() if n == "image" else pa.string()) for n in table])),
        tmp_path / "a.parquet",
    )

    assert read_leaves(tmp_path / "a.parquet", "train", tiny_taxonomy).samples[0].species_index == 2


def test_an_image_beside_the_file_is_read_and_a_missing_one_is_unreadable(tmp_path, tiny_taxonomy, images) -> None:
    (tmp_path / "a.png").write_bytes(images[0]["bytes"])
    rows = [{"bytes": None, "path": "a.png"}, {"bytes": None, "path": "gone.png"}, None]
    write_table(tmp_path / "train.parquet", rows, [0, 0, 0])

    leaves = read_leaves(tmp_path, "train", tiny_taxonomy)
    assert [path.stat().st_size for path in leaves.paths] == [len(images[0]["bytes"]), 0, 0]


def test_a_manifest_in_parquet_and_leaf_folders_are_none(tmp_path: Path, tiny_data: Path) -> None:
    assert not is_image_table(tiny_data) and not is_image_table(tmp_path) and not is_image_table(tmp_path / "gone")


@pytest.mark.parametrize(
    ("name", "labels", "names", "match"),
    [
        ("all.parquet", [0], NAMES, "all.parquet: cannot tell its split; expected a column split, or a name such as"),
        ("train.parquet", [5], NAMES, "label 5 has no name; expected text, or a number below 2"),
        ("train.parquet", [0], None, "label 0 has no name"),
        ("train.parquet", [None], NAMES, "label None has no name"),
        ("train.parquet", [0], ["Fig___rot"], "class 'Fig___rot' is not in the checkpoint"),
    ],
)
def test_tables_that_say_too_little_are_refused(tmp_path, tiny_taxonomy: Taxonomy, images, name, labels, names, match):
    path = write_table(tmp_path / name, images[:1], labels, names)

    with pytest.raises(DataError, match=match):
        read_leaves(path, "train", tiny_taxonomy)


def test_tables_without_images_or_labels_are_refused(tmp_path: Path, tiny_taxonomy: Taxonomy, images) -> None:
    pq.write_table(pa.table({"image": ["text"], "label": ["x"]}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match="expected a column 'image' of encoded images, got image string, label string"):
        read_leaves(tmp_path, "train", tiny_taxonomy)
    pq.write_table(pa.table({"image": pa.array(images, IMAGE)}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match="expected a column label with the names of the classes, or columns species"):
        read_leaves(tmp_path, "train", tiny_taxonomy)
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="neither a folder nor a CSV or Parquet manifest"):
        read_leaves(tmp_path, "train", tiny_taxonomy)


def test_field_leaves_are_all_rows_of_all_files(tmp_path: Path, tiny_taxonomy, images) -> None:
    for name in ("orchard.parquet", "train.parquet"):
        write_table(tmp_path / "field" / name, images, [0, 0, 0, 1])
    leaves = read_field_leaves(tmp_path / "field", tiny_taxonomy)

    assert [sample.species_index for sample in leaves.samples] == [2, 2, 2, 3] * 2
    write_table(tmp_path / "field" / "val.parquet", images, [0, 0, 0, 1], split=["val"] * 4)
    with pytest.raises(DataError, match=r"val.parquet: field leaves have no split, but the table has a column split"):
        read_field_leaves(tmp_path / "field", tiny_taxonomy)
