"""Compares two registered versions by their gate reports; no model is downloaded."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow

from mlflow_plugins.jobs.run import registration_errors
from mlflow_plugins.loading.addresses import resolve_models_uri
from mlflow_plugins.loading.mlmodel import BUNDLE_FOLDER, DESCRIPTION_FILE
from mlflow_plugins.loading.native import open_artifacts, read_recorded_manifest
from plantmodels.bundle.layout import MANIFEST_FILE
from plantmodels.compare.compare import COMPARED_FILES, compare_bundles
from plantmodels.compare.model import Comparison


def compare_versions(name: str, a: str, b: str) -> Comparison:
    """Compare two versions of a registered model; only their reports and descriptions are read.

    Args:
        name: the registered model.
        a: the version to compare with: a number, "@alias" or a stage.
        b: the version in question: a number, "@alias" or a stage.

    Raises:
        RegistrationError: no such version, or its files cannot be read.
        BundleError: a version was not verified, or its reports differ from its manifest.
    """
    uris = _resolve_version(name, a), _resolve_version(name, b)
    with _download_reports(uris[0]) as first, _download_reports(uris[1]) as second:
        return compare_bundles(first, second, names=uris)


def _resolve_version(name: str, version: str) -> str:
    """Return the URI by number of the version that an alias or a stage names now."""
    uri = f"models:/{name}{version}" if version.startswith("@") else f"models:/{name}/{version}"
    with registration_errors(f"{uri} cannot be found in the registry {mlflow.get_registry_uri()}"):
        found, number = resolve_models_uri(uri)
    return f"models:/{found}/{number}"


@contextmanager
def _download_reports(uri: str) -> Iterator[Path]:
    """Give a folder with the files of a version's bundle that a comparison reads."""
    manifest_files = (DESCRIPTION_FILE, f"{BUNDLE_FOLDER}/{MANIFEST_FILE}")
    with registration_errors(f"{uri} cannot be read"), open_artifacts(uri, manifest_files) as folder:
        listed = read_recorded_manifest(folder).files
    wanted = [f"{BUNDLE_FOLDER}/{name}" for name in COMPARED_FILES if name in listed]
    with registration_errors(f"{uri} cannot be read"), open_artifacts(uri, (*manifest_files, *wanted)) as folder:
        yield folder / BUNDLE_FOLDER
