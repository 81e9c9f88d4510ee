"""Registers a verified bundle: uploads it, reads it back, and only then makes it a model version."""

import contextlib
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

from mlflow_plugins import flavor
from mlflow_plugins.jobs.records import version_tags
from mlflow_plugins.jobs.run import SERVER_ERRORS, registration_errors, short_timeouts
from mlflow_plugins.jobs.transfers import parallel_transfers
from mlflow_plugins.names import check_name, filter_by_name, name_logged_model
from plantmodels.bundle.layout import MANIFEST_FILE, SIGNATURE_FILE
from plantmodels.bundle.manifest import digest_file
from plantmodels.bundle.metadata import read_metadata
from plantmodels.bundle.temporary import redirect_temporary_files, temporary_folder
from plantmodels.data.progress import log_step
from plantmodels.errors import PlantModelsError, RegistrationError
from plantmodels.report.gate_report import GateReport


def check_registry(name: str) -> None:
    """Ask the registry for a model, so that an unreachable registry is found before the long work.

    Raises:
        RegistrationError: the registry cannot be reached, or no registered model can have this name.
    """
    uri = mlflow.get_registry_uri()
    check_name(name)
    with short_timeouts(), registration_errors(f"the model registry {uri} cannot be used"):
        try:
            MlflowClient().get_registered_model(name)
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                raise


def register_bundle(bundle: Path, report: GateReport, name: str, example: bytes | None) -> ModelVersion:
    """Upload a verified bundle, read it back, and register it if every file came back unchanged.

    Args:
        bundle: a complete, verified bundle.
        report: its gate report.
        name: the registered model, which is made if it does not exist.
        example: one encoded image that becomes the version's input example; None for none.

    Raises:
        RegistrationError: nothing was registered.
    """
    tags = version_tags(read_metadata(bundle), report)
    with (
        log_step("upload"),
        registration_errors("the bundle could not be uploaded"),
        redirect_temporary_files("upload"),
        parallel_transfers(),
    ):
        info = flavor.log_model(bundle, name=name_logged_model(name), input_example=example, tags=tags)
    client = MlflowClient()
    try:
        with log_step("read back"):
            _read_back(bundle, info.model_id)
    except PlantModelsError:
        with contextlib.suppress(*SERVER_ERRORS):
            client.finalize_logged_model(info.model_id, LoggedModelStatus.FAILED)
        raise
    with registration_errors("the version could not be registered"):
        return _register_once(info.model_id, name, tags)


def describe_registered(name: str, version: object, report: GateReport) -> str:
    """Return text that says which version was registered, how its gates are, and what a person does next."""
    gates = report.verdict if report.passed else f"gates {report.verdict}"
    return f"registered models:/{name}/{version}; {gates}\n\n{suggest_promotion(name, version, report)}"


def suggest_promotion(name: str, version: object, report: GateReport) -> str:
    """Return text that suggests promoting a version, or first waiving the gates that it did not pass."""
    promote = (
        f"give version {version} the alias production, in MLflow's UI (Models > {name} > Version {version} > Aliases) "
        f'or in Python:\n  MlflowClient().set_registered_model_alias("{name}", "production", "{version}")'
    )
    if report.passed:
        return f"Next: promote it: {promote}"
    waive = [f'  plantmodels-registry waive {name} {version} {gate} --reason "..."' for gate in report.failed]
    return "\n".join(
        [
            "The gated registry will refuse to promote this version.",
            "Next: improve the model, or take responsibility for each gate that it did not pass:",
            *waive,
            f"Then {promote}",
        ]
    )


def _register_once(model_id: str, name: str, tags: dict[str, str]) -> ModelVersion:
    """Return the one version of a logged model, although MLflow repeats a request whose answer was lost."""
    client, source = MlflowClient(), f"models:/{model_id}"

    def find_versions() -> list[ModelVersion]:
        found = client.search_model_versions(f"{filter_by_name(name)} AND source_path = '{source}'")
        return sorted(found, key=lambda version: int(version.version))

    try:
        registered = [mlflow.register_model(source, name, tags=tags)]
    except SERVER_ERRORS:
        with short_timeouts():
            registered = find_versions()
        if not registered:
            raise
    with contextlib.suppress(*SERVER_ERRORS):
        registered = find_versions() or registered
        for repeated in registered[1:]:
            client.delete_model_version(name, repeated.version)
    return registered[0]


def _read_back(bundle: Path, model_id: str) -> None:
    """Download a logged model, and load it once: loading compares every file with the manifest, which is compared here.

    Raises:
        RegistrationError: the files cannot be read back, the manifest is another one, or the model does not load.
        BundleError: files differ from the manifest.
    """
    with temporary_folder("read-back") as temporary:
        with registration_errors("the uploaded files cannot be read back"), parallel_transfers():
            uri = f"models:/{model_id}"
            folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(temporary)))
        stored = folder / flavor.BUNDLE_FOLDER
        for name in (MANIFEST_FILE, *([SIGNATURE_FILE] if (bundle / SIGNATURE_FILE).exists() else [])):
            if digest_file(stored / name) != digest_file(bundle / name):
                raise RegistrationError(f"{name} was read back with other content than was uploaded; register again")
        with registration_errors("the uploaded model does not load"):
            mlflow.pyfunc.load_model(str(folder))
