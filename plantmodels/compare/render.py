"""A comparison for people: aligned text for terminals, and one HTML page in the style of `report.html`.

>>> print(render_text(compare_bundles(Path("before"), Path("after"))))  # doctest: +SKIP
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from html import escape
from typing import Final

from plantmodels.compare.model import VERDICTS, Comparison, GatePair, Measure, Section
from plantmodels.report.formatting import align_columns
from plantmodels.report.gates import GATES, GateResult
from plantmodels.report.render.parts import Html, document, fold, notes, section, table

_DIGEST: Final = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")
_DIGEST_DIGITS: Final = 12
_WIDEST: Final = 60
"""Characters of a setting in a terminal; the page and JSON have all."""

_HEADER: Final = ("", "A", "B", "change", "95 % interval", "p", "verdict")


def render_text(comparison: Comparison) -> str:
    """The whole comparison for a terminal; of many classes only those that differ, and the summary last."""
    blocks = [f"A  {comparison.a}\nB  {comparison.b}", "\n".join(align_columns(_GATES_HEADER, _list_gates(comparison)))]
    blocks += ["\n".join(_write_section(part)) for part in comparison.sections]
    if comparison.classes:
        blocks.append("\n".join(["Classes", *comparison.classes]))
    if comparison.differences:
        blocks.append("\n".join(["What else differs", *align_columns(("", "A", "B"), _list_differences(comparison))]))
    return "\n\n".join([*blocks, comparison.summary])


_GATES_HEADER: Final = ("gate", "limit", "A", "B", "change")


def _list_gates(comparison: Comparison) -> list[tuple[str, ...]]:
    return [(pair.a.name, _limit(pair), _outcome(pair.a), _outcome(pair.b), pair.change) for pair in comparison.gates]


def _limit(pair: GatePair) -> str:
    return " → ".join(dict.fromkeys((pair.a.limit_text, pair.b.limit_text)))


def _outcome(gate: GateResult) -> str:
    return gate.status if gate.measured is None else f"{gate.measured_text} {gate.status}"


def _write_section(part: Section) -> Iterator[str]:
    yield part.title
    yield part.note
    if shown := _pick(part):
        yield from align_columns(*_drop_empty(_HEADER, [(m.name, *_cells(m), _verdict(m)) for m in shown]))
    if part.of_each:
        yield _count_rest(part)


def _pick(part: Section) -> list[Measure]:
    """All measures, or of many classes those that differ."""
    return [measure for measure in part.measures if not part.of_each or measure.verdict in ("better", "worse")]


def _drop_empty(header: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows without the columns that are empty in every row."""
    used = [column for column in range(len(header)) if any(row[column] for row in rows)]
    return [header[column] for column in used], [[row[column] for column in used] for row in rows]


def _count_rest(part: Section) -> str:
    counts = Counter(measure.verdict for measure in part.measures)
    told = ", ".join(f"{counts[verdict]:,} {verdict}" for verdict in VERDICTS if counts[verdict])
    small = [f"{measure.name} ({measure.b_images:,})" for measure in part.measures if measure.small]
    return f"{told}." + (f" Too small to tell much (images): {', '.join(small)}." if small else "")


def _cells(measure: Measure) -> tuple[str, str, str, str, str]:
    """A, B, change, interval and p-value."""
    change, interval = "", ""
    if measure.a is not None and measure.b is not None:
        change = _write_change(measure.b - measure.a, measure)
    if measure.low is not None and measure.high is not None:
        interval = f"{_points(measure.low)} … {_points(measure.high)}"
    p_value = "" if measure.p_value is None else "< 0.001" if measure.p_value < 0.001 else f"{measure.p_value:.3f}"
    return _write(measure.a, measure), _write(measure.b, measure), change, interval, p_value


def _write(value: float | None, measure: Measure) -> str:
    if value is None:
        return "–"
    match measure.unit:
        case "share":
            return f"{100 * value:.2f} %"
        case "bytes":
            return f"{value:,.0f}"
        case "ms":
            return f"{value:.1f} ms"
        case _:
            return f"{value:.4g}"


def _write_change(change: float, measure: Measure) -> str:
    match measure.unit:
        case "share":
            return f"{_points(change)} points"
        case "bytes":
            return f"{change:+,.0f}".replace("-", "−") if change else "0"
        case "ms":
            return f"{change:+.1f} ms".replace("-", "−")
        case _:
            return f"{change:+.2g}".replace("-", "−") if change else "0"


def _points(share: float) -> str:
    return f"{100 * share + 0.0:+.2f}".replace("-", "−")


def _verdict(measure: Measure) -> str:
    return f"{measure.verdict} ({measure.why})" if measure.why else measure.verdict


def _list_differences(comparison: Comparison) -> list[tuple[str, str, str]]:
    return [(entry.name, _shorten(entry.a), _shorten(entry.b)) for entry in comparison.differences]


def _shorten(text: str | None) -> str:
    if text is None:
        return "–"
    if _DIGEST.fullmatch(text):
        return text[:_DIGEST_DIGITS]
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 1]}…"


def render_page(comparison: Comparison) -> str:
    """The whole comparison as an HTML document that needs no network and no scripts."""
    parts = [_head(comparison), _gates(comparison.gates)]
    parts += [_section(part) for part in comparison.sections]
    if comparison.classes:
        parts.append(section("Classes", *(notes(line) for line in comparison.classes)))
    rows = [(entry.name, _code(entry.a), _code(entry.b)) for entry in comparison.differences]
    what = table(("", "A", "B"), rows) if rows else notes("Nothing: settings, inputs and versions are the same.")
    parts.append(section("What else differs", what))
    return document(f"{comparison.b} against {comparison.a}", "".join(parts))


def _head(comparison: Comparison) -> str:
    verdicts = Counter(measure.verdict for part in comparison.sections for measure in part.measures)
    headline = f"{verdicts['better']:,} better, {verdicts['worse']:,} worse"
    return (
        '<header>\n<p class="kicker">Comparison</p>\n'
        f"<h1>{headline}</h1>\n"
        f'<p class="facts">A: {escape(comparison.a)}</p>\n<p class="facts">B: {escape(comparison.b)}</p>\n'
        f'<p class="summary">{escape(comparison.summary)}</p>\n</header>\n'
    )


def _gates(pairs: Sequence[GatePair]) -> str:
    rows = [
        (
            Html(f'<b>{escape(pair.a.name)}</b><span class="what">{escape(GATES[pair.a.name].meaning)}</span>'),
            _limit(pair),
            _status(pair.a),
            _status(pair.b),
            Html(f'<span class="{"better" if pair.b.passed else "worse"}">{pair.change}</span>') if pair.change else "",
        )
        for pair in pairs
    ]
    return table(("gate", "limit", "A", "B", "change"), rows, numbers=(1, 2, 3), name="gates")


def _status(gate: GateResult) -> Html:
    kind = gate.status.replace(" ", "-")
    return Html(f'{escape(gate.measured_text)}<span class="what status {kind}">{gate.status}</span>')


def _section(part: Section) -> str:
    shown = _pick(part)
    content = [_table(shown) if shown else "", notes(part.note)]
    if part.of_each:
        content += [notes(_count_rest(part)), fold(f"All {len(part.measures):,}", _table(part.measures))]
    return section(part.title, *content)


def _table(measures: Sequence[Measure]) -> str:
    header, rows = _drop_empty(("", "A", "B", "change", "p", "verdict"), [_row(measure) for measure in measures])
    return table(header, rows, numbers=range(1, len(header) - 1), name="verdicts")


def _row(measure: Measure) -> tuple[str | Html, ...]:
    a, b, change, interval, p_value = _cells(measure)
    kind = measure.verdict if measure.verdict in ("better", "worse") else "what"
    why = f'<span class="what">{escape(measure.why)}</span>' if measure.why else ""
    return (
        measure.name,
        _with_images(a, measure.a_images),
        _with_images(b, measure.b_images),
        Html(f'{escape(change)}<span class="what">{escape(interval)}</span>') if interval else change,
        p_value,
        Html(f'<span class="{kind}">{measure.verdict}</span>{why}'),
    )


def _with_images(value: str, images: int | None) -> str | Html:
    return value if images is None else Html(f'{escape(value)}<span class="what">of {images:,}</span>')


def _code(text: str | None) -> str | Html:
    if text is None:
        return "–"
    return Html(f"<code>{escape(text[:_DIGEST_DIGITS] if _DIGEST.fullmatch(text) else text)}</code>")
