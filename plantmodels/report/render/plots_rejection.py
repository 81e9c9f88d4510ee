"""Plots of out-of-distribution rejection: scores with the threshold, ROC curve, and precision by share of non-plants.

>>> from plantmodels.report.gate_report import read_report
>>> sorted(draw_rejection(read_report(bundle).rejection))
['ood-precision.png', 'ood-roc.png', 'ood-scores.png']
"""

from typing import Final

from matplotlib.figure import Figure

from plantmodels.report.render.plot_style import INK, LINE, MUTED, OTHER, PLANT, label_axes, label_point, new_axes
from plantmodels.report.results import Rejection
from plantmodels.report.statistics import CONFIDENCE

_UNSEEN: Final = "#7a6ba8"
_SMALLEST_ALARM: Final = 3e-4
"""Where points without a false alarm are drawn, because a logarithmic axis has no 0."""


def draw_rejection(rejection: Rejection, share: float = 0.5) -> dict[str, Figure]:
    """Draw what there are numbers for.

    Args:
        rejection: what was measured.
        share: share of non-plants among all images that the policy names.

    Returns:
        File name to figure.
    """
    figures = {}
    if rejection.histogram.edges:
        figures["ood-scores.png"] = _draw_scores(rejection)
    if rejection.roc:
        figures["ood-roc.png"] = _draw_roc(rejection)
    if rejection.precision is not None:
        figures["ood-precision.png"] = _draw_precision(rejection, share)
    return figures


def _draw_scores(rejection: Rejection) -> Figure:
    """Plot histograms in percent of each group, so that groups of different sizes can be compared."""
    figure, axes = new_axes(2.6)
    histogram = rejection.histogram
    groups = (
        (histogram.plants, "plants", PLANT),
        (histogram.non_plants, "non-plants", OTHER),
        (histogram.unseen_plants, "plants of unknown species", _UNSEEN),
    )
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
    label_point(
        axes,
        f"threshold {rejection.threshold:.4g}, rejected above",
        (rejection.threshold, 1),
        (-5 if far_right else 5, -4),
        ha="right" if far_right else "left",
        va="top",
        coordinates=("data", "axes fraction"),
    )
    label_axes(axes, "out-of-distribution score", "% of group")
    axes.grid(axis="y", color=LINE, linewidth=0.6)
    axes.legend(frameon=False, fontsize=8.5, loc="lower left", labelcolor=INK, bbox_to_anchor=(0, 1), ncols=3)
    return figure


def _draw_roc(rejection: Rejection) -> Figure:
    """Plot recall against false alarms, on a logarithmic axis because the gates are decided at its left end."""
    figure, axes = new_axes(3.1)
    alarms = [max(point[0], _SMALLEST_ALARM) for point in rejection.roc]
    recall = [100 * point[1] for point in rejection.roc]
    axes.plot([_SMALLEST_ALARM, *alarms, 1], [0, *recall, 100], color=OTHER, linewidth=1.5, drawstyle="steps-post")
    # precision 99 % at equal numbers: false alarms = recall / 99
    limit = [(r / 99, 100 * r) for r in (0.001 * i for i in range(30, 1001))]
    axes.plot(*zip(*limit, strict=True), color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    label_point(axes, "precision 99 %", limit[len(limit) // 3], (5, 0), colour=MUTED, on_white=True)
    axes.axhline(95, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    at_right = ("axes fraction", "data")
    label_point(axes, "recall 95 %", (1, 95), (0, -4), ha="right", va="top", coordinates=at_right, colour=MUTED)
    if rejection.recall is not None and rejection.false_alarm_rate is not None:
        served = (max(rejection.false_alarm_rate, _SMALLEST_ALARM), 100 * rejection.recall)
        axes.plot(*served, "o", color=INK, markersize=6, zorder=4)
        label_point(axes, "as served", served, (10, -9), va="top", size=8.5, on_white=True)
    axes.set_xscale("log")
    axes.set_xlim(_SMALLEST_ALARM, 1)
    axes.set_ylim(0, 102)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    axes.minorticks_off()
    axes.grid(color=LINE, linewidth=0.6)
    label_axes(axes, "plants rejected, logarithmic", "% of non-plants rejected")
    return figure


def _draw_precision(rejection: Rejection, share: float) -> Figure:
    """Plot the precision against the share of non-plants, on a logarithmic axis because few images are non-plants."""
    figure, axes = new_axes(2.6)
    shares = [10 ** (-3 + 3 * i / 120) * 0.999 for i in range(121)]
    intervals = [rejection.precision_interval_at(CONFIDENCE, share=each) or (0.0, 1.0) for each in shares]
    low, high = ([100 * end for end in ends] for ends in zip(*intervals, strict=True))
    axes.fill_between(shares, low, high, color=OTHER, alpha=0.2, linewidth=0, label="95 % interval")
    axes.plot(
        shares,
        [100 * (rejection.precision_of(rejection.non_plants, each) or 0.0) for each in shares],
        color=OTHER,
        linewidth=1.5,
    )
    for each in sorted({0.05, 0.5, share}):
        value = 100 * (rejection.precision_of(rejection.non_plants, each) or 0.0)
        axes.plot(each, value, "o", color=INK if each == share else MUTED, markersize=6, zorder=4)
        label_point(
            axes, f"{value:.1f} % at {100 * each:g} %", (each, value), (6, -8), va="top", size=8.5, on_white=True
        )
    axes.set_xscale("log")
    axes.set_xlim(1e-3, 1)
    axes.set_ylim(0, 102)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    axes.minorticks_off()
    axes.grid(color=LINE, linewidth=0.6)
    axes.legend(frameon=False, fontsize=8.5, loc="lower right", labelcolor=INK)
    label_axes(axes, "non-plants among all images, logarithmic", "% non-plants of rejected images")
    return figure
