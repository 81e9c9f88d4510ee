"""`predict` on many images: folders, patterns and tables in, files of scores out."""

import csv
import json
import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from plantmodels.cli import main
from plantmodels.cli.bulk import check_output, find_images
from plantmodels.errors import DataError
from plantmodels.serve.classifier import PlantClassifier


def run(*arguments: object):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_folder_is_scored_as_the_classifier_does(tiny_bundle, tmp_path: Path, suffix: str) -> None:
    images = Path(shutil.copytree(tiny_bundle.data / "val" / "Mint___unlabelled", tmp_path / "images"))
    (images / "bad.jpg").write_bytes(b"")
    output = tmp_path / f"scores{suffix}"
    result = run("predict", images, "--bundle", tiny_bundle.bundle, "--output", output, "--top-k", 2)

    assert result.exit_code == 0 and f"{output}: 6 images; 1 bad, " in result.output
    if suffix == ".csv":
        rows = list(csv.DictReader(output.read_text().splitlines()))
    elif suffix == ".jsonl":
        rows = [json.loads(line) for line in output.read_text().splitlines()]
    else:
        rows = pq.read_table(output).to_pylist()
    native = PlantClassifier.load(tiny_bundle.bundle, allow_paths=True).predict(sorted(images.iterdir()))
    assert [row["path"] for row in rows] == sorted(map(str, images.iterdir()))
    assert [row["species"] or None for row in rows] == [prediction.species for prediction in native]
    assert rows[0]["error"] == "zero bytes: expected an encoded image" or rows[0]["error"] == native[0].error


def test_patterns_and_tables_are_images_too(tiny_bundle, tmp_path: Path) -> None:
    leaf = min((tiny_bundle.data / "val").glob("*/*.jpg"))
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    column = pa.array([{"bytes": leaf.read_bytes(), "path": "a.jpg"}, None], kind)
    pq.write_table(pa.table({"image": column}), tmp_path / "images.parquet")
    pattern = tiny_bundle.data / "val" / "*" / "leaf 900.jpg"
    result = run("predict", pattern, tmp_path / "images.parquet", "--bundle", tiny_bundle.bundle)

    rows = [json.loads(line) for line in result.output.splitlines() if line.startswith("{")]
    assert result.exit_code == 0 and len(rows) == 9 + 2
    assert [row["path"] for row in rows[-2:]] == [f"{tmp_path}/images.parquet:{i}" for i in range(2)]
    assert rows[-2]["error"] is None and rows[-1]["error"] == "the image is missing (null)"


def test_a_folder_of_parquet_is_read_and_a_damaged_file_is_one_line(tiny_bundle, tmp_path: Path) -> None:
    leaves = [path.read_bytes() for path in sorted((tiny_bundle.data / "val").glob("*/*.jpg"))]
    (tmp_path / "set" / "data").mkdir(parents=True)
    for part in ("train", "test"):
        pq.write_table(pa.table({"image": leaves}), tmp_path / "set" / "data" / f"{part}.parquet", compression=None)
    found = find_images([tmp_path / "set"])
    assert (found.count, len(list(found.images))) == (2 * len(leaves), 2 * len(leaves))

    table = tmp_path / "set" / "data" / "test.parquet"
    content = bytearray(table.read_bytes())
    content[4:40] = bytes(36)
    table.write_bytes(content)
    result = run("predict", table, "--bundle", tiny_bundle.bundle, "--output", tmp_path / "scores.csv")
    assert result.exit_code == 1 and "test.parquet: damaged after row 0 (" in result.output, result.output
    assert not (tmp_path / "scores.csv").exists()


def test_nothing_answered_is_exit_status_1(tiny_bundle, tmp_path: Path) -> None:
    assert run("predict", tmp_path / "absent.jpg", "--bundle", tiny_bundle.bundle).exit_code == 1
    result = run("predict", "x.jpg", "--bundle", tiny_bundle.bundle, "--output", tmp_path / "scores.xlsx")
    assert result.exit_code == 1 and "scores are written as .csv, .jsonl, .parquet" in result.output
    assert not list(tmp_path.iterdir())


def test_parquet_without_pyarrow_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"a \.parquet file needs pyarrow; the extra parquet brings it: pip install"):
        check_output(tmp_path / "scores.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").touch()
    with pytest.raises(DataError, match=r"a \.parquet file needs pyarrow"):
        find_images([tmp_path / "a.parquet"])


def test_places_without_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    for place, match in (
        (tmp_path, "holds no image to classify"),
        (tmp_path / "*.jpg", "no file matches this pattern"),
    ):
        with pytest.raises(DataError, match=match):
            find_images([place])
    pq.write_table(pa.table({"x": [1]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="expected a column image, got x"):
        find_images([tmp_path / "a.parquet"])
