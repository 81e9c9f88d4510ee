"""The gate report: every gate's verdict, the measurements it rests on, and the digests of the measured files.

`gate-report.json` holds neither a timestamp nor a path, so the same inputs give the same report except for latency.
It vouches only for the files whose digests it names; `read_report` checks that these are the bundle's files.

>>> report = read_report(bundle)
>>> [gate.name for gate in report.gates] == list(GATES), report.gate("loads").status
(True, 'passed')
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from plantmodels.bundle.detector import OODDetector
from plantmodels.bundle.files import MAX_JSON_BYTES, StrPath, parse_json, read_bytes
from plantmodels.bundle.layout import (
    GATE_REPORT_FILE,
    IMAGES_FILE,
    MANIFEST_FILE,
    is_report,
)
from plantmodels.bundle.manifest import FileDigest, Manifest, read_manifest
from plantmodels.bundle.metadata import Metadata
from plantmodels.bundle.serialization import decode, encode
from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.errors import BundleError, GatesNotPassedError, TaxonomyError
from plantmodels.report.evidence.check import check_gates
from plantmodels.report.evidence.columns import ImageTable
from plantmodels.report.evidence.field import Field
from plantmodels.report.evidence.judge import Measured, judge_gates
from plantmodels.report.evidence.older import OLDEST_FORMAT, fill_document, refuse_gates, upgrade_document
from plantmodels.report.evidence.recount import check_report
from plantmodels.report.evidence.served import list_served
from plantmodels.report.gates import GATES, GateResult
from plantmodels.report.inputs import Machine, ReportInputs, UnreadableFile
from plantmodels.report.leakage import Leakage
from plantmodels.report.metrics import collect_metrics
from plantmodels.report.policy import GatePolicy
from plantmodels.report.results import Accuracy, Rejection
from plantmodels.report.samples import Latency, Parity
from plantmodels.report.statistics import Interval
from plantmodels.report.summary import describe_accuracy, write_table

REPORT_FORMAT_VERSION: Final = 4
"""Version of `gate-report.json` that is written and read. 3 added the gates from `accuracy` on, the fewest images of
each gate, and every number's evidence. 4 added the verdicts that are uncertain, and field leaves."""


def _describe_failure(gate: GateResult) -> str:
    if gate.status == "not measured":
        return f"{gate.name} (not measured: {gate.detail})"
    return f"{gate.name} ({gate.measured_text}, limit {gate.limit_text})"


MAX_IMAGE_ROWS_BYTES: Final = 2**29
"""Largest file of image rows that is read: a million rows take 400 MB."""


@dataclass(frozen=True)
class GateReport:
    """Everything that `verify` found.

    Attributes:
        gates: the gates of contract 5, in its order.
        policy: the limits that were in force, and the digest of the file that set them.
        taxonomy: the bundle's species and diseases; None in a report of an older format.
        accuracy: accuracy of both precisions; None when the models could not be run.
        parity: differences from PyTorch; None without a checkpoint or when the models could not be run.
        rejection: rejection of plants and non-plants; None when the models could not be run.
        leakage: validation images that occur again; None without training images or when the models could not be run.
        latency: time for one image; None when the models could not be run.
        field: what was measured on field leaves; None without any or when the models could not be run.
        not_run: why the models could not be run; "" if they could.
        problems: name of a gate to the problems that it counted, for `loads` and `heads_complete`.
        unreadable: images that were skipped.
        inputs: checkpoint, data and class order that were measured.
        files: name to digest of every measured file of the bundle, which are all but the reports.
        versions: name to version of the libraries that measured.
        machine: the machine that measured.
        format_version: version of the format in which the report was written.
    """

    gates: tuple[GateResult, ...]
    policy: GatePolicy
    taxonomy: Taxonomy | None
    accuracy: Accuracy | None
    parity: Parity | None
    rejection: Rejection | None
    leakage: Leakage | None
    latency: Latency | None
    field: Field | None
    not_run: str
    problems: Mapping[str, tuple[str, ...]]
    unreadable: tuple[UnreadableFile, ...]
    inputs: ReportInputs
    files: Mapping[str, FileDigest]
    versions: Mapping[str, str]
    machine: Machine
    format_version: int = REPORT_FORMAT_VERSION

    def __post_init__(self) -> None:
        """Check that every gate is there.

        Raises:
            ValueError: a gate is missing or misplaced.
        """
        names = tuple(gate.name for gate in self.gates)
        if names != tuple(GATES):
            raise ValueError(f"gates must be {', '.join(GATES)} in this order, got {', '.join(names) or 'none'}")

    def judge_by(self, policy: GatePolicy) -> tuple[GateResult, ...]:
        """Return every gate, judged by other limits than those that were in force when it was measured.

        The gates of a report of an older format are not measured by these limits.
        """
        if self.taxonomy is None or self.format_version != REPORT_FORMAT_VERSION:
            return refuse_gates(policy, self.format_version)
        measured = Measured(
            taxonomy=self.taxonomy,
            files=self.files,
            problems=self.problems,
            heads_compared=self.inputs.checkpoint_sha256 is not None,
            accuracy=self.accuracy,
            rejection=self.rejection,
            leakage=self.leakage,
            latency=self.latency,
            parity=self.parity,
            field=self.field,
            non_plants_given=self.inputs.non_plants is not None,
            not_run=self.not_run,
        )
        return judge_gates(measured, policy)

    @classmethod
    def from_measured(
        cls,
        measured: Measured,
        policy: GatePolicy,
        *,
        unreadable: tuple[UnreadableFile, ...],
        inputs: ReportInputs,
        versions: Mapping[str, str],
        machine: Machine,
    ) -> "GateReport":
        """Return the report on what was measured, with every gate judged by the policy; see the attributes."""
        return cls(
            gates=judge_gates(measured, policy),
            policy=policy,
            taxonomy=measured.taxonomy,
            accuracy=measured.accuracy,
            parity=measured.parity,
            rejection=measured.rejection,
            leakage=measured.leakage,
            latency=measured.latency,
            field=measured.field,
            not_run=measured.not_run,
            problems=measured.problems,
            unreadable=unreadable,
            inputs=inputs,
            files=measured.files,
            versions=versions,
            machine=machine,
        )

    @property
    def passed(self) -> bool:
        """Whether every gate was measured and passed."""
        return all(gate.passed for gate in self.gates)

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the gates that did not pass, those not measured included."""
        return tuple(gate.name for gate in self.gates if not gate.passed)

    @property
    def uncertain(self) -> tuple[str, ...]:
        """Names of the gates that passed, although chance could explain it."""
        return tuple(gate.name for gate in self.gates if gate.passed and gate.is_uncertain)

    def gate(self, name: str) -> GateResult:
        """Return one gate by its name."""
        return self.gates[list(GATES).index(name)]

    @property
    def intervals(self) -> dict[str, Interval]:
        """Name of a gate to the 95 % interval of its measured value, where there is one. It is for people to read."""
        values = {
            "int8_accuracy": None
            if self.accuracy is None or self.accuracy.worst is None
            else self.accuracy.worst.interval,
            "ood_precision": None if self.rejection is None else self.rejection.precision_interval,
            "ood_recall": None if self.rejection is None else self.rejection.non_plants.interval,
            "false_alarms": None if self.rejection is None else self.rejection.plants.interval,
            "leakage": None if self.leakage is None else self.leakage.leaking.interval,
        }
        return {name: interval for name, interval in values.items() if interval is not None}

    def raise_for_failure(self) -> None:
        """Raise an error that names the gates that did not pass; do nothing when all passed.

        Raises:
            GatesNotPassedError: at least one gate failed or was not measured.
        """
        if not self.passed:
            failures = ", ".join(_describe_failure(gate) for gate in self.gates if not gate.passed)
            raise GatesNotPassedError(f"not passed: {failures}", report=self)

    def stale_files(self, manifest: Manifest) -> tuple[str, ...]:
        """Return the names of files that were measured with other contents than the manifest lists, or not at all."""
        listed = {name: entry for name, entry in manifest.files.items() if not is_report(name)}
        names = sorted(set(listed) | set(self.files))
        return tuple(name for name in names if listed.get(name) != self.files.get(name))

    def metrics(self) -> dict[str, float]:
        """Return every number worth plotting over versions by a dotted name. What was not measured is absent."""
        return collect_metrics(self)

    def table(self) -> str:
        """Return the gates, the facts about accuracy, rejection and field leaves, and the verdict, for a terminal."""
        return write_table(self)

    @property
    def verdict(self) -> str:
        """The gates that did not pass and those that passed uncertainly, such as "all gates passed"."""
        verdict = "all gates passed" if self.passed else f"not passed: {', '.join(self.failed)}"
        return f"{verdict}; uncertain: {', '.join(self.uncertain)}" if self.uncertain else verdict

    @property
    def accuracy_sentence(self) -> str:
        """A sentence that says how often the INT8 model, which is served, is right on validation images."""
        return describe_accuracy(self.accuracy)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, with the verdicts spelled out.

        Raises:
            ValueError: a number is not finite.
        """
        document: dict[str, Any] = {"format_version": self.format_version, "passed": self.passed} | encode(self)
        for gate, entry in zip(self.gates, document["gates"], strict=True):
            entry["passed"] = gate.passed
        return document

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> "GateReport":
        """Read the JSON form, of the current format or of an older one.

        Whether the measured results follow from their evidence is not checked here: `parse_report` does that.

        Raises:
            BundleError: the format version is unknown; a value is missing, unknown or of the wrong type; or a gate is
                not what the measured values and limits make it.
        """
        report = _decode_report(document)
        report.check_gates(GATE_REPORT_FILE)
        return report

    def check_gates(self, name: str) -> None:
        """Check that every gate is what the measured values and limits make it, in a report of the current format.

        Args:
            name: the report's name in the error.

        Raises:
            BundleError: names the gate and the value.
        """
        if self.format_version == REPORT_FORMAT_VERSION:
            try:
                check_gates(self.gates, self.judge_by(self.policy))
            except ValueError as error:
                raise BundleError(f"{name}: {error}") from error

    def check_served(self, metadata: Metadata, detector: OODDetector) -> None:
        """Check that class order, checkpoint, calibration, temperatures and thresholds are those of the bundle.

        Args:
            metadata: the bundle's metadata.
            detector: the bundle's detector.

        Raises:
            BundleError: names the value that differs.
        """
        for name, (reported, served, file) in list_served(self, metadata, detector).items():
            if reported != served:
                raise BundleError(f"{GATE_REPORT_FILE}: {name} is {reported}, but {file} has {served}; verify again")


def _decode_report(document: Mapping[str, Any]) -> GateReport:
    version = document.get("format_version")
    if type(version) is not int or version not in range(OLDEST_FORMAT, REPORT_FORMAT_VERSION + 1):
        raise BundleError(
            f"{GATE_REPORT_FILE}: format_version {version!r}, this code reads {OLDEST_FORMAT} to "
            f"{REPORT_FORMAT_VERSION}; verify again"
        )
    is_current = version == REPORT_FORMAT_VERSION
    current = fill_document(document) if is_current else upgrade_document(document, version)
    body = {name: value for name, value in current.items() if name != "passed"}
    try:
        verdicts, body["gates"] = _split_verdicts(body.get("gates"))
        report = decode(GateReport, body, "report")
    except (ValueError, TaxonomyError) as error:
        raise BundleError(f"{GATE_REPORT_FILE}: {error}") from error
    if is_current and report.taxonomy is None:
        raise BundleError(f"{GATE_REPORT_FILE}: report.taxonomy: expected an object, got None")
    stated = {gate["name"] for gate in document["gates"]}  # an older report knows nothing of the later gates
    found = (document.get("passed"), verdicts)
    passed = all(gate.passed for gate in report.gates if gate.name in stated)
    if found != (passed, [gate.passed for gate in report.gates]):
        raise BundleError(f"{GATE_REPORT_FILE}: 'passed' does not follow from the gates' status")
    return report


def _split_verdicts(gates: object) -> tuple[list[object], object]:
    """Return the derived "passed" of every gate, and the gates without it, as `GateResult` reads them."""
    if not isinstance(gates, list) or not all(isinstance(gate, dict) for gate in gates):
        return [], gates
    results = [{name: value for name, value in gate.items() if name != "passed"} for gate in gates]
    return [gate.get("passed") for gate in gates], results


def read_report(bundle: StrPath) -> GateReport:
    """Read the gate report of a bundle, and count all its numbers again.

    Args:
        bundle: folder of the bundle.

    Raises:
        BundleError: the report is absent or malformed, was measured on different files, or does not say what its image
            rows and samples make.
    """
    bundle = Path(bundle)
    path, images = bundle / GATE_REPORT_FILE, bundle / IMAGES_FILE
    if not path.is_file():
        raise BundleError(f"{path}: no such file; `plantmodels verify` writes it")
    content = read_bytes(images, MAX_IMAGE_ROWS_BYTES) if images.is_file() else b""
    return parse_report(read_bytes(path, MAX_JSON_BYTES), content, read_manifest(bundle), name=str(path))


def parse_report(report: bytes, images: bytes, manifest: Manifest, *, name: str = GATE_REPORT_FILE) -> GateReport:
    """Return the report of a file's content, and count all its numbers again.

    Args:
        report: content of `gate-report.json`.
        images: content of `gate-images.csv`; empty if there is no such file.
        manifest: the manifest of the bundle.
        name: the report's name in error messages.

    Raises:
        BundleError: as for `read_report`.
    """
    found = _decode_report(parse_json(Path(name), report))
    stale = found.stale_files(manifest)
    if stale:
        raise BundleError(
            f"{name}: was measured on other files than {MANIFEST_FILE} lists ({', '.join(stale[:5])}); verify again"
        )
    if found.format_version == REPORT_FORMAT_VERSION:
        try:
            check_report(found, ImageTable.parse(images))
        except ValueError as error:
            raise BundleError(f"{name}: {error}") from error
    found.check_gates(name)
    return found
