"""`mlflow run .` itself, as a user types it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import mlflow
import pandas as pd
import pyarrow.dataset
import pytest
import yaml
from mlflow import MlflowClient

from mlflow_plugins import flavor
from mlflow_plugins.jobs.__main__ import main
from plantmodels.checkpoint.reading import read_checkpoint
from plantmodels.report.gate_report import read_report
from plantmodels.serve.classifier import PlantClassifier

ROOT = Path(__file__).resolve().parents[3]


def mlflow_run(tracking_uri: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    folder = Path(sys.executable).parent
    environment = {**os.environ, "MLFLOW_TRACKING_URI": tracking_uri, "PATH": f"{folder}:{os.environ['PATH']}"}
    command = [str(folder / "mlflow"), "run", str(ROOT), "--env-manager", "local", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


ENTRY_POINTS = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]

OWN_DEFAULTS = {("main", "policy"), ("verify", "policy"), ("distill", "out")}
"""Parameters whose default is a file of this project's folder, where `mlflow run` works: gates.toml, public/."""


def options_of(entry_point: str) -> dict[str, click.Option]:
    command = main.commands["run" if entry_point == "main" else entry_point]
    return {option.name: option for option in command.params if isinstance(option, click.Option) and option.name}


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_every_entry_point_passes_every_option_of_its_command(name: str) -> None:
    entry, options = ENTRY_POINTS[name], options_of(name)
    assert list(entry["parameters"]) and set(entry["parameters"]) == set(options)
    words = entry["command"].split()
    assert words[:3] == ["python", "-m", "mlflow_plugins.jobs"]
    passed = dict(zip(words[4::2], words[5::2], strict=True))
    assert passed == {option.opts[0]: f"{{{parameter}}}" for parameter, option in options.items()}


@pytest.mark.parametrize(
    ("name", "parameter"),
    [(name, parameter) for name in ENTRY_POINTS for parameter in ENTRY_POINTS[name]["parameters"]],
)
def test_every_parameter_has_the_default_of_its_option(name: str, parameter: str) -> None:
    declared, option = ENTRY_POINTS[name]["parameters"][parameter], options_of(name)[parameter]
    if (name, parameter) in OWN_DEFAULTS:
        assert isinstance(declared["default"], str)
    elif option.required:
        assert declared == "string"
    else:
        context = click.Context(main.commands["train"])
        read = option.type_cast_value(context, declared["default"])
        assert read == option.type_cast_value(context, option.default)


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
        *("-P", f"non_plants={tiny_bundle.non_plants}", "-P", f"bundle={tmp_path / 'models'}"),
    )
    assert run.returncode == 0, run.stderr
    assert read_report(tmp_path / "models").table() in run.stdout
    assert "registered models:/plant-disease/1" in run.stdout
    (entry,) = MlflowClient().search_runs(["0"])
    assert entry.info.status == "FINISHED" and entry.data.params["name"] == "plant-disease"
    rows = mlflow.pyfunc.load_model("models:/plant-disease/1").predict(pd.DataFrame({"image": [leaf]}))
    assert rows.loc[0, "error"] is None


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="Java is not installed")
def test_scoring_by_mlflow_run(embedded_mlflow: str, verified_bundle: Path, tiny_bundle, tmp_path: Path) -> None:
    with mlflow.start_run():
        info = flavor.log_model(verified_bundle, name="plants")
    version = mlflow.register_model(info.model_uri, "plants")
    MlflowClient().set_registered_model_alias("plants", "production", version.version)
    images = tmp_path / "my leaves"
    shutil.copytree(min(tiny_bundle.data.glob("val/*")), images)
    run = mlflow_run(
        embedded_mlflow,
        *("-e", "score", "-P", "model=models:/plants@production", "-P", f"images={images}"),
        *("-P", f"output={tmp_path / 'my scores.parquet'}", "-P", "spark_master=local[2]"),
        *("-P", "partition_by=species,rejected", "-P", "images_per_batch=3", "-P", "routing=soft"),
    )
    assert run.returncode == 0, run.stderr
    assert "my scores.parquet: 5 images, 5 of them scored now" in run.stdout
    partitions = pyarrow.dataset.partitioning(flavor="hive")
    scores = pd.read_parquet(tmp_path / "my scores.parquet", partitioning=partitions).sort_values("path")
    files = sorted(images.iterdir())
    assert scores["path"].tolist() == [f"file:{path}" for path in files]
    native = PlantClassifier.load(verified_bundle).predict([path.read_bytes() for path in files], routing="soft")
    assert scores["disease"].tolist() == [row.disease for row in native]
    assert scores["error"].isna().all() and set(scores["model"]) == {"models:/plants/1"}
    assert len(list(tmp_path.glob("my scores.parquet/batch=*/species=*/rejected=*"))) >= 2
    (entry,) = MlflowClient().search_runs(["0"], "metrics.images = 5")
    assert entry.info.status == "FINISHED" and entry.data.params["routing"] == "soft"


@pytest.mark.slow
def test_training_by_mlflow_run(embedded_mlflow: str, tiny_data: Path, tmp_path: Path) -> None:
    run = mlflow_run(
        embedded_mlflow,
        *("-e", "train", "-P", f"data={tiny_data}", "-P", f"out={tmp_path / 'my leaves.ckpt'}"),
        *("-P", "backbone=test_resnet", "-P", 'backbone_kwargs={"drop_rate": 0.1}', "-P", "stages=32:1,64:1"),
    )
    assert run.returncode == 0, run.stderr
    assert "2 epochs on" in run.stdout
    assert read_checkpoint(tmp_path / "my leaves.ckpt").spec.backbone_kwargs == {"drop_rate": 0.1}
    (entry,) = MlflowClient().search_runs(["0"])
    assert entry.info.status == "FINISHED" and entry.data.metrics["train.image_size"] == 64


@pytest.mark.slow
def test_failed_job_leaves_a_failed_run_with_its_reason(embedded_mlflow: str, tiny_bundle, tmp_path: Path) -> None:
    run = mlflow_run(
        embedded_mlflow, "-P", "checkpoint=/absent.ckpt", "-P", f"data={tiny_bundle.data}", "-P", f"bundle={tmp_path}/m"
    )
    assert run.returncode != 0 and "Error: /absent.ckpt: no such checkpoint file" in run.stderr
    (entry,) = MlflowClient().search_runs(["0"])
    assert entry.info.status == "FAILED"
    assert "/absent.ckpt" in entry.data.tags["plantmodels.failure"]
    assert MlflowClient().search_registered_models() == []
