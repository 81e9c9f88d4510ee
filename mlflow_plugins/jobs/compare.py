"""Two registered versions side by side, by the reports that lie in them.

>>> compare_versions("plant-disease", "@production", "7").summary  # doctest: +SKIP
'Better in B: OOD recall. Worse in B: nothing. …'
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow

from mlflow_plugins._mlflow_compat import resolve_models_uri
from mlflow_plugins.jobs.run import to_one_line
from mlflow_plugins.loading.mlmodel import BUNDLE_FOLDER, DESCRIPTION_FILE
from mlflow_plugins.loading.native import open_artifacts, read_recorded_manifest
from plantmodels.bundle.layout import MANIFEST_FILE
from plantmodels.compare.compare import COMPARED_FILES, compare_bundles
from plantmodels.compare.model import Comparison


def compare_versions(name: str, a: str, b: str) -> Comparison:
    """Compares two versions of a registered model; of their files only reports and descriptions are read.

    Args:
        name: registered model.
        a: version to compare with: a number, "@alias" or a stage.
        b: version in question, likewise.

    Raises:
        RegistrationError: no such version, or its files cannot be read.
        BundleError: a version that was not verified, or whose reports are not those of its manifest.
    """
    uris = _resolve(name, a), _resolve(name, b)
    with _reports(uris[0]) as first, _reports(uris[1]) as second:
        return compare_bundles(first, second, names=uris)


def _resolve(name: str, version: str) -> str:
    """The URI by number of what an alias or a stage names now."""
    uri = f"models:/{name}{version}" if version.startswith("@") else f"models:/{name}/{version}"
    with to_one_line(f"{uri} is not in the registry {mlflow.get_registry_uri()}"):
        found, number = resolve_models_uri(uri)
    return f"models:/{found}/{number}"


@contextmanager
def _reports(uri: str) -> Iterator[Path]:
    """A folder with what a comparison reads of a version's bundle."""
    manifest_files = (DESCRIPTION_FILE, f"{BUNDLE_FOLDER}/{MANIFEST_FILE}")
    with to_one_line(f"{uri} cannot be read"), open_artifacts(uri, manifest_files) as folder:
        listed = read_recorded_manifest(folder).files
    wanted = [f"{BUNDLE_FOLDER}/{name}" for name in COMPARED_FILES if name in listed]
    with to_one_line(f"{uri} cannot be read"), open_artifacts(uri, (*manifest_files, *wanted)) as folder:
        yield folder / BUNDLE_FOLDER
