"""The jobs `train` and `distill`: a training inside one MLflow run, with one step for each epoch.

A resumed training is a new run that shows all epochs, including those before the stop.
"""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import mlflow

from mlflow_plugins.jobs.run import PREFIX, job_run, log_params
from plantmodels.bundle.manifest import digest_file
from plantmodels.data.image_files import printable_name
from plantmodels.training.recipe import EpochRecord
from plantmodels.training.requests import DistillRequest, TrainRequest

if TYPE_CHECKING:
    from plantmodels.training.distill import DistillReport
    from plantmodels.training.train import TrainReport


def run_train_job(request: TrainRequest) -> "TrainReport":
    """Train, and log the request, the epochs, the curves and the checkpoint's digest.

    Raises:
        PlantModelsError: the run is FAILED; the same request continues after the last finished epoch.
    """
    with job_run("train"):
        _log_request(request)
        request.check_paths()
        from plantmodels.training.train import run_train

        report = run_train(request, _log_epoch)
        _log_result(request, report)
        return report


def run_distill_job(request: DistillRequest) -> "DistillReport":
    """Train a student, and log what `run_train_job` logs and the size of its INT8 file.

    Raises:
        PlantModelsError: the run is FAILED; the same request continues after the last finished epoch.
    """
    with job_run("distill"):
        _log_request(request)
        request.check_paths()
        from plantmodels.training.distill import run_distill

        report = run_distill(request, _log_epoch)
        mlflow.log_metric("size_bytes.species_int8", report.int8_bytes)
        _log_result(request, report.training)
        return report


def _log_request(request: TrainRequest | DistillRequest) -> None:
    log_params({PREFIX + name: printable_name(str(value)) for name, value in asdict(request).items()})


def _log_epoch(record: EpochRecord) -> None:
    values: dict[str, Any] = asdict(record)
    epoch = values.pop("epoch")
    mlflow.log_metrics({f"train.{name}": float(value) for name, value in values.items() if value is not None}, epoch)


def _log_result(request: TrainRequest | DistillRequest, report: "TrainReport") -> None:
    from plantmodels.training.curves import curves_path

    mlflow.log_metric("best.end_to_end_accuracy", report.best.end_to_end_accuracy)
    log_params({f"{PREFIX}best_epoch": report.best.epoch, f"{PREFIX}dtype": report.dtype})
    mlflow.set_tag(f"{PREFIX}checkpoint_sha256", digest_file(request.out).sha256)
    mlflow.log_artifact(str(curves_path(request.out)))
