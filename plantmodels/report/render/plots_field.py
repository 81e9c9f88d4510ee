"""The plot of field leaves: of each species, how many leaves are accepted and right, accepted and wrong, or rejected.

>>> from plantmodels.report.evidence.field import Answers
>>> from plantmodels.report.statistics import Proportion
>>> some = Answers(Proportion(3, 4), Proportion(2, 4), 0.8)
>>> list(draw_field(Decided(some, some, {}), Decided(some, some, {}), {"Rose": Decided(some, some, {})}))
['field.png']
"""

from collections.abc import Mapping
from typing import Final

from matplotlib.figure import Figure

from plantmodels.report.evidence.field import Decided
from plantmodels.report.render.plot_style import BAD, INK, LINE, MUTED, PLANT, label_axes, new_axes
from plantmodels.report.render.plots_accuracy import shorten

_MOST_SPECIES: Final = 24
"""Species that the plot can show; those with the most leaves."""


def draw_field(val: Decided, field: Decided, by_species: Mapping[str, Decided]) -> dict[str, Figure]:
    """Draw validation leaves, all field leaves, and those of each species.

    Args:
        val: the validation leaves.
        field: all field leaves.
        by_species: species to its field leaves.

    Returns:
        File name to figure.
    """
    most = sorted(by_species, key=lambda name: -by_species[name].rejected_share.images)[:_MOST_SPECIES]
    rows = [("validation leaves", val), ("field leaves", field)]
    rows += [(shorten(name, 30), by_species[name]) for name in by_species if name in most]
    figure, axes = new_axes(1.1 + 0.27 * len(rows))
    for place, (_, decided) in enumerate(rows):
        total, accepted = decided.rejected_share.images, decided.accepted
        start = 0.0
        for part, colour in (
            (accepted.species.count, PLANT),
            (accepted.images - accepted.species.count, BAD),
            (decided.rejected.images, LINE),
        ):
            width = 100 * part / max(1, total)
            axes.barh(place, width, left=start, color=colour, height=0.62, alpha=0.85, linewidth=0)
            start += width
        note = (
            ""
            if accepted.confidence is None
            else f"{100 * (accepted.species.value or 0):.0f} % right, {100 * accepted.confidence:.0f} % sure"
        )
        axes.annotate(
            note or "none accepted", (102, place), fontsize=8, color=MUTED, va="center", annotation_clip=False
        )
    for label, colour in (("accepted, species right", PLANT), ("accepted, species wrong", BAD), ("rejected", LINE)):
        axes.barh(0, 0, color=colour, alpha=0.85, label=label)
    axes.axhline(1.5, color=INK, linewidth=0.6)
    axes.set_yticks(range(len(rows)), [f"{name} ({row.rejected_share.images:,})" for name, row in rows], fontsize=8.5)
    for text in axes.get_yticklabels():
        text.set_color(INK)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 131)
    axes.set_xticks(range(0, 101, 20), [f"{value} %" for value in range(0, 101, 20)])
    axes.legend(frameon=False, fontsize=8.5, loc="lower left", labelcolor=INK, bbox_to_anchor=(0, 1), ncols=3)
    label_axes(axes, "share of leaves; at the right, accepted leaves: species right, mean probability")
    return {"field.png": figure}
