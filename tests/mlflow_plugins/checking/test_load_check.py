"""`plantmodels-registry load-check`: what it accepts, what it refuses, and that no code of a version runs."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
import requests
import yaml
from click.testing import CliRunner, Result
from mlflow import MlflowClient

from mlflow_plugins import flavor
from mlflow_plugins.checking.load_check import check_version
from mlflow_plugins.cli import main
from plantmodels.errors import PlantModelsError

NAME = "plants"
CHECKS = ["fetched", "files", "MLmodel", "environment", "code", "bundle", "registry", "sessions", "answer"]


def load_check(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["load-check", *map(str, arguments)])


def refused(model: Path, match: str) -> Any:
    with pytest.raises(PlantModelsError, match=match):
        list(check_version(str(model)))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = yaml.safe_load(path.read_text())
    change(document)
    path.write_text(yaml.safe_dump(document))


def log_and_register(bundle: Path, embedded_mlflow: str) -> Path:
    """Register a version in the gated registry and return the folder of its files."""
    mlflow.set_registry_uri(f"plantmodels:{embedded_mlflow}")
    with mlflow.start_run():
        info = flavor.log_model(bundle, name="m")
    mlflow.register_model(info.model_uri, NAME)
    return Path(mlflow.artifacts.download_artifacts(artifact_uri=info.artifact_path))


def test_a_folder_passes_every_check_and_stays_as_it_is(model: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in model.rglob("*")}
    result = load_check(model)
    assert result.exit_code == 0, result.output
    assert [line.split()[0] for line in result.stdout.splitlines()] == CHECKS
    assert "not a registered version" in result.stdout
    assert {path: path.stat().st_mtime_ns for path in model.rglob("*")} == before


def test_a_registered_version_by_number_and_alias_has_the_stamped_digest(tiny_bundle, embedded_mlflow: str) -> None:
    stored = log_and_register(tiny_bundle.bundle, embedded_mlflow)
    MlflowClient().set_registered_model_alias(NAME, "candidate", "1")
    for uri in (f"models:/{NAME}/1", f"models:/{NAME}@candidate"):
        result = load_check(uri)
        assert result.exit_code == 0, result.output
        assert f"fetched      models:/{NAME}/1" in result.stdout and "the digest of these files" in result.stdout
    (stored / "requirements.txt").write_text((stored / "requirements.txt").read_text() + "\n")
    result = load_check(f"models:/{NAME}@candidate")
    assert result.exit_code == 1
    assert "the registry stamped" in result.stderr and "answer" not in result.stdout


def test_a_version_without_stamps_and_a_logged_model_say_so(tiny_bundle) -> None:
    with mlflow.start_run():
        info = flavor.log_model(tiny_bundle.bundle, name="m")
    mlflow.register_model(info.model_uri, NAME)
    assert "registered without the gate" in load_check(f"models:/{NAME}/1").stdout
    assert "not a registered version" in load_check(info.model_uri).stdout


@pytest.mark.parametrize(
    ("uri", "match"),
    [("models:/nothing/1", "models:/nothing/1: cannot be read"), ("no/such/folder", "no such model folder")],
)
def test_a_missing_version_is_one_line_of_error(uri: str, match: str) -> None:
    mlflow.search_experiments()  # makes the database: without one, that is the error
    result = load_check(uri)
    assert result.exit_code == 1 and result.stdout == ""
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error:")]
    assert len(errors) == 1 and match in errors[0]


PYFUNC: dict[str, tuple[dict[str, Any], str]] = {
    "loader_module": ({"loader_module": "os"}, "loader_module is 'os', expected 'mlflow_plugins.flavor'"),
    "code": ({"code": "data/bundle"}, "code is 'data/bundle', expected 'code'"),
    "data": ({"data": "data/other"}, "data is 'data/other', expected 'data/bundle'"),
    "paths allowed": ({"config": {"allow_paths": True}}, "config.allow_paths is True, expected False"),
    "a library": (
        {"config": {"providers": [["CUDA", {"library": "/tmp/a.so"}]]}},
        r"config.providers\[0\] is \['CUDA'",
    ),
    "no config": ({"config": None}, "config is None, expected"),
    "another environment": (
        {"env": {"conda": "../conda.yaml"}},
        r"env.conda is '../conda.yaml', expected 'conda.yaml'",
    ),
    "a key more": ({"predict_fn": "__init__"}, "predict_fn is a key that save_model does not write"),
    "python_version": ({"python_version": "3; rm"}, "python_version is '3; rm', expected text like"),
}


@pytest.mark.parametrize("attack", PYFUNC)
def test_another_pyfunc_flavor_is_refused(model: Path, attack: str) -> None:
    changes, match = PYFUNC[attack]

    def change(document: dict[str, Any]) -> None:
        entry = document["flavors"]["python_function"]
        for name, value in changes.items():
            entry[name] = {**entry[name], **value} if isinstance(value, dict) else value

    edit(model / "MLmodel", change)
    refused(model, f"MLmodel: flavors.python_function.*{match}")


DESCRIPTION: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a further flavor": (
        lambda d: d["flavors"].update(sklearn={"pickled_model": "x"}),
        "flavors.sklearn is a key that save_model does not",
    ),
    "a flavor less": (lambda d: d["flavors"].pop("python_function"), "flavors.python_function is None, expected"),
    "another bundle": (
        lambda d: d["flavors"]["plantmodels"].update(bundle="data"),
        "bundle is 'data', expected 'data/b",
    ),
    "a release": (lambda d: d["flavors"]["plantmodels"].update(plantmodels_version=1), "plantmodels_version is 1, exp"),
    "metadata": (lambda d: d.update(metadata={"a": 1}), "MLmodel: metadata is a key that save_model does not write"),
    "a signature": (lambda d: d["signature"].update(inputs="[]"), r"signature.inputs is '\[\]', expected None"),
    "an example": (
        lambda d: d["saved_input_example_info"].update(type="pickle"),
        "type is 'pickle', expected 'datafra",
    ),
    "an older contract": (
        lambda d: d["flavors"]["plantmodels"].pop("prediction_contract"),
        r"MLmodel: the version answers by version 1 of contract 4, .* by version 2: check it with the release that",
    ),
    "an origin": (lambda d: d.update(run_id=["a"]), r"run_id is \['a'\], expected text, a number or null"),
}


@pytest.mark.parametrize("attack", DESCRIPTION)
def test_another_description_is_refused(model: Path, attack: str) -> None:
    change, match = DESCRIPTION[attack]
    edit(model / "MLmodel", change)
    refused(model, match)


ENVIRONMENTS: dict[str, tuple[str, Callable[[str], str], str]] = {
    "a package": ("requirements.txt", lambda text: f"{text}\nevil==1.0", "requirements.txt: lines is .*'evil==1.0'"),
    "an index": ("requirements.txt", lambda text: f"--index-url http://evil/\n{text}", "requirements.txt: lines is"),
    "an address": (
        "requirements.txt",
        lambda text: text.replace("==", " @ http://evil/", 1),
        r"lines\[0\] is 'mlflow @",
    ),
    "no version": ("requirements.txt", lambda text: text.replace("numpy==", "numpy>="), r"lines\[1\] is 'numpy>="),
    "a name alike": ("requirements.txt", lambda text: text.replace("pandas", "panda"), r"lines\[3\] is 'panda=="),
    "no text": ("requirements.txt", lambda text: "\x00", "requirements.txt: lines is"),
    "a channel": (
        "conda.yaml",
        lambda text: text.replace("conda-forge", "http://evil"),
        r"conda.yaml: channels\[0\] is",
    ),
    "a conda package": (
        "conda.yaml",
        lambda text: text.replace("- pip:", "- evil\n- pip:"),
        "conda.yaml: dependencies",
    ),
    "another list": (
        "conda.yaml",
        lambda text: text.replace("- pandas==", "- pandas==9"),
        r"dependencies\[2\].pip\[3\]",
    ),
    "a variable": (
        "conda.yaml",
        lambda text: text + "variables: {A: b}\n",
        "conda.yaml: variables is a key that save_model does not write",
    ),
    "a build": ("python_env.yaml", lambda text: text.replace("- wheel", "- evil"), r"build_dependencies\[2\] is 'evil"),
    "a file": (
        "python_env.yaml",
        lambda text: text.replace("requirements", "/tmp/a"),
        r"dependencies\[0\] is '-r /tmp",
    ),
    "python": (
        "python_env.yaml",
        lambda text: text.replace("python: 3", "python: x"),
        "python is 'x.*expected text like",
    ),
    "a call": ("conda.yaml", lambda text: "!!python/object/apply:os.system [x]", "conda.yaml: not the YAML expected"),
}


@pytest.mark.parametrize("attack", ENVIRONMENTS)
def test_another_environment_is_refused(model: Path, attack: str) -> None:
    name, change, match = ENVIRONMENTS[attack]
    text = (model / name).read_text()
    assert change(text) != text
    (model / name).write_text(change(text))
    refused(model, match)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("setup.py", "setup.py: save_model writes no such file"),
        ("data/other/bundle.json", "data/other/bundle.json: save_model writes no such file"),
        ("code/sitecustomize.py", "code/sitecustomize.py do not belong to it"),
        ("code/plantmodels/__pycache__/__init__.cpython-311.pyc", "byte code, which Python runs instead of the source"),
        ("code/plantmodels/errors.pyc", "code/plantmodels/errors.pyc: byte code"),
        ("data/bundle/more.txt", "not in the manifest: more.txt"),
    ],
)
def test_an_extra_file_in_the_model_folder_is_refused(model: Path, name: str, match: str) -> None:
    (model / name).parent.mkdir(parents=True, exist_ok=True)
    (model / name).write_text("")
    refused(model, match)


def test_code_of_another_release_is_named_file_by_file(model: Path) -> None:
    (model / "code/plantmodels/errors.py").write_text("raise SystemExit\n")
    (model / "code/plantmodels/serve/routing.py").unlink()
    result = load_check(model)
    assert result.exit_code == 1
    assert [line.split()[0] for line in result.stdout.splitlines()] == CHECKS[:4]
    assert "code/plantmodels/errors.py differ; code/plantmodels/serve/routing.py are missing" in result.stderr
    assert "written by plantmodels" in result.stderr and "check it with that release" in result.stderr


@pytest.mark.parametrize("name", ["requirements.txt", "python_env.yaml", "MLmodel"])
def test_a_missing_file_is_refused(model: Path, name: str) -> None:
    (model / name).unlink()
    refused(model, f"{name}: missing from the model folder")


def test_heads_that_do_not_answer_as_the_packed_ones_are_refused(model: Path, tiny_bundle) -> None:
    from plantmodels.bundle.manifest import digest_file, write_manifest

    heads = model / "data/bundle/disease-heads"
    shutil.copyfile(heads / "pepper-bell-int8.onnx", heads / "aloe-sp-2-int8.onnx")
    write_manifest(model / "data/bundle")
    digest = digest_file(model / "data/bundle/manifest.json").sha256
    edit(model / "MLmodel", lambda d: d["flavors"]["plantmodels"].update(manifest_sha256=digest))
    refused(model, "its row of 'Aloe sp. 2' is not the head in disease-heads/aloe-sp-2-int8.onnx")


def test_what_was_checked_is_what_is_kept(model: Path, tmp_path: Path, leaf: bytes) -> None:
    """Whoever writes into the store after the files were fetched changes neither the checks nor the copy."""
    lines = check_version(str(model), copy_to=tmp_path / "kept")
    next(lines)
    for path in [path for path in model.rglob("*") if path.is_file()]:
        path.write_text("written after the check began")
    assert list(lines)[-1] == f"copied to    {tmp_path / 'kept'}"
    assert mlflow.pyfunc.load_model(str(tmp_path / "kept")).predict([leaf]).loc[0, "error"] is None
    with pytest.raises(PlantModelsError, match="kept: exists already; expected a path that does not exist"):
        list(check_version(str(model), copy_to=tmp_path / "kept"))


@pytest.mark.slow
def test_a_version_whose_artifacts_a_server_holds(start_server, tiny_bundle, tmp_path: Path) -> None:
    server = start_server("--workers", "1", "--artifacts-destination", str(tmp_path / "artifacts"))
    with mlflow.start_run():
        info = flavor.log_model(tiny_bundle.bundle, name="m")
    mlflow.register_model(info.model_uri, NAME)
    MlflowClient().set_registered_model_alias(NAME, "candidate", "1")
    result = load_check(f"models:/{NAME}@candidate", "--copy-to", tmp_path / "kept")
    assert result.exit_code == 0, result.output
    assert "the digest of these files" in result.stdout and (tmp_path / "kept" / "MLmodel").is_file()

    place = MlflowClient().get_model_version_download_uri(NAME, "1").removeprefix("mlflow-artifacts:/")
    target = f"{server.address}/api/2.0/mlflow-artifacts/artifacts/{place}/code/mlflow_plugins/flavor.py"
    requests.put(target, data=b"raise SystemExit('ran')", timeout=600).raise_for_status()
    result = load_check(f"models:/{NAME}@candidate")
    assert result.exit_code == 1 and "code/mlflow_plugins/flavor.py differ" in result.stderr
