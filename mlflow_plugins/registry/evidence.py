"""What the files of a model prove. They are read from the artifact store; what a client says about them is ignored."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlparse

from mlflow_plugins._mlflow_compat import locate_artifacts
from mlflow_plugins.loading.mlmodel import BUNDLE_FOLDER, DESCRIPTION_FILE, FLAVOR_NAME, read_description
from plantmodels.bundle.detector import read_detector
from plantmodels.bundle.layout import DETECTOR_FILE, GATE_REPORT_FILE, MANIFEST_FILE
from plantmodels.bundle.manifest import FileDigest, check_files, digest_file, list_files, read_manifest
from plantmodels.bundle.metadata import read_metadata
from plantmodels.bundle.temporary import temporary_folder
from plantmodels.errors import BundleError, PlantModelsError
from plantmodels.foreign_text import quote_error
from plantmodels.report.gate_report import GateReport, read_report
from plantmodels.report.gates import GateResult
from plantmodels.report.policy import GatePolicy

_MLFLOW_FILES: Final = ("registered_model_meta",)
"""Files that MLflow writes into the model folder after registration."""


class EvidenceError(PlantModelsError):
    """Files are missing, changed, contradict each other or cannot be read. Such a version cannot be waived."""


@dataclass(frozen=True)
class Evidence:
    """What the files of one model prove.

    Attributes:
        manifest_sha256: digest of the bundle's manifest, which names every file of the bundle.
        model_sha256: digest of the names and digests of all files of the model: bundle, MLmodel and code.
        report: the gate report, which is about exactly these files; None if the bundle was never verified.
    """

    manifest_sha256: str
    model_sha256: str
    report: GateReport | None

    def find_failures(self, policy: GatePolicy) -> tuple[GateResult, ...]:
        """Return the gates that fail by the limits of the report or by those of the policy.

        Raises:
            EvidenceError: there is no report.
        """
        return tuple(gate for gate in self.judge_gates(policy) if not gate.passed)

    def judge_gates(self, policy: GatePolicy) -> tuple[GateResult, ...]:
        """Return every gate: one that failed by the report as it is, and any other as the policy judges it.

        Raises:
            EvidenceError: there is no report.
        """
        if self.report is None:
            raise EvidenceError(
                f"the bundle holds no {GATE_REPORT_FILE}: it was never verified; verify it and register it again"
            )
        return tuple(
            judged if reported.passed else reported
            for reported, judged in zip(self.report.gates, self.report.judge_by(policy), strict=True)
        )


def describe_gate(gate: GateResult) -> str:
    """Return a line about a failed gate, with its measured value and its limit."""
    if gate.status == "not measured":
        return f"{gate.name} was not measured (limit {gate.limit_text}): {gate.detail}"
    return f"{gate.name} measured {gate.measured_text}, limit {gate.limit_text}"


def has_flavor(location: str) -> bool:
    """Return whether the model at a URI holds our flavor; without an MLmodel the answer is no.

    Raises:
        EvidenceError: the files cannot be read, so the answer is unknown.
    """
    with _evidence_errors(location):
        repository, path, folder = locate_artifacts(location)
        if folder is not None:
            if not folder.is_dir():
                raise EvidenceError(f"the artifacts at {location} cannot be read (no such folder)")
            return (folder / DESCRIPTION_FILE).is_file() and _names_our_flavor(folder)
        names = {Path(entry.path).name for entry in repository.list_artifacts(path or None)}
        if DESCRIPTION_FILE not in names:
            return False
        with temporary_folder("mlmodel") as temporary:
            repository.download_artifacts(f"{path}/{DESCRIPTION_FILE}".lstrip("/"), str(temporary))
            return _names_our_flavor(next(temporary.rglob(DESCRIPTION_FILE)).parent)


def read_evidence(location: str) -> Evidence:
    """Read and check every file of a model in its artifact store.

    Args:
        location: URI of the model folder.

    Raises:
        EvidenceError: the model is not of our flavor, a file is missing, changed or not listed, the report is about
            other files, the class order differs, or the files cannot be read.
    """
    with _evidence_errors(location), _open_model_folder(location) as folder:
        return _check_model(folder, is_loaded_in_place=urlparse(location).scheme in ("", "file"))


@contextmanager
def _evidence_errors(location: str) -> Iterator[None]:
    """Turn every error into an `EvidenceError`, so that nothing is promoted when reading fails."""
    try:
        yield
    except EvidenceError:
        raise
    except PlantModelsError as error:
        raise EvidenceError(str(error)) from error
    except Exception as error:  # the errors of artifact stores share no base class
        reason = quote_error(error)
        raise EvidenceError(f"the artifacts at {location} cannot be read ({type(error).__name__}: {reason})") from error


@contextmanager
def _open_model_folder(location: str) -> Iterator[Path]:
    """Yield the folder of a model on this machine: its own folder, or a copy that exists during the block."""
    repository, path, folder = locate_artifacts(location)
    if folder is not None:
        yield folder
        return
    with temporary_folder("registry") as temporary:
        yield Path(repository.download_artifacts(path, str(temporary)))


def _names_our_flavor(folder: Path) -> bool:
    return FLAVOR_NAME in read_description(folder, aliases=True)["flavors"]


def _check_model(folder: Path, *, is_loaded_in_place: bool) -> Evidence:
    flavor = read_description(folder)["flavors"].get(FLAVOR_NAME)
    if not isinstance(flavor, dict) or flavor.get("bundle") != BUNDLE_FOLDER:
        raise EvidenceError(f"{DESCRIPTION_FILE} does not describe a {FLAVOR_NAME} bundle in {BUNDLE_FOLDER}")
    bundle = folder / BUNDLE_FOLDER
    names = [name for name in list_files(folder) if _belongs_to_model(name, is_loaded_in_place)]
    digests = {name: _digest_file_once(folder / name) for name in names}
    manifest = read_manifest(bundle)
    check_files(bundle, manifest, digest=_digest_file_once)
    manifest_sha256 = digests[f"{BUNDLE_FOLDER}/{MANIFEST_FILE}"].sha256
    if flavor.get("manifest_sha256") != manifest_sha256:
        raise EvidenceError(f"{MANIFEST_FILE} is not the one that {DESCRIPTION_FILE} was written for")
    metadata = read_metadata(bundle)
    read_detector(bundle / DETECTOR_FILE).check_length(metadata.embedding_dim)
    class_order = metadata.taxonomy.digest
    if flavor.get("class_order_digest") != class_order:
        raise EvidenceError(f"the class order is not the one that {DESCRIPTION_FILE} was written for")
    report = read_report(bundle) if GATE_REPORT_FILE in manifest.files else None
    if report is not None and report.inputs.class_order_digest != class_order:
        raise EvidenceError(f"{GATE_REPORT_FILE} is about another class order than the bundle has; verify it again")
    return Evidence(manifest_sha256, _digest_names(digests), report)


def _belongs_to_model(name: str, is_loaded_in_place: bool) -> bool:
    """Return whether a file counts as part of the model.

    Where a version is loaded in place, Python writes `__pycache__` itself, so that folder is left out. Anywhere else
    somebody put it there, and it counts: Python runs a byte-code file instead of its source, whatever it contains.
    """
    return name not in _MLFLOW_FILES and not (is_loaded_in_place and "__pycache__" in name.split("/"))


def _digest_names(digests: dict[str, FileDigest]) -> str:
    lines = "".join(f"{name}\0{entry.sha256}\n" for name, entry in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


_MAX_CACHED_DIGESTS: Final = 100_000
"""Entries, about 40 MB; then the cache starts anew."""

_cached_digests: dict[tuple[str, int, int, int, int], FileDigest] = {}
_cache_lock = threading.Lock()


def _digest_file_once(path: Path) -> FileDigest:
    """Return a file's digest; read it again only if its size, inode, modification time or change time differs.

    A program can set the modification time of a file, but not its change time (`st_ctime`).
    """
    if path.is_symlink() or not path.is_file():
        raise BundleError(f"{path}: expected a regular file")
    stat = path.stat()
    key = (str(path), stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns)
    found = _cached_digests.get(key)
    if found is None:
        found = digest_file(path)
        with _cache_lock:
            if len(_cached_digests) >= _MAX_CACHED_DIGESTS:
                _cached_digests.clear()
            _cached_digests[key] = found
    return found
