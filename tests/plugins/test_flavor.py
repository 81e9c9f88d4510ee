import base64
import json
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import pandas as pd
import pytest

from mlflow_plugins import flavor
from plantmodels.bundle.manifest import write_manifest
from plantmodels.errors import BundleError, ManifestMismatchError
from plantmodels.serve.classifier import PlantClassifier

COLUMNS = [
    "species",
    "species_index",
    "species_probability",
    "disease",
    "disease_probability",
    "ood_score",
    "rejected",
    "error",
]


@pytest.fixture
def model(verified_bundle: Path, leaf: bytes, tmp_path: Path) -> Path:
    flavor.save_model(verified_bundle, tmp_path / "model", input_example=leaf)
    return tmp_path / "model"


def test_pyfunc_gives_the_rows_of_the_native_classifier(model: Path, verified_bundle: Path, leaf: bytes) -> None:
    rows = mlflow.pyfunc.load_model(str(model)).predict(pd.DataFrame({"image": [leaf, b"", leaf]}))
    native = PlantClassifier.load(verified_bundle).predict([leaf, b"", leaf])
    assert list(rows.columns) == COLUMNS
    for row, prediction in zip(rows.to_dict("records"), native, strict=True):
        assert row == {name: getattr(prediction, name) for name in COLUMNS}
    assert rows["error"].tolist() == [None, "zero bytes: expected an encoded image", None]
    assert rows.loc[1, COLUMNS[:-1]].tolist() == [None] * 7


def test_columns_and_types_do_not_depend_on_the_images(model: Path, leaf: bytes) -> None:
    loaded = mlflow.pyfunc.load_model(str(model))
    frames = [loaded.predict(pd.DataFrame({"image": images})) for images in ([leaf], [b"no image"], [leaf, b""])]
    assert all(
        list(frame.columns) == COLUMNS and {str(kind) for kind in frame.dtypes} == {"object"} for frame in frames
    )
    assert {type(frames[0].loc[0, name]) for name in ("species_probability", "ood_score")} == {float}


def test_params_add_candidates_and_embedding(model: Path, leaf: bytes) -> None:
    loaded = mlflow.pyfunc.load_model(str(model))
    rows = loaded.predict(pd.DataFrame({"image": [leaf, b"x"]}), params={"top_k": 3, "return_embedding": True})
    assert list(rows.columns) == [*COLUMNS, "candidates", "embedding"]
    candidates = rows.loc[0, "candidates"]
    assert candidates[0]["species"] == rows.loc[0, "species"] and len(candidates) == 3
    assert len(rows.loc[0, "embedding"]) == 32 and rows.loc[1, "embedding"] is None


def test_on_error_raise_names_the_image(model: Path, leaf: bytes) -> None:
    with pytest.raises(Exception, match="image 1: not an image"):
        mlflow.pyfunc.load_model(str(model)).predict(
            pd.DataFrame({"image": [leaf, b"no image"]}), params={"on_error": "raise"}
        )


def test_base64_bytes_are_read_as_the_scoring_server_sends_them(model: Path, leaf: bytes) -> None:
    loaded = mlflow.pyfunc.load_model(str(model))
    plain, encoded = (loaded.predict(pd.DataFrame({"image": [image]})) for image in (leaf, base64.b64encode(leaf)))
    pd.testing.assert_frame_equal(plain, encoded)


def test_signature_example_and_requirements_travel_with_the_model(model: Path, leaf: bytes) -> None:
    description = mlflow.models.Model.load(model)
    assert description.signature == flavor.SIGNATURE
    assert description.load_input_example(str(model))["image"].tolist() == [leaf]
    names = {line.split("==")[0] for line in (model / "requirements.txt").read_text().split()}
    assert names == {"mlflow", "numpy", "onnxruntime", "pandas", "pillow"}


def test_only_serving_code_travels(model: Path) -> None:
    code = {path.relative_to(model / "code").as_posix() for path in (model / "code").rglob("*.py")}
    assert {name.rsplit("/", 1)[0] for name in code} == {
        "plantmodels",
        "plantmodels/bundle",
        "plantmodels/serve",
        "mlflow_plugins",
    }
    assert not list(model.rglob("__pycache__"))


def test_model_loads_with_its_own_code_where_this_project_is_not(model: Path, leaf: bytes, tmp_path: Path) -> None:
    script = """
import json, sys, mlflow, pandas, pathlib
model = mlflow.pyfunc.load_model(sys.argv[1])
row = model.predict(pandas.DataFrame({"image": [pathlib.Path(sys.argv[2]).read_bytes()]})).to_dict("records")[0]
import plantmodels
print(json.dumps([plantmodels.__file__, row, [n for n in ("torch", "timm", "onnx") if n in sys.modules]]))
"""
    (tmp_path / "leaf.jpg").write_bytes(leaf)
    command = [sys.executable, "-c", script, str(model), str(tmp_path / "leaf.jpg")]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    file, row, building_libraries = json.loads(run.stdout.splitlines()[-1])
    assert Path(file).is_relative_to(model / "code") and building_libraries == []
    assert row["error"] is None and row["species"]


def test_changed_bundle_is_neither_saved_nor_loaded(
    model: Path, verified_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = next((model / flavor.BUNDLE_FOLDER / "disease-heads").iterdir())
    head.write_bytes(head.read_bytes()[:-1])
    monkeypatch.setattr("plantmodels.serve.classifier.open_session", lambda *_, **__: pytest.fail("a session opened"))
    with pytest.raises(ManifestMismatchError, match=head.name):
        mlflow.pyfunc.load_model(str(model))
    damaged = Path(shutil.copytree(verified_bundle, tmp_path / "damaged"))
    (damaged / "swin-species.onnx").unlink()
    with pytest.raises(ManifestMismatchError, match=r"missing: swin-species\.onnx"):
        flavor.save_model(damaged, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_native_loader_takes_a_uri_and_a_precision(verified_bundle: Path, leaf: bytes) -> None:
    with mlflow.start_run():
        info = flavor.log_model(verified_bundle, name="leaves")
    fp16 = flavor.load_model(info.model_uri, precision="fp16", threads=1)
    assert fp16.precision == "fp16" and fp16.predict([leaf])[0].error is None


def test_model_config_chooses_the_precision(model: Path) -> None:
    loaded = flavor._load_pyfunc(str(model / flavor.BUNDLE_FOLDER), {"precision": "fp16", "threads": 1})
    assert loaded.classifier.precision == "fp16"


def test_manifest_rewritten_with_a_changed_file_does_not_load(model: Path) -> None:
    head = next((model / flavor.BUNDLE_FOLDER / "disease-heads").iterdir())
    head.write_bytes(head.read_bytes() + b"\0")
    write_manifest(model / flavor.BUNDLE_FOLDER)
    with pytest.raises(BundleError, match="MLmodel records a manifest of digest"):
        mlflow.pyfunc.load_model(str(model))


def test_soft_routing_is_refused_and_not_answered_hard(model: Path, leaf: bytes) -> None:
    with pytest.raises(Exception, match="routing must be 'hard' in this version, got 'soft'"):
        mlflow.pyfunc.load_model(str(model)).predict(pd.DataFrame({"image": [leaf]}), params={"routing": "soft"})
