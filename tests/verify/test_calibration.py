"""A bundle that a part of val calibrated: what its files and its report say, and that no gate measures these leaves."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from plantmodels.bundle.detector import read_detector
from plantmodels.bundle.layout import DETECTOR_FILE
from plantmodels.bundle.metadata import read_metadata
from plantmodels.data import groups
from plantmodels.data.leaves import digest_each, leave_out, read_leaves
from plantmodels.errors import DataError
from plantmodels.export.bundle import export_bundle
from plantmodels.export.calibration import leaves as module
from plantmodels.report.gate_report import GateReport, read_report
from plantmodels.report.policy import GatePolicy
from plantmodels.verify.reading import read_inputs
from plantmodels.verify.run import verify_bundle
from tests.fixtures.reports import ANY_NUMBER


@dataclass(frozen=True)
class Made:
    """A verified bundle."""

    bundle: Path
    report: GateReport
    text: str


@pytest.fixture(scope="module")
def made(tiny_bundle, tmp_path_factory: pytest.TempPathFactory) -> Made:
    bundle = tmp_path_factory.mktemp("calibrated") / "models"
    with pytest.MonkeyPatch.context() as patch:
        limits = {"MIN_CALIBRATION_LEAVES": 27, "MIN_VAL_LEAVES": 18, "MIN_CLASS_LEAVES": 2, "VAL_SHARE": 0.6}
        for name, value in limits.items():
            patch.setattr(module, name, value)
        patch.setattr(groups, "MAX_DISTANCE", 12)  # small drawings of one class are more alike than leaves are
        summary = export_bundle(tiny_bundle.checkpoint, tiny_bundle.data, bundle, non_plants=tiny_bundle.non_plants)
    report = verify_bundle(
        bundle,
        tiny_bundle.data,
        checkpoint=None,
        non_plants=tiny_bundle.non_plants,
        policy=replace(GatePolicy(), **ANY_NUMBER),
    )
    return Made(bundle, report, summary.describe())


def test_detector_and_metadata_name_the_leaves(made: Made, tiny_bundle, tiny_taxonomy) -> None:
    calibration = read_metadata(made.bundle).calibration
    detector = read_detector(made.bundle / DETECTOR_FILE)
    val = read_leaves(tiny_bundle.data, "val", tiny_taxonomy)

    assert calibration is not None and (calibration.source, calibration.images) == ("val", 27)
    assert set(calibration.sha256) < set(digest_each(val).values())
    assert len(detector.plant_scores) == len(detector.plant_species) == detector.fit["calibration_images"] == 27
    assert detector.fit["fit_images"] == 180
    assert (detector.method, len(detector.round_thresholds)) == ("mahalanobis", 1), "it needs no folds"
    assert "calibrated on 27 leaves of the split val, which no gate measures" in made.text


def test_no_gate_measures_them_and_the_report_says_so(made: Made, tiny_bundle, tiny_taxonomy) -> None:
    inputs, metadata = made.report.inputs, read_metadata(made.bundle)
    val = read_leaves(tiny_bundle.data, "val", tiny_taxonomy)

    assert (inputs.val.images, inputs.val.measured, inputs.left_out) == (18, 18, 27)
    assert inputs.calibration == metadata.calibration
    assert len(leave_out(val, inputs.calibration.sha256).samples) == 18
    assert "calibrated on 27 leaves of the split val" in made.report.table()
    assert "(27 of them found in val and left out)" in (made.bundle / "report.html").read_text()
    assert read_report(made.bundle) == made.report


def test_the_report_shows_the_spread_of_the_rounds(verified_bundle: Path) -> None:
    rejection = read_report(verified_bundle).rejection
    assert rejection is not None and rejection.spread is not None and len(rejection.rounds) == 20
    rates = [(each.precision, each.non_plants.value) for each in rejection.rounds]

    assert rejection.spread == tuple((min(column), max(column)) for column in zip(*rates, strict=True))
    assert "The threshold averages 20 rounds of cross-validation" in (verified_bundle / "report.html").read_text()


def test_if_every_leaf_calibrated_nothing_can_be_measured(made: Made, tiny_bundle, tiny_taxonomy) -> None:
    val = read_leaves(tiny_bundle.data, "val", tiny_taxonomy)
    metadata = read_metadata(made.bundle)
    digests = tuple(sorted(digest_each(val).values()))
    everything = replace(metadata, calibration=replace(metadata.calibration, images=45, sha256=digests))

    with pytest.raises(DataError, match="each of the 45 images of split 'val' calibrated the bundle, so no gate may"):
        read_inputs(everything, tiny_bundle.data, non_plants=None, unseen_plants=None)
