"""Compares two gate reports measure by measure: paired when both saw the same images, unpaired otherwise.

>>> from plantmodels.bundle.metadata import read_metadata
>>> from plantmodels.report.gate_report import read_report
>>> verified = VerifiedBundle(read_report(bundle), read_metadata(bundle), None)
>>> [section.title for section in compare_measures(verified, verified)][0]
'Accuracy'
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from plantmodels.bundle.layout import summarize_sizes
from plantmodels.bundle.metadata import Metadata
from plantmodels.compare.field import compare_field
from plantmodels.compare.model import MeasurePair, Section, Verdict
from plantmodels.compare.pairing import (
    INTERVAL,
    Pairing,
    VerifiedBundle,
    compare_proportions,
    decide,
    measure_accuracy,
)
from plantmodels.compare.probabilities import compare_true_classes
from plantmodels.report.gate_report import GateReport
from plantmodels.report.results import ClassRow, Rejection
from plantmodels.report.samples import Latency, Parity
from plantmodels.report.statistics import (
    ALPHA,
    PairedCounts,
    Proportion,
    correct_for_many,
    difference_p_value,
    precision_difference_interval,
)

_SIZE_NOISE: Final = 0.01
"""Two sizes that differ by less count as equal: names and settings inside a file make such a difference."""

_BUSY: Final = 2
"""Load average per thread above which other work ran on the machine. Verification itself uses every core."""

_HOLM: Final = "with p-values corrected for the number of classes (Holm)."
_FISHER: Final = "unpaired, decided by Fisher’s exact test"


@dataclass(frozen=True)
class _ClassCounts:
    """Images of one class that A and B get right, and the paired counts where the images can be paired."""

    name: str
    a: Proportion
    b: Proportion
    paired: PairedCounts | None


def compare_measures(a: VerifiedBundle, b: VerifiedBundle) -> tuple[Section, ...]:
    """Return every measure that both reports have, in sections."""
    leaves = Pairing.match(a, b, "val", a.report.inputs.val, b.report.inputs.val)
    others = Pairing.match(a, b, "non-plants", a.report.inputs.non_plants, b.report.inputs.non_plants)
    sections = (
        *_compare_accuracy(a, b, leaves),
        *_compare_rejection(a.report.rejection, b.report.rejection, leaves, others),
        _compare_sizes(a.report, b.report),
        *_compare_latency(a.report, b.report),
        *_compare_parity(a.report.parity, b.report.parity),
        *compare_field(a, b),
    )
    return tuple(section for section in sections if section.measures)


def _compare_classes(counts: Iterable[_ClassCounts], *, counted: str = "right") -> tuple[MeasurePair, ...]:
    """Compare many classes at once; each p-value is corrected for their number."""
    tested = [entry for entry in counts if entry.a.images and entry.b.images]
    p_values = correct_for_many(
        [difference_p_value(c.a, c.b) if c.paired is None else c.paired.p_value for c in tested]
    )
    return tuple(
        replace(
            compare_proportions(c.name, c.a, c.b, c.paired, counted=counted),
            p_value=p_value,
            verdict=decide(p_value < ALPHA, c.b.count * c.a.images > c.a.count * c.b.images, True),
        )
        for c, p_value in zip(tested, p_values, strict=True)
    )


def _compare_accuracy(a: VerifiedBundle, b: VerifiedBundle, leaves: Pairing) -> Iterator[Section]:
    first, second = a.report.accuracy, b.report.accuracy
    if first is None or second is None:
        return
    soft = leaves.count(lambda row: row.int8_species == row.species and row.int8_soft_disease == row.disease)
    measures = (
        *measure_accuracy(first, second, leaves, "int8"),
        compare_proportions(
            "end to end, INT8, soft routing", first.routing.second, second.routing.second, soft.get("")
        ),
        *measure_accuracy(first, second, leaves, "fp16"),
    )
    yield Section("Accuracy", f"Leaves: {leaves.explain(INTERVAL)}.", False, measures)
    test = f"{leaves.explain(_FISHER)}, {_HOLM}"
    species = leaves.count(lambda row: row.int8_species == row.species, lambda row: row.species)
    note = f"Leaves with the right species in INT8: {test}"
    yield Section(
        "Each species", note, True, _compare_classes(_count_classes(first.by_species, second.by_species, species))
    )
    disease = leaves.count(lambda row: row.int8_disease == row.disease, lambda row: row.source)
    asked = _list_disease_classes(b.metadata)
    classes = {name: row for name, row in first.by_disease.items() if name in asked}
    note = f"Leaves with the right disease in INT8, given the true species: {test}"
    yield Section("Each disease", note, True, _compare_classes(_count_classes(classes, second.by_disease, disease)))
    measures = tuple(compare_true_classes(leaves.pairs, "" if leaves.pairs else leaves.images))
    note = f"Mean −log of the probability of the truth; lower is better. Leaves: {leaves.images}."
    yield Section("Probabilities", note, False, measures)


def _count_classes(
    a: Mapping[str, ClassRow], b: Mapping[str, ClassRow], paired: Mapping[Hashable, PairedCounts]
) -> Iterator[_ClassCounts]:
    for name in a:
        if name in b:
            first, second = (Proportion(rows[name].int8, rows[name].images) for rows in (a, b))
            yield _ClassCounts(name, first, second, paired.get(name))


def _list_disease_classes(metadata: Metadata) -> frozenset[str]:
    """Return the disease classes of species with several diseases. With a single one, every answer is right."""
    return frozenset(
        f"{species}___{disease}"
        for species, diseases in metadata.taxonomy.diseases.items()
        for disease in diseases
        if len(diseases) > 1
    )


def _compare_rejection(a: Rejection | None, b: Rejection | None, leaves: Pairing, others: Pairing) -> Iterator[Section]:
    if a is None or b is None:
        return
    plants, non_plants = (pairing.count(lambda row: row.rejected).get("") for pairing in (leaves, others))
    scale = "each detector has its own scale"
    measures = (
        compare_proportions("OOD recall", a.non_plants, b.non_plants, non_plants, counted="rejected"),
        _measure_precision(a, b, plants, non_plants),
        compare_proportions("false alarms", a.plants, b.plants, plants, higher_is_better=False, counted="rejected"),
        MeasurePair("threshold", "score", a.threshold, b.threshold, "not comparable", scale),
    )
    note = f"Non-plants: {others.explain(INTERVAL)}. Plants: {leaves.explain(INTERVAL)}."
    yield Section("Out-of-distribution rejection", note, False, measures)
    paired = others.count(lambda row: row.rejected, lambda row: row.source)
    sources = (
        _ClassCounts(name, rejected, b.by_source[name], paired.get(name))
        for name, rejected in a.by_source.items()
        if name in b.by_source
    )
    note = f"Non-plants that are rejected: {others.explain(_FISHER)}, {_HOLM}"
    yield Section("Each source of non-plants", note, True, _compare_classes(sources, counted="rejected"))


def _measure_precision(
    a: Rejection, b: Rejection, plants: PairedCounts | None, non_plants: PairedCounts | None
) -> MeasurePair:
    measure = MeasurePair("OOD precision", "share", a.precision, b.precision, "not comparable")
    if a.precision is None or b.precision is None:
        return replace(measure, why="not defined where nothing is rejected")
    low, high = precision_difference_interval(
        plants or (a.plants, b.plants), non_plants or (a.non_plants, b.non_plants)
    )
    return replace(measure, low=low, high=high, verdict=decide(low > 0 or high < 0, b.precision > a.precision, True))


def _compare_sizes(a: GateReport, b: GateReport) -> Section:
    first, second = _list_sizes(a), _list_sizes(b)
    measures = tuple(
        MeasurePair(
            name,
            "bytes",
            before,
            second[name],
            decide(abs(second[name] - before) > _SIZE_NOISE * before, second[name] > before, False),
        )
        for name, before in first.items()
    )
    return Section("Files", f"Sizes within {100 * _SIZE_NOISE:g} % of each other count as equal.", False, measures)


def _list_sizes(report: GateReport) -> dict[str, float]:
    sizes = {name: entry.size_bytes for name, entry in report.files.items()}
    summary = summarize_sizes(sizes) | {"whole bundle": sum(sizes.values())}
    return {name: float(size_bytes) for name, size_bytes in summary.items()}


def _compare_latency(a: GateReport, b: GateReport) -> Iterator[Section]:
    first, second = a.latency, b.latency
    if first is None or second is None:
        return
    why = _explain_why_not_comparable(a, first, b, second)
    kinds = {
        "latency of a tensor": ("median_ms", "p95_ms"),
        "latency of an encoded image": ("encoded_median_ms", "encoded_p95_ms"),
    }
    measures = tuple(_measure_latency(name, first, second, why, *fields) for name, fields in kinds.items())
    if first.relative is not None and second.relative is not None:
        measures += (_measure_relative(a, first, b, second),)
    note = (
        "Two latencies differ when 95 % of the faster bundle’s runs are below the slower bundle’s median. Each run "
        "is also divided by the time of a fixed reference right after it, which other work on the machine slows, too."
    )
    yield Section("Latency", note, False, measures)


def _explain_why_not_comparable(a: GateReport, first: Latency, b: GateReport, second: Latency) -> str:
    """Return why two latencies cannot be compared; "" when they can."""
    places = _describe_machine(a, first), _describe_machine(b, second)
    if places[0] != places[1]:
        return f"different machines: {places[0]} and {places[1]}"
    if not first.cpu:
        return "the name of the CPU is unknown"
    loads = [latency.load for latency in (first, second) if latency.load is not None]
    if max(loads, default=0.0) > _BUSY * first.threads:
        return f"the machine was busy: load average {' and '.join(map('{:.1f}'.format, loads))} before"
    return ""


def _measure_latency(name: str, a: Latency, b: Latency, why: str, median: str, p95: str) -> MeasurePair:
    before, now = getattr(a, median), getattr(b, median)
    slower, faster = (a, b) if before > now else (b, a)
    differs = getattr(faster, p95) < getattr(slower, median)
    verdict: Verdict = "not comparable" if why else decide(differs, now > before, False)
    return MeasurePair(name, "ms", before, now, verdict, why)


def _measure_relative(a: GateReport, first: Latency, b: GateReport, second: Latency) -> MeasurePair:
    """Compare the runs in times of the reference beside each; other work at the time does not forbid it."""
    places = _describe_machine(a, first), _describe_machine(b, second)
    why = "" if places[0] == places[1] and first.cpu else "different or unnamed machines"
    before, now = first.relative or 0.0, second.relative or 0.0
    slower, faster = (before, second) if before > now else (now, first)
    ratios = [run / other for run, other in zip(faster.runs_ms, faster.reference_runs_ms, strict=True)]
    differs = float(np.percentile(ratios, 95)) < slower
    verdict: Verdict = "not comparable" if why else decide(differs, now > before, False)
    return MeasurePair("latency of a tensor in times of the reference", "ratio", before, now, verdict, why)


def _describe_machine(report: GateReport, latency: Latency) -> str:
    threads = f"{latency.threads} thread{'s' if latency.threads != 1 else ''}"
    return ", ".join([latency.cpu or report.machine.architecture, *report.machine.features, threads])


def _compare_parity(a: Parity | None, b: Parity | None) -> Iterator[Section]:
    if a is None or b is None:
        return
    kinds = {
        "FP16 logits": "logits",
        "FP16 embedding": "embedding",
        "float heads": "head_logits",
        "INT8 logits": "int8_logits",
        "INT8 embedding": "int8_embedding",
        "INT8 heads": "int8_head_logits",
    }
    why = "the maximum over a few images"
    measures = tuple(
        MeasurePair(name, "max abs diff", getattr(a, field), getattr(b, field), "not comparable", why)
        for name, field in kinds.items()
    )
    note = "Largest difference of each bundle from its own checkpoint. Only the parity gate judges it."
    yield Section("Parity with PyTorch", note, False, measures)
