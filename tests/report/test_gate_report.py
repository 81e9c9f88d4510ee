import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from plantmodels.bundle.detector import read_detector
from plantmodels.bundle.files import read_json, write_json
from plantmodels.bundle.layout import DETECTOR_FILE, GATE_REPORT_FILE, IMAGES_FILE, SPECIES_FILES
from plantmodels.bundle.manifest import FileDigest, Manifest
from plantmodels.bundle.metadata import read_metadata
from plantmodels.errors import BundleError, GatesNotPassedError, PlantModelsError
from plantmodels.report.gate_report import GateReport, parse_report, read_report
from plantmodels.report.gates import GATES
from plantmodels.report.per_image import write_image_rows
from plantmodels.report.policy import GatePolicy
from tests.fixtures.report_strategies import reports
from tests.fixtures.reports import TAXONOMY
from tests.fixtures.rows import FORMAT_2, FORMAT_3, agree, make_leaf_rows, make_other_rows

Make = Callable[..., GateReport]

OLD_GATES = [gate["name"] for gate in read_json(FORMAT_3)["gates"]]

UNCERTAIN = ("int8_accuracy", "ood_precision", "ood_recall", "false_alarms", "leakage")

CERTAIN = {
    "int8_accuracy_max_drop": 0.1,
    "ood_precision_min": 0.9,
    "ood_recall_min": 0.8,
    "false_alarms_max": 0.1,
    "leakage_max": 0.1,
}
"""Limits that the made-up report meets with certainty."""


@given(reports())
def test_every_report_survives_json(report: GateReport) -> None:
    text = json.dumps(report.to_dict(), allow_nan=False)
    assert GateReport.from_dict(json.loads(text)) == report


@given(reports())
def test_every_report_has_a_table_and_metrics(report: GateReport) -> None:
    table = report.table().splitlines()
    assert [line.split()[0] for line in table[2 : 2 + len(GATES)]] == list(GATES)
    assert all(isinstance(value, float) for value in report.metrics().values())
    assert report.passed == (not report.failed)


def test_the_table_is_aligned_and_says_what_is_missing(report: Make) -> None:
    text = report(parity=None).table()
    lines = text.splitlines()
    assert lines[0].split() == ["gate", "limit", "measured", "samples", "status"]
    column = lines[0].index("status")
    assert {line[column - 2 : column] for line in lines[:11]} == {"  "}
    assert lines[2].endswith("NOT MEASURED")
    assert lines[3].endswith("passed, uncertain")
    assert lines[7].endswith("passed")
    assert lines[-1] == f"not passed: parity; uncertain: {', '.join(UNCERTAIN)}"
    assert (
        "ood_recall: 49 of 50 held-out non-plants rejected; at this rate about 203 non-plants would make it certain"
        in lines
    )
    assert "parity: no checkpoint was given to compare with" in lines
    assert lines[-2].startswith("uncertain: the value meets its limit, but the worse end of its interval (the bound)")
    assert "\nall gates passed; uncertain: " in report().table()
    certain = replace(GatePolicy(), **CERTAIN)
    assert report(certain).table().endswith("\nall gates passed")
    assert "worse end" not in report(certain).table()


def test_a_confidence_makes_an_uncertain_gate_not_passed(report: Make) -> None:
    found = report(GatePolicy(ood_recall_confidence=0.95))
    assert (found.gate("ood_recall").status, found.failed) == ("uncertain", ("ood_recall",))
    assert "ood_recall" not in found.uncertain
    assert "UNCERTAIN" in found.table() and "not passed: ood_recall; uncertain: int8_accuracy, " in found.table()


def test_failed_names_what_did_not_pass_in_order(report: Make) -> None:
    strict = GatePolicy(latency_max_median_ms=1, parity_max_abs_diff=0)
    assert report(strict).failed == ("parity", "latency")
    assert not report(strict).passed
    assert report().passed


def test_failure_is_raised_only_when_asked_for(report: Make) -> None:
    report().raise_for_failure()
    failing = report(GatePolicy(latency_max_median_ms=1), parity=None)
    message = r"not passed: parity \(not measured: no checkpoint .*\), latency \(27.4 ms, limit < 1 ms\)"
    with pytest.raises(GatesNotPassedError, match=message) as caught:
        failing.raise_for_failure()
    assert caught.value.report is failing
    assert isinstance(caught.value, PlantModelsError)


def test_gates_that_are_shares_have_intervals(report: Make) -> None:
    base = report()
    assert base.accuracy is not None and base.rejection is not None and base.leakage is not None
    assert base.intervals == {
        "int8_accuracy": base.accuracy.species.interval,
        "ood_precision": base.rejection.precision_interval,
        "ood_recall": base.rejection.non_plants.interval,
        "false_alarms": base.rejection.plants.interval,
        "leakage": base.leakage.leaking.interval,
    }
    assert base.gate("ood_recall").interval_text(*base.intervals["ood_recall"]) == "89.50 to 99.65 %"
    assert report(accuracy=None, rejection=None, leakage=None, not_run="x").intervals == {}


def test_metrics_have_stable_names(report: Make) -> None:
    metrics = report().metrics()
    assert {f"gate.{name}" for name in GATES} <= set(metrics)
    assert metrics["gate.ood_recall"] == 0.98
    assert metrics["gates_passed"] == len(GATES)
    assert metrics["gates_uncertain"] == 5
    assert metrics["gate.ood_recall.bound"] == pytest.approx(0.895, abs=1e-3)
    assert "gate.latency.bound" not in metrics
    assert metrics["accuracy.int8.species"] == 0.95
    assert metrics["accuracy.fp16.disease"] == 70 / 80
    assert metrics["accuracy.drop.species"] == 0
    assert metrics["accuracy.drop.species.low"] == -metrics["accuracy.drop.species.high"] < 0
    assert metrics["accuracy.drop.species.p"] == 1
    assert metrics["accuracy.soft_minus_hard"] == 0.01
    assert metrics["accuracy.ece.species"] == pytest.approx((abs(58 - 60 * 0.98) + abs(37 - 40 * 0.85)) / 100)
    assert metrics["accuracy.disease_flips"] == 0
    assert metrics["parity.int8_embedding"] == 0.03
    assert metrics["latency.p95_ms"] == 31.0
    assert metrics["ood.false_alarm_rate"] == metrics["gate.false_alarms"] == 0.005
    assert metrics["ood.precision_at_non_plant_share"] == metrics["gate.ood_precision"]
    assert "gate.parity" not in report(parity=None).metrics()


def edit(document: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    copy = json.loads(json.dumps(document))
    *parents, last = path.split(".")
    place = copy
    for name in parents:
        place = place[int(name)] if isinstance(place, list) else place[name]
    if value is ...:
        del place[last]
    else:
        place[int(last) if isinstance(place, list) else last] = value
    return copy


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("format_version", 1, r"gate-report\.json: format_version 1, this code reads 2 to 4; verify again"),
        ("format_version", 5, r"gate-report\.json: format_version 5, this code reads 2 to 4; verify again"),
        ("format_version", True, "format_version True"),
        ("passed", False, "'passed' does not follow from the gates' status"),
        ("gates.3.passed", False, "'passed' does not follow from the gates' status"),
        ("gates.3.passed", ..., "'passed' does not follow from the gates' status"),
        ("gates.3.values.0.measured", 0.5, "gate ood_recall is 'passed, uncertain', but 0.5 ≥ .* 'failed'"),
        ("gates.3.values.0.measured", None, "gate ood_recall is 'passed, uncertain', but None ≥ 0.95"),
        ("gates.3.values.0.measured", 0.99, r"gate ood_recall\.values\.value\.measured is 0.99, but .* make it 0.98"),
        ("gates.3.values.0.limit", 0.951, r"gate ood_recall\.values\.value\.limit is 0.951, but .* make it 0.95"),
        ("gates.3.samples", 51, r"gate ood_recall\.samples is 51, but .* make it 50"),
        (
            "gates.10.values.1.measured",
            0.95,
            r"gate accuracy\.values\.end to end\.measured is 0.95, but .* make it 0.88",
        ),
        (
            "gates.3.status",
            "fine",
            r"report\.gates\[3\]\.status: expected one of 'passed', 'passed, uncertain', 'uncertain'",
        ),
        ("gates", [], "gates must be parity, int8_accuracy, .* in this order, got none"),
        ("gates", None, r"report\.gates: expected a list, got None"),
        ("policy.ood_recall_min", 7, r"report\.policy: ood_recall_min must be a number from 0 to 1, got 7"),
        ("rejection.plants.count", 201, "count must be from 0 to images, got 201 of 200"),
        (
            "accuracy.species.both",
            -1,
            r"report\.accuracy\.species: counts of images must be at least 0, got \(-1, 1, 1, 4\)",
        ),
        ("accuracy.species.both", 1.5, r"report\.accuracy\.species\.both: expected an integer, got 1.5"),
        ("accuracy.routing", ..., r"report\.accuracy: 'routing' is missing"),
        (
            "parity.scatter.fp16",
            [1],
            r"report\.parity\.scatter: a scatter needs as many logits of each, got \(3, 1, 3\)",
        ),
        ("latency.median_ms", "fast", r"report\.latency\.median_ms: expected a finite number, got 'fast'"),
        ("rejection.histogram.plants", [1], "3 bins need as many counts, got 1, 3, 3"),
        ("unreadable.0.source", "test", r"report\.unreadable\[0\]\.source: expected one of"),
        ("machine", ..., "report: 'machine' is missing; expected gates, policy"),
        ("note", "hello", "report: 'note' is unknown; expected gates, policy"),
    ],
)
def test_a_doctored_report_is_refused(report: Make, path: str, value: object, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        GateReport.from_dict(edit(report().to_dict(), path, value))


def test_gates_in_another_order_are_refused(report: Make) -> None:
    document = report().to_dict()
    document["gates"].reverse()
    with pytest.raises(BundleError, match="in this order, got leakage, coverage, accuracy"):
        GateReport.from_dict(document)


def write_bundle(folder: Path, report: GateReport, files: dict[str, FileDigest]) -> Path:
    write_json(folder / GATE_REPORT_FILE, report.to_dict())
    write_json(folder / "manifest.json", Manifest(files).to_dict())
    return folder


def test_a_report_is_read_back_when_it_is_about_these_files(report: Make, tmp_path: Path) -> None:
    rows = (*make_leaf_rows(TAXONOMY, 120, threshold=12.5), *make_other_rows(TAXONOMY, 60, threshold=12.5))
    agreed = agree(report(), rows)
    files = {**agreed.files, GATE_REPORT_FILE: FileDigest(1, "0" * 64), "plots/x.png": FileDigest(1, "0" * 64)}
    bundle = write_bundle(tmp_path, agreed, files)
    write_image_rows(bundle / IMAGES_FILE, rows)
    assert read_report(bundle) == agreed
    assert read_json(bundle / GATE_REPORT_FILE)["passed"] is True


@pytest.mark.parametrize("change", ["changed", "missing", "added"])
def test_a_report_on_other_files_vouches_for_nothing(report: Make, tmp_path: Path, change: str) -> None:
    name = SPECIES_FILES["int8"]
    files = dict(report().files)
    if change == "changed":
        files[name] = FileDigest(files[name].size_bytes, "9" * 64)
    elif change == "missing":
        del files[name]
    else:
        files[name := "extra.onnx"] = FileDigest(1, "9" * 64)
    message = rf"gate-report\.json: was measured on other files than manifest\.json lists \({name}\); verify again"
    with pytest.raises(BundleError, match=message):
        read_report(write_bundle(tmp_path, report(), files))


def test_a_report_of_format_2_is_shown_and_vouches_for_nothing(report: Make) -> None:
    """The file was written by the last code of format 2, on the same made-up measurements."""
    found = parse_report(FORMAT_2.read_bytes(), b"", Manifest(report().files))
    assert (found.format_version, found.accuracy.species) == (2, report().accuracy.species)  # type: ignore[union-attr]
    assert (found.leakage, found.taxonomy) == (None, None)
    assert found.gate("leakage").limit_text == "≤ 1 %"
    new = ("false_alarms", "accuracy", "coverage", "leakage")
    assert {gate.status for gate in found.gates if gate.name not in new} == {"passed"}
    assert found.gate("ood_recall").measured_text == "98.00 %"
    assert found.failed == new
    assert "the report has format 2, which lacks the evidence of its numbers; verify again" in found.table()
    assert {gate.status for gate in found.judge_by(GatePolicy())} == {"not measured"}


def test_a_report_of_format_3_is_shown_and_vouches_for_nothing(report: Make) -> None:
    """The file was written by the last code of format 3, on the same made-up measurements."""
    found = parse_report(FORMAT_3.read_bytes(), b"", Manifest(report().files))
    assert (found.format_version, found.taxonomy) == (3, TAXONOMY) and found.accuracy is not None
    probabilities = found.accuracy.probabilities
    assert found.accuracy == replace(report().accuracy, losses_by_species={}, probabilities=probabilities)  # type: ignore[type-var]
    assert (probabilities.species_temperature, probabilities.served) == (0.8, {}), "calibrated were other numbers"
    assert [found.gate(name).status for name in OLD_GATES] == ["passed"] * len(OLD_GATES)
    judged = found.judge_by(GatePolicy())
    assert {gate.status for gate in judged} == {"not measured"}
    assert judged[0].detail == "the report has format 3, which knows no uncertain verdicts; verify again"


@pytest.mark.parametrize(("measured", "status"), [(0.97, "uncertain"), (0.94, "failed")])
def test_a_gate_of_format_3_that_failed_by_its_bound_is_shown_as_uncertain(measured: float, status: str) -> None:
    document = read_json(FORMAT_3)
    place = [gate["name"] for gate in document["gates"]].index("ood_recall")
    document["gates"][place] |= {"status": "failed", "passed": False, "confidence": 0.95}
    document["gates"][place]["values"][0] |= {"measured": measured, "bound": 0.9}
    found = GateReport.from_dict(document | {"passed": False})
    assert found.gate("ood_recall").status == status


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("gates.3.measured", 0.5, "gate ood_recall is 'passed', but 0.5 ≥ 0.95 makes it 'failed'"),
        ("gates.3", "ood_recall", r"report\.gates"),
        ("gates", {}, r"report\.gates: expected a list"),
        ("accuracy.species", ..., r"report\.accuracy: 'species' is missing"),
        ("policy", ..., r"report: 'policy' is missing"),
        ("passed", False, "'passed' does not follow from the gates' status"),
    ],
)
def test_a_broken_report_of_format_2_is_refused(path: str, value: object, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        GateReport.from_dict(edit(read_json(FORMAT_2), path, value))


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        (
            "metadata",
            {"provenance": {"checkpoint_sha256": "f" * 64}},
            r"inputs\.checkpoint_sha256 is \w+, but onnx-m",
        ),
        ("metadata", {"species_temperature": 3.0}, r"accuracy\.probabilities\.species_temperature is .*, but onnx-m"),
        (
            "metadata",
            {"disease_temperature": 3.0},
            r"accuracy\.probabilities\.disease_temperature is .* has 3\.0; verify",
        ),
        (
            "metadata",
            {"taxonomy": TAXONOMY},
            r"inputs\.class_order_digest is \w+, but onnx-metadata\.json has",
        ),
        (
            "metadata",
            {"calibration": None},
            r"inputs\.calibration is OPTIMISTIC: .* \(images \w{12}\), but onnx-metadata\.json has unknown",
        ),
        (
            "detector",
            {"round_thresholds": np.zeros(2)},
            r"rejection\.rounds is \[.*, but ood-detector\.pkl has \[0\.0, ",
        ),
        ("detector", {"threshold": 3.0}, r"rejection\.threshold is .*, but ood-detector\.pkl has 3\.0; verify again"),
    ],
)
def test_a_report_must_be_about_what_is_served(
    verified_bundle: Path, section: str, change: dict[str, Any], message: str
) -> None:
    served = {"metadata": read_metadata(verified_bundle), "detector": read_detector(verified_bundle / DETECTOR_FILE)}
    report = read_report(verified_bundle)
    report.check_served(**served)
    with pytest.raises(BundleError, match=message):
        report.check_served(**{**served, section: replace(served[section], **change)})


def test_an_absent_report_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"gate-report\.json: no such file; `plantmodels verify` writes it"):
        read_report(tmp_path)


def test_reading_reports_needs_numpy_only() -> None:
    """The registry imports these modules on the tracking server, where nothing else may be installed."""
    code = (
        "import sys\n"
        "from plantmodels.report import describe, formatting, gate_report, gates, per_image, policy, summary\n"
        "heavy = 'torch timm onnx onnxruntime scipy sklearn pandas matplotlib jinja2 PIL mlflow'.split()\n"
        "print(sorted(set(heavy) & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
