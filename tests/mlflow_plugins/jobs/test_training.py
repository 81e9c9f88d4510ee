from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from mlflow_plugins.jobs.training import run_distill_job, run_train_job
from plantmodels.bundle.manifest import digest_file
from plantmodels.errors import TrainingError
from plantmodels.training.requests import DistillRequest, TrainRequest


def only_run() -> Run:
    (run,) = MlflowClient().search_runs(["0"])
    return run


def test_every_epoch_is_a_step_and_curves_are_an_artifact(tiny_data: Path, tmp_path: Path) -> None:
    request = TrainRequest(tiny_data, tmp_path / "x.ckpt", backbone="test_resnet", embedding_dim=16, stages="32:2,64:1")
    report = run_train_job(request)
    run, client = only_run(), MlflowClient()
    assert run.info.status == "FINISHED" and run.data.tags["plantmodels.job"] == "train"
    for name in ("loss", "species_accuracy", "disease_accuracy", "end_to_end_accuracy", "learning_rate", "image_size"):
        history = client.get_metric_history(run.info.run_id, f"train.{name}")
        assert [(entry.step, entry.value) for entry in history] == [
            (record.epoch, pytest.approx(getattr(record, name))) for record in report.records
        ]
    assert run.data.params["plantmodels.stages"] == "32:2,64:1"
    assert run.data.params["plantmodels.best_epoch"] == str(report.best.epoch)
    assert run.data.tags["plantmodels.checkpoint_sha256"] == digest_file(request.out).sha256
    assert [entry.path for entry in client.list_artifacts(run.info.run_id)] == ["x.ckpt.png"]


@pytest.mark.slow
def test_a_distillation_logs_the_size_of_its_file(tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path) -> None:
    request = DistillRequest(tiny_checkpoint, tiny_data, tmp_path / "x.ckpt", student="test_resnet", stages="224:1")
    report = run_distill_job(request)
    assert only_run().data.metrics["size_bytes.species_int8"] == report.int8_bytes


def test_a_training_that_is_refused_leaves_a_failed_run(tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError):
        run_train_job(TrainRequest(tiny_data, tmp_path / "x.ckpt", stages="nonsense"))
    assert only_run().info.status == "FAILED"
    assert "SIDE:EPOCHS" in only_run().data.tags["plantmodels.failure"]
