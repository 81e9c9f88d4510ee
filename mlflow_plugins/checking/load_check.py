"""Checks that a version contains exactly what `save_model` writes, before anything of it is used.

`mlflow.pyfunc.load_model` imports the code that travels with a version, so it trusts everybody who can write the
artifacts. Nothing of the version is imported here: its code is compared with the installed package, byte for byte.
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mlflow_plugins.checking.model_folder import (
    LoadCheckError,
    check_code,
    check_description,
    check_environment,
    check_names,
    list_names,
)
from mlflow_plugins.flavor import load_model
from mlflow_plugins.loading.handle import ask_about_grey_image
from mlflow_plugins.loading.mlmodel import BUNDLE_FOLDER
from plantmodels.bundle.layout import PRECISIONS
from plantmodels.bundle.manifest import list_files
from plantmodels.bundle.metadata import read_metadata
from plantmodels.bundle.signature import read_trusted_manifest
from plantmodels.bundle.temporary import temporary_folder
from plantmodels.errors import PlantModelsError
from plantmodels.foreign_text import quote_error
from plantmodels.serve.classifier import PlantClassifier


@dataclass(frozen=True)
class VersionCopy:
    """A private copy of a version's files.

    Attributes:
        source: URI of what was copied; an alias is replaced by the version that it means.
        folder: the copy.
        tags: tags of the registered version; None if the model is not registered.
    """

    source: str
    folder: Path
    tags: Mapping[str, str] | None


def check_version(uri: str, *, copy_to: Path | None = None, public_key: Path | None = None) -> Iterator[str]:
    """Check every file of a version, load it and let it answer a grey image. Yield one line for each check that passed.

    All checks work on a private copy of the files, so what was checked is what is used.

    Args:
        uri: `models:/name/version`, `models:/name@alias`, another URI of artifacts, or a model folder.
        copy_to: path for the checked copy, which must not exist yet; None keeps no copy.
        public_key: file of the public key that must have signed the bundle; None checks no signature.

    Raises:
        PlantModelsError: a check failed. The message names the file, what it contains and what was expected.
    """
    if copy_to is not None and copy_to.exists():
        raise LoadCheckError(f"{copy_to}: exists already; expected a path that does not exist")
    with copy_version(uri) as copied:
        folder = copied.folder
        yield f"fetched      {copied.source}"
        yield f"files        {check_names(folder)}"
        yield f"MLmodel      {check_description(folder)}"
        yield f"environment  {check_environment(folder)}"
        yield f"code         {check_code(folder)}"
        model_sha256, line = check_bundle(folder)
        yield f"bundle       {line}"
        yield f"registry     {check_stamps(model_sha256, copied.tags)}"
        if public_key is not None:
            read_trusted_manifest(folder / BUNDLE_FOLDER, public_key)
            yield f"signature    made with the key of {public_key}"
        classifiers = [load_model(str(folder), precision=precision) for precision in PRECISIONS]
        yield f"sessions     {_check_heads(folder, classifiers[0])}"
        yield f"answer       {'; '.join(map(_check_answer, classifiers))}"
        if copy_to is not None:
            try:
                shutil.copytree(folder, copy_to)
            except OSError as error:
                raise LoadCheckError(f"{copy_to}: the copy cannot be written ({error})") from error
            yield f"copied to    {copy_to}"


@contextmanager
def copy_version(uri: str) -> Iterator[VersionCopy]:
    """Copy all files of a version into a temporary folder. Links are not followed, and pipes are not opened."""
    with temporary_folder("check") as temporary:
        try:
            source, tags = _resolve_uri(uri)
            folder = _copy_files(source, temporary)
        except PlantModelsError:
            raise
        except Exception as error:  # the errors of artifact stores share no base class
            reason = quote_error(error)
            raise LoadCheckError(f"{uri}: cannot be read ({type(error).__name__}: {reason})") from error
        yield VersionCopy(source, folder, tags)


def _resolve_uri(uri: str) -> tuple[str, dict[str, str] | None]:
    """Return a URI that always means the same version, and the version's tags; None if it is not registered."""
    from mlflow import MlflowClient

    from mlflow_plugins._mlflow_compat import parse_models_uri
    from mlflow_plugins.loading.addresses import resolve_models_uri

    if not uri.startswith("models:/") or parse_models_uri(uri)[0] is not None:
        return uri, None
    name, version = resolve_models_uri(uri)
    return f"models:/{name}/{version}", dict(MlflowClient().get_model_version(name, version).tags)


def _copy_files(source: str, temporary: Path) -> Path:
    """Copy a model's files into a temporary folder and return the model folder there."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    repository = get_artifact_repository(source)
    behind = getattr(repository, "repo", repository)
    if not isinstance(behind, LocalArtifactRepository):
        target = temporary / "download"
        target.mkdir()
        return Path(repository.download_artifacts("", dst_path=str(target)))
    stored = Path(behind.artifact_dir)
    if not stored.is_dir():
        raise LoadCheckError(f"{source}: no such model folder")
    list_files(stored)
    return Path(shutil.copytree(stored, temporary / "copy", symlinks=True))


def check_bundle(folder: Path) -> tuple[str, str]:
    """Check the bundle as the registry does, and return the digest of all files and a line for people."""
    from mlflow_plugins.registry.evidence import read_evidence

    evidence = read_evidence(str(folder))
    taxonomy = read_metadata(folder / BUNDLE_FOLDER).taxonomy
    return evidence.digest_model(), (
        f"manifest {evidence.manifest_sha256[:12]} and class order {taxonomy.digest[:12]}, as recorded in MLmodel; "
        f"{len(taxonomy.species)} species"
    )


def check_stamps(model_sha256: str, tags: Mapping[str, str] | None) -> str:
    """Compare the files' digest with the one that the gated registry stamped on the version."""
    from mlflow_plugins.registry.tags import MODEL_TAG, OLD_MODEL_TAG

    if tags is None:
        return "not a registered version"
    stamped = tags.get(MODEL_TAG, tags.get(OLD_MODEL_TAG))
    if stamped is None:
        return "no stamped digest: it was registered without the gate"
    if stamped != model_sha256:
        raise LoadCheckError(
            f"the files have the digest {model_sha256}, but the registry stamped {stamped:.70} at registration"
        )
    return f"stamped digest {stamped[:12]}, the digest of these files"


def _check_heads(folder: Path, classifier: PlantClassifier) -> str:
    """Check that every single head answers like its row of the packed heads."""
    from plantmodels.verify.integrity import find_head_problems
    from plantmodels.verify.opening import open_heads

    metadata = classifier.metadata
    if problems := find_head_problems(open_heads(folder / BUNDLE_FOLDER, metadata), metadata, None):
        raise LoadCheckError(list_names(list(problems)))
    heads = len(classifier.taxonomy.species_with_head)
    return f"species model in {' and '.join(PRECISIONS)}, packed heads, {heads} single heads with the same answers"


def _check_answer(classifier: PlantClassifier) -> str:
    """Check that a grey image gets finite numbers as its answer."""
    answer = ask_about_grey_image(classifier, classifier.precision)
    return f"{classifier.precision}: a grey image has OOD score {answer.ood_score:.1f}"
