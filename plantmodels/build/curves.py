r"""Training curves as a picture, drawn from the epochs' records alone.

>>> draw_curves(report.records, report.best)[:4]  # doctest: +SKIP
b'\x89PNG'
"""

import io
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from plantmodels.build.recipe import EpochRecord

_INK: Final = "#26302b"
_MUTED: Final = "#6d7772"
_LINE: Final = "#d9ddd8"
_COLOURS: Final = {"both": "#3f7d58", "species": "#c07a3a", "disease given species": "#5a7fa8"}


def draw_curves(records: Sequence[EpochRecord], best: EpochRecord) -> bytes:
    """Loss and held-out accuracies by epoch, with a line where pictures grow and a ring around the best epoch.

    Returns:
        A PNG; the same records give the same bytes.
    """
    figure = Figure(figsize=(7.6, 2.9), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    epochs = [record.epoch for record in records]
    loss.plot(epochs, [record.loss for record in records], color=_INK, linewidth=1.4, marker=".")
    loss.set_title("training loss", fontsize=9, color=_INK, loc="left")
    loss.set_ylim(bottom=0)
    curves: dict[str, list[float | None]] = {
        "both": [record.end_to_end_accuracy for record in records],
        "species": [record.species_accuracy for record in records],
        "disease given species": [record.disease_accuracy for record in records],
    }
    for name, values in curves.items():
        points = [(epoch, 100 * value) for epoch, value in zip(epochs, values, strict=True) if value is not None]
        if points:
            accuracy.plot(*zip(*points, strict=True), color=_COLOURS[name], linewidth=1.4, marker=".", label=name)
    accuracy.plot([best.epoch], [100 * best.end_to_end_accuracy], "o", markersize=9, fillstyle="none", color=_INK)
    accuracy.set_title("right on held-out training leaves, %", fontsize=9, color=_INK, loc="left")
    accuracy.legend(frameon=False, fontsize=8, labelcolor=_INK)
    for axes in (loss, accuracy):
        _style(axes, records)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200, metadata={"Software": None})
    return buffer.getvalue()


def _style(axes: Axes, records: Sequence[EpochRecord]) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_LINE)
    axes.tick_params(colors=_MUTED, labelsize=8, length=0)
    axes.grid(axis="y", color=_LINE, linewidth=0.6)
    axes.set_xlabel("epoch", fontsize=8.5, color=_MUTED)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for earlier, later in pairwise(records):
        if earlier.image_size != later.image_size:
            axes.axvline(later.epoch - 0.5, color=_MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
            label = f" {later.image_size} px"
            axes.text(later.epoch - 0.5, 0.03, label, transform=axes.get_xaxis_transform(), fontsize=7.5, color=_MUTED)
