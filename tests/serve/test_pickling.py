"""A classifier that is pickled or copied is opened again from the very same files."""

import base64
import copy
import pickle
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from plantmodels.errors import BundleError, ImageError, ManifestMismatchError
from plantmodels.serve.classifier import PlantClassifier
from plantmodels.serve.preprocessing import decode_image, read_file


@pytest.fixture(scope="module")
def leaf(tiny_bundle) -> bytes:
    return min((tiny_bundle.data / "val").glob("*/*.jpg")).read_bytes()


def test_a_classifier_is_pickled_by_its_folder(bundle_copy: Path, leaf: bytes) -> None:
    classifier = PlantClassifier.load(bundle_copy, precision="fp16", threads=1, allow_paths=True)
    expected = classifier.predict([leaf])
    for again in (pickle.loads(pickle.dumps(classifier)), copy.deepcopy(classifier)):
        assert (again.precision, again.allow_paths) == ("fp16", True) and again.predict([leaf]) == expected
    stored = pickle.dumps(classifier)
    (bundle_copy / "ood-detector.pkl").write_bytes(b"other")
    with pytest.raises(ManifestMismatchError, match=r"ood-detector\.pkl"):
        pickle.loads(stored)
    shutil.rmtree(bundle_copy)
    with pytest.raises(BundleError, match="no such folder; a pickled classifier is opened again from the folder"):
        pickle.loads(stored)


def test_base64_in_every_common_form(leaf: bytes) -> None:
    plain, safe = base64.b64encode(leaf).decode(), base64.urlsafe_b64encode(leaf).decode()
    expected = decode_image(leaf).tobytes()
    for text in (
        plain,
        safe,
        safe.rstrip("="),
        plain.rstrip("="),
        f"data:image/jpeg;base64,{plain}",
        f"DATA:;base64,{safe}",
    ):
        assert decode_image(text).tobytes() == decode_image(text.encode()).tobytes() == expected
    with pytest.raises(ImageError, match="not base64 of an image"):
        decode_image("data:image/jpeg;base64,!!")


def test_a_folder_is_not_called_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="a folder, expected an image file"):
        read_file(tmp_path)


@pytest.mark.parametrize(
    "missing", [None, float("nan"), np.float32("nan"), pd.NA, pd.NaT, {"bytes": None, "path": "a.jpg"}]
)
def test_null_is_called_missing(tiny_bundle, missing: object) -> None:
    (answer,) = PlantClassifier.load(tiny_bundle.bundle, threads=1).predict([missing])
    assert answer.error == "the image is missing (null)"
