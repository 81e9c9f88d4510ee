import re
import shutil
import time
from dataclasses import replace
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from mlflow_plugins.jobs import steps
from mlflow_plugins.jobs.main import run_export, run_main_job, run_register, run_verify
from mlflow_plugins.jobs.records import gates_tag
from mlflow_plugins.jobs.requests import JobRequest
from mlflow_plugins.jobs.run import FAILURE_TAG, job_run
from mlflow_plugins.jobs.show import describe_version
from plantmodels.bundle.layout import GATE_REPORT_FILE, HTML_REPORT_FILE, PLOTS_FOLDER
from plantmodels.bundle.manifest import build_manifest, read_manifest
from plantmodels.errors import (
    BundleError,
    CheckpointError,
    DataError,
    PlantModelsError,
    PolicyError,
    RegistrationError,
)
from plantmodels.report.gate_report import read_report


@pytest.fixture
def request_(tiny_bundle, tmp_path: Path) -> JobRequest:
    return JobRequest(tiny_bundle.checkpoint, tiny_bundle.data, tiny_bundle.non_plants, bundle=tmp_path / "models")


def only_run() -> Run:
    (run,) = MlflowClient().search_runs(["0"])
    return run


def assert_failed_and_nothing_registered(match: str) -> None:
    run = only_run()
    assert run.info.status == "FAILED"
    reason = run.data.tags[FAILURE_TAG]
    assert re.search(match, reason) and "\n" not in reason
    assert MlflowClient().search_registered_models() == []


@pytest.mark.slow
def test_main_job_registers_one_loadable_version(request_: JobRequest, leaf: bytes) -> None:
    version = run_main_job(request_)
    assert (version.name, int(version.version)) == ("plant-disease", 1)
    report = read_report(request_.bundle)
    run = only_run()
    assert run.info.status == "FINISHED"
    assert {f"gate.{gate.name}" for gate in report.gates if gate.measured is not None} <= set(run.data.metrics)
    assert run.data.metrics["size_bytes.species_int8"] == report.gate("species_size").measured
    assert run.data.params["plantmodels.species"] == "5"
    contexts = {entry.tags[0].value: entry.dataset.digest for entry in run.inputs.dataset_inputs}
    assert set(contexts) == {"train", "val", "non_plants"}
    assert report.inputs.val.sha256.startswith(contexts["val"])
    tags = MlflowClient().get_model_version("plant-disease", "1").tags
    assert tags["gates"] == gates_tag(report)
    assert tags["sha256.checkpoint"] == report.inputs.checkpoint_sha256
    assert tags["sha256.class_order"] == report.inputs.class_order_digest
    stored = Path(mlflow.artifacts.download_artifacts(artifact_uri="models:/plant-disease/1")) / "data" / "bundle"
    assert build_manifest(stored) == read_manifest(request_.bundle)
    rows = mlflow.pyfunc.load_model("models:/plant-disease/1").predict(pd.DataFrame({"image": [leaf]}))
    assert rows.loc[0, "error"] is None


@pytest.mark.slow
def test_version_whose_gates_fail_is_registered_and_says_so(tiny_bundle, tmp_path: Path) -> None:
    request = JobRequest(tiny_bundle.checkpoint, tiny_bundle.data, None, bundle=tmp_path / "models")
    version = run_main_job(request)
    tags = MlflowClient().get_model_version(version.name, version.version).tags
    assert tags["gates"].startswith("failed: ") and "ood_precision" in tags["gates"]
    assert only_run().info.status == "FINISHED"


@pytest.mark.slow
def test_parts_make_what_the_main_job_makes(request_: JobRequest) -> None:
    run_export(request_)
    with pytest.raises(BundleError, match="plantmodels verify"):
        run_register(request_.bundle, "parts", None)
    report = run_verify(request_)
    version = run_register(request_.bundle, "parts", next(request_.data.glob("val/*/*.jpg")))
    assert version.tags["gates"] == gates_tag(report)
    again = run_register(request_.bundle, "parts", None)
    assert int(again.version) == 2
    statuses = [run.info.status for run in MlflowClient().search_runs(["0"])]
    assert sorted(statuses) == ["FAILED", "FINISHED", "FINISHED", "FINISHED", "FINISHED"]


@pytest.mark.parametrize("kind", ["main", "register"])
@pytest.mark.slow
def test_the_run_shows_report_and_plots(kind: str, request_: JobRequest, verified_bundle: Path) -> None:
    if kind == "main":
        run_main_job(request_)
    else:
        run_register(verified_bundle, "plant-disease", None)
    bundle = request_.bundle if kind == "main" else verified_bundle
    logged = Path(mlflow.artifacts.download_artifacts(run_id=only_run().info.run_id))
    names = [GATE_REPORT_FILE, HTML_REPORT_FILE, *(f"{PLOTS_FOLDER}/{p.name}" for p in bundle.glob("plots/*.png"))]
    assert len(names) > 3
    assert all((logged / name).read_bytes() == (bundle / name).read_bytes() for name in names)


def test_job_attaches_to_the_run_of_mlflow_run(request_: JobRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    created = MlflowClient().create_run("0")
    monkeypatch.setenv("MLFLOW_RUN_ID", created.info.run_id)
    with job_run("main") as run:
        assert run.info.run_id == created.info.run_id
    assert only_run().info.status == "FINISHED"


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"checkpoint": Path("absent.ckpt")}, CheckpointError, r"absent\.ckpt"),
        ({"data": Path("absent")}, DataError, "absent: no such data folder"),
        ({"non_plants": Path("absent")}, DataError, "absent: no such folder of non-plants"),
        ({"policy": Path("absent.toml")}, PolicyError, r"absent\.toml"),
        ({"name": "a/b"}, RegistrationError, "'a/b' cannot name"),
        ({"name": "a#b"}, RegistrationError, "'a#b' cannot name a registered model: # is not possible"),
        ({"name": " "}, RegistrationError, "cannot name a registered model"),
    ],
)
def test_bad_input_fails_the_run_before_any_work(
    request_: JobRequest,
    change: dict,
    error: type[PlantModelsError],
    match: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(steps, "export_bundle", lambda *_, **__: pytest.fail("the export started"))
    with pytest.raises(error, match=match):
        run_main_job(JobRequest(**{**vars(request_), **change}))
    assert_failed_and_nothing_registered(match)


def test_empty_val_split_is_found_before_the_export(request_: JobRequest, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "leaves").mkdir()
    (tmp_path / "leaves" / "train").symlink_to(request_.data / "train")
    (tmp_path / "leaves" / "val").mkdir()
    monkeypatch.setattr(steps, "export_bundle", lambda *_, **__: pytest.fail("the export started"))
    with pytest.raises(DataError, match="split 'val' holds no images"):
        run_main_job(JobRequest(**{**vars(request_), "data": tmp_path / "leaves"}))


def test_unreachable_registry_is_found_before_the_work(request_: JobRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "export_bundle", lambda *_, **__: pytest.fail("the export started"))
    mlflow.set_registry_uri("http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(RegistrationError, match=r"the model registry http://127\.0\.0\.1:9 cannot be used"):
        run_main_job(request_)
    assert time.monotonic() - start < 60
    assert only_run().info.status == "FAILED"


def test_unreachable_tracking_server_is_one_line(request_: JobRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    with pytest.raises(RegistrationError, match="the tracking server") as caught:
        run_main_job(request_)
    assert "\n" not in str(caught.value)


def test_show_loads_the_latest_version_back(verified_bundle: Path, tiny_bundle) -> None:
    run_register(verified_bundle, "plant-disease", None)
    run_register(verified_bundle, "plant-disease", None)
    text = describe_version("plant-disease", "", tiny_bundle.data, tiny_bundle.non_plants)
    assert "models:/plant-disease/2" in text
    assert read_report(verified_bundle).table() in text
    answers = [line for line in text.splitlines() if "→" in line]
    assert len(answers) == 4 and "no plant (bricks)" in answers[-1]
    with pytest.raises(RegistrationError, match="holds no version of 'absent'"):
        describe_version("absent", "", tiny_bundle.data, None)


def test_bad_validation_images_leave_the_older_bundle(
    request_: JobRequest, verified_bundle: Path, tmp_path: Path
) -> None:
    shutil.copytree(verified_bundle, request_.bundle)
    before = build_manifest(request_.bundle)
    leaves = Path(shutil.copytree(request_.data, tmp_path / "leaves"))
    for path in list(leaves.glob("val/*/*"))[:3]:
        path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match="over 1% of 45 images cannot be read"):
        run_main_job(replace(request_, data=leaves))
    assert build_manifest(request_.bundle) == before
    assert sorted(path.name for path in tmp_path.glob(".models*")) == []
    assert_failed_and_nothing_registered("cannot be read")
