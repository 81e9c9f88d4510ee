"""Plots of accuracy: the worst classes, the confusion matrix and the calibration.

>>> from plantmodels.report.gate_report import read_report
>>> figures = draw_accuracy(read_report(bundle).accuracy)
>>> "worst-classes.png" in figures and "calibration.png" in figures
True
"""

from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from plantmodels.report.formatting import spell_class
from plantmodels.report.render.accuracy import ClassAccuracy, list_calibrations, list_classes
from plantmodels.report.render.plot_style import (
    INK,
    LINE,
    MUTED,
    OTHER,
    PLANT,
    WIDTH_INCHES,
    label_axes,
    new_axes,
)
from plantmodels.report.render.plots_calibration import draw_calibration
from plantmodels.report.results import Accuracy

MAX_MATRIX: Final = 40
"""Largest number of species whose matrix can be read; with more, the page has a table of the worst confusions."""

_WORST_SPECIES: Final = 8
_WORST_DISEASES: Final = 14
"""Number of classes with the lowest accuracy that the plot shows."""

_MAX_LABEL: Final = 46
"""Characters of a class's name in a label."""


def draw_accuracy(accuracy: Accuracy) -> dict[str, Figure]:
    """Draw what there are numbers for; return file name to figure in the order in which the page shows them."""
    figures = {}
    if accuracy.by_species:
        figures["worst-classes.png"] = _draw_worst(accuracy)
    if accuracy.confusions and len(_list_species(accuracy)) <= MAX_MATRIX:
        figures["confusion.png"] = _draw_confusion(accuracy)
    calibrations = list_calibrations(accuracy.probabilities)
    if calibrations:
        figures["calibration.png"] = draw_calibration(calibrations)
    return figures


def shorten(name: str, at_most: int = _MAX_LABEL) -> str:
    """Return a class's name for a label. Dollar signs are escaped: matplotlib would read a formula between them."""
    text = spell_class(name).replace("$", r"\$")
    return text if len(text) <= at_most else text[: at_most - 1] + "…"


def _draw_worst(accuracy: Accuracy) -> Figure:
    """Plot INT8 as a dot with its interval for every class, hollow for small classes, and FP16 as an upright tick."""
    groups = {
        "species": list_classes(accuracy.by_species)[:_WORST_SPECIES],
        "disease, given the true species": list_classes(accuracy.by_disease)[:_WORST_DISEASES],
    }
    groups = {title: rows for title, rows in groups.items() if rows}
    lines = sum(len(rows) + 1.6 for rows in groups.values())
    figure, axes = new_axes(0.75 + 0.235 * lines)
    ticks: list[tuple[float, str]] = []
    place = 0.0
    for title, rows in groups.items():
        ticks.append((place, title))
        for worst in rows:
            place += 1
            _draw_class(axes, place, worst)
            ticks.append((place, shorten(worst.name)))
        place += 1.6
    axes.set_yticks([at for at, _ in ticks], [text for _, text in ticks], fontsize=8.5)
    for label in axes.get_yticklabels():
        label.set_color(MUTED if label.get_text() in groups else INK)
    axes.set_ylim(place - 0.8, -0.7)
    axes.set_xlim(-2, 119)
    axes.set_xticks(range(0, 101, 20), [f"{value} %" for value in range(0, 101, 20)])
    axes.grid(axis="x", color=LINE, linewidth=0.6)
    label_axes(axes, "accuracy of INT8 with its 95 % interval; upright tick: FP16; hollow: small class")
    return figure


def _draw_class(axes: Axes, place: float, row: ClassAccuracy) -> None:
    low, high = row.int8.interval or (0.0, 1.0)
    value = row.int8.value or 0.0
    axes.plot([100 * low, 100 * high], [place, place], color=PLANT, linewidth=1.6, alpha=0.45, zorder=2)
    fp16 = 100 * (row.fp16.value or 0.0)
    axes.plot([fp16, fp16], [place - 0.3, place + 0.3], color=INK, linewidth=1.3, zorder=3)
    face = "white" if row.is_small else PLANT
    axes.plot(100 * value, place, "o", color=PLANT, markerfacecolor=face, markersize=6, zorder=4)
    note = f"{row.int8.count:,} of {row.images:,}"
    axes.annotate(note, (103, place), fontsize=8, color=MUTED, va="center", annotation_clip=False)


def _list_species(accuracy: Accuracy) -> list[str]:
    """Return the species with images in their order, then the species that were only answered."""
    answers = (name for row in accuracy.confusions.values() for name in row)
    return list(dict.fromkeys([*accuracy.by_species, *answers]))


def _draw_confusion(accuracy: Accuracy) -> Figure:
    """Plot the confusion matrix, coloured by the share of a row's images: right answers green, wrong ones brown."""
    names = _list_species(accuracy)
    place = {name: i for i, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)), np.int64)
    for name, row in accuracy.by_species.items():
        counts[place[name], place[name]] = row.int8
    for name, wrong in accuracy.confusions.items():
        for answer, images in wrong.items():
            counts[place[name], place[answer]] = images
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    figure, axes = new_axes(WIDTH_INCHES * 0.86)
    diagonal = np.eye(len(names), dtype=bool)
    for colour, shown in ((PLANT, diagonal), (OTHER, ~diagonal)):
        colours = LinearSegmentedColormap.from_list("share", ["#ffffff", colour])
        axes.imshow(np.ma.masked_where(~shown | (counts == 0), shares**0.6), cmap=colours, vmin=0, vmax=1)
    size = min(8.0, 150 / len(names))
    for i, j in zip(*np.nonzero(counts), strict=True):
        colour = "white" if shares[i, j] > 0.45 else INK
        axes.text(j, i, f"{counts[i, j]:,}", ha="center", va="center", fontsize=size, color=colour)
    labels = [shorten(name, 24) for name in names]
    label_size = min(8.5, 220 / len(names))
    axes.set_xticks(range(len(names)), labels, rotation=50, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), labels)
    axes.tick_params(labelsize=label_size, labelcolor=INK)
    edges = np.arange(-0.5, len(names))
    axes.set_xticks(edges, minor=True)
    axes.set_yticks(edges, minor=True)
    axes.tick_params(which="minor", length=0)
    axes.grid(which="minor", color=LINE, linewidth=0.5)
    axes.spines["bottom"].set_visible(False)
    label_axes(axes, "answered by INT8", "truth")
    return figure
