"""What a run and a version record of a bundle: params, tags, data sets and the report's files."""

from pathlib import Path
from typing import Any, Final

import mlflow
from mlflow.data.meta_dataset import MetaDataset
from mlflow.data.sources import LocalArtifactDatasetSource  # type: ignore[attr-defined]  # made when imported

from mlflow_plugins.jobs.run import PREFIX, registration_errors, write_texts
from plantmodels.bundle.layout import GATE_REPORT_FILE, HTML_REPORT_FILE, IMAGES_FILE, PLOTS_FOLDER, SPECIES_FILES
from plantmodels.bundle.metadata import Metadata
from plantmodels.data.image_files import printable_name
from plantmodels.report.gate_report import GateReport

_DATASET_DIGEST_LENGTH: Final = 36
"""MLflow keeps at most so many characters of a data set's digest."""


def bundle_params(metadata: Metadata) -> dict[str, Any]:
    """Return the params that describe a bundle."""
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


def origin_tags(metadata: Metadata) -> dict[str, str]:
    """Return the tags that say what a bundle was made from. Digests sort last in MLflow's UI."""
    return {
        "git_commit": metadata.provenance.get("git_commit") or "unknown",
        "sha256.checkpoint": str(metadata.provenance.get("checkpoint_sha256")),
        "sha256.class_order": metadata.taxonomy.digest,
    }


def version_tags(metadata: Metadata, report: GateReport) -> dict[str, str]:
    """Return the tags of a model version: its origin and its gates."""
    return {**origin_tags(metadata), "gates": gates_tag(report)}


def gates_tag(report: GateReport) -> str:
    """Return "passed", "passed, uncertain: " and the uncertain gates, or "failed: " and those that did not pass."""
    if not report.passed:
        return f"failed: {', '.join(report.failed)}"
    return f"passed, uncertain: {', '.join(report.uncertain)}" if report.uncertain else "passed"


def log_data(path: Path, context: str, sha256: str) -> None:
    """Link a data set to the run.

    Args:
        path: its folder or manifest.
        context: what it was used for, such as "train".
        sha256: its digest.
    """

    def log(texts: dict[str, str]) -> None:
        dataset = MetaDataset(  # type: ignore[abstract]  # MLflow documents it as it is
            LocalArtifactDatasetSource(texts["source"]), name=texts["name"], digest=sha256[:_DATASET_DIGEST_LENGTH]
        )
        mlflow.log_input(dataset, context=context)

    write_texts(log, {"source": printable_name(str(path.resolve())), "name": printable_name(path.name)})


def log_report(bundle: Path) -> None:
    """Upload the report and its plots into the run, which shows them in its tab Artifacts.

    The plots are the bundle's own PNG files: `mlflow.log_figure` would draw them a second time.

    Raises:
        RegistrationError: they cannot be uploaded.
    """
    with registration_errors("the report could not be uploaded"):
        for name in (GATE_REPORT_FILE, HTML_REPORT_FILE, IMAGES_FILE):
            mlflow.log_artifact(str(bundle / name))
        mlflow.log_artifacts(str(bundle / PLOTS_FOLDER), PLOTS_FOLDER)
