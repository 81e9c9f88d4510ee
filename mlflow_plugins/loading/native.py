"""The native loader: a version's classifier from the files that a precision needs, and without MLflow where it can.

>>> load_model("models:/plant-disease@production").predict([jpeg])[0].species  # doctest: +SKIP
'Tomato'
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from mlflow_plugins.loading.light_store import find_version
from mlflow_plugins.loading.mlmodel import BUNDLE_FOLDER, DESCRIPTION_FILE, FLAVOR_NAME, read_description
from plantmodels.bundle.layout import MANIFEST_FILE, SIGNATURE_FILE, serving_files
from plantmodels.bundle.manifest import Manifest, parse_manifest, read_manifest_bytes
from plantmodels.bundle.signature import check_signature
from plantmodels.bundle.temporary import temporary_folder
from plantmodels.errors import BundleError
from plantmodels.serve.classifier import PlantClassifier
from plantmodels.serve.loading import LoadOptions, read_bundle
from plantmodels.serve.session import release_free_memory


def load_model(model_uri: str, **options: Any) -> PlantClassifier:
    """Load a model version's classifier; downloads only the files that its precision needs.

    An alias is resolved once, so all files belong to one version whatever is promoted meanwhile. Nothing of the
    version is executed: the code that travels with it is not even downloaded. Files on this machine are read where
    they lie, each once, and the bytes that were checked are the bytes that are used. MLflow is imported only where
    `light_store` does not know the store.

    Args:
        model_uri: such as "models:/plant-disease@production".
        options: the fields of `LoadOptions`: precision, threads, workers, providers, allow_paths, public_key.

    Raises:
        SignatureError: the version is not signed by the public key. No other file of it was used.
        BundleError: a file cannot be downloaded, digests or the class order do not fit, or a session does not open.
        ValueError: an option has a value that `LoadOptions` refuses.
    """
    return load_version(model_uri, LoadOptions(**options))


def load_version(model_uri: str, options: LoadOptions) -> PlantClassifier:
    """Load a model version's classifier as `load_model` does, with options that were checked before."""
    serving = (MANIFEST_FILE, *serving_files(options.precision))
    files = (DESCRIPTION_FILE, *(f"{BUNDLE_FOLDER}/{name}" for name in serving))
    signature = () if options.public_key is None else (f"{BUNDLE_FOLDER}/{SIGNATURE_FILE}",)
    with open_artifacts(model_uri, files, signature) as folder:
        return load_recorded_bundle(folder, options, every_file=False)


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
def open_artifacts(model_uri: str, names: Iterable[str], if_there: Iterable[str] = ()) -> Iterator[Path]:
    """A folder with these files of a model: its own where it lies on this machine, else a copy for as long as this.

    Args:
        model_uri: as for `load_model`.
        names: files that must be there, relative to the model.
        if_there: further files, which a model may lack.

    Raises:
        BundleError: a file cannot be downloaded.
        MlflowException: no such version, or its registry does not answer.
    """
    if (found := find_version(model_uri)) is not None:
        yield found.folder
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
                n for n in if_there if n in {f.path for f in repository.list_artifacts(n.rpartition("/")[0])}
            ]
            for name in (*names, *found_files):
                wanted = f"{model_uri}: {name}"
                repository.download_artifacts(name, dst_path=str(folder))
        except Exception as error:  # each artifact store has exceptions of its own
            reason = " ".join(str(error).split())[:300]
            raise BundleError(f"{wanted} cannot be downloaded ({type(error).__name__}: {reason})") from error
        yield folder


def read_recorded_manifest(folder: Path, public_key: Path | None = None) -> Manifest:
    """The manifest of a model folder, after comparing its digest with what MLmodel recorded when the version was made.

    Args:
        folder: of the model.
        public_key: file of the key whose signature it must bear; None for any.

    Raises:
        SignatureError: it does not bear it.
        BundleError: they differ, one of both cannot be read, or the bundle's folder is a link to another place.
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
            f"{folder}: {DESCRIPTION_FILE} records a manifest of digest {recorded!r:.70}, {MANIFEST_FILE} has {found}"
        )
    if public_key is not None:
        check_signature(bundle, content, public_key)
    return parse_manifest(bundle, content)
