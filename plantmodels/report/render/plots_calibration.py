"""Reliability diagrams: how often answers are right against the probabilities that are served for them.

>>> from plantmodels.report.gate_report import read_report
>>> from plantmodels.report.render.accuracy import list_calibrations
>>> len(draw_calibration(list_calibrations(read_report(bundle).accuracy.probabilities)).axes)
6
"""

from collections.abc import Mapping
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from plantmodels.report.calibration.results import Calibration, Noise, Reliability
from plantmodels.report.formatting import format_percent
from plantmodels.report.render.plot_style import INK, LINE, MUTED, OTHER, PLANT, label_axes, new_panels, title_panel

_COLUMNS: Final = 2
_ROW_INCHES: Final = 3.75
_BAND: Final = "#e3e6e1"


def draw_calibration(calibrations: Mapping[str, Calibration]) -> Figure:
    """Plot the share of right answers against their probability, one panel for each number that is served.

    The band is what chance alone makes of perfectly calibrated probabilities. The last panel is the legend.

    Args:
        calibrations: what is served, in words, to its calibration.
    """
    rows = -(-(len(calibrations) + 1) // _COLUMNS)
    figure, panels = new_panels(_ROW_INCHES * rows, (1,) * _COLUMNS, rows)
    for axes, (name, calibration) in zip(panels, calibrations.items(), strict=False):
        _draw_panel(axes, name, calibration)
    for axes in panels[len(calibrations) :]:
        axes.set_axis_off()
    _draw_legend(panels[len(calibrations)], next(iter(calibrations.values())))
    return figure


def _draw_panel(axes: Axes, name: str, calibration: Calibration) -> None:
    axes.plot([0, 100], [0, 100], color=INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=2)
    noise = calibration.noise
    if noise is not None:
        _draw_band(axes, noise)
    _draw_reliability(axes, calibration.before, OTHER, is_served=False)
    _draw_reliability(axes, calibration.after, PLANT, is_served=True)
    axes.set_xlim(0, 102)
    axes.set_ylim(0, 102)
    axes.set_aspect("equal")
    axes.grid(color=LINE, linewidth=0.6)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0f} %")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0f} %")
    label_axes(axes, "probability that is served", "answers that are right")
    title, _, routing = name.partition(", ")
    title_panel(axes, f"{title}\n{routing}" if routing else title, above=22)
    by_chance = "" if noise is None else f", by chance {format_percent(noise.ece, 1)}"
    text = f"{calibration.after.images:,} leaves; ECE {format_percent(calibration.after.ece, 1)}{by_chance}"
    axes.annotate(text, (0, 1), (0, 6), "axes fraction", "offset points", fontsize=8, color=MUTED)


def _draw_band(axes: Axes, noise: Noise) -> None:
    width = 100 / len(noise.bands)
    for place, band in enumerate(noise.bands):
        if band is not None:
            low, high = (100 * end for end in band)
            axes.bar(place * width, high - low, width, low, align="edge", color=_BAND, linewidth=0, zorder=1)


def _draw_reliability(axes: Axes, reliability: Reliability, colour: str, *, is_served: bool) -> None:
    bins = [row for row in reliability.bins if row.images]
    xs, ys = [100 * row.confidence for row in bins], [100 * row.right / row.images for row in bins]
    areas = [8 + 190 * row.images / reliability.images for row in bins]
    face = colour if is_served else "none"
    axes.scatter(
        xs, ys, s=areas, facecolors=face, edgecolors=colour, alpha=0.85, linewidth=0 if is_served else 0.9, zorder=3
    )


def _draw_legend(axes: Axes, example: Calibration) -> None:
    axes.scatter(
        [], [], s=60, color=PLANT, label="as served: each dot is one bin, its area\nthe bin's share of the leaves"
    )
    axes.scatter([], [], s=60, facecolors="none", edgecolors=OTHER, label="the same at temperature 1")
    axes.plot([], [], color=INK, linewidth=0.9, linestyle=(0, (4, 3)), label="perfectly calibrated")
    handles, labels = axes.get_legend_handles_labels()
    handles.append(Patch(color=_BAND))
    labels.append("where 19 of 20 samples of a perfectly\ncalibrated model lie")
    bins = f"{len(example.after.bins)} bins of equal width"
    axes.legend(
        handles, labels, title=bins, frameon=False, fontsize=8.5, loc="center left", labelspacing=1.1, labelcolor=INK
    )
