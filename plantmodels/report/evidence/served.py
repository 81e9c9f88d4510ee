"""What a report says about the bundle that it lies in, beside what the bundle itself says."""

import hashlib
from typing import TYPE_CHECKING

from plantmodels.bundle.calibration import CalibrationRecord
from plantmodels.bundle.detector import OODDetector
from plantmodels.bundle.layout import DETECTOR_FILE, METADATA_FILE
from plantmodels.bundle.metadata import Metadata

if TYPE_CHECKING:
    from plantmodels.report.gate_report import GateReport

_DIGITS = 12


def list_served(
    report: "GateReport", metadata: Metadata, detector: OODDetector
) -> dict[str, tuple[object, object, str]]:
    """Return each value that must be the bundle's: its name, what the report says, what is served, and by which file.

    Args:
        report: the report.
        metadata: the bundle's metadata.
        detector: the bundle's detector.
    """
    inputs, made_from = report.inputs, metadata.provenance.get("checkpoint_sha256")
    values: dict[str, tuple[object, object, str]] = {
        "inputs.class_order_digest": (inputs.class_order_digest, metadata.taxonomy.digest, METADATA_FILE)
    }
    if report.taxonomy is not None:
        used = _spell(inputs.calibration), _spell(metadata.calibration)
        values["inputs.calibration"] = (*used, METADATA_FILE)
    if inputs.checkpoint_sha256 is not None:
        values["inputs.checkpoint_sha256"] = (inputs.checkpoint_sha256, made_from, METADATA_FILE)
    if report.accuracy is not None:
        for name in ("species", "disease"):
            temperature = getattr(report.accuracy.probabilities, f"{name}_temperature")
            served = getattr(metadata, f"{name}_temperature")
            values[f"accuracy.probabilities.{name}_temperature"] = (temperature, served, METADATA_FILE)
    if report.rejection is not None:
        values["rejection.threshold"] = (report.rejection.threshold, detector.threshold, DETECTOR_FILE)
        if report.rejection.rounds:
            rounds = [each.threshold for each in report.rejection.rounds], detector.round_thresholds.tolist()
            values["rejection.rounds"] = (*rounds, DETECTOR_FILE)
    return values


def _spell(calibration: CalibrationRecord | None) -> str:
    if calibration is None:
        return "unknown"
    digest = hashlib.sha256(" ".join(calibration.sha256).encode()).hexdigest()[:_DIGITS]
    return f"{calibration.describe()} (images {digest})"
