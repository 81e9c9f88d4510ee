"""The jobs that make a model version: export, verify and register, and the main job, which does all three.

A version is registered only after every file was uploaded and read back with the right digest. Any failure leaves the
run FAILED with one line of reason, and registers nothing. Paths are checked before torch is imported.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
from mlflow.entities.model_registry import ModelVersion

from mlflow_plugins.jobs.records import bundle_params, log_report, version_tags
from mlflow_plugins.jobs.registration import check_registry, register_bundle
from mlflow_plugins.jobs.requests import JobRequest
from mlflow_plugins.jobs.run import PREFIX, job_run, log_params, set_tags
from plantmodels.bundle.manifest import check_files, read_manifest
from plantmodels.bundle.metadata import read_metadata
from plantmodels.errors import DataError
from plantmodels.export.lock import lock_bundle
from plantmodels.export.staging import check_replaceable, staged_bundle
from plantmodels.report.gate_report import GateReport, read_report

if TYPE_CHECKING:
    from plantmodels.export.bundle import ExportSummary


def run_main_job(request: JobRequest) -> ModelVersion:
    """Export, verify and register; whatever can be refused early is refused before the long work.

    `request.bundle` is replaced once, by a verified bundle; if an error comes before that, it is unchanged.

    Returns:
        The registered version. Its gates may have failed: refusing to promote it is the registry's job.

    Raises:
        PlantModelsError: nothing was registered, and the run is FAILED.
    """
    with job_run("main"):
        request.check_paths("train", "val")
        check_replaceable(request.bundle)
        check_registry(request.name)
        from mlflow_plugins.jobs import steps

        with lock_bundle(request.bundle):
            steps.check_inputs(request)
            with staged_bundle(request.bundle) as staging:
                staged = replace(request, bundle=staging)
                steps.export(staged)
                report = steps.verify(staged)
            return register_bundle(request.bundle, report, request.name, steps.read_first_leaf(request))


def run_export(request: JobRequest) -> "ExportSummary":
    """Run the job `export`: write the bundle, and log its sizes and times."""
    with job_run("export"):
        request.check_paths("train")
        check_replaceable(request.bundle)
        from mlflow_plugins.jobs import steps

        return steps.export(request)


def run_verify(request: JobRequest) -> GateReport:
    """Run the job `verify`: measure every gate of a bundle, and log the report."""
    with job_run("verify"):
        read_manifest(request.bundle)
        request.check_paths("val")
        from mlflow_plugins.jobs import steps

        return steps.verify(request)


def run_register(bundle: Path, name: str, example: Path | None) -> ModelVersion:
    """Run the job `register`: register a bundle that was verified before.

    Args:
        bundle: the bundle, with its gate report.
        name: the registered model.
        example: an image file that becomes the version's input example; None for none.

    Raises:
        PlantModelsError: nothing was registered, and the run is FAILED.
    """
    with job_run("register"):
        if example is not None and not example.is_file():
            raise DataError(f"{example}: no such image")
        check_registry(name)
        check_files(bundle, read_manifest(bundle))
        report = read_report(bundle)
        metadata = read_metadata(bundle)
        log_params(bundle_params(metadata))
        mlflow.log_metrics(report.metrics())
        set_tags({PREFIX + tag: value for tag, value in version_tags(metadata, report).items()})
        log_report(bundle)
        return register_bundle(bundle, report, name, None if example is None else example.read_bytes())
