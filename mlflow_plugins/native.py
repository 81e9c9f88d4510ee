"""The native loader: a version's classifier from the files that a precision needs, and without MLflow where it can.

>>> load_model("models:/plant-disease@production").predict([jpeg])[0].species  # doctest: +SKIP
'Tomato'
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Final

import yaml

from mlflow_plugins.light_store import DESCRIPTION_FILE, find_version
from plantmodels.bundle.documents import parse_json
from plantmodels.bundle.layout import MANIFEST_FILE, PRECISIONS, Precision, serving_files
from plantmodels.bundle.manifest import Manifest, read_file
from plantmodels.bundle.scratch import scratch_folder
from plantmodels.errors import BundleError
from plantmodels.serve.classifier import PlantClassifier
from plantmodels.serve.session import CPU, Provider

FLAVOR_NAME: Final = "plantmodels"
BUNDLE_FOLDER: Final = "data/bundle"
"""Where the bundle lies inside a model's artifacts."""

_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load_model(
    model_uri: str,
    *,
    precision: Precision = "int8",
    threads: int | None = None,
    workers: int = 1,
    providers: Sequence[Provider] = (CPU,),
    allow_paths: bool = False,
) -> PlantClassifier:
    """Loads the native classifier of a version, and downloads only the files that a precision needs.

    An alias is resolved once, so that all files are of one version whatever is promoted meanwhile. Nothing of the
    version is executed: code that travels with it is not even downloaded. Files on this machine are read where they
    lie, each once, and the bytes that were checked are those that are used. MLflow is imported only where
    `light_store` does not know the store.

    Args:
        model_uri: such as "models:/plant-disease@production".
        precision: which species model answers.
        threads: threads inside an operator; None takes all cores.
        workers: images embedded at the same time, for bulk work with threads=1.
        providers: ONNX Runtime's execution providers in order of preference, with their options where they have any.
        allow_paths: whether an image may be given as the path of a file.

    Raises:
        BundleError: a file cannot be downloaded, or digests or class order do not fit; no session was opened. Or no
            such provider.
        ValueError: another precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    wanted = (DESCRIPTION_FILE, *(f"{BUNDLE_FOLDER}/{name}" for name in (MANIFEST_FILE, *serving_files(precision))))
    with open_artifacts(model_uri, wanted) as folder:
        return PlantClassifier.load(
            folder / BUNDLE_FOLDER,
            precision=precision,
            threads=threads,
            workers=workers,
            providers=providers,
            allow_paths=allow_paths,
            whole=False,
            manifest=read_recorded_manifest(folder),
        )


@contextmanager
def open_artifacts(model_uri: str, names: Iterable[str]) -> Iterator[Path]:
    """A folder with these files of a model: its own where it lies on this machine, else a copy for as long as this.

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
            folder = stack.enter_context(scratch_folder("load"))
            for name in names:
                wanted = f"{model_uri}: {name}"
                repository.download_artifacts(name, dst_path=str(folder))
        except Exception as error:  # each artifact store has exceptions of its own
            reason = " ".join(str(error).split())[:300]
            raise BundleError(f"{wanted} cannot be downloaded ({type(error).__name__}: {reason})") from error
        yield folder


def read_recorded_manifest(folder: Path) -> Manifest:
    """The manifest of a model folder, after comparing its digest with what MLmodel recorded when the version was made.

    Raises:
        BundleError: they differ, or one of both cannot be read.
    """
    path = folder / BUNDLE_FOLDER / MANIFEST_FILE
    content = read_file(path)
    recorded, found = _recorded_digest(folder / DESCRIPTION_FILE), sha256(content).hexdigest()
    if recorded != found:
        raise BundleError(f"{folder}: MLmodel records a manifest of digest {recorded}, {MANIFEST_FILE} has {found}")
    return Manifest.from_dict(parse_json(path, content))


def _recorded_digest(path: Path) -> object:
    try:
        value = yaml.load(read_file(path), _LOADER)  # the loader makes plain values only, as yaml.safe_load
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise BundleError(f"{path}: not the YAML expected ({' '.join(str(error).split())[:200]})") from error
    for key in ("flavors", FLAVOR_NAME, "manifest_sha256"):
        value = value.get(key) if isinstance(value, dict) else None
    return value
