"""The long steps of the jobs: each does its work and logs the result; importing this module loads torch."""

import contextlib

import mlflow

from mlflow_plugins.jobs.records import bundle_params, gates_tag, log_data, log_report, origin_tags
from mlflow_plugins.jobs.requests import JobRequest
from mlflow_plugins.jobs.run import PREFIX, log_params, set_tags
from plantmodels.bundle.layout import ONE_FILES, PACKED_HEADS_FILE, SPECIES_FILES, is_single_head
from plantmodels.bundle.metadata import read_metadata
from plantmodels.checkpoint.reading import read_checkpoint
from plantmodels.data.leaves import read_field_leaves, read_leaves
from plantmodels.data.non_plants import read_non_plants
from plantmodels.errors import DataError, ImageError
from plantmodels.export.bundle import ExportSummary, export_bundle
from plantmodels.report.gate_report import GateReport
from plantmodels.report.policy import read_policy
from plantmodels.serve.preprocessing import decode_image
from plantmodels.verify.run import verify_bundle


def check_inputs(request: JobRequest) -> None:
    """Read every input once, so that what a later step would refuse is refused before hours of work.

    Raises:
        PlantModelsError: an input is missing or malformed.
    """
    read_policy(request.policy)
    taxonomy = read_checkpoint(request.checkpoint, request.hyper_parameters, request.weights).spec.taxonomy
    read_leaves(request.data, "train", taxonomy)
    read_leaves(request.data, "val", taxonomy)
    if request.non_plants is not None:
        read_non_plants(request.non_plants)
    if request.unseen_plants is not None:
        read_non_plants(request.unseen_plants, "unseen plants")
    if request.field is not None:
        read_field_leaves(request.field, taxonomy)


def export(request: JobRequest) -> ExportSummary:
    """Export the checkpoint, and log the bundle's params, sizes and times."""
    summary = export_bundle(
        request.checkpoint,
        request.data,
        request.bundle,
        non_plants=request.non_plants,
        seed=request.seed,
        hyper_parameters=request.hyper_parameters,
        weights=request.weights,
        one_file_fp16=request.one_file_fp16,
    )
    metadata = summary.metadata
    log_params({**bundle_params(metadata), f"{PREFIX}unreadable_images": len(summary.unreadable)})
    heads = [size for name, size in summary.sizes.items() if is_single_head(name)]
    sizes = {
        "size_bytes.species_int8": summary.sizes[SPECIES_FILES["int8"]],
        "size_bytes.species_fp16": summary.sizes[SPECIES_FILES["fp16"]],
        **{f"size_bytes.one_file_{p}": summary.sizes[name] for p, name in ONE_FILES.items() if name in summary.sizes},
        "size_bytes.heads_packed": summary.sizes[PACKED_HEADS_FILE],
        "size_bytes.heads_total": sum(heads),
    }
    seconds = {f"seconds.{step.replace(' ', '_')}": value for step, value in summary.seconds.items()}
    mlflow.log_metrics({**{name: float(size) for name, size in sizes.items()}, **seconds})
    set_tags({PREFIX + name: value for name, value in origin_tags(metadata).items()})
    log_data(request.data, "train", str(metadata.provenance["data_sha256"]))
    return summary


def verify(request: JobRequest) -> GateReport:
    """Measure every gate of the bundle, and log the report's numbers and files."""
    report = verify_bundle(
        request.bundle,
        request.data,
        checkpoint=request.checkpoint,
        non_plants=request.non_plants,
        unseen_plants=request.unseen_plants,
        field=request.field,
        policy=read_policy(request.policy),
        hyper_parameters=request.hyper_parameters,
    )
    mlflow.log_metrics(report.metrics())
    mlflow.set_tag(f"{PREFIX}gates", gates_tag(report))
    log_data(request.data, "val", report.inputs.val.sha256)
    if request.non_plants is not None and report.inputs.non_plants is not None:
        log_data(request.non_plants, "non_plants", report.inputs.non_plants.sha256)
    if request.unseen_plants is not None and report.inputs.unseen_plants is not None:
        log_data(request.unseen_plants, "unseen_plants", report.inputs.unseen_plants.sha256)
    if request.field is not None and report.inputs.field is not None:
        log_data(request.field, "field", report.inputs.field.sha256)
    log_report(request.bundle)
    return report


def read_first_leaf(request: JobRequest) -> bytes:
    """Return the content of the first validation leaf that can be decoded.

    Raises:
        DataError: no validation leaf can be read.
    """
    for path in read_leaves(request.data, "val", read_metadata(request.bundle).taxonomy).paths:
        with contextlib.suppress(ImageError, OSError):
            data = path.read_bytes()
            decode_image(data)
            return data
    raise DataError(f"{request.data}: no image of split 'val' can be read")
