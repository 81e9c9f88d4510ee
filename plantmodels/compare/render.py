"""A comparison for people: aligned text for a terminal, and one HTML page in the style of `report.html`.

>>> from plantmodels.compare.compare import compare_bundles
>>> print(render_text(compare_bundles(bundle, bundle)).splitlines()[-1][:38])
Better in B: nothing. Worse in B: noth
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from plantmodels.compare.model import VERDICTS, Comparison, Difference, GatePair, MeasurePair, Section
from plantmodels.report.formatting import (
    MISSING,
    align_columns,
    format_number,
    format_percent,
    format_points,
    format_range,
)
from plantmodels.report.gates import GATES, GateResult
from plantmodels.report.render.environment import DIGEST_DIGITS, make_environment

_DIGEST: Final = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")
_WIDEST: Final = 60
"""Characters of a setting in a terminal; the page and the JSON have all."""


_SCORE_DIGITS: Final = 4
"""Decimals of the ends of an interval that is not of a share: a log-likelihood changes by hundredths."""


@dataclass(frozen=True)
class MeasureRow:
    """One measure of both bundles as text.

    Attributes:
        name: what was measured.
        a: value of A.
        b: value of B.
        change: B minus A; "" when one of the values is missing.
        interval: 95 % interval of the change; "" when there is none.
        p_value: the p-value; "" when there is none.
        verdict: the verdict on B, seen from A.
        why: what changed, or why there is no verdict; "" when the numbers say it.
        a_images: number of images that `a` rests on; None when it does not rest on images.
        b_images: number of images that `b` rests on; None when it does not rest on images.
    """

    name: str
    a: str
    b: str
    change: str
    interval: str
    p_value: str
    verdict: str
    why: str
    a_images: int | None
    b_images: int | None


@dataclass(frozen=True)
class MeasureTable:
    """Measures as rows of a table on the page; columns that are empty in every row are left out."""

    rows: tuple[MeasureRow, ...]

    @property
    def has_change(self) -> bool:
        """Whether any row has a change."""
        return any(row.change for row in self.rows)

    @property
    def has_p_value(self) -> bool:
        """Whether any row has a p-value."""
        return any(row.p_value for row in self.rows)

    @property
    def header(self) -> tuple[str, ...]:
        """Headings of the columns."""
        return ("", "A", "B", *(["change"] * self.has_change), *(["p"] * self.has_p_value), "verdict")


@dataclass(frozen=True)
class SectionView:
    """A section of the page.

    Attributes:
        title: heading.
        note: which images were compared, and by which test.
        shown: the measures that are always visible.
        all: every measure.
        counts: how many classes have which verdict; "" when the section is not about classes.
    """

    title: str
    note: str
    shown: MeasureTable
    all: MeasureTable
    counts: str


@dataclass(frozen=True)
class GatePairRow:
    """A row of the gate table: a gate's name, meaning, limit in words and both verdicts."""

    name: str
    meaning: str
    limit: str
    pair: GatePair


def render_text(comparison: Comparison) -> str:
    """Return the comparison for a terminal: of many classes only those that differ, and the summary last."""
    gates = [
        (pair.a.name, _format_limits(pair), _format_outcome(pair.a), _format_outcome(pair.b), pair.change)
        for pair in comparison.gates
    ]
    blocks = [f"A  {comparison.a}\nB  {comparison.b}"]
    blocks.append("\n".join(["Gates", *align_columns(("gate", "limit", "A", "B", "change"), gates)]))
    blocks += ["\n".join(_format_section(section)) for section in comparison.sections]
    if comparison.classes:
        blocks.append("\n".join(["Classes", *comparison.classes]))
    if comparison.differences:
        settings = [(entry.name, _shorten(entry.a), _shorten(entry.b)) for entry in comparison.differences]
        blocks.append("\n".join(["Other differences", *align_columns(("", "A", "B"), settings)]))
    return "\n\n".join([*blocks, comparison.summary])


def _format_limits(pair: GatePair) -> str:
    return " → ".join(dict.fromkeys((pair.a.limit_text, pair.b.limit_text)))


def _format_outcome(gate: GateResult) -> str:
    return gate.status if gate.measured is None else f"{gate.measured_text} {gate.status}"


def _format_section(section: Section) -> Iterator[str]:
    header = ("", "A", "B", "change", "95 % interval", "p", "verdict")
    rows = [_list_cells(format_measure(measure)) for measure in _pick_measures(section)]
    yield section.title
    yield section.note
    if rows:
        yield from align_columns(*_drop_empty_columns(header, rows))
    if section.of_each:
        yield _count_verdicts(section)


def _list_cells(row: MeasureRow) -> tuple[str, ...]:
    verdict = f"{row.verdict} ({row.why})" if row.why else row.verdict
    return row.name, row.a, row.b, row.change, row.interval, row.p_value, verdict


def _pick_measures(section: Section) -> list[MeasurePair]:
    """Return all measures, or only those that differ where the section has one for each of many classes."""
    return [measure for measure in section.measures if not section.of_each or measure.verdict in ("better", "worse")]


def _drop_empty_columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    used = [column for column in range(len(header)) if any(row[column] for row in rows)]
    return [header[column] for column in used], [[row[column] for column in used] for row in rows]


def _count_verdicts(section: Section) -> str:
    counts = Counter(measure.verdict for measure in section.measures)
    listed = " ".join(f"{verdict.capitalize()}: {counts[verdict]:,}." for verdict in VERDICTS if counts[verdict])
    small = [f"{measure.name} ({measure.fewest_images:,})" for measure in section.measures if measure.is_small]
    return listed + (f" Too few images to tell much: {', '.join(small)}." if small else "")


def format_measure(measure: MeasurePair) -> MeasureRow:
    """Return one measure as text."""
    change, interval = "", ""
    if measure.a is not None and measure.b is not None:
        change = _format_change(measure.b - measure.a, measure)
    if measure.low is not None and measure.high is not None:
        interval = _format_interval(measure.low, measure.high, measure)
    p_value = "" if measure.p_value is None else "< 0.001" if measure.p_value < 0.001 else f"{measure.p_value:.3f}"
    return MeasureRow(
        measure.name,
        _format_value(measure.a, measure),
        _format_value(measure.b, measure),
        change,
        interval,
        p_value,
        measure.verdict,
        measure.why,
        measure.a_images,
        measure.b_images,
    )


def _format_interval(low: float, high: float, measure: MeasurePair) -> str:
    """Return both ends in the unit of the change: points of a share, otherwise the number itself."""
    return format_range(100 * low, 100 * high) if measure.unit == "share" else format_range(low, high, _SCORE_DIGITS)


def _format_value(value: float | None, measure: MeasurePair) -> str:
    if value is None:
        return MISSING
    match measure.unit:
        case "share":
            return format_percent(value)
        case "bytes":
            return format_number(value, 0)
        case "ms":
            return f"{format_number(value, 1)} ms"
        case _:
            return f"{value:.4g}".replace("-", "−")


def _format_change(change: float, measure: MeasurePair) -> str:
    match measure.unit:
        case "share":
            return format_points(change)
        case "bytes":
            return format_number(change, 0, sign=True) if change else "0"
        case "ms":
            return f"{format_number(change, 1, sign=True)} ms"
        case _:
            return f"{change:+.3g}".replace("-", "−") if change else "0"


def _shorten(text: str | None) -> str:
    if text is None:
        return MISSING
    if _DIGEST.fullmatch(text):
        return text[:DIGEST_DIGITS]
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 1]}…"


def render_page(comparison: Comparison) -> str:
    """Return the comparison as an HTML document that needs neither scripts nor the network."""
    verdicts = Counter(measure.verdict for section in comparison.sections for measure in section.measures)
    template = make_environment("plantmodels.compare").get_template("compare.html.j2")
    return template.render(
        comparison=comparison,
        better=verdicts["better"],
        worse=verdicts["worse"],
        gates=[
            GatePairRow(pair.a.name, GATES[pair.a.name].meaning, _format_limits(pair), pair)
            for pair in comparison.gates
        ],
        sections=[_prepare_section(section) for section in comparison.sections],
        differences=[_shorten_digests(difference) for difference in comparison.differences],
    )


def _prepare_section(section: Section) -> SectionView:
    return SectionView(
        section.title,
        section.note,
        MeasureTable(tuple(map(format_measure, _pick_measures(section)))),
        MeasureTable(tuple(map(format_measure, section.measures))),
        _count_verdicts(section) if section.of_each else "",
    )


def _shorten_digests(difference: Difference) -> Difference:
    a, b = (
        text[:DIGEST_DIGITS] if text is not None and _DIGEST.fullmatch(text) else text
        for text in (difference.a, difference.b)
    )
    return replace(difference, a=a, b=b)
