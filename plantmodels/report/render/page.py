"""`report.html`: the gate report for people, one file that needs no network and no scripts.

>>> page = render_report(report, draw_plots(report))  # doctest: +SKIP
"""

from collections.abc import Mapping
from html import escape
from types import MappingProxyType
from typing import Any, Final

from plantmodels.report.gate_report import GateReport
from plantmodels.report.gates import GATES, GateResult
from plantmodels.report.policy import LIMITS
from plantmodels.report.render.accuracy import render_accuracy
from plantmodels.report.render.gallery import Gallery
from plantmodels.report.render.parts import Html, document, figure, fold, notes, section, table
from plantmodels.report.render.rejection import render_rejection
from plantmodels.report.results import Latency, Parity
from plantmodels.report.statistics import Interval

_MARKS: Final = {"passed": "✓", "failed": "✕", "not measured": "–"}
_DIGEST_DIGITS: Final = 12
_SUPERSCRIPTS: Final = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def render_report(
    report: GateReport,
    plots: Mapping[str, bytes],
    recipe: Mapping[str, Any] = MappingProxyType({}),
    detector: Mapping[str, Any] = MappingProxyType({}),
    galleries: Mapping[str, Gallery] = MappingProxyType({}),
) -> str:
    """Renders the whole page.

    Args:
        report: what to show.
        plots: file name to PNG, from `draw_plots`; each is put into the page itself.
        recipe: how the INT8 species model was made, from the bundle's metadata.
        detector: how the detector was chosen, from the same.
        galleries: thumbnails: "flipped", of images that FP16 and INT8 answer otherwise, "let through" and "rejected".

    Returns:
        An HTML document.
    """
    parts = [_head(report), _gates(report)]
    if report.accuracy is not None:
        parts.append(render_accuracy(report.accuracy, plots, galleries.get("flipped", Gallery((), 0))))
    if report.rejection is not None:
        parts.append(render_rejection(report.rejection, plots, detector, galleries))
    if report.parity is not None:
        parts.append(_parity(report.parity, plots.get("parity.png")))
    if recipe.get("tried"):
        parts.append(_quantization(recipe))
    parts.append(_sizes(report, plots.get("file-sizes.png")))
    if report.latency is not None:
        parts.append(_latency(report.latency, plots.get("latency.png")))
    parts += [_problems(report), _unreadable(report), _provenance(report)]
    return document(f"Gate report: {_verdict(report)}", "".join(parts))


def _verdict(report: GateReport) -> str:
    passed = len(report.gates) - len(report.failed)
    return "all nine gates passed" if report.passed else f"{passed} of {len(report.gates)} gates passed"


def _head(report: GateReport) -> str:
    missed = ", ".join(report.failed)
    tail = Html(f'<p class="missed">Not passed: <strong>{escape(missed)}</strong></p>') if missed else ""
    inputs = report.inputs
    facts = [f"{inputs.val.measured:,} validation leaves"]
    if inputs.non_plants is not None:
        facts.append(f"{inputs.non_plants.measured:,} non-plants")
    if inputs.checkpoint_sha256 is not None:
        facts.append(f"checkpoint {inputs.checkpoint_sha256[:_DIGEST_DIGITS]}")
    facts.append(report.machine.cpu or report.machine.architecture)
    state = "good" if report.passed else "bad"
    verdict = _verdict(report)
    return (
        f'<header class="{state}">\n<p class="kicker">Gate report</p>\n'
        f"<h1>{escape(verdict[0].upper() + verdict[1:])}</h1>\n{tail}"
        f'<p class="facts">{escape(" · ".join(facts))}</p>\n</header>\n'
    )


def _gates(report: GateReport) -> str:
    loosened = {LIMITS[name].gate for name in report.policy.loosened}
    rows = [
        (
            _name(gate),
            Html(
                escape(gate.limit_text)
                + ('<span class="what">looser than default</span>' if gate.name in loosened else "")
            ),
            _measured(gate, report.intervals.get(gate.name)),
            "–" if gate.status == "not measured" else gate.samples_text,
            _status(gate),
        )
        for gate in report.gates
    ]
    shown = table(("gate", "limit", "measured", "samples", "status"), rows, numbers=(1, 2, 3), name="gates")
    below = notes("Below a measured value: its 95 % interval, which no gate looks at.") if report.intervals else ""
    return shown + below


def _measured(gate: GateResult, interval: Interval | None) -> Html:
    """The value that is compared, and below it the 95 % interval that is not."""
    below = "" if interval is None or gate.measured is None else gate.interval_text(*interval)
    return Html(escape(gate.measured_text) + (f'<span class="what">{escape(below)}</span>' if below else ""))


def _name(gate: GateResult) -> Html:
    why = "" if gate.passed or not gate.detail else f'<span class="why">{escape(gate.detail)}</span>'
    meaning = escape(GATES[gate.name].meaning)
    return Html(f'<b>{escape(gate.name)}</b><span class="what">{meaning}</span>{why}')


def _status(gate: GateResult) -> Html:
    kind = gate.status.replace(" ", "-")
    return Html(f'<span class="status {kind}"><i>{_MARKS[gate.status]}</i> {escape(gate.status)}</span>')


def _parity(parity: Parity, plot: bytes | None) -> str:
    rows = [
        ("species logits", _difference(parity.logits), _difference(parity.int8_logits)),
        ("embedding", _difference(parity.embedding), _difference(parity.int8_embedding)),
        (f"{parity.heads:,} disease heads", _difference(parity.head_logits), _difference(parity.int8_head_logits)),
    ]
    sizes = [(size, _difference(value)) for size, value in parity.by_batch_size.items()]
    batches = ", ".join(f"{value} in batches of {size}" for size, value in sizes)
    return section(
        "Parity with PyTorch",
        figure(plot, "Species logits of FP16 and INT8 against PyTorch's, and their absolute differences"),
        table(("largest absolute difference", "FP16, gated", "INT8, for information"), rows, numbers=(1, 2)),
        notes(
            f"On {parity.images:,} validation leaves. FP16 logits or embedding: {batches}. Heads are gated as the "
            "float graphs that INT8 is derived from."
        ),
    )


def _difference(value: float | None) -> str:
    """Two digits; powers of ten as superscripts, with no place to break a line."""
    if value is None:
        return "missing or not finite"
    mantissa, _, exponent = f"{value:.2g}".partition("e")
    if not exponent:
        return mantissa
    return f"{mantissa}\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}10" + str(int(exponent)).translate(_SUPERSCRIPTS)


def _quantization(recipe: Mapping[str, Any]) -> str:
    def points(drop: float) -> str:
        return f"{-100 * drop:+.2f} points".replace("-", "−")

    rows = [
        (
            f"{trial['float_products']} of {recipe['products']}",
            points(trial["species_drop"]),
            points(trial["disease_drop"]),
            f"{100 * trial['changed']:.2f} %",
            f"{100 * trial['embedding_error']:.2f} %",
            "taken" if trial is recipe["tried"][-1] else "too many lost",
        )
        for trial in recipe["tried"]
    ]
    header = ("products in float", "species right", "diseases right", "other answers", "embedding moved by", "")
    limit = 100 * recipe["tried_on"]["max_drop"]
    return section(
        "Quantization: what was tried",
        table(header, rows, numbers=(0, 1, 2, 3, 4)),
        notes(
            f"Against the float model, on {recipe['tried_on']['images']:,} training leaves; "
            f"the first candidate that loses at most {limit:.2g} points of either was taken, the fastest first. "
            "Weights int8 with a scale a channel, activations uint8 with a scale an image."
        ),
    )


def _sizes(report: GateReport, plot: bytes | None) -> str:
    rows = [
        (name, f"{entry.size_bytes:,}", Html(f"<code>{entry.sha256[:_DIGEST_DIGITS]}</code>"))
        for name, entry in report.files.items()
    ]
    total = sum(entry.size_bytes for entry in report.files.values())
    return section(
        "Files",
        figure(plot, "File sizes against their limits"),
        fold(
            f"All {len(rows):,} measured files, {total / 1e6:.1f} MB",
            table(("file", "bytes", "SHA-256"), rows, numbers=(1,)),
        ),
    )


def _latency(latency: Latency, plot: bytes | None) -> str:
    rows = [
        ("preprocessed tensor to prediction, gated", f"{latency.median_ms:.1f} ms", f"{latency.p95_ms:.1f} ms"),
        (
            "encoded photograph to prediction",
            f"{latency.encoded_median_ms:.1f} ms",
            f"{latency.encoded_p95_ms:.1f} ms",
        ),
    ]
    threads = f"{latency.threads} thread{'s' if latency.threads != 1 else ''}"
    load = "" if latency.load is None else f"; load average of the minute before: {latency.load:.1f}"
    return section(
        "Latency",
        figure(plot, "Median and 95th percentile of one image's time, with the limit"),
        table(("one image", "median", "95th percentile"), rows, numbers=(1, 2)),
        notes(f"{latency.runs:,} runs after warm-up, {threads} on {latency.cpu or 'an unnamed CPU'}{load}."),
    )


def _problems(report: GateReport) -> str:
    rows = [(gate, problem) for gate, problems in report.problems.items() for problem in problems]
    return section("Problems", table(("gate", "problem"), rows)) if rows else ""


def _unreadable(report: GateReport) -> str:
    if not report.unreadable:
        return section("Unreadable images", notes("None: every image could be decoded."))
    rows = [(image.source, image.name, image.reason) for image in report.unreadable]
    return section("Unreadable images", table(("set", "file", "reason"), rows))


def _provenance(report: GateReport) -> str:
    inputs, policy = report.inputs, report.policy
    rows: list[tuple[str, str | Html]] = [
        ("checkpoint", _digest(inputs.checkpoint_sha256, "not given")),
        ("class order", _digest(inputs.class_order_digest, "")),
        ("validation leaves", _digest(inputs.val.sha256, "")),
        ("non-plants", _digest(inputs.non_plants.sha256 if inputs.non_plants else None, "not given")),
        ("limits", _digest(policy.sha256, "built-in defaults")),
        ("CPU features", ", ".join(report.machine.features) or "none recorded"),
        ("versions", ", ".join(f"{name} {version}" for name, version in report.versions.items())),
    ]
    defaults = ", ".join(policy.loosened)
    return section(
        "Provenance",
        table(("", "SHA-256 or value"), rows),
        notes(f"Limits looser than the defaults: {defaults}.") if defaults else "",
    )


def _digest(sha256: str | None, otherwise: str) -> str | Html:
    return otherwise if sha256 is None else Html(f"<code>{escape(sha256)}</code>")
