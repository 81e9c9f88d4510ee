r"""How every picture looks: of a training and of the report.

>>> figure, axes = new_axes(2.6)  # doctest: +SKIP
>>> to_png(figure)[:4]  # doctest: +SKIP
b'\x89PNG'
"""

import io
from collections.abc import Sequence
from typing import Final

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
    """The picture's bytes: equal for equal figures."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()


def new_axes(height_inches: float) -> tuple[Figure, Axes]:
    """One panel as wide as the page."""
    figure, (axes,) = new_panels(height_inches, (1,))
    return figure, axes


def new_panels(height_inches: float, widths: Sequence[float]) -> tuple[Figure, list[Axes]]:
    """Panels side by side, of these relative widths."""
    figure = Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
    panels = figure.subplots(1, len(widths), squeeze=False, gridspec_kw={"width_ratios": list(widths)})
    for axes in panels.flat:
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(LINE)
        axes.tick_params(colors=MUTED, labelsize=8, length=0)
        axes.set_axisbelow(True)
    return figure, list(panels.flat)


def label_axes(axes: Axes, x: str, y: str = "") -> None:
    """Names of the axes."""
    axes.set_xlabel(x, fontsize=8.5, color=MUTED)
    axes.set_ylabel(y, fontsize=8.5, color=MUTED)


def title_panel(axes: Axes, text: str, *, above: float = 9) -> None:
    """One line so many points above a panel, at its left edge."""
    axes.set_title(text, loc="left", fontsize=9.5, color=INK, pad=above)
