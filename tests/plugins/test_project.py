"""`mlflow run .` itself, as a user types it."""

import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import yaml
from mlflow import MlflowClient

from mlflow_plugins.cli import main
from plantmodels.verify.report import read_report

ROOT = Path(__file__).resolve().parents[2]


def mlflow_run(tracking_uri: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    folder = Path(sys.executable).parent
    environment = {**os.environ, "MLFLOW_TRACKING_URI": tracking_uri, "PATH": f"{folder}:{os.environ['PATH']}"}
    command = [str(folder / "mlflow"), "run", str(ROOT), "--env-manager", "local", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_every_entry_point_names_a_command_and_its_options() -> None:
    project = yaml.safe_load((ROOT / "MLproject").read_text())
    for name, entry in project["entry_points"].items():
        command = main.commands["run" if name == "main" else name]
        options = {flag for option in command.params for flag in option.opts}
        words = entry["command"].split()
        assert {word for word in words if word.startswith("--")} <= options
        assert {word.strip("{}") for word in words if word.startswith("{")} == set(entry["parameters"])


def test_every_requirement_is_pinned_under_pip() -> None:
    environment = yaml.safe_load((ROOT / "conda.yaml").read_text())
    *others, pip = environment["dependencies"]
    assert others == ["python=3.11", "pip"]
    assert all(requirement.count("==") == 1 for requirement in pip["pip"])
    assert {"torch==2.12.1", "torchvision==0.27.1", "mlflow==3.17.2"} <= set(pip["pip"])


@pytest.mark.slow
def test_main_job_by_mlflow_run(embedded_mlflow: str, tiny_bundle, tmp_path: Path, leaf: bytes) -> None:
    (tmp_path / "my leaves").symlink_to(tiny_bundle.data)
    run = mlflow_run(
        embedded_mlflow,
        *("-P", f"checkpoint={tiny_bundle.checkpoint}", "-P", f"data={tmp_path / 'my leaves'}"),
        *("-P", f"non_plants={tiny_bundle.non_plants}", "-P", f"out={tmp_path / 'models'}"),
    )
    assert run.returncode == 0, run.stderr
    assert read_report(tmp_path / "models").table() in run.stdout
    assert "registered models:/plant-disease/1" in run.stdout
    (entry,) = MlflowClient().search_runs(["0"])
    assert entry.info.status == "FINISHED" and entry.data.params["name"] == "plant-disease"
    rows = mlflow.pyfunc.load_model("models:/plant-disease/1").predict(pd.DataFrame({"image": [leaf]}))
    assert rows.loc[0, "error"] is None


@pytest.mark.slow
def test_failed_job_leaves_a_failed_run_with_its_reason(embedded_mlflow: str, tiny_bundle, tmp_path: Path) -> None:
    run = mlflow_run(
        embedded_mlflow, "-P", "checkpoint=/absent.ckpt", "-P", f"data={tiny_bundle.data}", "-P", f"out={tmp_path}/m"
    )
    assert run.returncode != 0 and "Error: no checkpoint there: /absent.ckpt" in run.stderr
    (entry,) = MlflowClient().search_runs(["0"])
    assert entry.info.status == "FAILED"
    assert "/absent.ckpt" in entry.data.tags["plantmodels.failure"]
    assert MlflowClient().search_registered_models() == []
