"""What the files of a model prove. They are read from the artifact store; what a client says about them is ignored.

Every file is read once: the bytes that are digested are the bytes that are parsed. So nobody can show one content to
the check of the digest and another one to the check of the gates.
"""

import hashlib
import logging
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final
from urllib.parse import urlparse

from mlflow_plugins.loading.mlmodel import BUNDLE_FOLDER, DESCRIPTION_FILE, FLAVOR_NAME, MAX_BYTES, parse_description
from mlflow_plugins.registry.artifacts.files import ModelFiles, open_files
from mlflow_plugins.registry.places import lend_place
from plantmodels.bundle.detector import MAX_PICKLE_BYTES, parse_detector
from plantmodels.bundle.files import MAX_JSON_BYTES
from plantmodels.bundle.layout import (
    DETECTOR_FILE,
    GATE_REPORT_FILE,
    HEADS_LIST_FILE,
    IMAGES_FILE,
    MANIFEST_FILE,
    METADATA_FILE,
    SIGNATURE_FILE,
)
from plantmodels.bundle.manifest import FileDigest, Manifest, check_digests, parse_manifest
from plantmodels.bundle.metadata import read_metadata
from plantmodels.errors import BundleError, PlantModelsError
from plantmodels.report.evidence.columns import ImageTable
from plantmodels.report.gate_report import MAX_IMAGE_ROWS_BYTES, REPORT_FORMAT_VERSION, GateReport, parse_report
from plantmodels.report.gates import PROMOTION_GATES, GateResult
from plantmodels.report.per_image import COLUMNS, OLDER_COLUMNS
from plantmodels.report.policy import GatePolicy

_LOGGER: Final = logging.getLogger("mlflow.plantmodels.evidence")
"""A child of MLflow's logger: the server's log shows what a client is not told, such as the server's paths."""

_MLFLOW_FILES: Final = ("registered_model_meta",)
"""Files that MLflow writes into the model folder after registration."""

_BUNDLE: Final = Path(BUNDLE_FOLDER)
_PREFIX: Final = f"{BUNDLE_FOLDER}/"


_PATIENCE_S: Final = 5
"""How long the question whether a model is ours may hold up a request about somebody else's model, in seconds. A store
that a firewall hides from the server would otherwise take minutes not to answer."""


class EvidenceError(PlantModelsError):
    """Files are missing, changed, contradict each other or cannot be read. Such a version cannot be waived."""


@dataclass(frozen=True)
class Evidence:
    """What the small files of one model prove, and the way to read the others.

    Attributes:
        manifest_sha256: digest of the bundle's manifest, which names every file of the bundle.
        manifest: the bundle's manifest.
        report: the gate report, which is about exactly these files; None if the bundle was never verified.
        files: all files of the model.
        digests: the files that were read so far, by name.
        names: all files that belong to the model.
        images: content of the file of image rows, which the report follows from; empty without one.
    """

    manifest_sha256: str
    manifest: Manifest
    report: GateReport | None
    files: ModelFiles
    digests: Mapping[str, FileDigest]
    names: tuple[str, ...]
    images: bytes = b""
    _gates: list[tuple[GatePolicy, tuple[GateResult, ...]]] = field(default_factory=list, compare=False, repr=False)

    def find_failures(self, policy: GatePolicy) -> tuple[GateResult, ...]:
        """Return the gates that fail by the limits of the report or by those of the policy.

        Raises:
            EvidenceError: there is no report.
        """
        return tuple(gate for gate in self.judge_gates(policy) if not gate.passed)

    def find_uncertain(self, policy: GatePolicy) -> tuple[GateResult, ...]:
        """Return the gates that pass, although chance could explain it.

        Raises:
            EvidenceError: there is no report.
        """
        return tuple(gate for gate in self.judge_gates(policy) if gate.passed and gate.is_uncertain)

    def judge_gates(self, policy: GatePolicy) -> tuple[GateResult, ...]:
        """Return every gate: one that failed by the report as it is, and any other as the policy judges it.

        Raises:
            EvidenceError: there is no report.
        """
        if self.report is None:
            raise EvidenceError(
                f"the bundle holds no {GATE_REPORT_FILE}: it was never verified; verify it and register it again"
            )
        for known, gates in self._gates:
            if known == policy:
                return gates
        judged = zip(self.report.gates, self.report.judge_by(policy), strict=True)
        gates = tuple(ours if reported.passed else reported for reported, ours in judged)
        self._gates.append((policy, gates))
        return gates

    def read_rows(self) -> ImageTable:
        """Return the image rows that the report follows from.

        Raises:
            EvidenceError: there is no report, or it is of format 2, whose rows do not say which images they are.
        """
        if self.report is None:
            raise EvidenceError(f"the bundle holds no {GATE_REPORT_FILE}: it was never verified")
        version = self.report.format_version
        columns = COLUMNS if version == REPORT_FORMAT_VERSION else OLDER_COLUMNS[version]
        if "sha256" not in columns:
            raise EvidenceError(f"its report is of format {version}: verify it and register it again")
        return ImageTable.parse(self.images, columns)

    def digest_model(self) -> str:
        """Read all other files, and return the digest of the names and digests of all files: bundle, MLmodel and code.

        Raises:
            EvidenceError: a file of the bundle is missing or changed, or a file cannot be read.
        """
        with _evidence_errors("the model"):
            unread = [name for name in self.names if name not in self.digests]
            digests = {**self.digests, **self.files.digest(unread)}
            check_digests(_BUNDLE, self.manifest, _in_bundle(digests))
            lines = "".join(f"{name}\0{digests[name].sha256}\n" for name in sorted(digests))
            return hashlib.sha256(lines.encode()).hexdigest()


def describe_gate(gate: GateResult) -> str:
    """Return a line about a failed gate, with its measured value and its limit."""
    if gate.status == "not measured":
        return f"{gate.name} was not measured (limit {gate.limit_text}): {gate.detail}"
    explained = f", {gate.detail}" if gate.name in PROMOTION_GATES else ""
    return f"{gate.name} measured {gate.measured_text}, limit {gate.limit_text}{explained}"


def describe_gates(gates: Iterable[GateResult]) -> str:
    """Return a line about failed gates; gates that were not measured for one common reason share it."""
    texts: dict[str, list[GateResult]] = {}
    for gate in gates:
        reason = gate.detail if gate.status == "not measured" else ""
        texts.setdefault(reason or gate.name, []).append(gate)
    return "; ".join(
        describe_gate(group[0])
        if len(group) == 1
        else f"{', '.join(gate.name for gate in group)} were not measured: {reason}"
        for reason, group in texts.items()
    )


def has_flavor(location: str) -> bool:
    """Return whether the model at a URI holds our flavor.

    Raises:
        EvidenceError: its MLmodel is missing or cannot be read, so the answer is unknown.
    """
    with _evidence_errors(location):
        content = _read_description(location)
        if content.isascii() and b"\\" not in content and FLAVOR_NAME.encode() not in content:
            return False  # no YAML of these characters means the name; parsing takes ten times as long
        return FLAVOR_NAME in parse_description(Path(DESCRIPTION_FILE), content, aliases=True)["flavors"]


def _read_description(location: str) -> bytes:
    """Return the content of a model's MLmodel, or give up after `_PATIENCE_S` if the files are not on this machine."""
    if location.startswith(("/", "file:")):
        return open_files(location).read(DESCRIPTION_FILE, MAX_BYTES)
    answers: SimpleQueue[bytes | Exception] = SimpleQueue()

    def read() -> None:
        try:
            answers.put(open_files(location).read(DESCRIPTION_FILE, MAX_BYTES))
        except Exception as error:  # it is raised where it is waited for
            answers.put(error)

    threading.Thread(target=copy_context().run, args=(read,), daemon=True).start()
    try:
        answer = answers.get(timeout=_PATIENCE_S)
    except Empty:
        raise TimeoutError(f"no answer within {_PATIENCE_S} s") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def read_evidence(location: str) -> Evidence:
    """Read the files of a model that say what it is and how its gates are; `digest_model` reads the others.

    Args:
        location: URI of the model folder.

    Raises:
        EvidenceError: the model is not of our flavor, a file is missing, changed or not listed, the report is about
            other files, the class order differs, or the files cannot be read.
    """
    with _evidence_errors(location):
        return _read_model(open_files(location), is_loaded_in_place=urlparse(location).scheme in ("", "file"))


@contextmanager
def _evidence_errors(location: str) -> Iterator[None]:
    """Turn every error into an `EvidenceError`, so that nothing is promoted when reading fails."""
    try:
        yield
    except EvidenceError:
        raise
    except PlantModelsError as error:
        raise EvidenceError(str(error)) from error
    except FileNotFoundError as error:
        raise EvidenceError(f"{error}: no such file") from error
    except Exception as error:  # the errors of artifact stores share no base class
        _LOGGER.warning("%s cannot be read", location, exc_info=error)
        raise EvidenceError(f"its files cannot be read ({type(error).__name__}; the server's log says more)") from error


def _read_model(files: ModelFiles, *, is_loaded_in_place: bool) -> Evidence:
    names = tuple(name for name in files.sizes if _belongs_to_model(name, is_loaded_in_place))
    description = files.read(DESCRIPTION_FILE, MAX_BYTES)
    flavor = parse_description(Path(DESCRIPTION_FILE), description)["flavors"].get(FLAVOR_NAME)
    if not isinstance(flavor, dict) or flavor.get("bundle") != BUNDLE_FOLDER:
        raise EvidenceError(f"{DESCRIPTION_FILE} does not describe a {FLAVOR_NAME} bundle in {BUNDLE_FOLDER}")
    listed = files.read(_PREFIX + MANIFEST_FILE, MAX_JSON_BYTES)
    digests = {DESCRIPTION_FILE: _digest(description), _PREFIX + MANIFEST_FILE: _digest(listed)}
    manifest_sha256 = digests[_PREFIX + MANIFEST_FILE].sha256
    if flavor.get("manifest_sha256") != manifest_sha256:
        raise EvidenceError(f"{MANIFEST_FILE} is not the one that {DESCRIPTION_FILE} was written for")
    key = (manifest_sha256, repr(flavor.get("class_order_digest")))
    known = _remembered.get(key)
    manifest = parse_manifest(Path(), listed) if known is None else known.manifest
    _check_sizes(manifest, files.sizes)
    contents = _read_contents(files, manifest)
    found = {name: _digest(content) for name, content in contents.items()}
    check_digests(_BUNDLE, manifest, found, contents)
    known = known or _judge_once(key, manifest, contents, flavor)
    digests |= {_PREFIX + name: digest for name, digest in found.items()}
    images = contents.get(IMAGES_FILE, b"")
    return Evidence(manifest_sha256, manifest, known.report, files, digests, names, images, known.gates)


def _check_sizes(manifest: Manifest, sizes: Mapping[str, int]) -> None:
    """Check the names and sizes of the bundle's files before any of them is read."""
    found = {
        name: FileDigest(size, manifest.files[name].sha256 if name in manifest.files else "")
        for name, size in _in_bundle(sizes).items()
    }
    check_digests(_BUNDLE, manifest, found)


def _in_bundle(files: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of the files that a manifest lists, by their names in the bundle."""
    inside = {name.removeprefix(_PREFIX): value for name, value in files.items() if name.startswith(_PREFIX)}
    return {name: value for name, value in inside.items() if name not in (MANIFEST_FILE, SIGNATURE_FILE)}


_MAX_BYTES: Final = {
    METADATA_FILE: MAX_JSON_BYTES,
    HEADS_LIST_FILE: MAX_JSON_BYTES,
    DETECTOR_FILE: MAX_PICKLE_BYTES,
    GATE_REPORT_FILE: MAX_JSON_BYTES,
    IMAGES_FILE: MAX_IMAGE_ROWS_BYTES,
}
"""The files that are parsed, and the largest size of each."""


def _read_contents(files: ModelFiles, manifest: Manifest) -> dict[str, bytes]:
    missing = set(_MAX_BYTES) - set(manifest.files) - {GATE_REPORT_FILE, IMAGES_FILE}
    if missing:
        raise BundleError(f"{MANIFEST_FILE} does not list {min(missing)}, which every bundle has")
    return {name: files.read(_PREFIX + name, limit) for name, limit in _MAX_BYTES.items() if name in manifest.files}


_REMEMBERED: Final = 128
"""Reports that a process remembers, of about 0.2 MB each."""


@dataclass(frozen=True)
class _Judged:
    """What the contents of a bundle's small files say. They were digested and are those that the manifest lists.

    Attributes:
        manifest: the bundle's manifest.
        report: the gate report; None if the bundle was never verified.
        gates: the gates by each policy that they were judged by.
    """

    manifest: Manifest
    report: GateReport | None
    gates: list[tuple[GatePolicy, tuple[GateResult, ...]]] = field(default_factory=list)


_remembered: dict[tuple[str, str], _Judged] = {}
"""What was judged, by the manifest's digest, which stands for all contents, and the class order that MLmodel names."""

_turns: dict[tuple[str, str], threading.Lock] = {}
"""By the same key: held by the thread that judges."""

_guard = threading.Lock()
"""Protects changes to both dicts."""


def _judge_once(
    key: tuple[str, str], manifest: Manifest, contents: Mapping[str, bytes], flavor: Mapping[str, Any]
) -> _Judged:
    """Return what the contents say. Threads that ask at the same time wait for the first one's answer."""
    with _guard:
        turn = _turns.setdefault(key, threading.Lock())
    if not turn.acquire(blocking=False):
        with lend_place():
            turn.acquire()
    try:
        found = _remembered.get(key)
        if found is None:
            found = _Judged(manifest, _judge_contents(manifest, contents, flavor))
            with _guard:
                if len(_remembered) >= _REMEMBERED:
                    _remembered.clear()
                _remembered[key] = found
        return found
    finally:
        turn.release()
        with _guard:
            _turns.pop(key, None)


def _judge_contents(manifest: Manifest, contents: Mapping[str, bytes], flavor: Mapping[str, Any]) -> GateReport | None:
    """Return the report, after a check that metadata, detector and report agree with each other and with MLmodel."""
    metadata = read_metadata(Path(), contents)
    detector = parse_detector(Path(DETECTOR_FILE), contents[DETECTOR_FILE])
    detector.check_length(metadata.embedding_dim)
    if flavor.get("class_order_digest") != metadata.taxonomy.digest:
        raise EvidenceError(f"the class order is not the one that {DESCRIPTION_FILE} was written for")
    if GATE_REPORT_FILE not in contents:
        return None
    report = parse_report(contents[GATE_REPORT_FILE], contents.get(IMAGES_FILE, b""), manifest)
    report.check_served(metadata, detector)
    return report


def _belongs_to_model(name: str, is_loaded_in_place: bool) -> bool:
    """Return whether a file counts as part of the model.

    Where a version is loaded in place, Python writes `__pycache__` itself, so that folder is left out. Anywhere else
    somebody put it there, and it counts: Python runs a byte-code file instead of its source, whatever it contains.
    """
    return name not in _MLFLOW_FILES and not (is_loaded_in_place and "__pycache__" in name.split("/"))


def _digest(content: bytes) -> FileDigest:
    return FileDigest(len(content), hashlib.sha256(content).hexdigest())
