"""The native loader: a model version's classifier, from only the files that a precision needs.

MLflow takes a second and 165 MB to import. A model folder is therefore read directly; MLflow is imported only for an
address that it must resolve, such as `models:/plant-disease@production`.

>>> from mlflow_plugins import load_model, save_model
>>> save_model(bundle, tmp / "model")
>>> load_model(str(tmp / "model"), threads=1).predict([image.read_bytes()])[0].error is None
True
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from mlflow_plugins.loading.mlmodel import (
    BUNDLE_FOLDER,
    DESCRIPTION_FILE,
    FLAVOR_NAME,
    find_prediction_contract,
    read_description,
)
from plantmodels.bundle.files import StrPath
from plantmodels.bundle.layout import MANIFEST_FILE, SIGNATURE_FILE, serving_files
from plantmodels.bundle.manifest import Manifest, parse_manifest, read_manifest_bytes
from plantmodels.bundle.signature import check_manifest_signature
from plantmodels.bundle.temporary import temporary_folder
from plantmodels.errors import BundleError
from plantmodels.foreign_text import quote_error
from plantmodels.serve.classifier import PlantClassifier
from plantmodels.serve.loading import LoadOptions, read_bundle
from plantmodels.serve.session import release_free_memory


def load_model(model_uri: StrPath, **options: Any) -> PlantClassifier:
    """Load a model version's classifier; downloads only the files that its precision needs.

    An alias is resolved once, so all files belong to one version whatever is promoted meanwhile. Nothing of the
    version is executed: the code that travels with it is not even downloaded. Files on this machine are read where
    they lie, each once, and the bytes that were checked are the bytes that are used.

    Args:
        model_uri: an address such as "models:/plant-disease@production", or the path of a model folder.
        options: the fields of `LoadOptions`: precision, threads, workers, providers, allow_paths, public_key.

    Raises:
        SignatureError: the version is not signed by the public key. No other file of it was used.
        BundleError: a file cannot be downloaded, digests or the class order do not fit, or a session does not open.
        ValueError: an option has a value that `LoadOptions` refuses.
    """
    uri = model_uri if isinstance(model_uri, str) else Path(model_uri).absolute().as_uri()
    return load_version(uri, LoadOptions(**options))


def load_version(model_uri: str, options: LoadOptions) -> PlantClassifier:
    """Load a model version's classifier as `load_model` does, with options that were checked before."""
    return load_with_contract(model_uri, options)[0]


def load_with_contract(model_uri: str, options: LoadOptions) -> tuple[PlantClassifier, int]:
    """Load a model version's classifier, and the version of contract 4 that its MLmodel records."""
    serving = (MANIFEST_FILE, *serving_files(options.precision))
    files = (DESCRIPTION_FILE, *(f"{BUNDLE_FOLDER}/{name}" for name in serving))
    signature = () if options.public_key is None else (f"{BUNDLE_FOLDER}/{SIGNATURE_FILE}",)
    with open_artifacts(model_uri, files, signature) as folder:
        contract = find_prediction_contract(read_description(folder)["flavors"])
        return load_recorded_bundle(folder, options, every_file=False), contract


def load_recorded_bundle(model_folder: Path, options: LoadOptions, *, every_file: bool) -> PlantClassifier:
    """Load the bundle of a model folder, after comparing its manifest with the digest that MLmodel records.

    Args:
        model_folder: the model folder, which holds the bundle as `data/bundle`.
        options: how to load the bundle.
        every_file: whether every file of the bundle must be there and is checked.

    Raises:
        SignatureError: the bundle is not signed by the public key.
        BundleError: the manifest is not the recorded one, or as `PlantClassifier.load`.
    """
    manifest = read_recorded_manifest(model_folder, options.public_key)
    bundle = model_folder / BUNDLE_FOLDER
    contents = read_bundle(bundle, models=options.model_files, every_file=every_file, manifest=manifest)
    classifier = PlantClassifier.from_contents(contents, options)
    del contents  # the models' bytes, so that they are returned to the system too
    release_free_memory()
    return classifier


@contextmanager
def open_artifacts(model_uri: str, names: Iterable[str], optional_names: Iterable[str] = ()) -> Iterator[Path]:
    """Yield a folder with files of a model: the model's own folder on this machine, or else a temporary copy.

    Args:
        model_uri: as for `load_model`.
        names: files that the model must have, relative to its folder.
        optional_names: further files, which the model may lack.

    Raises:
        BundleError: a file cannot be downloaded.
        MlflowException: the version does not exist, or its registry does not answer.
    """
    if (local := _find_model_folder(model_uri)) is not None:
        yield local
        return
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    repository = get_artifact_repository(model_uri)
    behind = getattr(repository, "repo", repository)
    if isinstance(behind, LocalArtifactRepository):
        yield Path(behind.artifact_dir)
        return
    with ExitStack() as stack:
        wanted = model_uri
        try:
            folder = stack.enter_context(temporary_folder("load"))
            found_files = [
                n for n in optional_names if n in {f.path for f in repository.list_artifacts(n.rpartition("/")[0])}
            ]
            for name in (*names, *found_files):
                wanted = f"{model_uri}: {name}"
                repository.download_artifacts(name, dst_path=str(folder))
        except Exception as error:  # each artifact store has exceptions of its own
            reason = quote_error(error)
            raise BundleError(f"{wanted} cannot be downloaded ({type(error).__name__}: {reason})") from error
        yield folder


def _find_model_folder(model_uri: str) -> Path | None:
    """Return the model folder that a path or a `file:` address names; None for every other address."""
    parts = urlparse(model_uri)
    if parts.netloc or parts.params or parts.query or parts.fragment or parts.scheme not in ("", "file"):
        return None
    folder = Path(unquote(parts.path))
    is_model = os.name == "posix" and (folder / DESCRIPTION_FILE).is_file()  # MLflow knows what drive letters mean
    return folder if is_model else None


def read_recorded_manifest(folder: Path, public_key: Path | None = None) -> Manifest:
    """Return a model folder's manifest, after comparing its digest with the one that MLmodel records.

    Args:
        folder: the model folder.
        public_key: file of the public key that must have signed the manifest; None accepts any.

    Raises:
        SignatureError: the manifest is not signed by that key.
        BundleError: the digests differ, a file cannot be read, or the bundle's folder is a symbolic link.
    """
    flavor = read_description(folder)["flavors"].get(FLAVOR_NAME)
    recorded = flavor.get("manifest_sha256") if isinstance(flavor, dict) else None
    bundle = folder / BUNDLE_FOLDER
    for part in (bundle.parent, bundle):
        if part.is_symlink():
            raise BundleError(f"{part}: expected a folder, got a symbolic link")
    content = read_manifest_bytes(bundle)
    if recorded != (found := sha256(content).hexdigest()):
        raise BundleError(
            f"{folder}: {DESCRIPTION_FILE} records a manifest of digest {recorded!r:.70}, but the digest of "
            f"{MANIFEST_FILE} is {found}"
        )
    if public_key is not None:
        check_manifest_signature(bundle, content, public_key)
    return parse_manifest(bundle, content)
