"""`plantmodels-registry remeasure`: the same images give the same report, and a report about other answers is found."""

import dataclasses
import shutil
from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner, Result

from mlflow_plugins import flavor
from mlflow_plugins.checking.remeasure import compare_rows
from mlflow_plugins.cli import main
from plantmodels.bundle.layout import IMAGES_FILE
from plantmodels.report.per_image import read_image_rows

NAME = "plants"


def register(bundle: Path, embedded_mlflow: str) -> None:
    mlflow.set_registry_uri(f"plantmodels:{embedded_mlflow}")
    with mlflow.start_run():
        info = flavor.log_model(bundle, name="m")
    mlflow.register_model(info.model_uri, NAME)


def remeasure(version: str, data: Path, non_plants: Path) -> Result:
    return CliRunner().invoke(main, ["remeasure", NAME, version, "--data", str(data), "--non-plants", str(non_plants)])


@pytest.mark.slow
def test_a_true_report_is_found_again_and_another_label_is_not(
    verified_bundle: Path, tiny_bundle, tmp_path: Path, embedded_mlflow: str
) -> None:
    register(verified_bundle, embedded_mlflow)
    result = remeasure("1", tiny_bundle.data, tiny_bundle.non_plants)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"models:/{NAME}/1 was measured again\n\ngate ")
    assert result.stdout.endswith("same: every image is in the report, with these answers\n")

    data = Path(shutil.copytree(tiny_bundle.data, tmp_path / "data"))
    mint = data / "val" / "Mint___unlabelled"
    shutil.copy(data / "val" / "Blueberry___healthy" / "leaf 900.jpg", mint / "leaf 900.jpg")
    shutil.move(mint / "leaf 901.png", mint / "new.png")
    result = remeasure("1", data, tiny_bundle.non_plants)
    assert result.exit_code == 1
    assert "differs: 1 images have other answers: val val/Mint___unlabelled/leaf 900.jpg: " in result.stdout
    assert (
        "differs: 1 images of the report were not measured now: val val/Mint___unlabelled/leaf 901.png\n"
        in result.stdout
    )
    assert "differs: 1 images are not in the report: val val/Mint___unlabelled/new.png\n" in result.stdout


def test_a_version_without_a_report_cannot_be_compared(tiny_bundle, embedded_mlflow: str) -> None:
    register(tiny_bundle.bundle, embedded_mlflow)
    result = remeasure("1", tiny_bundle.data, tiny_bundle.non_plants)
    assert result.exit_code == 1
    assert f"models:/{NAME}/1: holds no gate-report.json, so there is nothing to compare with" in result.stderr


def test_wrong_paths_are_errors_before_anything_is_copied(tiny_bundle, tmp_path: Path) -> None:
    mlflow.search_experiments()  # makes the database: without one, that is the error
    for data, non_plants, match in (
        (tmp_path, tiny_bundle.non_plants, "val: no such folder"),
        (tiny_bundle.data, tmp_path / "none", "none: no such folder of non-plants"),
    ):
        result = remeasure("1", data, non_plants)
        assert result.exit_code == 1
        assert match in result.stderr


class TestRows:
    @pytest.fixture
    def rows(self, verified_bundle: Path):
        return read_image_rows(verified_bundle / IMAGES_FILE)

    def test_rounding_is_no_difference(self, rows) -> None:
        shifted = [dataclasses.replace(row, ood_score=row.ood_score * 1.0001) for row in rows]
        assert compare_rows(rows, shifted) == ((), (), ())

    @pytest.mark.parametrize(
        ("field", "value"), [("int8_species", "Fig"), ("rejected", None), ("ood_score", 1e9), ("species", "Fig")]
    )
    def test_any_other_value_is_a_difference(self, rows, field: str, value: object) -> None:
        value = not rows[3].rejected if value is None else value
        changed = (*rows[:3], dataclasses.replace(rows[3], **{field: value}), *rows[4:])
        (line,), absent, added = compare_rows(rows, changed)
        assert f"{rows[3].name}: {field} is {value!r}, the report says " in line
        assert absent == added == ()

    def test_images_of_one_side_are_named(self, rows) -> None:
        assert compare_rows(rows, rows[1:]) == ((), (f"val {rows[0].name}",), ())
        assert compare_rows(rows[:-1], rows) == ((), (), (f"non-plants {rows[-1].name}",))
