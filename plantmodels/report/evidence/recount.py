"""Counts every number of a report again, and refuses a report that says otherwise.

It cannot know whether the image rows and the samples are true: only who measures again knows that.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Final

import numpy as np

from plantmodels.bundle.calibration import MAX_DISTANCE
from plantmodels.bundle.layout import IMAGES_FILE
from plantmodels.bundle.serialization import encode
from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.report.calibration.check import check_probabilities
from plantmodels.report.evidence.accuracy import Temperatures, count_accuracy
from plantmodels.report.evidence.check import describe_difference, find_difference
from plantmodels.report.evidence.columns import ImageTable
from plantmodels.report.evidence.field import count_field
from plantmodels.report.evidence.rejection import count_rejection
from plantmodels.report.leakage import Leak, Leakage, TwinSet, count_crossing
from plantmodels.report.per_image import ImageSetName
from plantmodels.report.samples import Latency, Parity

if TYPE_CHECKING:
    from plantmodels.report.gate_report import GateReport
    from plantmodels.report.inputs import ImageSet

_DIGEST_LENGTH: Final = 64

_Image = tuple[str, str, str]
"""Class, name and digest of a validation image."""


def check_report(report: "GateReport", table: ImageTable) -> None:
    """Check that a report says what its evidence makes.

    Args:
        report: a report of the current format.
        table: its image rows.

    Raises:
        ValueError: names the first value that differs, or the first row that cannot be.
    """
    if report.taxonomy is None or report.taxonomy.digest != report.inputs.class_order_digest:
        raise ValueError("inputs.class_order_digest is not the digest of the report's taxonomy")
    _check_rows(table, report.taxonomy)
    _check_inputs(report, table)
    if report.leakage is not None:
        given = 0 if report.inputs.non_plants is None else report.inputs.non_plants.images
        check_leaks(report.leakage, table, given)
    for name, found, expected, evidence in _list_sections(report, table, report.taxonomy):
        if found == expected:
            continue  # usual, and 20 times as quick as a look at each value
        difference = find_difference(encode(found), encode(expected), name)
        if difference is not None:
            raise ValueError(describe_difference(difference, evidence))


def _list_sections(
    report: "GateReport", table: ImageTable, taxonomy: Taxonomy
) -> Iterator[tuple[str, object, object, str]]:
    """Yield each section: its name, what the report says, what its evidence makes, and what the evidence is."""
    parity, latency, leakage = report.parity, report.latency, report.leakage
    accuracy, rejection = report.accuracy, report.rejection
    if accuracy is not None:
        temperatures = Temperatures(
            accuracy.probabilities.species_temperature, accuracy.probabilities.disease_temperature
        )
        yield "accuracy", accuracy, count_accuracy(table.of_set("val"), taxonomy, temperatures), "its image rows"
    if rejection is not None:
        _check_decisions(table, rejection.threshold)
        rounds = [each.threshold for each in rejection.rounds]
        recounted = count_rejection(
            table, threshold=rejection.threshold, held_out=rejection.held_out, round_thresholds=rounds
        )
        yield "rejection", rejection, recounted, "its image rows"
    if accuracy is not None and rejection is not None:
        counted = count_field(table, taxonomy, temperatures, threshold=rejection.threshold, held_out=rejection.held_out)
        yield "field", report.field, counted, "its image rows"
    if leakage is not None:
        yield "leakage.crossing", leakage.crossing, count_crossing(table.of_set("val")), "its image rows"
    if parity is not None:
        summary = Parity.summarize(parity.samples, parity.head_samples, parity.scatter)
        yield "parity", parity, summary, "its samples"
        compared = table.of_set("val").text("pytorch_ood_score") != ""
        yield "parity.images", parity.images, int(np.sum(compared)), "its image rows"
    if latency is not None:
        times = (latency.runs_ms, latency.encoded_runs_ms, latency.reference_runs_ms)
        if not latency.runs_ms or len(set(map(len, times))) > 1:
            raise ValueError(
                f"latency.runs_ms has {len(times[0])} times, latency.encoded_runs_ms has {len(times[1])} and "
                f"latency.reference_runs_ms has {len(times[2])}; expected as many of each, and at least one"
            )
        summarized = Latency.summarize(*times, threads=latency.threads, cpu=latency.cpu, load=latency.load)
        yield "latency", latency, summarized, "its samples"


def _check_inputs(report: "GateReport", table: ImageTable) -> None:
    """Check numbers and digests of images, and that either all sections that need the models are there, or none."""
    sections = {name: getattr(report, name) for name in ("accuracy", "rejection", "latency")}
    for name, section in sections.items():
        if (section is None) != bool(report.not_run):
            raise ValueError(
                f"{name} is {'missing' if section is None else 'given'}, but not_run is {report.not_run!r:.80}"
            )
    sets: dict[ImageSetName, ImageSet | None] = {
        "val": report.inputs.val,
        "non-plants": report.inputs.non_plants,
        "unseen-plants": report.inputs.unseen_plants,
        "field": report.inputs.field,
    }
    for name, images in sets.items():
        where, rows = f"inputs.{name.replace('-', '_')}", table.of_set(name)
        if len(rows) != (0 if images is None else images.measured):
            measured = 0 if images is None else images.measured
            raise ValueError(f"{where}.measured is {measured}, but {IMAGES_FILE} has {len(rows)} such rows")
        if images is not None and images.sha256 != (digest := rows.digest()):
            raise ValueError(describe_difference((f"{where}.sha256", images.sha256, digest), "its image rows"))
        if images is not None and not report.not_run:
            _check_set(report, name, images, where)
    _check_calibration(report, table.of_set("val"))


def _check_calibration(report: "GateReport", leaves: ImageTable) -> None:
    """Check that no leaf which calibrated the bundle was measured."""
    calibration = report.inputs.calibration
    if calibration is not None:
        measured = set(calibration.sha256).intersection(leaves.text("sha256").tolist())
        if measured:
            raise ValueError(
                f"{IMAGES_FILE}: {len(measured):,} of the measured leaves calibrated the bundle, the first with sha256 "
                f"{min(measured)}"
            )


def _check_set(report: "GateReport", name: ImageSetName, images: "ImageSet", where: str) -> None:
    """Check that every image was measured, skipped or left out for a reason."""
    tried = images.measured + sum(image.source == name for image in report.unreadable)
    highest = lowest = images.images
    if name in ("val", "field"):
        highest = lowest = min(images.images, report.policy.int8_accuracy_max_images)
    elif name == "non-plants" and report.rejection is not None and report.rejection.held_out:
        lowest = 0
    if not lowest <= tried <= highest:
        raise ValueError(f"{where}.images is {images.images}, but {tried} images were measured or skipped")


def _check_rows(table: ImageTable, taxonomy: Taxonomy) -> None:
    """Check that every answer is one that the bundle can give, and that scores and probabilities agree with it."""
    leaves = table.where(np.isin(table.text("set"), ("val", "field")))
    species = {(name,) for name in taxonomy.species}
    classes = {
        (name, disease)
        for index, name in enumerate(taxonomy.species)
        for disease in taxonomy.diseases_of(index) or ("",)
    }
    diseases = {("",), *((disease,) for _, disease in classes)}
    _check_answers(leaves, ("species",), species)
    _check_answers(leaves, ("int8_soft_disease",), diseases)
    for precision in ("fp16", "int8"):
        _check_answers(table, (f"{precision}_species",), species)
        _check_answers(leaves, ("species", f"{precision}_disease"), classes)
    _check_answers(leaves, ("int8_species", "int8_routed_disease"), classes)
    p_values = table.numbers("ood_p_value")
    if not np.all(np.isnan(p_values) | ((p_values >= 0) & (p_values <= 1))):
        raise ValueError(f"{IMAGES_FILE}: ood_p_value must be from 0 to 1 in every row")
    check_probabilities(table, leaves, taxonomy)
    if not {_DIGEST_LENGTH}.issuperset(map(len, table.text("sha256").tolist())):
        raise ValueError(f"{IMAGES_FILE}: sha256 must be a digest of {_DIGEST_LENGTH} characters in every row")


def _check_decisions(table: ImageTable, threshold: float) -> None:
    rejected = ~(table.numbers("ood_score") <= threshold)
    wrong = np.flatnonzero(rejected != table.truths("rejected"))
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"{IMAGES_FILE}: rejected is {not rejected[row]} where ood_score is {table.numbers('ood_score')[row]:g} "
            f"and the threshold is {threshold:g}"
        )


def _check_answers(rows: ImageTable, columns: tuple[str, ...], allowed: AbstractSet[tuple[str, ...]]) -> None:
    """Check that the names in these columns are among the allowed ones, in every row."""
    names = set(zip(*(rows.text(column).tolist() for column in columns), strict=True))
    wrong = next((name for name in sorted(names) if name not in allowed), None)
    if wrong is not None:
        given = "".join(f" where {column} is {name!r:.80}" for column, name in zip(columns, wrong[:-1], strict=False))
        raise ValueError(f"{IMAGES_FILE}: {columns[-1]} is {wrong[-1]!r:.80}{given}, which the taxonomy lacks")


def check_leaks(leakage: Leakage, table: ImageTable, non_plants_given: int) -> None:
    """Check that leaks agree with the image rows, and that identical images among the rows are all there.

    The training images have no rows. Whether a validation image is one of them cannot be checked here.

    Args:
        leakage: the leaks that a report states.
        table: all its image rows.
        non_plants_given: number of non-plants that the report's inputs state.

    Raises:
        ValueError: a leak contradicts the rows, or one is missing or stated twice; the message names the image.
    """
    leaves, others = table.of_set("val"), table.of_set("non-plants")
    expected: dict[TwinSet, int] = {"val": len(leaves), "non-plants": non_plants_given}
    for place, images in expected.items():
        if leakage.compared[place] != images:
            raise ValueError(
                f"leakage.compared.{place} is {leakage.compared[place]}, but there are {images} such images"
            )
    if not leakage.leaks and _are_all_different(leaves, others):
        return
    val = Counter(zip(*(leaves.text(name).tolist() for name in ("source", "name", "sha256")), strict=True))
    non_plants: dict[str, set[str]] = defaultdict(set)
    for name, sha256 in zip(others.text("name").tolist(), others.text("sha256").tolist(), strict=True):
        non_plants[name].add(sha256)
    stated = Counter(map(_key, leakage.leaks))
    for leak in leakage.leaks:
        _check_leak(leak, val, non_plants)
        if stated[_key(leak)] > val[_key(leak)]:
            raise ValueError(f"leakage names {leak.name!r:.200} more than once")
    missing = sorted(image for image in _find_identical(val, non_plants) if stated[image] < val[image])
    if missing:
        raise ValueError(f"leakage leaves out {missing[0][1]!r:.200}, whose content occurs again among the rows")


def _are_all_different(leaves: ImageTable, others: ImageTable) -> bool:
    """Return whether no content occurs twice, as in most reports, which spares a closer look."""
    digests = {*leaves.text("sha256").tolist(), *others.text("sha256").tolist()}
    return len(digests) == len(leaves) + len(others)


def _key(leak: Leak) -> _Image:
    return leak.source, leak.name, leak.sha256


def _check_leak(leak: Leak, val: Mapping[_Image, int], non_plants: Mapping[str, AbstractSet[str]]) -> None:
    twin = leak.twin
    agrees = {
        "val": (twin.source, twin.name, twin.sha256) in val,
        "non-plants": twin.name not in non_plants or twin.sha256 in non_plants[twin.name],  # half of them have rows
        "train": True,
    }
    if _key(leak) not in val or not agrees[twin.set]:
        raise ValueError(f"leakage of {leak.name!r:.200} does not agree with the rows of its images")
    if twin.set == "val" and twin.source == leak.source:
        raise ValueError(f"leakage of {leak.name!r:.200} names an image of the same class and set")
    if not 0 <= twin.distance <= MAX_DISTANCE or (leak.kind == "identical" and twin.distance):
        raise ValueError(f"leakage of {leak.name!r:.200} has the distance {twin.distance}, which is impossible")


def _find_identical(val: Iterable[_Image], non_plants: Mapping[str, AbstractSet[str]]) -> set[_Image]:
    """Return the validation images whose content is also that of a non-plant or of another class."""
    shown = set().union(*non_plants.values())
    classes: dict[str, set[str]] = defaultdict(set)
    for source, _, sha256 in val:
        classes[sha256].add(source)
    return {image for image in val if image[2] in shown or len(classes[image[2]]) > 1}
