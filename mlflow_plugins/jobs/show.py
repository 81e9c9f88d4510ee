"""Shows a registered version: loads it back by its URI, as a consumer would, and asks it about a few images."""

from pathlib import Path
from typing import Final

import mlflow
import pandas as pd
from mlflow import MlflowClient

from mlflow_plugins.jobs.registration import suggest_promotion
from mlflow_plugins.jobs.run import hide_bars_in_files
from mlflow_plugins.loading.mlmodel import BUNDLE_FOLDER
from mlflow_plugins.loading.pyfunc import IMAGE_COLUMN
from mlflow_plugins.names import filter_by_name
from mlflow_plugins.servers import check_servers
from plantmodels.bundle.metadata import read_metadata
from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.data.leaves import LeafSample, read_leaves
from plantmodels.data.non_plants import read_non_plants
from plantmodels.errors import RegistrationError
from plantmodels.report.gate_report import read_report

_LEAVES: Final = 3


def describe_version(name: str, version: str, data: Path, non_plants: Path | None) -> str:
    """Return the gate table, the URI, and answers of `mlflow.pyfunc.load_model(uri)`.

    Args:
        name: the registered model.
        version: its number; "" for the latest version.
        data: leaf folders; the model is asked about three validation leaves of different species.
        non_plants: folder of images that show no plant; the model is asked about the first one. None for no image.

    Raises:
        RegistrationError: no such version.
    """
    check_servers()
    hide_bars_in_files()
    number = version or _latest_version(name)
    uri = f"models:/{name}/{number}"
    bundle = Path(mlflow.artifacts.download_artifacts(artifact_uri=f"{uri}/{BUNDLE_FOLDER}"))
    taxonomy = read_metadata(bundle).taxonomy
    asked = {_name_classes(taxonomy, sample): sample.path for sample in _pick_leaves(data, taxonomy)}
    if non_plants is not None:
        images = read_non_plants(non_plants)
        asked[f"no plant ({images.source_of(images.paths[0])})"] = images.paths[0]
    images_to_ask = pd.DataFrame({IMAGE_COLUMN: [path.read_bytes() for path in asked.values()]})
    answers = mlflow.pyfunc.load_model(uri).predict(images_to_ask)
    rows = "\n".join(
        f"  {label:<44} → {_describe_answer(row)}" for label, row in zip(asked, answers.to_dict("records"), strict=True)
    )
    report = read_report(bundle)
    return f"{report.table()}\n\n{uri}\n\n{rows}\n\n{suggest_promotion(name, number, report)}"


def _latest_version(name: str) -> str:
    versions = MlflowClient().search_model_versions(filter_by_name(name))
    if not versions:
        raise RegistrationError(f"the registry {mlflow.get_registry_uri()} holds no version of {name!r}")
    return str(max(int(version.version) for version in versions))


def _pick_leaves(data: Path, taxonomy: Taxonomy) -> list[LeafSample]:
    first_of = {sample.species_index: sample for sample in reversed(read_leaves(data, "val", taxonomy).samples)}
    samples = [first_of[index] for index in sorted(first_of)]
    return samples[:: max(1, len(samples) // _LEAVES)][:_LEAVES]


def _name_classes(taxonomy: Taxonomy, sample: LeafSample) -> str:
    species = taxonomy.species[sample.species_index]
    if sample.disease_index is None:
        return species
    return f"{species}, {taxonomy.diseases_of(sample.species_index)[sample.disease_index]}"


def _describe_answer(row: dict[str, object]) -> str:
    if row["error"] is not None:
        return f"error: {row['error']}"
    verdict = "REJECTED, " if row["rejected"] else ""
    disease = "" if row["disease"] is None else f", {row['disease']} ({row['disease_probability']:.0%})"
    return f"{verdict}{row['species']} ({row['species_probability']:.0%}){disease}, OOD score {row['ood_score']:.1f}"
