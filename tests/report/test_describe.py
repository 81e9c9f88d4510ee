"""What `plantmodels inspect` prints: the model, the detector, and whether anybody ever verified the bundle."""

from pathlib import Path
from types import SimpleNamespace

from plantmodels.report import describe
from plantmodels.report.describe import describe_bundle
from plantmodels.report.gate_report import read_report


def test_a_bundle_that_was_never_verified_says_so(tiny_bundle) -> None:
    text = describe_bundle(tiny_bundle.bundle)
    assert "verified    never; run `plantmodels verify` to measure gates and accuracy" in text.splitlines()
    assert "The INT8 model" not in text and "ood_recall" not in text


def test_a_verified_bundle_shows_its_gates_and_its_accuracy(verified_bundle: Path) -> None:
    text, report = describe_bundle(verified_bundle), read_report(verified_bundle)
    passed = len(report.gates) - len(report.failed)
    assert f"verified    yes, {passed} of {len(report.gates)} gates passed" in text.splitlines()
    assert text.endswith(report.table()) and report.accuracy_sentence in text.splitlines()


def test_a_detector_may_say_in_words_how_it_was_fitted() -> None:
    detector = SimpleNamespace(method="mahalanobis", mean=[0], threshold=2.5, fit={"images": 12, "note": "by hand"})
    lines = list(describe._describe_detector(detector))  # type: ignore[arg-type]
    assert lines == ["detector    mahalanobis, 1 mean, threshold 2.500", "fitted      images 12, note by hand"]
