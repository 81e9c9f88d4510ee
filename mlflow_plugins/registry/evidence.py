"""What a model's files prove: read from the artifact store each time, never taken from a client's word.

>>> evidence = read_evidence("mlflow-artifacts:/1/models/m-1/artifacts")  # doctest: +SKIP
>>> evidence.find_failures(GatePolicy())  # doctest: +SKIP
()
"""

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
from plantmodels.report.gate_report import GateReport, read_report
from plantmodels.report.gates import GateResult, judge_gate
from plantmodels.report.policy import GatePolicy

_NOT_OF_THE_MODEL: Final = ("registered_model_meta",)
"""MLflow writes it beside the model after registration."""


class EvidenceError(PlantModelsError):
    """Files that are missing, changed, contradictory or cannot be read; no waiver helps."""


@dataclass(frozen=True)
class Evidence:
    """What was found in one model's files.

    Attributes:
        manifest_sha256: of the bundle's manifest, which names every file of the bundle.
        model_sha256: of the names and digests of all files of the model: bundle, MLmodel and code.
        report: the gate report, about exactly these files; None when the bundle was never verified.
    """

    manifest_sha256: str
    model_sha256: str
    report: GateReport | None

    def find_failures(self, policy: GatePolicy) -> tuple[GateResult, ...]:
        """Gates that did not pass by the report's own limits or by this policy's.

        Raises:
            EvidenceError: there is no report.
        """
        if self.report is None:
            raise EvidenceError(f"the bundle holds no {GATE_REPORT_FILE}: it was never verified")
        strict = (_tighten(gate, policy) for gate in self.report.gates)
        return tuple(gate for gate in strict if not gate.passed)


def _tighten(gate: GateResult, policy: GatePolicy) -> GateResult:
    if not gate.passed:
        return gate
    return judge_gate(
        gate.name, gate.measured, limit=policy.limit_of(gate.name), samples=gate.samples, detail=gate.detail
    )


def describe_gate(gate: GateResult) -> str:
    """A gate that did not pass, with its measured value and its limit."""
    if gate.status == "not measured":
        return f"{gate.name} was not measured (limit {gate.limit_text}): {gate.detail}"
    return f"{gate.name} measured {gate.measured_text}, limit {gate.limit_text}"


def has_flavor(location: str) -> bool:
    """Whether a model's MLmodel names our flavor; a place without an MLmodel holds none.

    Raises:
        EvidenceError: the place cannot be read, so nobody can tell.
    """
    try:
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
    except EvidenceError:
        raise
    except PlantModelsError as error:
        raise EvidenceError(str(error)) from error
    except Exception as error:  # each artifact store has exceptions of its own
        raise EvidenceError(_unreadable(location, error)) from error


def read_evidence(location: str) -> Evidence:
    """Reads and checks every file of a model in its artifact store.

    Args:
        location: URI of the model folder.

    Raises:
        EvidenceError: not our flavor, a file is missing, changed or not listed, the report is about other files,
            the class order differs, or the place cannot be read.
    """
    try:
        with _model_folder(location) as folder:
            return _check_model(folder, loads_in_place=urlparse(location).scheme in ("", "file"))
    except EvidenceError:
        raise
    except PlantModelsError as error:
        raise EvidenceError(str(error)) from error
    except Exception as error:  # each artifact store has exceptions of its own
        raise EvidenceError(_unreadable(location, error)) from error


def _unreadable(location: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:300]
    return f"the artifacts at {location} cannot be read ({type(error).__name__}: {reason})"


@contextmanager
def _model_folder(location: str) -> Iterator[Path]:
    """The model's files on this machine: in place, or downloaded for as long as they are needed."""
    repository, path, folder = locate_artifacts(location)
    if folder is not None:
        yield folder
        return
    with temporary_folder("registry") as temporary:
        yield Path(repository.download_artifacts(path, str(temporary)))


def _names_our_flavor(folder: Path) -> bool:
    return FLAVOR_NAME in read_description(folder, aliases=True)["flavors"]


def _check_model(folder: Path, *, loads_in_place: bool) -> Evidence:
    flavor = read_description(folder)["flavors"].get(FLAVOR_NAME)
    if not isinstance(flavor, dict) or flavor.get("bundle") != BUNDLE_FOLDER:
        raise EvidenceError(f"{DESCRIPTION_FILE} describes no {FLAVOR_NAME} bundle in {BUNDLE_FOLDER}")
    bundle = folder / BUNDLE_FOLDER
    digests = {name: _digest(folder / name) for name in list_files(folder) if _is_of_the_model(name, loads_in_place)}
    manifest = read_manifest(bundle)
    check_files(bundle, manifest, digest=_digest)
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
        raise EvidenceError(f"{GATE_REPORT_FILE} is about another class order")
    return Evidence(manifest_sha256, _digest_names(digests), report)


def _is_of_the_model(name: str, loads_in_place: bool) -> bool:
    """Python writes `__pycache__` where a version is loaded in place; anywhere else somebody put it there.

    A byte-code file need not agree with its source, and Python runs it instead.
    """
    return name not in _NOT_OF_THE_MODEL and not (loads_in_place and "__pycache__" in name.split("/"))


def _digest_names(digests: dict[str, FileDigest]) -> str:
    lines = "".join(f"{name}\0{entry.sha256}\n" for name, entry in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


_MAX_REMEMBERED: Final = 100_000
_remembered: dict[tuple[str, int, int, int, int], FileDigest] = {}
_remembering = threading.Lock()


def _digest(path: Path) -> FileDigest:
    """A file's digest, read again only when its size, inode, or time of modification or change is another.

    The time of change is in the key because, unlike that of modification, no program can set it.
    """
    if path.is_symlink() or not path.is_file():
        raise BundleError(f"{path}: expected a regular file")
    stat = path.stat()
    key = (str(path), stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns)
    found = _remembered.get(key)
    if found is None:
        found = digest_file(path)
        with _remembering:
            if len(_remembered) >= _MAX_REMEMBERED:
                _remembered.clear()
            _remembered[key] = found
    return found
