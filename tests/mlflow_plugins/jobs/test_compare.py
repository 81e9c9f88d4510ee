import json
import shutil
from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner, Result
from mlflow import MlflowClient

from mlflow_plugins import flavor
from mlflow_plugins.cli import main
from mlflow_plugins.jobs import compare as versions
from mlflow_plugins.jobs.compare import compare_versions
from mlflow_plugins.jobs.main import run_register
from plantmodels.bundle.layout import GATE_REPORT_FILE
from plantmodels.bundle.manifest import write_manifest
from plantmodels.compare.compare import compare_bundles
from plantmodels.compare.render import render_page, render_text
from plantmodels.errors import BundleError, RegistrationError

NAME = "plant-disease"
CALLED = (f"models:/{NAME}/1", f"models:/{NAME}/2")


@pytest.fixture
def registered(good_bundle: Path, bad_bundle: Path) -> tuple[Path, Path]:
    """Version 1 passes every gate that was judged anew and is @production; version 2 recalls too little."""
    run_register(good_bundle, NAME, None)
    run_register(bad_bundle, NAME, None)
    MlflowClient().set_registered_model_alias(NAME, "production", "1")
    return good_bundle, bad_bundle


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["compare", *(str(argument) for argument in arguments)])


def test_versions_are_compared_as_their_bundles_are(registered: tuple[Path, Path]) -> None:
    expected = compare_bundles(*registered, names=CALLED)
    assert compare_versions(NAME, "1", "2") == expected
    assert compare_versions(NAME, "@production", "2") == expected
    assert "Gates: ood_recall no longer passes." in expected.summary


def test_a_stage_names_a_version(registered: tuple[Path, Path]) -> None:
    with pytest.warns(FutureWarning, match="stages"):
        MlflowClient().transition_model_version_stage(NAME, "1", "Production")
    assert compare_versions(NAME, "Production", "2").a == CALLED[0]


def test_the_command_prints_what_compare_prints(registered: tuple[Path, Path], tmp_path: Path) -> None:
    expected = compare_bundles(*registered, names=CALLED)
    result = run(NAME, "@production", "2", "--html", tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    assert result.stdout == render_text(expected) + "\n"
    assert (tmp_path / "page.html").read_text() == render_page(expected)
    result = run(NAME, "1", "2", "--format", "json")
    assert json.loads(result.stdout) == expected.to_dict()


@pytest.mark.parametrize(
    ("name", "version", "message"),
    [
        (NAME, "7", f"models:/{NAME}/7 cannot be found in the registry sqlite:"),
        (NAME, "@staging", f"models:/{NAME}@staging cannot be found in the registry sqlite:"),
        ("absent", "1", "models:/absent/1 cannot be found in the registry sqlite:"),
    ],
)
def test_a_version_that_is_not_there_is_one_line(
    registered: tuple[Path, Path], name: str, version: str, message: str
) -> None:
    with pytest.raises(RegistrationError, match=message):
        compare_versions(name, "1" if name == NAME else version, version)
    result = run(name, version, version)
    assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1


def test_a_version_that_was_not_verified_is_named(registered: tuple[Path, Path], tiny_bundle) -> None:
    with mlflow.start_run():
        uri = flavor.log_model(tiny_bundle.bundle, name="unverified").model_uri
    mlflow.register_model(uri, NAME)
    with pytest.raises(BundleError, match=r"^models:/plant-disease/3: has no gate-report\.json"):
        compare_versions(NAME, "1", "3")


def test_a_report_that_was_put_there_later_is_refused(registered: tuple[Path, Path]) -> None:
    stored = Path(mlflow.artifacts.download_artifacts(artifact_uri=CALLED[1])) / flavor.BUNDLE_FOLDER
    shutil.copyfile(registered[0] / GATE_REPORT_FILE, stored / GATE_REPORT_FILE)
    with pytest.raises(BundleError, match=r"changed: gate-report\.json"):
        compare_versions(NAME, "1", "2")
    write_manifest(stored)
    with pytest.raises(BundleError, match="MLmodel records a manifest of digest"):
        compare_versions(NAME, "1", "2")


@pytest.mark.slow
def test_only_reports_are_downloaded_from_a_server(
    start_server, good_bundle: Path, bad_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_server()
    run_register(good_bundle, NAME, None)
    run_register(bad_bundle, NAME, None)
    seen: set[str] = set()

    def compare(a: Path, b: Path, **options):
        seen.update(path.name for folder in (a, b) for path in folder.rglob("*") if path.is_file())
        return compare_bundles(a, b, **options)

    monkeypatch.setattr(versions, "compare_bundles", compare)
    assert compare_versions(NAME, "1", "2") == compare_bundles(good_bundle, bad_bundle, names=CALLED)
    assert GATE_REPORT_FILE in seen and not {name for name in seen if name.endswith((".onnx", ".pkl"))}
