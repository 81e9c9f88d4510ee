"""MLflow's pyfunc is pickled and copied by its folder and options, and opened again where it arrives."""

import copy
import pickle
import shutil
from pathlib import Path

import joblib
import mlflow
import pytest

from plantmodels.errors import BundleError


def test_the_pyfunc_is_pickled_copied_and_dumped_by_joblib(model: Path, leaf: bytes, tmp_path: Path) -> None:
    loaded = mlflow.pyfunc.load_model(str(model), model_config={"precision": "fp16", "threads": 1})
    expected = loaded.predict([leaf])
    joblib.dump(loaded, tmp_path / "dumped")
    for again in (pickle.loads(pickle.dumps(loaded)), copy.deepcopy(loaded), joblib.load(tmp_path / "dumped")):
        assert again.predict([leaf]).equals(expected)
        assert again.get_raw_model().precision == "fp16"

    stored = pickle.dumps(loaded)
    shutil.rmtree(model)
    with pytest.raises(BundleError, match="no such folder; a pickled classifier is opened again from the folder"):
        pickle.loads(stored)


def test_processes_of_joblib_answer_alike(saved_model: Path, leaf: bytes) -> None:
    classifier = mlflow.pyfunc.load_model(str(saved_model), model_config={"threads": 1}).get_raw_model()
    rows = joblib.Parallel(n_jobs=2)(joblib.delayed(classifier.predict)([leaf]) for _ in range(2))

    assert rows == [classifier.predict([leaf])] * 2
