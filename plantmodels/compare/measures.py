"""Two gate reports to measures with verdicts: paired where both saw the same images, unpaired otherwise.

>>> sections = contrast(Side(report_a, metadata_a, rows_a), Side(report_b, metadata_b, rows_b))  # doctest: +SKIP
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from plantmodels.bundle.layout import IMAGES_FILE, PACKED_HEADS_FILE, SPECIES_FILES, is_single_head
from plantmodels.bundle.metadata import Metadata
from plantmodels.compare.model import Measure, Section, Verdict
from plantmodels.report.gate_report import GateReport, ImageSet
from plantmodels.report.per_image import ImageRow, ImageSetName
from plantmodels.report.results import Accuracy, ClassRow, Latency, Parity, Rejection
from plantmodels.report.statistics import (
    ALPHA,
    PairedCounts,
    Proportion,
    correct_for_many,
    difference_interval,
    difference_p_value,
    precision_difference_interval,
)

_SIZE_NOISE: Final = 0.01
"""A file that grew by less is as large as before: names and settings inside it make so much."""

_BUSY: Final = 2
"""Load average a thread above which others were at work: verification itself embeds and decodes on every core."""

_HOLM: Final = "corrected for how many they are (Holm)."
_INTERVAL: Final = "unpaired, the 95 % interval of the difference decides"
_FISHER: Final = "unpaired, Fisher’s exact test"
_Right = Callable[[ImageRow], bool]
_Key = Callable[[ImageRow], Hashable]
"""What an image counts for; None where it does not count."""

_Named = tuple[str, Proportion, Proportion, PairedCounts | None]


@dataclass(frozen=True)
class Side:
    """What is read of one bundle; `rows` is None where it has no file of its answers to each image."""

    report: GateReport
    metadata: Metadata
    rows: tuple[ImageRow, ...] | None


def contrast(a: Side, b: Side) -> tuple[Section, ...]:
    """Every measure of both, in sections; what one of both lacks is left out."""
    leaves = _Basis.of(a, b, "val", a.report.inputs.val, b.report.inputs.val)
    others = _Basis.of(a, b, "non-plants", a.report.inputs.non_plants, b.report.inputs.non_plants)
    sections = (
        *_contrast_accuracy(a, b, leaves),
        *_contrast_rejection(a.report.rejection, b.report.rejection, leaves, others),
        _contrast_sizes(a.report, b.report),
        *_contrast_latency(a.report, b.report),
        *_contrast_parity(a.report.parity, b.report.parity),
    )
    return tuple(section for section in sections if section.measures)


@dataclass(frozen=True)
class _Basis:
    """How one set of images is compared.

    Attributes:
        pairs: both answers to each image that both measured; None where images cannot be paired.
        images: which they are, in words.
    """

    pairs: tuple[tuple[ImageRow, ImageRow], ...] | None
    images: str

    @classmethod
    def of(cls, a: Side, b: Side, which: ImageSetName, set_a: ImageSet | None, set_b: ImageSet | None) -> "_Basis":
        if set_a is None or set_b is None:
            return cls(None, "not given to both")
        if set_a.sha256 != set_b.sha256:
            return cls(None, f"other images or labels ({set_a.sha256[:12]}, {set_b.sha256[:12]})")
        if a.rows is None or b.rows is None:
            lacking = " and ".join(name for name, side in (("A", a), ("B", b)) if side.rows is None)
            return cls(None, f"the same images, but {lacking} without {IMAGES_FILE}")
        answers = {(row.source, row.name): row for row in a.rows if row.set == which}
        pairs = tuple(
            (answers[key], row) for row in b.rows if row.set == which and (key := (row.source, row.name)) in answers
        )
        if not pairs:
            return cls(None, f"the same images, but no answer to one of them in both {IMAGES_FILE}")
        return cls(pairs, f"the same {len(pairs):,} images, one by one")

    def describe(self, unpaired: str) -> str:
        """Which images, and by which test."""
        return f"{self.images}; {unpaired if self.pairs is None else 'McNemar’s exact test'}"

    def count(self, right: _Right, key: _Key = lambda row: "") -> dict[Hashable, PairedCounts]:
        """Key to how both fare on its images; empty where images cannot be paired."""
        cells = Counter((key(a), right(a), right(b)) for a, b in self.pairs or ())
        kinds = ((True, True), (True, False), (False, True), (False, False))
        return {
            name: PairedCounts(*(cells[name, *kind] for kind in kinds))
            for name in dict.fromkeys(name for name, _, _ in cells)
            if name is not None
        }


def _measure_shares(
    name: str,
    a: Proportion,
    b: Proportion,
    paired: PairedCounts | None,
    *,
    higher_is_better: bool = True,
    counted: str = "right",
) -> Measure:
    """PairedCounts where it can be; otherwise the interval decides."""
    measure = Measure(name, "share", a.value, b.value, "not comparable", "", a.images, b.images)
    if a.value is None or b.value is None:
        lacking = " and ".join(side for side, share in (("A", a), ("B", b)) if share.value is None)
        return replace(measure, why=f"not measured in {lacking}")
    if paired is None:
        low, high = difference_interval(a, b)
        verdict = _judge(low > 0 or high < 0, b.value > a.value, higher_is_better)
        return replace(measure, low=low, high=high, verdict=verdict)
    low, high = paired.interval or (0.0, 0.0)  # of A minus B
    verdict = _judge(paired.p_value < ALPHA, paired.only_second > paired.only_first, higher_is_better)
    why = f"{paired.only_second:,} newly {counted}, {paired.only_first:,} not any more"
    return replace(measure, low=-high, high=-low, p_value=paired.p_value, verdict=verdict, why=why)


def _judge(differs: bool, rises: bool, higher_is_better: bool) -> Verdict:
    if not differs:
        return "no difference beyond noise"
    return "better" if rises == higher_is_better else "worse"


def _measure_classes(counts: Iterable[_Named], *, counted: str = "right") -> tuple[Measure, ...]:
    """Many classes at once: each p-value is corrected for how many are looked at."""
    tested = [entry for entry in counts if entry[1].images and entry[2].images]
    p_values = correct_for_many(
        [difference_p_value(a, b) if paired is None else paired.p_value for _, a, b, paired in tested]
    )
    return tuple(
        replace(
            _measure_shares(name, a, b, paired, counted=counted),
            p_value=p_value,
            verdict=_judge(p_value < ALPHA, b.count * a.images > a.count * b.images, True),
        )
        for (name, a, b, paired), p_value in zip(tested, p_values, strict=True)
    )


def _contrast_accuracy(a: Side, b: Side, leaves: _Basis) -> Iterator[Section]:
    first, second = a.report.accuracy, b.report.accuracy
    if first is None or second is None:
        return
    soft = leaves.count(lambda row: row.int8_species == row.species and row.int8_soft_disease == row.disease)
    measures = (
        *_measure_accuracy(first, second, leaves, "int8"),
        _measure_shares("end to end, INT8, soft routing", first.routing.second, second.routing.second, soft.get("")),
        *_measure_accuracy(first, second, leaves, "fp16"),
    )
    yield Section("Accuracy", f"Leaves: {leaves.describe(_INTERVAL)}.", False, measures)
    test = f"{leaves.describe(_FISHER)}, {_HOLM}"
    species = leaves.count(lambda row: row.int8_species == row.species, lambda row: row.species)
    note = f"Leaves with the right species in INT8: {test}"
    yield Section("Each species", note, True, _measure_classes(_name(first.by_species, second.by_species, species)))
    disease = leaves.count(lambda row: row.int8_disease == row.disease, lambda row: row.source)
    asked = _name_diseases(b.metadata)
    classes = {name: row for name, row in first.by_disease.items() if name in asked}
    note = f"Leaves with the right disease in INT8, given the true species: {test}"
    yield Section("Each disease", note, True, _measure_classes(_name(classes, second.by_disease, disease)))


def _measure_accuracy(a: Accuracy, b: Accuracy, leaves: _Basis, precision: str) -> Iterator[Measure]:
    def species(row: ImageRow) -> bool:
        return bool(getattr(row, f"{precision}_species") == row.species)

    def disease(row: ImageRow) -> bool:
        return bool(getattr(row, f"{precision}_disease") == row.disease)

    first, second = getattr(a, precision), getattr(b, precision)
    paired = {
        "species": leaves.count(species),
        "disease": leaves.count(disease, lambda row: "" if row.disease else None),
        "end_to_end": leaves.count(lambda row: species(row) and disease(row)),
    }
    names = {"species": "species", "disease": "disease given the species", "end_to_end": "end to end"}
    for field, name in names.items():
        yield _measure_shares(
            f"{name}, {precision.upper()}", getattr(first, field), getattr(second, field), paired[field].get("")
        )


def _name(
    a: Mapping[str, ClassRow], b: Mapping[str, ClassRow], paired: Mapping[Hashable, PairedCounts]
) -> Iterator[_Named]:
    for name in a:
        if name in b:
            yield (
                name,
                Proportion(a[name].int8, a[name].images),
                Proportion(b[name].int8, b[name].images),
                paired.get(name),
            )


def _name_diseases(metadata: Metadata) -> frozenset[str]:
    """Classes of species that have several, as reports call them; where there is one, every answer is right."""
    return frozenset(
        f"{species}___{disease}"
        for species, diseases in metadata.taxonomy.diseases.items()
        for disease in diseases
        if len(diseases) > 1
    )


def _contrast_rejection(a: Rejection | None, b: Rejection | None, leaves: _Basis, others: _Basis) -> Iterator[Section]:
    if a is None or b is None:
        return
    plants, non_plants = (basis.count(lambda row: row.rejected).get("") for basis in (leaves, others))
    scale = "each detector has a scale of its own"
    measures = (
        _measure_shares("OOD recall", a.non_plants, b.non_plants, non_plants, counted="rejected"),
        _measure_precision(a, b, plants, non_plants),
        _measure_shares("false alarms", a.plants, b.plants, plants, higher_is_better=False, counted="rejected"),
        Measure("threshold", "score", a.threshold, b.threshold, "not comparable", scale),
    )
    note = f"Non-plants: {others.describe(_INTERVAL)}. Plants: {leaves.describe(_INTERVAL)}."
    yield Section("Rejection of what is no plant", note, False, measures)
    paired = others.count(lambda row: row.rejected, lambda row: row.source)
    sources = (
        (name, share, b.by_source[name], paired.get(name)) for name, share in a.by_source.items() if name in b.by_source
    )
    note = f"Non-plants that are rejected: {others.describe(_FISHER)}, {_HOLM}"
    yield Section("Each source of non-plants", note, True, _measure_classes(sources, counted="rejected"))


def _measure_precision(
    a: Rejection, b: Rejection, plants: PairedCounts | None, non_plants: PairedCounts | None
) -> Measure:
    measure = Measure("OOD precision", "share", a.precision, b.precision, "not comparable")
    if a.precision is None or b.precision is None:
        return replace(measure, why="not defined where nothing is rejected")
    low, high = precision_difference_interval(
        plants or (a.plants, b.plants), non_plants or (a.non_plants, b.non_plants)
    )
    return replace(measure, low=low, high=high, verdict=_judge(low > 0 or high < 0, b.precision > a.precision, True))


def _contrast_sizes(a: GateReport, b: GateReport) -> Section:
    first, second = _list_sizes(a), _list_sizes(b)
    measures = tuple(
        Measure(
            name,
            "bytes",
            before,
            second[name],
            _judge(abs(second[name] - before) > _SIZE_NOISE * before, second[name] > before, False),
        )
        for name, before in first.items()
    )
    return Section("Files", f"Sizes within {100 * _SIZE_NOISE:g} % of each other count as the same.", False, measures)


def _list_sizes(report: GateReport) -> Mapping[str, float]:
    sizes = {name: float(entry.size_bytes) for name, entry in report.files.items()}
    return {
        "species, INT8": sizes.get(SPECIES_FILES["int8"], 0.0),
        "species, FP16": sizes.get(SPECIES_FILES["fp16"], 0.0),
        "largest head": max((size for name, size in sizes.items() if is_single_head(name)), default=0.0),
        "all heads, packed": sizes.get(PACKED_HEADS_FILE, 0.0),
        "whole bundle": sum(sizes.values()),
    }


def _contrast_latency(a: GateReport, b: GateReport) -> Iterator[Section]:
    first, second = a.latency, b.latency
    if first is None or second is None:
        return
    why = _find_obstacle(a, first, b, second)
    kinds = {
        "latency of a tensor": ("median_ms", "p95_ms"),
        "latency of a photograph": ("encoded_median_ms", "encoded_p95_ms"),
    }
    measures = tuple(_measure_latency(name, first, second, why, *fields) for name, fields in kinds.items())
    note = "Beyond noise where 95 % of the faster one's runs are below the slower one's median."
    yield Section("Latency", note, False, measures)


def _find_obstacle(a: GateReport, first: Latency, b: GateReport, second: Latency) -> str:
    """Why two latencies cannot be compared; "" where they can."""
    places = _describe_place(a, first), _describe_place(b, second)
    if places[0] != places[1]:
        return f"{places[0]} against {places[1]}"
    if not first.cpu:
        return "the CPU does not tell its name"
    loads = [latency.load for latency in (first, second) if latency.load is not None]
    if max(loads, default=0.0) > _BUSY * first.threads:
        return f"other work on the machine: load average {' and '.join(map('{:.1f}'.format, loads))} before"
    return ""


def _measure_latency(name: str, a: Latency, b: Latency, why: str, median: str, p95: str) -> Measure:
    before, now = getattr(a, median), getattr(b, median)
    slower, faster = (a, b) if before > now else (b, a)
    differs = getattr(faster, p95) < getattr(slower, median)
    verdict: Verdict = "not comparable" if why else _judge(differs, now > before, False)
    return Measure(name, "ms", before, now, verdict, why)


def _describe_place(report: GateReport, latency: Latency) -> str:
    threads = f"{latency.threads} thread{'s' if latency.threads != 1 else ''}"
    return ", ".join([latency.cpu or report.machine.architecture, *report.machine.features, threads])


def _contrast_parity(a: Parity | None, b: Parity | None) -> Iterator[Section]:
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
    why = "a maximum over few images"
    measures = tuple(
        Measure(name, "max abs diff", getattr(a, field), getattr(b, field), "not comparable", why)
        for name, field in kinds.items()
    )
    note = "Each one's largest difference from its own checkpoint; whether it is small enough is the gate's to say."
    yield Section("Parity with PyTorch", note, False, measures)
