"""Faults around MLflow, each for real: a server behind a proxy that breaks requests, killed processes, full disks."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Run

from mlflow_plugins.flavor import BUNDLE_FOLDER
from mlflow_plugins.jobs.main import run_main_job, run_register
from mlflow_plugins.jobs.processes import Process
from mlflow_plugins.jobs.requests import JobRequest
from mlflow_plugins.jobs.run import FAILURE_TAG, PROCESS_TAG
from mlflow_plugins.loading.native import load_model
from plantmodels.bundle.layout import PACKED_HEADS_FILE
from plantmodels.bundle.manifest import build_manifest, check_files, read_manifest
from plantmodels.errors import ManifestMismatchError, PlantModelsError, RegistrationError
from plantmodels.report.gate_report import read_report

pytestmark = pytest.mark.slow


@pytest.fixture
def name() -> str:
    """A registered model of the test's own."""
    return f"plants-{time.monotonic_ns()}"


def runs() -> list[Run]:
    return list(MlflowClient().search_runs([os.environ["MLFLOW_EXPERIMENT_ID"]]))


def models() -> list[LoggedModel]:
    return list(MlflowClient().search_logged_models([os.environ["MLFLOW_EXPERIMENT_ID"]]))


def versions(name: str) -> list[int]:
    return sorted(int(version.version) for version in MlflowClient().search_model_versions(f"name = '{name}'"))


def assert_failed_and_nothing_registered(name: str, match: str) -> None:
    (run,) = runs()
    assert run.info.status == "FAILED"
    assert re.search(match, run.data.tags[FAILURE_TAG]) and "\n" not in run.data.tags[FAILURE_TAG]
    assert versions(name) == [] and all(str(model.status) == "FAILED" for model in models())


@pytest.mark.parametrize(
    ("break_", "error", "match"),
    [
        (lambda proxy: proxy.drop_request(1000), RegistrationError, "could not be uploaded: .*Connection aborted"),
        (lambda proxy: proxy.answer(503), RegistrationError, "could not be uploaded: .*503"),
        (lambda proxy: proxy.truncate_request(100), ManifestMismatchError, f"changed: {PACKED_HEADS_FILE}"),
    ],
    ids=["dropped", "refused", "truncated"],
)
def test_an_upload_that_fails_registers_nothing(
    proxy, name: str, good_bundle: Path, tmp_path: Path, break_, error: type[PlantModelsError], match: str
) -> None:
    proxy.on("PUT", PACKED_HEADS_FILE, break_(proxy))
    with pytest.raises(error, match=match):
        run_register(good_bundle, name, None)
    assert_failed_and_nothing_registered(name, match)
    assert list((tmp_path / "temporary files").iterdir()) == []


def test_an_upload_with_hiccups_is_one_whole_version(proxy, name: str, good_bundle: Path, leaf: bytes) -> None:
    """Slow, refused twice, broken off, sent twice; and the answer to each request that makes something is lost."""
    proxy.on("PUT", PACKED_HEADS_FILE, proxy.answer(500), times=2)
    proxy.on("PUT", "swin-species-int8.onnx", proxy.drop_request(5000), times=1)
    proxy.on("PUT", "ood-detector.pkl", proxy.twice(), times=1)
    proxy.on("PUT", ".onnx", proxy.first(lambda: time.sleep(0.1)))
    for path in ("logged-models", "registered-models/create", "model-versions/create"):
        proxy.on("POST", path, proxy.lose_answer(), times=1)
    version = run_register(good_bundle, name, None)
    assert versions(name) == [int(version.version)]
    assert [run.info.status for run in runs()] == ["FINISHED"]
    assert load_model(f"models:/{name}/{version.version}").predict([leaf])[0].error is None
    MlflowClient().set_registered_model_alias(name, "production", version.version)


# killed processes


def start(*arguments: object, **variables: str) -> subprocess.Popen[str]:
    """A job of its own process."""
    return subprocess.Popen(
        [sys.executable, "-m", "mlflow_plugins.jobs", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_the_next_job_ends_what_killed_jobs_left(
    proxy, name: str, good_bundle: Path, bundle_copy: Path, tiny_bundle, tmp_path: Path
) -> None:
    """One killed in its upload, and one of `mlflow run` at the end of its verification; a third one still works."""
    client, temporary = MlflowClient(), tmp_path / "temporary files"
    experiment = os.environ["MLFLOW_EXPERIMENT_ID"]
    attached = client.create_run(experiment).info.run_id
    living = client.create_run(experiment, tags={PROCESS_TAG: Process.current().to_json()}).info.run_id
    killed: dict[str, subprocess.Popen[str]] = {}
    proxy.on("PUT", PACKED_HEADS_FILE, proxy.first(lambda: killed["register"].kill()), times=1)
    proxy.on("POST", "runs/set-tag", proxy.first(lambda: killed["verify"].kill()), times=1)
    data = ("--data", tiny_bundle.data, "--checkpoint", tiny_bundle.checkpoint)
    killed["register"] = start("register", "--bundle", good_bundle, "--name", name)
    killed["verify"] = start("verify", "--bundle", bundle_copy, *data, MLFLOW_RUN_ID=attached)
    for kind, process in killed.items():
        output, _ = process.communicate(timeout=1200)
        assert process.returncode == -signal.SIGKILL, (kind, output)
    assert {run.info.status for run in runs()} == {"RUNNING"} and len(runs()) == 3
    assert [str(model.status) for model in models()] == ["PENDING"]
    assert list(temporary.glob("plantmodels-temporary-upload-*"))
    version = run_register(good_bundle, name, None)
    found = {run.info.run_id: run for run in runs()}
    by_job = {run.data.tags.get("plantmodels.job"): run for run in found.values() if run.info.status == "KILLED"}
    assert set(by_job) == {"register", "verify"} and by_job["verify"].info.run_id == attached
    for kind, run in by_job.items():
        assert run.data.tags[FAILURE_TAG] == f"process {killed[kind].pid} was killed, or its machine stopped"
    assert found[living].info.status == "RUNNING"
    assert sorted(str(model.status) for model in models()) == ["FAILED", "READY"]
    assert versions(name) == [int(version.version)]
    assert not [path for path in temporary.iterdir() if path.name.startswith(("plantmodels-", ".plantmodels-", "tmp"))]


# the server goes away


@pytest.fixture
def request_(tiny_bundle, tmp_path: Path, name: str) -> JobRequest:
    data = (tiny_bundle.checkpoint, tiny_bundle.data, tiny_bundle.non_plants)
    return JobRequest(*data, bundle=tmp_path / "models", name=name)


def test_a_main_job_goes_on_when_its_server_comes_back(
    proxy, request_: JobRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at the end of verification; with as many tries as MLflow has by default."""
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    starting = threading.Timer(1, proxy.server.start)

    def restart() -> None:
        proxy.server.kill()
        starting.start()

    proxy.on("POST", "runs/set-tag", proxy.first(restart), times=1)
    version = run_main_job(request_)
    starting.join()
    assert [run.info.status for run in runs()] == ["FINISHED"]
    assert versions(request_.name) == [int(version.version)]
    load_model(f"models:/{request_.name}/{version.version}")


def test_a_server_that_stays_away_leaves_the_bundle_and_no_version(proxy, request_: JobRequest) -> None:
    proxy.on("PUT", PACKED_HEADS_FILE, proxy.first(proxy.server.kill))
    try:
        with pytest.raises(RegistrationError, match=r"could not be uploaded: .*Connection aborted") as caught:
            run_main_job(request_)
    finally:
        proxy.server.kill()
        proxy.server.start()
    assert "\n" not in str(caught.value)
    check_files(request_.bundle, read_manifest(request_.bundle))
    assert read_report(request_.bundle).gates
    assert versions(request_.name) == [] and mlflow.active_run() is None


# two at once


def test_two_registrations_at_once_are_two_whole_versions(proxy, name: str, good_bundle: Path, leaf: bytes) -> None:
    """The first waits with its version until the second one makes its own."""
    together = threading.Barrier(2)
    proxy.on("POST", "model-versions/create", proxy.first(lambda: together.wait(600)), times=2)
    other = start("register", "--bundle", good_bundle, "--name", name)
    run_register(good_bundle, name, None)
    output, _ = other.communicate(timeout=1200)
    assert other.returncode == 0, output
    assert versions(name) == [1, 2] and [run.info.status for run in runs()] == ["FINISHED"] * 2
    for version in "12":
        assert load_model(f"models:/{name}/{version}").predict([leaf])[0].error is None
        MlflowClient().set_registered_model_alias(name, "production", version)  # every file is checked


def test_two_main_jobs_at_once_are_two_whole_versions(tiny_bundle, tmp_path: Path, leaf: bytes) -> None:
    """On one sqlite file, that of the test."""
    MlflowClient().search_experiments()  # makes its tables
    data = ("--checkpoint", tiny_bundle.checkpoint, "--data", tiny_bundle.data, "--name", "plants")
    other = start("run", *data, "--bundle", tmp_path / "other")
    ours = run_main_job(JobRequest(tiny_bundle.checkpoint, tiny_bundle.data, bundle=tmp_path / "ours", name="plants"))
    output, _ = other.communicate(timeout=1200)
    assert other.returncode == 0, output
    assert versions("plants") == [1, 2]
    assert [run.info.status for run in MlflowClient().search_runs(["0"])] == ["FINISHED"] * 2
    for out, version in (("ours", int(ours.version)), ("other", 3 - int(ours.version))):
        stored = Path(mlflow.artifacts.download_artifacts(artifact_uri=f"models:/plants/{version}")) / BUNDLE_FOLDER
        assert build_manifest(stored) == read_manifest(tmp_path / out)
        assert load_model(f"models:/plants/{version}").predict([leaf])[0].error is None


# full disks


def test_a_server_with_a_full_disk_registers_nothing_and_goes_on(
    small_disk, start_server, proxy_before, good_bundle: Path
) -> None:
    """Its artifacts and its database, one after the other, in the middle of a job; its TMPDIR, all the time."""
    disks = {name: small_disk(32 * 1024, name) for name in ("temporary", "artifacts", "database")}
    server = start_server(
        *("--workers", "1", "--artifacts-destination", str(disks["artifacts"].folder)),
        database=f"sqlite:///{disks['database'].folder}/server.db",
        TMPDIR=str(disks["temporary"].folder),
    )
    proxy = proxy_before(server)
    disks["temporary"].fill()
    for disk, request, reason in (
        ("artifacts", ("PUT", PACKED_HEADS_FILE), "the bundle could not be uploaded: .*500"),
        ("database", ("POST", "model-versions/create"), "the version could not be registered: .*50[03]"),
    ):
        proxy.on(*request, proxy.first(disks[disk].fill))
        with pytest.raises(RegistrationError, match=reason) as caught:
            run_register(good_bundle, "plants", None)
        assert "\n" not in str(caught.value)
        disks[disk].make_space()
        proxy.mend()
        assert versions("plants") == []
    run_register(good_bundle, "plants", None)
    assert versions("plants") == [1]
    MlflowClient().set_registered_model_alias("plants", "production", "1")
