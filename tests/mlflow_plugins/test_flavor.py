import ast
import base64
import re
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow.store.artifact import artifact_repository_registry

from mlflow_plugins import flavor
from mlflow_plugins.loading import pyfunc
from plantmodels.bundle.layout import Precision
from plantmodels.bundle.manifest import write_manifest
from plantmodels.errors import BundleError, ManifestMismatchError
from plantmodels.serve.classifier import PlantClassifier
from plantmodels.serve.preprocessing import decode_image, preprocess

COLUMNS = [
    "species",
    "species_index",
    "species_probability",
    "disease",
    "disease_probability",
    "disease_given_species_probability",
    "ood_score",
    "ood_p_value",
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
    assert rows.loc[1, COLUMNS[:-1]].tolist() == [None] * 9


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
    assert description.signature == pyfunc.SIGNATURE
    example = description.load_input_example(str(model))
    loaded = mlflow.pyfunc.load_model(str(model))
    pd.testing.assert_frame_equal(loaded.predict(example), loaded.predict([leaf]))
    names = {line.split("==")[0] for line in (model / "requirements.txt").read_text().split()}
    assert names == {"mlflow", "numpy", "onnxruntime", "pandas", "pillow"}


def test_only_serving_code_travels(model: Path) -> None:
    code = {path.relative_to(model / "code").as_posix() for path in (model / "code").rglob("*.py")}
    assert {name.rsplit("/", 1)[0] for name in code} == {
        "plantmodels",
        "plantmodels/bundle",
        "plantmodels/serve",
        "mlflow_plugins",
        "mlflow_plugins/loading",
    }
    assert not list(model.rglob("__pycache__"))


def test_the_code_that_travels_imports_nothing_that_stays_behind() -> None:
    code = flavor.list_serving_code()
    for path in code.values():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:  # what only saving needs is imported in functions
            module = node.module if isinstance(node, ast.ImportFrom) else None
            if module and module.split(".")[0] in ("plantmodels", "mlflow_plugins"):
                file = module.replace(".", "/")
                assert {f"{file}.py", f"{file}/__init__.py"} & set(code), f"{path} imports {module}"


def test_changed_bundle_is_neither_saved_nor_loaded(
    model: Path, verified_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = next((model / flavor.BUNDLE_FOLDER / "disease-heads").iterdir())
    head.write_bytes(head.read_bytes()[:-1])
    monkeypatch.setattr("plantmodels.serve.loading.open_session", lambda *_, **__: pytest.fail("a session opened"))
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


@pytest.mark.parametrize(
    ("precision", "species_file"), [("int8", "swin-species-int8.onnx"), ("fp16", "swin-species.onnx")]
)
def test_native_loader_downloads_what_a_precision_needs(
    verified_bundle: Path, leaf: bytes, monkeypatch: pytest.MonkeyPatch, precision: Precision, species_file: str
) -> None:
    with mlflow.start_run():
        info = flavor.log_model(verified_bundle, name="leaves")
    fetched: list[str] = []
    stored = artifact_repository_registry.get_artifact_repository(info.model_uri)

    class Remote:
        """Artifacts that are not on this machine."""

        def download_artifacts(self, name: str, dst_path: str) -> str:
            fetched.append(Path(name).name)
            return str(stored.download_artifacts(name, dst_path=dst_path))

    monkeypatch.setattr(artifact_repository_registry, "get_artifact_repository", lambda uri: Remote())
    loaded = flavor.load_model(info.model_uri, precision=precision, threads=1)
    assert sorted(fetched) == [
        "MLmodel",
        "disease-heads-list.json",
        "disease-heads-packed.onnx",
        "manifest.json",
        "onnx-metadata.json",
        "ood-detector.pkl",
        species_file,
    ]
    expected = PlantClassifier.load(verified_bundle, precision=precision, threads=1)
    assert loaded.predict([leaf]) == expected.predict([leaf])


def test_native_loader_reads_files_on_this_machine_where_they_lie(
    verified_bundle: Path, leaf: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mlflow.start_run():
        info = flavor.log_model(verified_bundle, name="leaves")
    monkeypatch.setattr("tempfile.TemporaryDirectory", lambda **_: pytest.fail("a copy was made"))
    assert flavor.load_model(info.model_uri, threads=1).predict([leaf])[0].error is None


LIGHT = """
import sys
from pathlib import Path
from mlflow_plugins import ModelHandle, load_model
leaf = Path(sys.argv[2]).read_bytes()
for address in (sys.argv[1], Path(sys.argv[1]).as_uri()):
    print(load_model(address, threads=1).predict([leaf])[0].species)
print(*sorted({name.split(".")[0] for name in sys.modules} & {"mlflow", "pandas", "sqlalchemy", "requests", "torch"}))
"""


def test_native_loader_needs_neither_mlflow_nor_pandas_for_a_model_folder(
    verified_bundle: Path, leaf: bytes, tmp_path: Path
) -> None:
    flavor.save_model(verified_bundle, tmp_path / "model")
    (tmp_path / "leaf.jpg").write_bytes(leaf)
    command = [sys.executable, "-c", LIGHT, str(tmp_path / "model"), str(tmp_path / "leaf.jpg")]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    species = PlantClassifier.load(verified_bundle, threads=1).predict([leaf])[0].species
    assert ran.stdout.splitlines() == [species, species, ""]


@pytest.mark.parametrize(
    "content", [b"- a list", b"flavors: {plantmodels: 3}", b"\xff", b"a: [", b"", b"a: 2020-99-99"]
)
def test_a_description_that_records_no_digest_is_refused(model: Path, content: bytes) -> None:
    (model / "MLmodel").write_bytes(content)
    with pytest.raises(BundleError, match="MLmodel"):
        flavor.load_model(str(model))


def test_native_loader_checks_what_it_downloaded(verified_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with mlflow.start_run():
        info = flavor.log_model(verified_bundle, name="leaves")
    folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=info.artifact_path))
    path = folder / flavor.BUNDLE_FOLDER / "disease-heads-packed.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    monkeypatch.setattr("plantmodels.serve.loading.open_session", lambda *_, **__: pytest.fail("a session opened"))
    with pytest.raises(ManifestMismatchError, match=r"changed: disease-heads-packed\.onnx"):
        flavor.load_model(info.artifact_path)
    with pytest.raises(ValueError, match="precision must be one of int8, fp16, got 'int4'"):
        flavor.load_model(info.model_uri, precision="int4")


def test_model_config_reaches_the_classifier(model: Path) -> None:
    config = {"precision": "fp16", "threads": 1, "providers": [["CPUExecutionProvider", {}]]}
    loaded = mlflow.pyfunc.load_model(str(model), model_config=config)
    classifier = loaded.get_raw_model()
    assert classifier.precision == "fp16" and classifier.providers == ("CPUExecutionProvider",)
    with pytest.raises(
        ValueError, match="unknown model_config thread: expected precision, threads, workers, providers"
    ):
        flavor._load_pyfunc(str(model / flavor.BUNDLE_FOLDER), {"thread": 1})


def test_a_provider_that_is_not_there_is_an_error_unless_the_cpu_is_listed_last(model: Path) -> None:
    with pytest.raises(BundleError, match=r"CoreMLExecutionProvider is not available; this ONNX Runtime has .*CPU"):
        mlflow.pyfunc.load_model(str(model), model_config={"providers": ["CoreMLExecutionProvider"]})
    providers = [["CoreMLExecutionProvider", {"device_id": "0"}], "CPUExecutionProvider"]
    loaded = mlflow.pyfunc.load_model(str(model), model_config={"providers": providers})
    assert loaded.get_raw_model().providers == ("CPUExecutionProvider",)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("precision", "int4"),
        ("threads", "2"),
        ("workers", 0),
        ("providers", "CPUExecutionProvider"),
        ("providers", [["CPUExecutionProvider"]]),
        ("allow_paths", "no"),
    ],
)
def test_model_config_of_another_value_is_refused(model: Path, name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name} must be .*, got {re.escape(repr(value))}"):
        mlflow.pyfunc.load_model(str(model), model_config={name: value})
    with pytest.raises(ValueError, match=f"{name} must be .*, got {re.escape(repr(value))}"):
        flavor.load_model(str(model), **{name: value})


def test_manifest_rewritten_with_a_changed_file_does_not_load(model: Path) -> None:
    head = next((model / flavor.BUNDLE_FOLDER / "disease-heads").iterdir())
    head.write_bytes(head.read_bytes() + b"\0")
    write_manifest(model / flavor.BUNDLE_FOLDER)
    with pytest.raises(BundleError, match="MLmodel records a manifest of digest"):
        mlflow.pyfunc.load_model(str(model))


def test_soft_routing_is_the_native_classifiers(model: Path, verified_bundle: Path, leaf: bytes) -> None:
    rows = mlflow.pyfunc.load_model(str(model)).predict([leaf], params={"routing": "soft"})
    (native,) = PlantClassifier.load(verified_bundle).predict([leaf], routing="soft")
    assert (rows.loc[0, "disease"], rows.loc[0, "disease_probability"]) == (native.disease, native.disease_probability)


def test_every_form_of_input_gives_the_same_row(model: Path, leaf: bytes) -> None:
    loaded = mlflow.pyfunc.load_model(str(model))
    decoded, text = decode_image(leaf), base64.b64encode(leaf).decode()
    (expected,) = loaded.predict(pd.DataFrame({"image": [leaf]})).to_dict("records")
    for form in (
        pd.DataFrame({"image": [text]}),
        pd.DataFrame({"other": [1], "image": [leaf]}),
        pd.DataFrame({"0": [leaf]}),
        pd.Series([leaf]),
        {"image": [leaf]},
        {"image": np.array([text])},
        [leaf],
        (bytearray(leaf),),
        [text],
        [{"image": leaf}],
        [decoded],
        np.array([leaf], dtype=object),
        np.asarray(decoded)[None],
    ):
        (row,) = loaded.predict(form).to_dict("records")
        assert row == expected


def test_a_normalized_array_is_taken_as_it_is(model: Path, verified_bundle: Path, leaf: bytes) -> None:
    ready = preprocess(decode_image(leaf), PlantClassifier.load(verified_bundle).metadata.preprocessing)[None]
    loaded = mlflow.pyfunc.load_model(str(model))
    assert loaded.predict(ready).to_dict("records") == loaded.predict([leaf]).to_dict("records")
    bad = np.concatenate([ready, np.full_like(ready, np.nan), ready.clip(max=0) + np.inf, ready])
    assert loaded.predict(bad)["error"].tolist() == [None, *["the float32 input holds NaN or infinity"] * 2, None]


@pytest.mark.parametrize(
    "nothing",
    [[], pd.DataFrame(), pd.DataFrame({"image": []}), np.zeros((0, 9, 9, 3), np.uint8), np.array([], dtype=object)],
)
@pytest.mark.parametrize("params", [None, {"top_k": 2, "return_embedding": True, "routing": "soft"}])
def test_an_empty_batch_is_an_empty_result_of_the_same_columns(model: Path, leaf: bytes, nothing, params) -> None:
    loaded = mlflow.pyfunc.load_model(str(model))
    empty, one = loaded.predict(nothing, params=params), loaded.predict([leaf], params=params)
    assert len(empty) == 0
    assert list(empty.columns) == list(one.columns) and empty.dtypes.tolist() == one.dtypes.tolist()


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (pd.DataFrame({"picture": [b""], "x": [1]}), "expected the column 'image', got picture, x"),
        ({}, "expected the column 'image', got no columns"),
        (pd.DataFrame([[b"", b""]], columns=["image", "image"]), "expected one column 'image', got several"),
        ({"image": [b""], "img": [b""]}, "a dict of lists must have only the key 'image', got image, img"),
        (b"abc", "expected a DataFrame with the column 'image', a list of images or an array, got bytes"),
        ("leaf.jpg", "a list of images or an array, got str"),
        (None, "got NoneType"),
        (np.zeros((4, 4, 3), np.uint8), r"\(N, 3, P, P\) float32, got \(4, 4, 3\) uint8"),
    ],
)
def test_input_of_no_known_form_is_one_clear_error(form, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pyfunc.read_images(form)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (None, "the image is missing"),
        (3, "got int"),
        ("leaf.jpg", "file paths are not read"),
        (b"", "zero bytes"),
        (np.zeros((4, 4), np.uint8), r"an array must be"),
        (np.zeros((64, 64, 3), np.float64), r"got \(64, 64, 3\) float64"),
        ({"image": b"", "id": 3}, "got dict"),
        ({"img": b""}, "got dict"),
    ],
)
def test_a_bad_row_never_fails_its_neighbours(model: Path, leaf: bytes, bad, message: str) -> None:
    rows = mlflow.pyfunc.load_model(str(model)).predict([leaf, bad, leaf])
    assert rows.loc[0].to_dict() == rows.loc[2].to_dict() and rows.loc[0, "error"] is None
    assert re.search(message, rows.loc[1, "error"])


def test_images_that_numpy_wrapped_are_unwrapped(model: Path, leaf: bytes) -> None:
    """MLflow's scoring server makes of `{"instances": [{"image": …}, {"image": null}]}` arrays within an array."""
    wrapped = np.empty(3, dtype=object)
    wrapped[:] = [np.array(base64.b64encode(leaf).decode()), np.array(None), {"image": leaf}]
    rows = mlflow.pyfunc.load_model(str(model)).predict({"image": wrapped})
    assert rows.loc[0].to_dict() == rows.loc[2].to_dict() and rows.loc[0, "error"] is None
    assert rows.loc[1, "error"] == "the image is missing (null)"


def test_arrow_types_do_not_depend_on_the_images(model: Path, leaf: bytes, tmp_path: Path) -> None:
    loaded, params = mlflow.pyfunc.load_model(str(model)), {"top_k": 2, "return_embedding": True}
    schemas = []
    for images in ([leaf, b""], [b"no image"], []):
        frame = loaded.predict(images, params=params)
        table = pa.Table.from_pandas(frame, schema=pyfunc.arrow_schema(frame.columns))
        pq.write_table(table, tmp_path / "scores.parquet")
        read = pq.read_table(tmp_path / "scores.parquet")
        assert read.to_pylist() == frame.to_dict("records")
        schemas.append(read.schema.remove_metadata())
    assert schemas == [pyfunc.arrow_schema([*COLUMNS, "candidates", "embedding"])] * 3
    plain = pyfunc.arrow_schema()
    assert plain.names == COLUMNS and all(field.nullable for field in plain)
    assert [
        str(kind) for kind in plain.types
    ] == "string int64 double string double double double double bool string".split()


def test_unknown_params_are_an_error_that_lists_the_known_ones(model: Path, leaf: bytes) -> None:
    loaded = flavor._load_pyfunc(str(model / flavor.BUNDLE_FOLDER))  # MLflow's wrapper drops them with a warning
    with pytest.raises(
        ValueError, match="unknown params topk: expected top_k, return_embedding, on_error, routing, as_struct"
    ):
        loaded.predict([leaf], {"topk": 3})


def test_a_path_is_read_only_where_that_was_allowed(model: Path, leaf: bytes, tmp_path: Path) -> None:
    path = tmp_path / "leaf.jpg"
    path.write_bytes(leaf)
    refusing = mlflow.pyfunc.load_model(str(model))
    allowing = mlflow.pyfunc.load_model(str(model), model_config={"allow_paths": True})
    expected = refusing.predict([leaf]).to_dict("records")
    for form in (str(path), path):
        assert "file paths are not read" in refusing.predict([form]).loc[0, "error"]
        assert allowing.predict([form]).to_dict("records") == expected
    text = base64.b64encode(leaf).decode()
    bad = [text, tmp_path, tmp_path / "absent.jpg", "absent.jpg", "!" * 5000, "a\0b"]
    errors = allowing.predict(bad)["error"].tolist()
    assert errors[0] is None
    assert errors[1] == f"a folder, expected an image file: {str(tmp_path)!r}"
    assert errors[2] == f"no such file: {str(tmp_path / 'absent.jpg')!r}"
    assert all("not base64 of an image" in error for error in errors[3:])


def test_rows_as_structs_hold_the_same_values(model: Path, leaf: bytes) -> None:
    loaded = mlflow.pyfunc.load_model(str(model))
    plain = loaded.predict([leaf, b""], params={"top_k": 1})
    structs = loaded.predict([leaf, b""], params={"top_k": 1, "as_struct": True})
    assert list(structs.columns) == [pyfunc.STRUCT_COLUMN]
    assert structs[pyfunc.STRUCT_COLUMN].tolist() == plain.to_dict("records")
    assert loaded.predict([], params={"as_struct": True}).shape == (0, 1)
