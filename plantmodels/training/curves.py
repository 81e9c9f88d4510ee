r"""Draws the training curves from the records of the epochs.

>>> from plantmodels.training.recipe import EpochRecord
>>> record = EpochRecord(1, 112, 0.5, 1e-3, 0.75, None, 0.75, 12.3)
>>> draw_curves([record], record)[:4]
b'\x89PNG'
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from plantmodels.report.render.plot_style import (
    INK,
    LINE,
    MUTED,
    OTHER,
    PLANT,
    label_axes,
    new_panels,
    title_panel,
    to_png,
)
from plantmodels.training.recipe import EpochRecord

_COLORS: Final = {"both": PLANT, "species": OTHER, "disease given species": "#5a7fa8"}


def draw_curves(records: Sequence[EpochRecord], best: EpochRecord) -> bytes:
    """Plot the loss and the held-out accuracies by epoch.

    A vertical line marks where the images grow, and a ring the best epoch.

    Args:
        records: one record per epoch.
        best: record of the best epoch.

    Returns:
        The bytes of a PNG file; the same records give the same bytes.
    """
    figure, (loss, accuracy) = new_panels(2.9, (1, 1))
    epochs = [record.epoch for record in records]
    loss.plot(epochs, [record.loss for record in records], color=INK, linewidth=1.4, marker=".")
    title_panel(loss, "training loss")
    loss.set_ylim(bottom=0)
    curves: dict[str, list[float | None]] = {
        "both": [record.end_to_end_accuracy for record in records],
        "species": [record.species_accuracy for record in records],
        "disease given species": [record.disease_accuracy for record in records],
    }
    for name, values in curves.items():
        points = [(epoch, 100 * value) for epoch, value in zip(epochs, values, strict=True) if value is not None]
        if points:
            accuracy.plot(*zip(*points, strict=True), color=_COLORS[name], linewidth=1.4, marker=".", label=name)
    accuracy.plot([best.epoch], [100 * best.end_to_end_accuracy], "o", markersize=9, fillstyle="none", color=INK)
    title_panel(accuracy, "right on held-out training leaves, %")
    accuracy.legend(frameon=False, fontsize=8, labelcolor=INK)
    for axes in (loss, accuracy):
        _style_axes(axes, records)
    return to_png(figure)


def _style_axes(axes: Axes, records: Sequence[EpochRecord]) -> None:
    axes.grid(axis="y", color=LINE, linewidth=0.6)
    label_axes(axes, "epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for earlier, later in pairwise(records):
        if earlier.image_size != later.image_size:
            axes.axvline(later.epoch - 0.5, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
            label = f" {later.image_size} px"
            axes.text(later.epoch - 0.5, 0.03, label, transform=axes.get_xaxis_transform(), fontsize=7.5, color=MUTED)


def curves_path(out: Path) -> Path:
    """Return the path of the plot of a training's curves, beside its checkpoint."""
    return out.with_name(out.name + ".png")
