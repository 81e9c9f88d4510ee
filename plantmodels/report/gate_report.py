"""The gate report: nine verdicts, what they rest on, and the digests of the files that were measured.

`gate-report.json` holds no timestamp and no path of the machine: the same inputs give the same report but for
latency. It vouches for the files whose digests it names and for no others; `read_report` checks that.

>>> report = read_report(Path("public/models"))  # doctest: +SKIP
>>> report.passed, report.failed  # doctest: +SKIP
(False, ('species_size',))
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from plantmodels.bundle.files import read_json
from plantmodels.bundle.layout import GATE_REPORT_FILE, MANIFEST_FILE, is_report
from plantmodels.bundle.manifest import FileDigest, Manifest, read_manifest
from plantmodels.bundle.serialization import decode, encode
from plantmodels.errors import BundleError, PlantModelsError
from plantmodels.report.formatting import align_columns
from plantmodels.report.gates import GATES, GateResult
from plantmodels.report.policy import GatePolicy
from plantmodels.report.results import Accuracy, Latency, Parity, Rejection
from plantmodels.report.statistics import Interval
from plantmodels.report.summary import describe_accuracy

REPORT_FORMAT_VERSION: Final = 2
"""Of `gate-report.json` alone; only this one is read. 2 brought paired counts, classes, calibration and routing."""

Source = Literal["train", "val", "non-plants", "unseen-plants"]


@dataclass(frozen=True)
class UnreadableFile:
    """An image that was skipped: which set it is of, its name below that set's folder, and why."""

    source: Source
    name: str
    reason: str


@dataclass(frozen=True)
class ImageSet:
    """Images that were given.

    Attributes:
        images: how many there are, readable or not.
        measured: how many the gates rest on.
        sha256: digest of all names and contents.
    """

    images: int
    measured: int
    sha256: str


@dataclass(frozen=True)
class Inputs:
    """What a report was measured on.

    Attributes:
        checkpoint_sha256: of the checkpoint that parity was measured against; None when none was given.
        class_order_digest: of the bundle's taxonomy.
        val: validation leaves.
        non_plants: None when none were given.
        unseen_plants: None when none were given.
    """

    checkpoint_sha256: str | None
    class_order_digest: str
    val: ImageSet
    non_plants: ImageSet | None
    unseen_plants: ImageSet | None


@dataclass(frozen=True)
class Machine:
    """Where it was measured: processor architecture, its name for itself, and its INT8 features."""

    architecture: str
    cpu: str
    features: tuple[str, ...]


class GatesNotPassedError(PlantModelsError):
    """A bundle that does not pass every gate.

    Attributes:
        report: the whole report.
    """

    def __init__(self, report: "GateReport") -> None:
        """Names the gates that did not pass."""
        super().__init__("not passed: " + ", ".join(_describe(gate) for gate in report.gates if not gate.passed))
        self.report = report


def _describe(gate: GateResult) -> str:
    if gate.status == "not measured":
        return f"{gate.name} (not measured: {gate.detail})"
    return f"{gate.name} ({gate.measured_text}, limit {gate.limit_text})"


@dataclass(frozen=True)
class GateReport:
    """Everything that `verify` found.

    Attributes:
        gates: the nine of contract 5, in its order.
        policy: the limits that were in force, and the digest of the file that set them.
        accuracy: None when the models could not be run.
        parity: None without a checkpoint.
        rejection: None when the models could not be run.
        latency: None when the models could not be run.
        problems: gate to everything that it counted, for `loads` and `heads_complete`.
        unreadable: images that were skipped.
        inputs: checkpoint, data and class order.
        files: every file of the bundle that was measured, all but the report itself.
        versions: of the libraries that measured.
        machine: where it was measured.
    """

    gates: tuple[GateResult, ...]
    policy: GatePolicy
    accuracy: Accuracy | None
    parity: Parity | None
    rejection: Rejection | None
    latency: Latency | None
    problems: Mapping[str, tuple[str, ...]]
    unreadable: tuple[UnreadableFile, ...]
    inputs: Inputs
    files: Mapping[str, FileDigest]
    versions: Mapping[str, str]
    machine: Machine

    def __post_init__(self) -> None:
        """Refuses a report that lacks a gate or judged by other limits than its policy's.

        Raises:
            ValueError: naming the gates expected, or the gate and both limits.
        """
        names = tuple(gate.name for gate in self.gates)
        if names != tuple(GATES):
            raise ValueError(f"gates must be {', '.join(GATES)} in this order, got {', '.join(names) or 'none'}")
        for gate in self.gates:
            limit = self.policy.limit_of(gate.name)
            if gate.limit != limit:
                raise ValueError(f"gate {gate.name} was judged by {gate.limit}, the policy's limit is {limit}")

    @property
    def passed(self) -> bool:
        """Whether every gate was measured and passed."""
        return all(gate.passed for gate in self.gates)

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the gates that did not pass, those not measured included."""
        return tuple(gate.name for gate in self.gates if not gate.passed)

    def gate(self, name: str) -> GateResult:
        """One gate by its name."""
        return self.gates[list(GATES).index(name)]

    @property
    def intervals(self) -> dict[str, Interval]:
        """Gates that are shares or differences of images to the 95 % interval of their value; gates ignore it."""
        values = {
            "int8_accuracy": None
            if self.accuracy is None or self.accuracy.worst is None
            else self.accuracy.worst.interval,
            "ood_precision": None if self.rejection is None else self.rejection.precision_interval,
            "ood_recall": None if self.rejection is None else self.rejection.non_plants.interval,
        }
        return {name: interval for name, interval in values.items() if interval is not None}

    def raise_for_failure(self) -> None:
        """Does nothing when every gate passed.

        Raises:
            GatesNotPassedError: naming those that did not.
        """
        if not self.passed:
            raise GatesNotPassedError(self)

    def stale_files(self, manifest: Manifest) -> tuple[str, ...]:
        """Names of files that were measured with another content than the manifest lists, or not at all."""
        listed = {name: entry for name, entry in manifest.files.items() if not is_report(name)}
        names = sorted(set(listed) | set(self.files))
        return tuple(name for name in names if listed.get(name) != self.files.get(name))

    def metrics(self) -> dict[str, float]:
        """Every number worth plotting over versions, by a dotted name; what was not measured is absent."""
        values: dict[str, float | None] = {f"gate.{gate.name}": gate.measured for gate in self.gates}
        values["gates_passed"] = sum(gate.passed for gate in self.gates)
        if self.accuracy is not None:
            for precision, counts in (("fp16", self.accuracy.fp16), ("int8", self.accuracy.int8)):
                values[f"accuracy.{precision}.species"] = counts.species.value
                values[f"accuracy.{precision}.disease"] = counts.disease.value
                values[f"accuracy.{precision}.end_to_end"] = counts.end_to_end.value
            values |= _paired_metrics(self.accuracy)
        if self.parity is not None:
            values |= {
                f"parity.{name}": getattr(self.parity, name)
                for name in (
                    "logits",
                    "embedding",
                    "head_logits",
                    "int8_logits",
                    "int8_embedding",
                    "int8_head_logits",
                )
            }
        if self.rejection is not None:
            values["ood.false_alarm_rate"] = self.rejection.false_alarm_rate
            values["ood.threshold"] = self.rejection.threshold
            values["ood.unseen_plants_rejected"] = self.rejection.unseen_plants.value
            if self.rejection.separation is not None:
                values["ood.auroc"] = self.rejection.separation.auroc.value
                values["ood.fpr_at_95_recall"] = self.rejection.separation.fpr_at_95_recall.value
        if self.latency is not None:
            values |= {f"latency.{name}": getattr(self.latency, name) for name in _LATENCIES}
        return {name: float(value) for name, value in values.items() if value is not None}

    def table(self) -> str:
        """The gates as aligned plain text, for terminals."""
        rows = [
            (
                gate.name,
                gate.limit_text,
                gate.measured_text,
                gate.samples_text,
                _STATUS_TEXT.get(gate.status, gate.status),
            )
            for gate in self.gates
        ]
        lines = align_columns(("gate", "limit", "measured", "samples", "status"), rows)
        notes = [f"{gate.name}: {gate.detail}" for gate in self.gates if gate.detail and not gate.passed]
        verdict = "all gates passed" if self.passed else f"not passed: {', '.join(self.failed)}"
        return "\n".join((*lines, "", self.accuracy_sentence, *notes, verdict))

    @property
    def accuracy_sentence(self) -> str:
        """How often the INT8 model is right, in a sentence."""
        return describe_accuracy(self.accuracy)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, with the verdicts spelled out.

        Raises:
            ValueError: a number that is not finite.
        """
        document: dict[str, Any] = {"format_version": REPORT_FORMAT_VERSION, "passed": self.passed} | encode(self)
        for gate, entry in zip(self.gates, document["gates"], strict=True):
            entry["passed"] = gate.passed
        return document

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> "GateReport":
        """Reads the JSON form.

        Raises:
            BundleError: another format version than `REPORT_FORMAT_VERSION`, a value that is missing, surplus or of
                another type, or verdicts that their own numbers contradict.
        """
        version = document.get("format_version")
        if type(version) is not int or version != REPORT_FORMAT_VERSION:
            raise BundleError(
                f"{GATE_REPORT_FILE}: format_version {version!r}, this code reads {REPORT_FORMAT_VERSION}; verify again"
            )
        body = {name: value for name, value in document.items() if name not in ("format_version", "passed")}
        try:
            verdicts, body["gates"] = _take_verdicts(body.get("gates"))
            report = decode(cls, body, "report")
        except ValueError as error:
            raise BundleError(f"{GATE_REPORT_FILE}: {error}") from error
        found = (document.get("passed"), verdicts)
        if found != (report.passed, [gate.passed for gate in report.gates]):
            raise BundleError(f"{GATE_REPORT_FILE}: 'passed' does not follow from the gates' status")
        return report


def _paired_metrics(accuracy: Accuracy) -> dict[str, float | None]:
    drops = {"species": accuracy.species, "disease": accuracy.disease, "end_to_end": accuracy.end_to_end}
    values: dict[str, float | None] = {
        "accuracy.species_flips": accuracy.species_flips,
        "accuracy.disease_flips": accuracy.disease_flips,
        "accuracy.soft_minus_hard": None if accuracy.routing.difference is None else -accuracy.routing.difference,
        "accuracy.ece.species": accuracy.species_calibration.after.ece,
        "accuracy.ece.disease": accuracy.disease_calibration.after.ece,
    }
    for name, paired in drops.items():
        low, high = paired.interval or (None, None)
        values |= {f"accuracy.drop.{name}.low": low, f"accuracy.drop.{name}": paired.difference}
        values |= {f"accuracy.drop.{name}.high": high, f"accuracy.drop.{name}.p": paired.p_value}
    return values


_LATENCIES = ("median_ms", "p95_ms", "encoded_median_ms", "encoded_p95_ms")
_STATUS_TEXT = {"failed": "FAILED", "not measured": "NOT MEASURED"}


def _take_verdicts(gates: object) -> tuple[list[object], object]:
    """Parts the derived "passed" of each gate from what a `GateResult` is made of."""
    if not isinstance(gates, list) or not all(isinstance(gate, dict) for gate in gates):
        return [], gates
    rest = [{name: value for name, value in gate.items() if name != "passed"} for gate in gates]
    return [gate.get("passed") for gate in gates], rest


def read_report(bundle: Path) -> GateReport:
    """Reads the gate report of a bundle, if it is about the files that the bundle's manifest lists.

    Raises:
        BundleError: absent, malformed, or measured on other files.
    """
    path = bundle / GATE_REPORT_FILE
    if not path.is_file():
        raise BundleError(f"{path}: no such file; `plantmodels verify` writes it")
    report = GateReport.from_dict(read_json(path))
    stale = report.stale_files(read_manifest(bundle))
    if stale:
        raise BundleError(
            f"{path}: was measured on other files than {MANIFEST_FILE} lists ({', '.join(stale[:5])}); verify again"
        )
    return report
