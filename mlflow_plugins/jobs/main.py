"""The jobs of `MLproject`: export, verify and register inside one MLflow run, and the main job, all three.

A version is registered only after every file was uploaded and read back with the right digest. Any failure
leaves the run FAILED with one line of reason, and registers nothing.

>>> version = run_main_job(Request(checkpoint, data, name="plant-disease"))  # doctest: +SKIP
"""

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import mlflow
from mlflow import MlflowClient
from mlflow.data.meta_dataset import MetaDataset
from mlflow.data.sources import LocalArtifactDatasetSource  # type: ignore[attr-defined]  # made when imported
from mlflow.entities import LoggedModelStatus
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

from mlflow_plugins import flavor
from mlflow_plugins.jobs.run import PREFIX, SERVER_ERRORS, job, preflight, to_one_line
from plantmodels.bundle.layout import (
    GATE_REPORT_FILE,
    HTML_REPORT_FILE,
    IMAGES_FILE,
    MANIFEST_FILE,
    PACKED_HEADS_FILE,
    PLOTS_FOLDER,
    SIGNATURE_FILE,
    SPECIES_FILES,
    is_single_head,
)
from plantmodels.bundle.manifest import check_files, digest_file, read_manifest
from plantmodels.bundle.metadata import Metadata, read_metadata
from plantmodels.bundle.temporary import redirect_temporary_files, temporary_folder
from plantmodels.data.leaves import read_leaves
from plantmodels.data.non_plants import read_non_plants
from plantmodels.errors import DataError, ImageError, PlantModelsError, RegistrationError
from plantmodels.export.bundle import ExportSummary, export_bundle
from plantmodels.export.checkpoint import read_checkpoint
from plantmodels.export.lock import lock_bundle
from plantmodels.export.staging import staged_bundle
from plantmodels.report.gate_report import GateReport, read_report
from plantmodels.report.policy import read_policy
from plantmodels.serve.preprocessing import decode_image
from plantmodels.verify.run import verify_bundle

_DATASET_DIGEST_LENGTH: Final = 36


@dataclass(frozen=True)
class Request:
    """What a person asks of the main job.

    Attributes:
        checkpoint: file of contract 1.
        data: leaf folders or manifest of contract 2.
        non_plants: folder of images of no plant; without it the rejection gates are not measured.
        unseen_plants: folder of plants of no known species, for information.
        out: the bundle's folder.
        policy: gate limits; None for the defaults.
        name: of the registered model.
        seed: of the export.
    """

    checkpoint: Path
    data: Path
    non_plants: Path | None = None
    unseen_plants: Path | None = None
    out: Path = Path("public/models")
    policy: Path | None = None
    name: str = "plant-disease"
    seed: int = 0


def run_main_job(request: Request) -> ModelVersion:
    """Exports, verifies and registers; everything that can be refused early is, before the long work.

    `request.out` is replaced, once, by a bundle that was verified; on any error before that it is untouched.

    Returns:
        The registered version. Its gates may have failed: refusing to promote it is the registry's job.

    Raises:
        PlantModelsError: nothing was registered, and the run is FAILED.
    """
    with job("main"):
        check_registry(request.name)
        with lock_bundle(request.out):
            _check_inputs(request)
            with staged_bundle(request.out) as staging:
                inner = replace(request, out=staging)
                _log_export(inner, _export(inner))
                report = _verify(inner)
            return register_bundle(request.out, report, request.name, _first_leaf(request))


def run_export(request: Request) -> ExportSummary:
    """The job `export`: writes the bundle and logs sizes and times."""
    with job("export"):
        summary = _export(request)
        _log_export(request, summary)
        return summary


def run_verify(request: Request) -> GateReport:
    """The job `verify`: measures every gate of a bundle and logs the report."""
    with job("verify"):
        return _verify(request)


def run_register(bundle: Path, name: str, example: Path | None) -> ModelVersion:
    """The job `register`: registers a bundle that was verified before.

    Args:
        bundle: with its gate report.
        name: of the registered model.
        example: a photograph that becomes the version's input example.
    """
    with job("register"):
        check_registry(name)
        check_files(bundle, read_manifest(bundle))
        report = read_report(bundle)
        metadata = read_metadata(bundle)
        mlflow.log_params(_bundle_params(metadata))
        mlflow.log_metrics(report.metrics())
        mlflow.set_tags({PREFIX + tag: value for tag, value in _version_tags(metadata, report).items()})
        _log_report(bundle)
        return register_bundle(bundle, report, name, None if example is None else example.read_bytes())


def check_registry(name: str) -> None:
    """Asks the registry for the model, so that an unreachable one is found before the long work.

    Raises:
        RegistrationError: not reachable, or not a name that a registered model can have.
    """
    uri = mlflow.get_registry_uri()
    if not name.strip() or any(character in name for character in "/:'"):
        raise RegistrationError(f"{name!r} cannot name a registered model: expected text without / : and '")
    with preflight(), to_one_line(f"the model registry {uri} cannot be used"):
        try:
            MlflowClient().get_registered_model(name)
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                raise


def _check_inputs(request: Request) -> None:
    """Refuses what the later steps would refuse, before the first of them works for an hour."""
    read_policy(request.policy)
    taxonomy = read_checkpoint(request.checkpoint).spec.taxonomy
    read_leaves(request.data, "train", taxonomy)
    read_leaves(request.data, "val", taxonomy)
    if request.non_plants is not None:
        read_non_plants(request.non_plants)
    if request.unseen_plants is not None:
        read_non_plants(request.unseen_plants, "unseen plants")


def _export(request: Request) -> ExportSummary:
    return export_bundle(
        request.checkpoint, request.data, request.out, non_plants=request.non_plants, seed=request.seed
    )


def _log_export(request: Request, summary: ExportSummary) -> None:
    metadata = summary.metadata
    mlflow.log_params({**_bundle_params(metadata), f"{PREFIX}unreadable_images": len(summary.unreadable)})
    heads = [size for name, size in summary.sizes.items() if is_single_head(name)]
    sizes = {
        "size_bytes.species_int8": summary.sizes[SPECIES_FILES["int8"]],
        "size_bytes.species_fp16": summary.sizes[SPECIES_FILES["fp16"]],
        "size_bytes.heads_packed": summary.sizes[PACKED_HEADS_FILE],
        "size_bytes.heads_total": sum(heads),
    }
    seconds = {f"seconds.{step.replace(' ', '_')}": value for step, value in summary.seconds.items()}
    mlflow.log_metrics({**{name: float(size) for name, size in sizes.items()}, **seconds})
    mlflow.set_tags({PREFIX + name: value for name, value in _origin_tags(metadata).items()})
    _log_data(request.data, "train", str(metadata.provenance["data_sha256"]))


def _bundle_params(metadata: Metadata) -> dict[str, Any]:
    recipe = metadata.models[SPECIES_FILES["int8"]]["recipe"]
    params = {
        "seed": metadata.provenance["seed"],
        "backbone": metadata.provenance["backbone"],
        "species": len(metadata.taxonomy.species),
        "heads": len(metadata.taxonomy.species_with_head),
        "embedding_dim": metadata.embedding_dim,
        "image_size": metadata.preprocessing.image_size,
        "int8_method": recipe["method"],
        "int8_kept_float": len(recipe["kept_float"]),
        "int8_graph": recipe["graph"],
    }
    return {PREFIX + name: value for name, value in params.items()}


def _origin_tags(metadata: Metadata) -> dict[str, str]:
    return {
        "git_commit": metadata.provenance.get("git_commit") or "unknown",
        "checkpoint_sha256": str(metadata.provenance.get("checkpoint_sha256")),
        "class_order_digest": metadata.taxonomy.digest,
    }


def _log_data(path: Path, context: str, sha256: str) -> None:
    """Links a data set to the run; MLflow keeps at most 36 characters of a digest."""
    dataset = MetaDataset(  # type: ignore[abstract]  # MLflow documents it as it is
        LocalArtifactDatasetSource(str(path.resolve())), name=path.name, digest=sha256[:_DATASET_DIGEST_LENGTH]
    )
    mlflow.log_input(dataset, context=context)


def _verify(request: Request) -> GateReport:
    report = verify_bundle(
        request.out,
        request.data,
        checkpoint=request.checkpoint,
        non_plants=request.non_plants,
        unseen_plants=request.unseen_plants,
        policy=read_policy(request.policy),
    )
    mlflow.log_metrics(report.metrics())
    mlflow.set_tag(f"{PREFIX}gates", gates_tag(report))
    _log_data(request.data, "val", report.inputs.val.sha256)
    if request.non_plants is not None and report.inputs.non_plants is not None:
        _log_data(request.non_plants, "non_plants", report.inputs.non_plants.sha256)
    if request.unseen_plants is not None and report.inputs.unseen_plants is not None:
        _log_data(request.unseen_plants, "unseen_plants", report.inputs.unseen_plants.sha256)
    _log_report(request.out)
    return report


def _log_report(bundle: Path) -> None:
    """Puts report and plots into the run, which shows them in its tab Artifacts.

    The plots are the very PNGs of the bundle: `mlflow.log_figure` would draw them a second time to log the same files.
    """
    with to_one_line("the report could not be uploaded"):
        for name in (GATE_REPORT_FILE, HTML_REPORT_FILE, IMAGES_FILE):
            mlflow.log_artifact(str(bundle / name))
        mlflow.log_artifacts(str(bundle / PLOTS_FOLDER), PLOTS_FOLDER)


def _version_tags(metadata: Metadata, report: GateReport) -> dict[str, str]:
    return {**_origin_tags(metadata), "gates": gates_tag(report)}


def gates_tag(report: GateReport) -> str:
    """Says "passed", or which gates did not."""
    return "passed" if report.passed else f"failed: {', '.join(report.failed)}"


def _first_leaf(request: Request) -> bytes:
    """The first validation leaf that can be decoded, as it lies on disk."""
    for path in read_leaves(request.data, "val", read_metadata(request.out).taxonomy).paths:
        with contextlib.suppress(ImageError, OSError):
            data = path.read_bytes()
            decode_image(data)
            return data
    raise DataError(f"{request.data}: no image of split 'val' can be read")


def register_bundle(bundle: Path, report: GateReport, name: str, example: bytes | None) -> ModelVersion:
    """Uploads a verified bundle, reads it back, and only then registers it.

    Args:
        bundle: whole and verified.
        report: its gate report.
        name: of the registered model, made when it does not exist.
        example: one encoded photograph.

    Raises:
        RegistrationError: nothing was registered.
    """
    tags = _version_tags(read_metadata(bundle), report)
    with to_one_line("the bundle could not be uploaded"), redirect_temporary_files("upload"):
        info = flavor.log_model(bundle, name=name, input_example=example, tags=tags)
    client = MlflowClient()
    try:
        _read_back(bundle, info.model_id)
    except PlantModelsError:
        with contextlib.suppress(*SERVER_ERRORS):
            client.finalize_logged_model(info.model_id, LoggedModelStatus.FAILED)
        raise
    with to_one_line("the version could not be registered"):
        return _register_once(info.model_id, name, tags)


def _register_once(model_id: str, name: str, tags: dict[str, str]) -> ModelVersion:
    """One version of a logged model, although MLflow repeats a request whose answer was lost on the way."""
    client, source = MlflowClient(), f"models:/{model_id}"

    def find() -> list[ModelVersion]:
        found = client.search_model_versions(f"name = '{name}' AND source_path = '{source}'")
        return sorted(found, key=lambda version: int(version.version))

    try:
        registered = [mlflow.register_model(source, name, tags=tags)]
    except SERVER_ERRORS:
        with preflight():
            registered = find()
        if not registered:
            raise
    with contextlib.suppress(*SERVER_ERRORS):
        registered = find() or registered
        for repeated in registered[1:]:
            client.delete_model_version(name, repeated.version)
    return registered[0]


def _read_back(bundle: Path, model_id: str) -> None:
    """Downloads a logged model, compares every digest with the bundle, and loads it once."""
    manifest = read_manifest(bundle)
    with temporary_folder("read-back") as temporary:
        with to_one_line("the uploaded files cannot be read back"):
            uri = f"models:/{model_id}"
            folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(temporary)))
        stored = folder / flavor.BUNDLE_FOLDER
        check_files(stored, manifest)
        for name in (MANIFEST_FILE, *([SIGNATURE_FILE] if (bundle / SIGNATURE_FILE).exists() else [])):
            if digest_file(stored / name) != digest_file(bundle / name):
                raise RegistrationError(f"{name} was read back with another content than was uploaded")
        with to_one_line("the uploaded model does not load"):
            mlflow.pyfunc.load_model(str(folder))
