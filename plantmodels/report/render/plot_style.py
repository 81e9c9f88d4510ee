r"""The style of every plot, in reports and of training runs.

No global state of matplotlib is used or changed.

>>> figure, axes = new_axes(2.6)
>>> to_png(figure)[:4]
b'\x89PNG'
"""

import io
from collections.abc import Sequence
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK: Final = "#26302b"
MUTED: Final = "#6d7772"
LINE: Final = "#d9ddd8"
PLANT: Final = "#3f7d58"
OTHER: Final = "#c07a3a"
BAD: Final = "#a8352b"

WIDTH_INCHES: Final = 7.6
_DPI: Final = 200


def to_png(figure: Figure) -> bytes:
    """Return a figure as PNG. Equal figures give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()


def new_axes(height_inches: float) -> tuple[Figure, Axes]:
    """Return a figure with one panel, as wide as the page."""
    figure, (axes,) = new_panels(height_inches, (1,))
    return figure, axes


def new_panels(height_inches: float, widths: Sequence[float], rows: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a figure with panels side by side, row by row.

    Args:
        height_inches: height of the figure in inches.
        widths: relative widths of the panels of a row.
        rows: number of rows.
    """
    figure = Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
    panels = figure.subplots(rows, len(widths), squeeze=False, gridspec_kw={"width_ratios": list(widths)})
    for axes in panels.flat:
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(LINE)
        axes.tick_params(colors=MUTED, labelsize=8, length=0)
        axes.set_axisbelow(True)
    return figure, list(panels.flat)


def label_axes(axes: Axes, x: str, y: str = "") -> None:
    """Set the labels of both axes."""
    axes.set_xlabel(x, fontsize=8.5, color=MUTED)
    axes.set_ylabel(y, fontsize=8.5, color=MUTED)


def label_point(
    axes: Axes,
    text: str,
    at: tuple[float, float],
    offset: tuple[float, float],
    *,
    ha: str = "left",
    va: str = "center",
    coordinates: Any = "data",
    size: float = 8,
    colour: str = INK,
    on_white: bool = False,
) -> None:
    """Write text beside a point.

    Args:
        axes: the panel.
        text: the text.
        at: the point.
        offset: distance of the text from the point, in typographic points.
        ha: horizontal alignment of the text.
        va: vertical alignment of the text.
        coordinates: matplotlib's coordinate system of `at`, or a pair of them.
        size: font size.
        colour: colour of the text.
        on_white: whether a white box behind the text hides the lines and dots that it covers.
    """
    axes.annotate(
        text,
        at,
        xycoords=coordinates,
        xytext=offset,
        textcoords="offset points",
        ha=ha,
        va=va,
        fontsize=size,
        color=colour,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5} if on_white else None,
        zorder=3,
    )


def title_panel(axes: Axes, text: str, *, above: float = 9) -> None:
    """Set the title of a panel at its left edge, `above` points above it."""
    axes.set_title(text, loc="left", fontsize=9.5, color=INK, pad=above)
