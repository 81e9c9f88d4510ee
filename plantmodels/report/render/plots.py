r"""The plots of a report, drawn from the report alone, so that equal reports give equal bytes.

>>> from plantmodels.report.gate_report import read_report
>>> draw_plots(read_report(bundle))["ood-scores.png"][:4]
b'\x89PNG'
"""

import math
from typing import Final

from matplotlib.figure import Figure

from plantmodels.bundle.layout import summarize_sizes
from plantmodels.report.gate_report import GateReport
from plantmodels.report.render.plot_style import (
    BAD,
    INK,
    LINE,
    MUTED,
    OTHER,
    PLANT,
    label_axes,
    label_point,
    new_axes,
    new_panels,
    title_panel,
    to_png,
)
from plantmodels.report.render.plots_accuracy import draw_accuracy
from plantmodels.report.render.plots_field import draw_field
from plantmodels.report.render.plots_rejection import draw_rejection
from plantmodels.report.samples import Latency, Scatter

_SMALLEST_GAP: Final = 1e-8
"""Where equal logits are drawn, because a logarithmic axis has no 0."""


def draw_plots(report: GateReport) -> dict[str, bytes]:
    """Draw every plot that the report has numbers for.

    Returns:
        File name to PNG, in the order in which the page shows the plots.
    """
    figures = {} if report.accuracy is None else draw_accuracy(report.accuracy)
    if report.rejection is not None:
        figures |= draw_rejection(report.rejection, report.policy.ood_precision_non_plant_share)
    if report.field is not None:
        figures |= draw_field(report.field.val_decided, report.field.decided, report.field.by_species)
    if report.parity is not None and report.parity.scatter is not None and report.parity.scatter.pytorch:
        figures["parity.png"] = _draw_parity(report.parity.scatter, report.gate("parity").limit)
    figures["file-sizes.png"] = _draw_sizes(report)
    if report.latency is not None:
        figures["latency.png"] = _draw_latency(report.latency, report.gate("latency").limit)
    return {name: to_png(figure) for name, figure in figures.items()}


def _draw_parity(scatter: Scatter, limit: float) -> Figure:
    """Plot the logits against PyTorch's, and their differences, which the first panel is too coarse to show."""
    figure, (values, gaps) = new_panels(3.3, (1, 1.25))
    series = ((scatter.int8, "INT8", OTHER), (scatter.fp16, "FP16, gated", PLANT))
    low, high = min(scatter.pytorch), max(scatter.pytorch)
    values.plot([low, high], [low, high], color=INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    for logits, name, colour in series:
        values.scatter(scatter.pytorch, logits, s=9, color=colour, alpha=0.5, linewidth=0, label=name)
        apart = [max(abs(a - b), _SMALLEST_GAP) for a, b in zip(logits, scatter.pytorch, strict=True)]
        gaps.scatter(scatter.pytorch, apart, s=9, color=colour, alpha=0.5, linewidth=0)
    gaps.axhline(limit, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    label_point(
        gaps,
        f"limit {limit:g}",
        (1, limit),
        (0, 5),
        ha="right",
        va="bottom",
        coordinates=("axes fraction", "data"),
        on_white=True,
    )
    gaps.set_yscale("log")
    highest = math.ceil(
        math.log10(max(limit, *(abs(a - b) for a, b in zip(scatter.int8, scatter.pytorch, strict=True))))
    )
    gaps.set_yticks([10.0**power for power in range(-8, highest + 1)])
    gaps.yaxis.set_major_formatter(lambda value, _: _format_gap(value))
    for axes in (values, gaps):
        axes.grid(color=LINE, linewidth=0.6)
        axes.minorticks_off()
    values.legend(frameon=False, fontsize=8.5, loc="upper left", labelcolor=INK, handletextpad=0.1)
    label_axes(values, "species logit in PyTorch", "in ONNX Runtime")
    label_axes(gaps, "species logit in PyTorch", "absolute difference, logarithmic")
    title_panel(values, "logits")
    title_panel(gaps, "differences")
    return figure


def _format_gap(value: float) -> str:
    if value <= _SMALLEST_GAP:
        return "equal"
    return f"{value:g}" if value >= 1e-3 else f"$10^{{{round(math.log10(value))}}}$"


def _draw_latency(latency: Latency, limit: float) -> Figure:
    """Plot the median as a dot, the 95th percentile as the end of a line, and the limit as an upright tick."""
    rows = [
        ("preprocessed tensor, gated", latency.median_ms, latency.p95_ms),
        ("encoded image", latency.encoded_median_ms, latency.encoded_p95_ms),
    ]
    figure, axes = new_axes(1.25)
    for row, (_, median, p95) in enumerate(rows):
        missed = row == 0 and median >= limit
        colour = BAD if missed else PLANT if row == 0 else MUTED
        axes.axhline(row, color=LINE, linewidth=0.8, zorder=1)
        axes.plot([median, p95], [row, row], color=colour, linewidth=4, alpha=0.45, solid_capstyle="butt", zorder=2)
        axes.plot(median, row, "o", color=colour, markersize=7, zorder=4)
        label_point(
            axes,
            f"{median:.1f} ms, p95 {p95:.1f} ms",
            (p95 if missed else median, row),
            (9 if missed else -9, 0),
            ha="left" if missed else "right",
            size=8.5,
            colour=BAD if missed else INK,
            on_white=True,
        )
    axes.plot([limit, limit], [-0.3, 0.3], color=INK, linewidth=1.6, zorder=3)
    times = [value for _, *pair in rows for value in pair]
    axes.set_xscale("log")
    axes.set_xlim(min(*times, limit) / 15, max(*times, limit) * 5)  # a decade for the text left of the first dot
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), [label for label, _, _ in rows], fontsize=8.5, color=INK)
    low, high = axes.get_xlim()
    axes.set_xticks([t for e in range(-3, 6) for t in (10.0**e, 2 * 10.0**e, 5 * 10.0**e) if low <= t <= high])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} ms")
    axes.minorticks_off()
    label_axes(axes, "time for one image, logarithmic; the upright tick is the limit")
    return figure


def _draw_sizes(report: GateReport) -> Figure:
    """Plot the size of each file as a dot on a logarithmic scale, and its limit as a tick."""
    rows = _list_sizes(report)
    figure, axes = new_axes(0.6 + 0.3 * len(rows))
    for row, (_, size_bytes, limit) in enumerate(rows):
        missed = limit is not None and size_bytes >= limit
        colour = MUTED if limit is None else BAD if missed else PLANT
        axes.axhline(row, color=LINE, linewidth=0.8, zorder=1)
        if limit is not None:
            axes.plot([size_bytes, limit], [row, row], color=colour, linewidth=1.6, zorder=2)
            axes.plot([limit, limit], [row - 0.3, row + 0.3], color=INK, linewidth=1.6, zorder=3)
        axes.plot(size_bytes, row, "o", color=colour, markersize=7, zorder=4)
        left = limit is not None and not missed
        label_point(
            axes,
            _format_size(size_bytes),
            (size_bytes, row),
            (-8 if left else 8, 0),
            ha="right" if left else "left",
            size=8.5,
            colour=BAD if missed else INK,
            on_white=True,
        )
    sizes = [value for _, size_bytes, limit in rows for value in (size_bytes, limit) if value]
    axes.set_xscale("log")
    axes.set_xlim(min(sizes) / 8, max(sizes) * 5)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), [label for label, _, _ in rows], fontsize=8.5, color=INK)
    axes.xaxis.set_major_formatter(lambda value, _: _format_size(value))
    axes.minorticks_off()
    label_axes(axes, "file size, logarithmic; the upright tick is the limit")
    return figure


def _list_sizes(report: GateReport) -> list[tuple[str, float, float | None]]:
    """Return label, bytes and limit of each row; the limit is None when there is none."""
    sizes = summarize_sizes({name: entry.size_bytes for name, entry in report.files.items()})
    limits = {"species, INT8": report.gate("species_size").limit, "largest head": report.gate("head_size").limit}
    rows = [(label, float(size), limits.get(label)) for label, size in sizes.items() if size]
    return rows or [("no files", 1.0, None)]


def _format_size(size_bytes: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if size_bytes >= scale:
            return f"{size_bytes / scale:.3g} {unit}"
    return f"{size_bytes:.0f} B"
