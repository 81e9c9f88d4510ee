"""A report is read only if it says what its image rows and samples make."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plantmodels.bundle.manifest import FileDigest, Manifest
from plantmodels.errors import BundleError
from plantmodels.report.gate_report import GateReport, parse_report
from plantmodels.report.per_image import ImageRow, format_image_rows
from tests.fixtures.reports import CALIBRATION, TAXONOMY, make_report
from tests.fixtures.rows import agree, list_probabilities, make_leaf_rows, make_other_rows

THRESHOLD = 12.5
ROWS = (
    *(
        replace(row, group=f"plant {place % 5}" if place % 7 == 0 else "")
        for place, row in enumerate(make_leaf_rows(TAXONOMY, 400, threshold=THRESHOLD, lost=0.005, alarms=0.005))
    ),
    *make_other_rows(TAXONOMY, 100, threshold=THRESHOLD, recall=0.98),
    *make_other_rows(TAXONOMY, 10, threshold=THRESHOLD, recall=0.3, name="unseen-plants"),
    *make_leaf_rows(TAXONOMY, 60, threshold=THRESHOLD, wrong=0.4, alarms=0.5, name="field"),
)
REPORT = agree(make_report(), ROWS)
SAMPLES = ("samples", "head_samples", "scatter", "runs_ms", "encoded_runs_ms", "reference_runs_ms")
"""Evidence, which is believed, as the image rows are."""

SETTINGS = ("threads", "load", "temperature", "threshold")
"""Facts about the machine and the bundle. The registry compares temperatures and threshold with the bundle's files."""

Path = tuple[str | int, ...]

UNKNOWN: list[Path] = [("leakage", "compared", "train"), ("inputs", "left_out")]
"""The training images and images that were left out have no rows, and the distances of leaks have no samples."""

SERVED: Path = ("inputs", "calibration")
"""The registry compares it with the bundle's metadata."""


IMAGES = format_image_rows(ROWS)


def parse(document: dict[str, Any], images: bytes = IMAGES, report: GateReport = REPORT) -> GateReport:
    return parse_report(json.dumps(document).encode(), images, Manifest(report.files))


def list_numbers(value: Any, path: Path = ()) -> Iterator[Path]:
    """Yield the place of every number that a report states about its evidence; of long lists, of three entries."""
    if isinstance(value, dict):
        for name, item in value.items():
            if name not in (*SAMPLES, *SETTINGS):
                yield from list_numbers(item, (*path, name))
    elif isinstance(value, list):
        for place in sorted({0, len(value) // 2, len(value) - 1} if len(value) > 20 else range(len(value))):
            yield from list_numbers(value[place], (*path, place))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path


def list_values(report: GateReport) -> list[Path]:
    document = report.to_dict()
    sections = ("gates", "accuracy", "rejection", "field", "leakage", "parity", "latency", "inputs", "files")
    found = [path for name in sections for path in list_numbers(document[name], (name,))]
    field = [path for path in found if path[:2] in (("field", "accuracy"), ("field", "rejection"))]
    found = [path for path in found if path not in field] + field[::9]  # the same code counts them as those of val
    return [path for path in found if path not in UNKNOWN and path[:2] != SERVED and path[-1] != "distance"]


def edit(document: dict[str, Any], path: Path, change: float) -> tuple[dict[str, Any], float]:
    """Return the document with one number changed, and the new number."""
    changed = json.loads(json.dumps(document))
    place = changed
    for name in path[:-1]:
        place = place[name]
    number = place[path[-1]]
    place[path[-1]] += round(change) or 1 if isinstance(number, int) else change * max(1.0, abs(number) / 100)
    return changed, place[path[-1]]


def test_what_was_written_is_read() -> None:
    assert REPORT.passed
    assert parse(REPORT.to_dict()) == REPORT


BINS_OF = ("species", "soft_disease")
"""The served numbers whose bins are edited below; those of the others are counted by the same code."""

VALUES = [
    path
    for path in list_values(REPORT)
    if path[:3] != ("accuracy", "probabilities", "served") or path[3] in BINS_OF or path[-1] in ("ece", "brier", "low")
]


def test_the_edits_below_reach_every_part_of_a_report() -> None:
    assert len(VALUES) > 250
    assert {path[:2] for path in VALUES} >= {
        *(("accuracy", name) for name in ("species", "disease", "end_to_end", "routing", "disease_routing")),
        *(("accuracy", name) for name in ("by_species", "by_disease", "by_class", "confusions", "species_baseline")),
        *(("accuracy", name) for name in ("probabilities", "class_baseline")),
        *(
            ("rejection", name)
            for name in ("plants", "non_plants", "unseen_plants", "by_source", "by_species", "flips")
        ),
        *(("rejection", name) for name in ("separation", "separation_by_source", "roc", "histogram")),
        *(("parity", name) for name in ("images", "heads", "logits", "embedding", "head_logits", "by_batch_size")),
        *(("latency", name) for name in ("runs", "median_ms", "p95_ms", "encoded_median_ms", "encoded_p95_ms")),
        *(("inputs", name) for name in ("val", "non_plants", "unseen_plants", "field")),
        *(("field", name) for name in ("accuracy", "rejection", "decided", "val_decided", "by_species")),
    }


@pytest.mark.slow
def test_every_number_that_is_edited_is_refused() -> None:
    document, accepted = REPORT.to_dict(), []
    for number, path in enumerate(VALUES):
        change = (-1, 1e-4)[number % 2]
        try:
            parse(edit(document, path, change)[0])
        except BundleError as error:
            assert str(error).startswith("gate-report.json: ")
        else:
            accepted.append((path, change))
    assert accepted == []


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "accuracy.species.both",
            400,
            r"accuracy\.species\.both is 400, but its image rows make it 378",
        ),
        ("accuracy.end_to_end.only_first", 7, r"accuracy\.end_to_end\.only_first is 7, but its image rows make it 2"),
        ("accuracy.by_class.Mint.int8", 1, r"accuracy\.by_class\.Mint\.int8 is 1, but its image rows make it"),
        ("accuracy.species_baseline.name", "Rose", r"accuracy\.species_baseline\.name is 'Rose', but .* 'Apple'"),
        ("accuracy.probabilities.true_both.after", 0.1, r"accuracy\.probabilities\.true_both\.after is 0\.1, but"),
        ("accuracy.probabilities.served.disease.noise.ece", 0.5, r"served\.disease\.noise\.ece is 0\.5, but"),
        ("rejection.non_plants.count", 100, r"rejection\.non_plants\.count is 100, but its image rows make it 98"),
        ("rejection.plants.images", 500, r"rejection\.plants\.images is 500, but its image rows make it 400"),
        ("rejection.flips.fp32.count", 3, r"rejection\.flips\.fp32\.count is 3, but its image rows make it"),
        ("rejection.separation.auroc.value", 1.0, r"rejection\.separation\.auroc\.value is 1\.0, but"),
        ("rejection.by_source.bricks.count", 1, r"rejection\.by_source\.bricks\.count is 1, but"),
        ("rejection.threshold", 14.0, r"gate-images\.csv: rejected is True where ood_score is"),
        ("parity.logits", -5.0, r"parity\.logits is -5\.0, but its samples make it 0\.0008"),
        ("parity.images", 65, r"parity\.images is 65, but its samples make it 64"),
        ("latency.median_ms", 0.1, r"latency\.median_ms is 0\.1, but its samples make it 27\.4"),
        ("latency.runs", 400, r"latency\.runs is 400, but its samples make it 40"),
        ("latency.runs_ms", [], r"latency\.runs_ms has 0 times, latency\.encoded_runs_ms has 40"),
        ("inputs.val.measured", 399, r"inputs\.val\.measured is 399, but gate-images\.csv has 400 such rows"),
        ("inputs.val.images", 401, r"inputs\.val\.images is 401, but 400 images were measured or skipped"),
        ("inputs.non_plants.images", 99, r"inputs\.non_plants\.images is 99, but 100 images were measured"),
        ("inputs.val.sha256", "a" * 64, r"inputs\.val\.sha256 is 'a+', but its image rows make it '[0-9a-f]+'"),
        ("inputs.unseen_plants.sha256", "a" * 64, r"inputs\.unseen_plants\.sha256 is 'a+', but its image rows"),
        ("inputs.field.images", 61, r"inputs\.field\.images is 61, but 60 images were measured or skipped"),
        (
            "field.decided.accepted.species.count",
            30,
            r"field\.decided\.accepted\.species\.count is 30, but its image ro",
        ),
        ("field", None, r"field is None, but its image rows make it"),
        ("inputs.unseen_plants", None, r"inputs\.unseen_plants\.measured is 0, but gate-images\.csv has 10 such rows"),
        (
            "inputs.class_order_digest",
            "0" * 64,
            r"inputs\.class_order_digest is not the digest of the report's taxonomy",
        ),
        ("accuracy", None, r"accuracy is missing, but not_run is ''"),
        ("not_run", "tired", r"accuracy is given, but not_run is 'tired'"),
        ("taxonomy", None, r"report\.taxonomy: expected an object, got None"),
        ("gates.3.values.0.measured", 1.5, r"gate ood_recall\.values\.value\.measured is 1\.5, but the evidence"),
        ("gates.0.values.0.measured", -5.0, r"gate parity\.values\.value\.measured is -5\.0, but the evidence"),
        ("gates.10.values.0.measured", 0.99, r"gate accuracy\.values\.species\.measured is 0\.99, but the evidence"),
        ("gates.10.min_images", 1, r"gate accuracy\.min_images is 1, but the evidence and the limits make it 100"),
        ("gates.7.values.0.measured", 1.0, r"gate species_size\.values\.value\.measured is 1\.0, but the evidence"),
        ("gates.1.values.0.limit", 0.0101, r"gate int8_accuracy\.values\.value\.limit is 0\.0101, but the evidence"),
        (
            "files.swin-species-int8_onnx.size_bytes",
            1,
            r"measured on other files than manifest\.json lists \(swin-species",
        ),
    ],
)
def test_edits_are_refused_by_name(path: str, value: object, message: str) -> None:
    document = REPORT.to_dict()
    *parents, last = (name.replace("_onnx", ".onnx") for name in path.split("."))
    place: Any = document
    for name in parents:
        place = place[int(name)] if isinstance(place, list) else place[name]
    place[last] = value
    with pytest.raises(BundleError, match=message):
        parse(document)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"species": "Fern"}, r"species is 'Fern', which the taxonomy lacks"),
        ({"int8_species": "Fern"}, r"int8_species is 'Fern', which the taxonomy lacks"),
        ({"fp16_disease": "spot"}, r"fp16_disease is 'spot' where species is 'Apple', which the taxonomy lacks"),
        ({"int8_soft_disease": "mould"}, r"int8_soft_disease is 'mould', which the taxonomy lacks"),
        ({"species_probability": 1.5}, r"species_probability must be from 0 to 1 in every row"),
        ({"raw_disease_nll": -1.0}, r"raw_disease_nll must not be negative in any row"),
        ({"species_nll": None}, r"species_nll must be a number for 'val/\d+\.jpg'"),
        ({"species_nll": 3.0}, r"species_probability is 0\.\d+ where the answer is right and species_nll is 3, which"),
        (
            {"disease_nll": 3.0},
            r"disease_given_species_probability is 0\.7 where the answer is right and disease_nll is",
        ),
        ({"disease_given_species_probability": None}, r"disease_given_species_probability must be a number for"),
        ({"int8_soft_disease": ""}, r"soft_disease_probability must be empty for 'val/\d+\.jpg'"),
        ({"sha256": ""}, r"sha256 must be a digest of 64 characters in every row"),
        ({"ood_p_value": 1.5}, r"ood_p_value must be from 0 to 1 in every row"),
        ({"rejected": False}, r"rejected is False where ood_score is 14\.2975 and the threshold is 12\.5"),
        (
            {"int8_species": "Rose", "int8_routed_disease": "spot"},
            r"accuracy\.species\.both is 378, but .* make it 377",
        ),
        ({"fp16_ood_score": 1.0}, r"rejection\.flips\.fp16\.count is 0, but its image rows make it 1"),
        ({"set": "non-plants"}, r"inputs\.val\.measured is 400, but gate-images\.csv has 399 such rows"),
    ],
)
def test_rows_that_cannot_be_or_say_otherwise_are_refused(change: dict[str, Any], message: str) -> None:
    place = next(i for i, row in enumerate(ROWS) if row.rejected and row.species == row.int8_species == "Apple")
    rows = (*ROWS[:place], replace(ROWS[place], **change), *ROWS[place + 1 :])
    with pytest.raises(BundleError, match=message):
        parse(REPORT.to_dict(), format_image_rows(rows))


@pytest.mark.parametrize("rows", [ROWS[1:], ROWS[:-1], (*ROWS, ROWS[0])])
def test_fewer_or_more_rows_than_the_report_counts_are_refused(rows: tuple[ImageRow, ...]) -> None:
    with pytest.raises(BundleError, match=r"measured is \d+, but gate-images\.csv has \d+ such rows"):
        parse(REPORT.to_dict(), format_image_rows(rows))


def test_a_report_that_measured_leaves_which_calibrated_is_refused() -> None:
    calibration = replace(CALIBRATION, sha256=(ROWS[7].sha256, "f" * 64))
    report = replace(REPORT, inputs=replace(REPORT.inputs, calibration=calibration))

    with pytest.raises(BundleError, match=f"1 of the measured leaves calibrated .* with sha256 {ROWS[7].sha256}"):
        parse(report.to_dict(), report=report)


def test_without_image_rows_nothing_is_believed() -> None:
    with pytest.raises(BundleError, match=r"gate-images\.csv: line 0: columns must be set, "):
        parse_report(json.dumps(REPORT.to_dict()).encode(), b"", Manifest(REPORT.files))


def test_sizes_unlike_the_manifests_are_refused() -> None:
    name = "swin-species-int8.onnx"
    listed = Manifest({**REPORT.files, name: FileDigest(9_000_000, REPORT.files[name].sha256)})
    with pytest.raises(BundleError, match=r"measured on other files than manifest\.json lists \(swin-species-int8"):
        parse_report(json.dumps(REPORT.to_dict()).encode(), IMAGES, listed)


def test_the_same_image_twice_with_two_truths_is_counted_twice() -> None:
    twin = replace(ROWS[0], species="Mint", disease="", fp16_disease="", int8_disease="", source="Mint")
    rows = (*ROWS, replace(twin, **list_probabilities(twin, several=False)))  # type: ignore[arg-type]
    report = agree(REPORT, rows)
    assert parse(report.to_dict(), format_image_rows(rows), report) == report
    assert report.accuracy is not None and report.accuracy.species.images == 401


@st.composite
def rows_of_images(draw: st.DrawFn) -> tuple[ImageRow, ...]:
    """Rows with any answers that the taxonomy has, any scores and some images twice."""
    leaves = draw(st.integers(1, 40))
    rows = [*make_leaf_rows(TAXONOMY, leaves, wrong=draw(st.floats(0, 1)), lost=draw(st.floats(0, 1)))]
    rows += make_other_rows(TAXONOMY, draw(st.integers(0, 20)))
    scores = draw(st.lists(st.floats(-50, 50, allow_subnormal=False), min_size=len(rows), max_size=len(rows)))
    probabilities = draw(st.lists(st.floats(0, 1), min_size=len(rows), max_size=len(rows)))
    found = [
        replace(row, ood_score=score, rejected=score > THRESHOLD, fp16_ood_score=score + 1, species_probability=p)
        for row, score, p in zip(rows, scores, probabilities, strict=True)
    ]
    several = {name for name, diseases in TAXONOMY.diseases.items() if len(diseases) > 1}
    found = [
        replace(row, **list_probabilities(row, row.species in several)) if row.set in ("val", "field") else row  # type: ignore[arg-type]
        for row in found
    ]
    return (*found, *draw(st.lists(st.sampled_from(found), max_size=3)))


@settings(max_examples=40)
@given(rows_of_images(), st.data())
def test_a_report_is_consistent_and_any_change_of_a_value_is_not(
    rows: tuple[ImageRow, ...], data: st.DataObject
) -> None:
    report = agree(make_report(), rows)
    document, images = report.to_dict(), format_image_rows(rows)
    assert parse(document, images, report) == report
    path = data.draw(st.sampled_from(list_values(report)))
    size = data.draw(st.integers(1, 1000) | st.floats(1e-4, 1e6))
    changed, _ = edit(document, path, data.draw(st.sampled_from([-1, 1])) * size)
    with pytest.raises(BundleError, match=r"gate-report\.json: "):
        parse(changed, images, report)
