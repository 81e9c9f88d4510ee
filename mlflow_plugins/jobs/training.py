"""The jobs `train` and `distill` of `MLproject`: a training inside one MLflow run, an epoch a step.

A resumed training is a run of its own that shows all epochs, those before the stop included.

>>> report = run_train_job(TrainRequest(data, out))  # doctest: +SKIP
"""

from dataclasses import asdict
from typing import Any

import mlflow

from mlflow_plugins.jobs.run import PREFIX, job
from plantmodels.bundle.manifest import digest_file
from plantmodels.training.distill import DistillReport
from plantmodels.training.recipe import EpochRecord
from plantmodels.training.requests import DistillRequest, TrainRequest, curves_path, run_distill, run_train
from plantmodels.training.train import TrainReport


def run_train_job(request: TrainRequest) -> TrainReport:
    """Trains, and logs recipe, epochs, curves and the checkpoint's digest.

    Raises:
        PlantModelsError: the run is FAILED; the same request goes on after the last epoch.
    """
    with job("train"):
        _log_request(request)
        report = run_train(request, _log_epoch)
        _log_result(request, report)
        return report


def run_distill_job(request: DistillRequest) -> DistillReport:
    """Distils, and logs the same, and the INT8 file's size.

    Raises:
        PlantModelsError: the run is FAILED; the same request goes on after the last epoch.
    """
    with job("distill"):
        _log_request(request)
        report = run_distill(request, _log_epoch)
        mlflow.log_metric("size_bytes.species_int8", report.int8_bytes)
        _log_result(request, report.training)
        return report


def _log_request(request: TrainRequest | DistillRequest) -> None:
    mlflow.log_params({PREFIX + name: value for name, value in asdict(request).items()})


def _log_epoch(record: EpochRecord) -> None:
    values: dict[str, Any] = asdict(record)
    epoch = values.pop("epoch")
    mlflow.log_metrics({f"train.{name}": float(value) for name, value in values.items() if value is not None}, epoch)


def _log_result(request: TrainRequest | DistillRequest, report: TrainReport) -> None:
    mlflow.log_metric("best.end_to_end_accuracy", report.best.end_to_end_accuracy)
    mlflow.log_params({f"{PREFIX}best_epoch": report.best.epoch, f"{PREFIX}dtype": report.dtype})
    mlflow.set_tag(f"{PREFIX}checkpoint_sha256", digest_file(request.out).sha256)
    mlflow.log_artifact(str(curves_path(request.out)))
