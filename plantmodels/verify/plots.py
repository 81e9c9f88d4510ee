r"""The report's pictures, drawn from the report alone: the same report gives the same bytes.

>>> draw_plots(report)["ood-scores.png"][:4]  # doctest: +SKIP
b'\x89PNG'
"""

import io
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from plantmodels.bundle.layout import HEADS_FOLDER, PACKED_HEADS_FILE, SPECIES_FILES
from plantmodels.verify.measurements import Rejection
from plantmodels.verify.report import GateReport

INK: Final = "#26302b"
MUTED: Final = "#6d7772"
LINE: Final = "#d9ddd8"
PLANT: Final = "#3f7d58"
OTHER: Final = "#c07a3a"
BAD: Final = "#a8352b"

_DPI: Final = 200
_WIDTH_INCHES: Final = 7.6


def draw_plots(report: GateReport) -> dict[str, bytes]:
    """Draws every picture that the report has numbers for.

    Returns:
        File name to PNG, in the order in which they are shown.
    """
    plots = {}
    if report.rejection is not None and report.rejection.histogram.edges:
        plots["ood-scores.png"] = _to_png(_draw_scores(report.rejection))
    plots["file-sizes.png"] = _to_png(_draw_sizes(report))
    return plots


def _to_png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()


def _new_axes(height_inches: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH_INCHES, height_inches), layout="constrained")
    axes = figure.add_subplot()
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    axes.tick_params(colors=MUTED, labelsize=8, length=0)
    axes.set_axisbelow(True)
    return figure, axes


def _draw_scores(rejection: Rejection) -> Figure:
    """Both histograms as shares of their own group, so that unequal numbers can be compared."""
    figure, axes = _new_axes(2.6)
    histogram = rejection.histogram
    groups = ((histogram.plants, "plants", PLANT), (histogram.non_plants, "non-plants", OTHER))
    for counts, label, colour in groups:
        if sum(counts):
            shares = [100 * count / sum(counts) for count in counts]
            axes.stairs(shares, histogram.edges, fill=True, color=colour, alpha=0.35, linewidth=0)
            axes.stairs(shares, histogram.edges, color=colour, linewidth=1.2, label=f"{sum(counts):,} {label}")
    axes.margins(x=0.01)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.16)
    axes.axvline(rejection.threshold, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    low, high = axes.get_xlim()
    far_right = rejection.threshold > low + 0.7 * (high - low)
    axes.annotate(
        f"threshold {rejection.threshold:.4g}, rejected above",
        (rejection.threshold, 1),
        xycoords=("data", "axes fraction"),
        xytext=(-5 if far_right else 5, -4),
        textcoords="offset points",
        ha="right" if far_right else "left",
        va="top",
        fontsize=8,
        color=INK,
    )
    axes.set_xlabel("out-of-distribution score", fontsize=8.5, color=MUTED)
    axes.set_ylabel("% of group", fontsize=8.5, color=MUTED)
    axes.grid(axis="y", color=LINE, linewidth=0.6)
    axes.legend(frameon=False, fontsize=8.5, loc="upper right", labelcolor=INK, bbox_to_anchor=(1, 0.9))
    return figure


def _draw_sizes(report: GateReport) -> Figure:
    """A dot a file on a logarithmic scale, with the limit as a tick where there is one."""
    rows = _list_sizes(report)
    figure, axes = _new_axes(0.6 + 0.3 * len(rows))
    for row, (_, size_bytes, limit) in enumerate(rows):
        missed = limit is not None and size_bytes >= limit
        colour = MUTED if limit is None else BAD if missed else PLANT
        axes.axhline(row, color=LINE, linewidth=0.8, zorder=1)
        if limit is not None:
            axes.plot([size_bytes, limit], [row, row], color=colour, linewidth=1.6, zorder=2)
            axes.plot([limit, limit], [row - 0.3, row + 0.3], color=INK, linewidth=1.6, zorder=3)
        axes.plot(size_bytes, row, "o", color=colour, markersize=7, zorder=4)
        left = limit is not None and not missed
        axes.annotate(
            _write_size(size_bytes),
            (size_bytes, row),
            xytext=(-8 if left else 8, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            va="center",
            fontsize=8.5,
            color=BAD if missed else INK,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
            zorder=3,
        )
    sizes = [value for _, size_bytes, limit in rows for value in (size_bytes, limit) if value]
    axes.set_xscale("log")
    axes.set_xlim(min(sizes) / 8, max(sizes) * 5)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), [label for label, _, _ in rows], fontsize=8.5, color=INK)
    axes.xaxis.set_major_formatter(lambda value, _: _write_size(value))
    axes.minorticks_off()
    axes.set_xlabel("file size, logarithmic; the upright tick is the limit", fontsize=8.5, color=MUTED)
    return figure


def _list_sizes(report: GateReport) -> list[tuple[str, float, float | None]]:
    """Label, bytes and limit of each row."""
    sizes = {name: float(entry.size_bytes) for name, entry in report.files.items()}
    heads = [size for name, size in sizes.items() if name.startswith(f"{HEADS_FOLDER}/")]
    rows: list[tuple[str, float, float | None]] = [
        ("species, INT8", sizes.get(SPECIES_FILES["int8"], 0), report.gate("species_size").limit),
        ("species, FP16", sizes.get(SPECIES_FILES["fp16"], 0), None),
        ("largest head", max(heads, default=0), report.gate("head_size").limit),
        ("all heads, packed", sizes.get(PACKED_HEADS_FILE, 0), None),
    ]
    return [row for row in rows if row[1]] or [("no files", 1.0, None)]


def _write_size(size_bytes: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if size_bytes >= scale:
            return f"{size_bytes / scale:.3g} {unit}"
    return f"{size_bytes:.0f} B"
