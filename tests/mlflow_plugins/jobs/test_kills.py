"""The kill series of the main job would notice a version that is not whole, and what a dead run left in the store."""

from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from benchmarks.serving import make_store_environment
from mlflow_plugins.jobs.main import run_register
from reliability.kills import NAME, Series, check_versions, count_leftovers, find_versions


@pytest.fixture
def series(tmp_path: Path, verified_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Series:
    series = Series("main", tmp_path / "series", Path(), Path(), None)
    for folder in (series.bundle, series.temporary, series.store):
        folder.mkdir(parents=True)
    monkeypatch.chdir(series.store)
    mlflow.set_tracking_uri(make_store_environment(str(series.store))["MLFLOW_TRACKING_URI"])
    run_register(verified_bundle, NAME, None)
    return series


def test_a_whole_version_is_no_loss_and_a_damaged_one_is(series: Series) -> None:
    versions = find_versions(series)
    assert versions == {"1"} or versions == {1}
    assert check_versions(series, versions) == []
    assert count_leftovers(series) == {}
    next(series.store.rglob("ood-detector.pkl")).write_bytes(b"torn")
    (problem,) = check_versions(series, versions)
    assert "version 1 is broken" in problem and "changed: ood-detector.pkl" in problem


def test_what_a_dead_run_left_is_counted(series: Series) -> None:
    client = MlflowClient()
    client.create_run("0")
    client.create_logged_model("0")
    (series.temporary / "plantmodels-read-back-x").mkdir()
    (series.temporary / "tmpx").mkdir()
    (series.bundle.parent / ".models.staging-abcdefgh").mkdir()
    (series.bundle.parent / ".models.lock").touch()
    assert count_leftovers(series) == {
        "staging folders": 1,
        "lock files": 1,
        "our temporary folders": 1,
        "other temporary files": 1,
        "runs that are RUNNING": 1,
        "logged models that are PENDING": 1,
    }
