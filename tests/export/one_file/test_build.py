"""The one file of the tiny bundle answers as the bundle's three parts do, for any batch and in both precisions."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from plantmodels.bundle.detector import read_detector
from plantmodels.bundle.layout import ONE_FILES, PRECISIONS, Precision
from plantmodels.bundle.metadata import read_metadata
from plantmodels.export.one_file.build import write_one_files
from plantmodels.serve.classifier import PlantClassifier
from plantmodels.serve.image_input import image_to_input
from plantmodels.serve.prediction import Prediction
from plantmodels.serve.session import open_session

ATOL = 1e-6
"""Of probabilities: float32 against float64."""

SCORE_RTOL = 1e-5
"""Of scores: float32 sums in another order."""


@pytest.fixture(scope="module")
def both(tiny_bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with the one file of both precisions."""
    folder = Path(shutil.copytree(tiny_bundle.bundle, tmp_path_factory.mktemp("both") / "models"))
    write_one_files(folder, read_metadata(folder), PRECISIONS)
    return folder


@pytest.fixture(scope="module")
def images(tiny_bundle) -> np.ndarray:
    """A leaf of each class and three non-plants as input."""
    preprocessing = read_metadata(tiny_bundle.bundle).preprocessing
    leaves = [min(folder.iterdir()) for folder in sorted((tiny_bundle.data / "val").iterdir())]
    paths = [*leaves, *sorted(tiny_bundle.non_plants.rglob("*.png"))[:3]]
    return np.stack([image_to_input(path.read_bytes(), preprocessing) for path in paths])


def answer(bundle: Path, precision: Precision, images: np.ndarray) -> dict[str, np.ndarray]:
    session = open_session(bundle / ONE_FILES[precision], options=read_metadata(bundle).session_options, threads=1)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"input": images}), strict=True))


def null_to_nan(rows: list[Prediction], name: str) -> np.ndarray:
    return np.array([np.nan if getattr(row, name) is None else getattr(row, name) for row in rows], np.float64)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_it_answers_as_the_three_parts_do(both: Path, images: np.ndarray, precision: Precision, tiny_bundle) -> None:
    classifier = PlantClassifier.load(tiny_bundle.bundle, precision=precision, threads=1)
    outputs, rows = classifier.run(images), classifier.predict(list(images))
    found = answer(both, precision, images)

    exact = np.testing.assert_array_equal if precision == "int8" else np.testing.assert_allclose
    exact(found["species_logits"], outputs.species_logits)
    exact(found["embedding"], outputs.embedding)
    exact(found["disease_logits"], outputs.disease_logits)
    np.testing.assert_array_equal(found["species_index"], outputs.species_index)
    np.testing.assert_allclose(found["ood_score"], outputs.ood_scores, rtol=SCORE_RTOL)
    np.testing.assert_array_equal(found["rejected"], [row.rejected for row in rows])
    np.testing.assert_allclose(found["ood_p_value"], null_to_nan(rows, "ood_p_value"), rtol=ATOL)
    for name in ("species_probability", "disease_probability", "disease_given_species_probability"):
        np.testing.assert_allclose(found[name], null_to_nan(rows, name), rtol=0, atol=ATOL)
    diseases = json.loads(onnx.load(both / ONE_FILES[precision]).metadata_props[1].value)
    named = [
        diseases[species][disease] if disease >= 0 else None
        for species, disease in zip(found["species_index"], found["disease_index"], strict=True)
    ]
    assert named == [row.disease for row in rows]
    assert None in named and len(set(found["rejected"])) == 2, "a species without diseases, and both decisions"


def test_an_int8_answer_has_the_same_bits_in_any_batch(both: Path, images: np.ndarray) -> None:
    together = answer(both, "int8", images)
    for place in (0, 7):
        alone = answer(both, "int8", images[place : place + 1])
        for name, values in alone.items():
            np.testing.assert_array_equal(together[name][place : place + 1], values, err_msg=name)


def test_its_properties_name_classes_and_preprocessing(both: Path) -> None:
    metadata = read_metadata(both)
    session = ort.InferenceSession(both / ONE_FILES["int8"], providers=["CPUExecutionProvider"])
    properties = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}

    assert properties["species"] == list(metadata.taxonomy.species)
    assert properties["diseases"] == [list(metadata.taxonomy.diseases_of(i)) for i in range(5)]
    assert properties["class_order_digest"] == metadata.taxonomy.digest
    assert properties["preprocessing"]["image_size"] == metadata.preprocessing.image_size
    assert properties["threshold"] == read_detector(both / "ood-detector.pkl").threshold
    assert properties["prediction_contract"] == 2


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_image_that_is_no_number_is_rejected_and_leaves_its_neighbours_alone(
    both: Path, images: np.ndarray, precision: Precision
) -> None:
    batch = images[:3].copy()
    batch[1] = np.nan
    found, clean = answer(both, precision, batch), answer(both, precision, images[:3])

    assert np.isnan(found["species_logits"][1]).all() and np.isnan(found["ood_score"][1]) and found["rejected"][1]
    assert np.isnan(found["species_probability"][1]) and np.isnan(found["disease_probability"][1])
    assert 0 <= found["species_index"][1] < 5
    for name, values in clean.items():
        np.testing.assert_allclose(found[name][[0, 2]], values[[0, 2]], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((1, 3, 100, 100), np.float32), ((3, 224, 224), np.float32), ((1, 3, 224, 224), np.float64)]
)
def test_another_shape_or_type_is_refused_by_the_runtime(both: Path, shape: tuple[int, ...], dtype: type) -> None:
    session = open_session(both / ONE_FILES["int8"], threads=1)
    with pytest.raises(InvalidArgument, match=r"invalid dimensions|Invalid rank|Unexpected input data type"):
        session.run(None, {"input": np.zeros(shape, dtype)})
