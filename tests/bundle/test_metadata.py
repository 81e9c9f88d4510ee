"""`onnx-metadata.json` and `disease-heads-list.json`: round trip, and every way in which they can disagree."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plantmodels.bundle.calibration import CalibrationRecord
from plantmodels.bundle.layout import HEADS_LIST_FILE, METADATA_FILE
from plantmodels.bundle.metadata import Metadata, Preprocessing, read_metadata, write_metadata
from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.errors import BundleError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture
def metadata(tiny_taxonomy: Taxonomy) -> Metadata:
    return Metadata(
        taxonomy=tiny_taxonomy,
        preprocessing=Preprocessing(224, MEAN, STD, "bilinear", 0.9),
        embedding_dim=32,
        session_options={"session.set_denormal_as_zero": "1"},
        models={
            "swin-species-int8.onnx": {"precision": "int8", "rows_per_run": 1},
            "swin-species.onnx": {"precision": "fp16", "rows_per_run": None},
        },
        provenance={"seed": 3, "git_commit": None},
        versions={"torch": "2.12.1"},
        cpu={"architecture": "x86_64", "features": ["avx2"]},
        species_temperature=0.79,
        disease_temperature=2.5,
        calibration=CalibrationRecord("val", 120, {"Mint": 120, "Rose": 0}, "a reason", ("0" * 64,)),
    )


@pytest.fixture
def folder(tmp_path: Path, metadata: Metadata) -> Path:
    write_metadata(tmp_path, metadata)
    return tmp_path


def edit_json(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


def test_round_trip(folder: Path, metadata: Metadata) -> None:
    again = read_metadata(folder)

    assert again == metadata
    assert again.to_dict() == metadata.to_dict()
    assert again.rows_per_run("int8") == 1
    assert again.rows_per_run("fp16") is None


def test_metadata_of_format_1_do_not_say_what_calibrated(folder: Path) -> None:
    edit_json(folder / METADATA_FILE, lambda d: (d.pop("calibration"), d.update(format_version=1)))

    assert read_metadata(folder).calibration is None


def test_metadata_from_before_there_were_temperatures_have_1(folder: Path, metadata: Metadata) -> None:
    edit_json(folder / METADATA_FILE, lambda d: (d.pop("species_temperature"), d.pop("disease_temperature")))

    again = read_metadata(folder)
    assert (again.species_temperature, again.disease_temperature) == (1.0, 1.0)
    assert replace(again, species_temperature=0.79, disease_temperature=2.5) == metadata


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_a_temperature_is_finite_and_positive(metadata: Metadata, value: float) -> None:
    with pytest.raises(ValueError, match=r"disease_temperature must be a number from .* to 1000, got"):
        replace(metadata, disease_temperature=value)


def test_heads_list_follows_contract_3(folder: Path) -> None:
    heads = json.loads((folder / HEADS_LIST_FILE).read_text())

    assert list(heads) == ["0", "1", "3", "4"]  # Mint, species 2, has no head
    assert heads["0"] == {
        "file": "disease-heads/pepper-bell-int8.onnx",
        "species": "Pepper,_bell",
        "slug": "pepper-bell",
        "diseases": ["Bacterial_spot", "healthy"],
    }
    assert heads["4"]["species"] == "Aloe sp. 2"


def swap_species(document: dict[str, Any]) -> None:
    species = document["taxonomy"]["species"]
    species[0], species[1] = species[1], species[0]


def swap_diseases(document: dict[str, Any]) -> None:
    document["taxonomy"]["diseases"]["Pepper,_bell"].reverse()


@pytest.mark.parametrize("edit", [swap_species, swap_diseases])
def test_a_changed_class_order_does_not_fit_the_digest(folder: Path, edit) -> None:
    edit_json(folder / METADATA_FILE, edit)

    with pytest.raises(BundleError, match=r"class_order_digest '[0-9a-f]{64}' does not fit the taxonomy"):
        read_metadata(folder)


@pytest.mark.parametrize("edit", [swap_species, swap_diseases])
def test_a_changed_class_order_with_its_digest_does_not_fit_the_heads_list(folder: Path, edit) -> None:
    edit_json(folder / METADATA_FILE, edit)
    taxonomy = Taxonomy.from_dict(json.loads((folder / METADATA_FILE).read_text())["taxonomy"])
    edit_json(folder / METADATA_FILE, lambda document: document.update(class_order_digest=taxonomy.digest))

    with pytest.raises(BundleError, match=r"disease-heads-list.json: species id 0 is .* onnx-metadata.json says"):
        read_metadata(folder)


@pytest.mark.parametrize(
    ("edit", "species_id"),
    [
        (lambda heads: heads["1"]["diseases"].reverse(), "1"),
        (lambda heads: heads.update({"0": heads["1"], "1": heads["0"]}), "0"),
        (lambda heads: heads.pop("3"), "3"),
        (lambda heads: heads.update({"2": heads["0"]}), "2"),
        (lambda heads: heads.update({"17": heads["0"]}), "17"),
        (lambda heads: heads["0"].update(file="disease-heads/blueberry-int8.onnx"), "0"),
        (lambda heads: heads["0"].update(file="../../outside.onnx"), "0"),
        (lambda heads: heads["4"].update(slug="aloe"), "4"),
        (lambda heads: heads["4"].update(extra=1), "4"),
        (lambda heads: heads.update({"4": None}), "4"),
    ],
)
def test_a_heads_list_that_disagrees_is_refused(folder: Path, edit, species_id: str) -> None:
    edit_json(folder / HEADS_LIST_FILE, edit)

    with pytest.raises(BundleError, match=rf"disease-heads-list.json: species id {species_id} is"):
        read_metadata(folder)


def test_absent_documents_are_refused(folder: Path) -> None:
    (folder / HEADS_LIST_FILE).unlink()
    with pytest.raises(BundleError, match=r"disease-heads-list.json: cannot be read"):
        read_metadata(folder)
    (folder / METADATA_FILE).unlink()
    with pytest.raises(BundleError, match=r"onnx-metadata.json: cannot be read"):
        read_metadata(folder)


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (lambda d: d.update(format_version=4), "format_version 4, this code reads 1 to 3"),
        (lambda d: d.update(calibration=5), "calibration: expected an object with source, images, .*, got 5"),
        (lambda d: d["calibration"].update(source="test"), "calibration.source: expected one of .*, got 'test'"),
        (lambda d: d["calibration"].update(sha256=["ab"]), "calibration: sha256 must be digests of 64 .*, got 'ab'"),
        (lambda d: d["calibration"].update(images=0, sha256=["0" * 64]), "calibration: sha256 has 1 digests of 0"),
        (lambda d: d.pop("format_version"), "format_version None"),
        (lambda d: d.update(format_version=True), "format_version True"),
        (lambda d: d.pop("taxonomy"), "'taxonomy' must be an object"),
        (lambda d: d.update(models=[]), "'models' must be an object"),
        (
            lambda d: d["session_options"].update({"session.model_external_initializers_file_folder_path": "/"}),
            "session option 'session.model_external_initializers_file_folder_path' is refused",
        ),
        (lambda d: d.update(session_options="fast"), "'session_options' must be an object, got 'fast'"),
        (lambda d: d["taxonomy"].pop("species"), 'needs "species"'),
        (lambda d: d["taxonomy"]["species"].append("Mint"), "'Mint' is named more than once"),
        (lambda d: d["taxonomy"]["diseases"].update(Fig=["rot"]), "given for 'Fig'"),
        (lambda d: d.pop("class_order_digest"), "class_order_digest None does not fit"),
        (lambda d: d.update(embedding_dim=0), "embedding_dim must be a positive integer, got 0"),
        (lambda d: d.update(embedding_dim=32.0), "embedding_dim must be a positive integer, got 32.0"),
        (lambda d: d.update(embedding_dim=True), "embedding_dim must be a positive integer, got True"),
        (
            lambda d: d["preprocessing"].update(image_size="224"),
            "image_size must be an integer from 1 to 2048",
        ),
        (lambda d: d["preprocessing"].update(image_size=100_000), "image_size must be .*, got 100000"),
        (lambda d: d["preprocessing"].update(image_size=True), "image_size must be an integer"),
        (lambda d: d["preprocessing"].update(mean=[0.5, 0.5]), "mean must be three finite numbers"),
        (lambda d: d["preprocessing"].update(mean=0.5), "onnx-metadata.json"),
        (lambda d: d["preprocessing"].update(mean=["a", "b", "c"]), "mean must be three finite numbers"),
        (lambda d: d["preprocessing"].update(mean=[0, 0, 10**400]), "mean must be three finite numbers"),
        (lambda d: d["preprocessing"].update(std=[0.5, 0, 0.5]), "std must be positive"),
        (lambda d: d["preprocessing"].update(std=[0.5, -1, 0.5]), "std must be positive"),
        (lambda d: d["preprocessing"].update(interpolation="cubic"), "interpolation must be one of nearest"),
        (lambda d: d["preprocessing"].update(interpolation=None), "interpolation must be one of"),
        (lambda d: d["preprocessing"].update(crop_pct=0), "crop_pct must be"),
        (lambda d: d["preprocessing"].update(crop_pct=1.1), "crop_pct must be"),
        (lambda d: d["preprocessing"].update(crop_pct=1e-6), "crop_pct must be"),
        (lambda d: d["preprocessing"].update(crop_pct="1"), "crop_pct must be"),
        (lambda d: d["preprocessing"].update(gamma=2), "unexpected keyword argument 'gamma'"),
        (lambda d: d["preprocessing"].pop("std"), "missing 1 required positional argument: 'std'"),
        (
            lambda d: d["models"].update({"swin-species-int8.onnx": 5}),
            "'swin-species-int8.onnx' must be an object",
        ),
        (lambda d: d["models"]["swin-species-int8.onnx"].update(rows_per_run="1"), "rows_per_run .* got '1'"),
        (lambda d: d["models"]["swin-species-int8.onnx"].update(rows_per_run=0), "rows_per_run .* got 0"),
        (
            lambda d: d["models"]["swin-species-int8.onnx"].update(rows_per_run=True),
            "rows_per_run .* got True",
        ),
        (lambda d: d.update(species_temperature=0), "species_temperature must be a number from 0.001 to 1000, got 0"),
        (lambda d: d.update(disease_temperature=-1.5), "disease_temperature must be a number from .*, got -1.5"),
        (lambda d: d.update(species_temperature=1e4), "species_temperature must be a number from .*, got 10000.0"),
        (lambda d: d.update(species_temperature=True), "species_temperature must be a number from .*, got True"),
        (lambda d: d.update(disease_temperature=None), "disease_temperature must be a number from .*, got None"),
        (lambda d: d.update(disease_temperature="1"), "disease_temperature must be a number from .*, got '1'"),
    ],
)
def test_wrong_values_are_refused(folder: Path, edit, match: str) -> None:
    edit_json(folder / METADATA_FILE, edit)

    with pytest.raises(BundleError, match=match):
        read_metadata(folder)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"image_size": 0}, "image_size must be an integer from 1 to 2048, got 0"),
        ({"mean": (float("nan"), 0, 0)}, "mean must be three finite numbers"),
        ({"std": (1, 1, float("inf"))}, "std must be three finite numbers"),
        ({"crop_pct": float("nan")}, "crop_pct must be"),
        ({"recipe": 3}, "recipe must be one of 1, 2, got 3"),
        ({"recipe": True}, "recipe must be one of 1, 2, got True"),
    ],
)
def test_preprocessing_checks_its_values(values: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Preprocessing(**{"image_size": 224, "mean": MEAN, "std": STD, **values})


def test_an_older_bundle_keeps_the_recipe_that_reads_every_pixel(folder: Path) -> None:
    assert read_metadata(folder).preprocessing.recipe == 2
    edit_json(folder / METADATA_FILE, lambda document: document["preprocessing"].pop("recipe"))
    assert read_metadata(folder).preprocessing.recipe == 1


def test_rows_per_run_of_a_model_that_is_not_described_is_unlimited(metadata: Metadata) -> None:
    assert Metadata(**{**vars(metadata), "models": {}}).rows_per_run("int8") is None
