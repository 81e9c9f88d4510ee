"""The one file in JavaScript, natively and by WASM, answers as in Python."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from plantmodels.bundle.layout import ONE_FILES, PRECISIONS, Precision
from plantmodels.bundle.metadata import read_metadata
from plantmodels.export.one_file.build import write_one_files
from plantmodels.serve.image_input import image_to_input
from plantmodels.serve.session import open_session
from tests.fixtures.javascript import RUNTIMES, answer_in_javascript, count_changed_labels

FP16_RTOL = 2e-5
"""Of the largest value of an output: products are summed in another order."""

INT8_RTOL = 0.1
"""WASM sums otherwise, and a value that rounds to another of 256 steps moves what follows."""


LEAVES = 18
"""Leaves among the images; they come first."""


@pytest.fixture(scope="module")
def bundle(tiny_bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(tiny_bundle.bundle, tmp_path_factory.mktemp("javascript") / "models"))
    write_one_files(folder, read_metadata(folder), PRECISIONS)
    return folder


@pytest.fixture(scope="module")
def images(tiny_bundle) -> np.ndarray:
    """Two leaves of each class and four non-plants as input."""
    preprocessing = read_metadata(tiny_bundle.bundle).preprocessing
    leaves = [path for folder in sorted((tiny_bundle.data / "val").iterdir()) for path in sorted(folder.iterdir())[:2]]
    paths = [*leaves, *sorted(tiny_bundle.non_plants.rglob("*.png"))[::12]]
    return np.stack([image_to_input(path.read_bytes(), preprocessing) for path in paths])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_it_answers_as_in_python(
    bundle: Path, images: np.ndarray, runtime: str, precision: Precision, tmp_path: Path
) -> None:
    session = open_session(bundle / ONE_FILES[precision], options=read_metadata(bundle).session_options, threads=1)
    names = [output.name for output in session.get_outputs()]
    expected = dict(zip(names, session.run(names, {"input": images}), strict=True))
    found = answer_in_javascript(runtime, bundle / ONE_FILES[precision], images, tmp_path)

    assert set(found) == set(expected)
    np.testing.assert_array_equal(found["rejected"].ravel(), expected["rejected"])
    certain = slice(LEAVES) if precision == "int8" else slice(None)  # INT8 says of a non-plant now this, now that
    assert count_changed_labels(*({n: values[certain] for n, values in x.items()} for x in (found, expected))) == 0
    assert set(expected["rejected"]) == {False, True} and -1 in expected["disease_index"]
    rtol = FP16_RTOL if precision == "fp16" else INT8_RTOL
    for name in ("species_logits", "embedding", "disease_logits", "ood_score", "disease_probability"):
        values = expected[name].astype(np.float64)[certain]
        largest = np.abs(values[np.isfinite(values)]).max()
        np.testing.assert_allclose(
            found[name][certain].reshape(values.shape).astype(np.float64),
            values,
            rtol=0,
            atol=rtol * largest,
            err_msg=name,
        )


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_image_that_is_no_number_is_rejected(bundle: Path, runtime: str, tmp_path: Path) -> None:
    images = np.full((1, 3, 224, 224), np.nan, np.float32)
    found = answer_in_javascript(runtime, bundle / ONE_FILES["int8"], images, tmp_path)

    assert found["rejected"].all() and np.isnan(found["ood_score"].astype(float)).all()
    assert np.isnan(found["species_probability"].astype(float)).all()
