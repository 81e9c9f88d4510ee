"""The report's sections on accuracy: both precisions, who flips, the worst classes, calibration, routing.

>>> html = render_accuracy(report.accuracy, draw_plots(report), gallery)  # doctest: +SKIP
"""

from collections.abc import Mapping
from typing import Final

from plantmodels.report.render.gallery import Gallery
from plantmodels.report.render.parts import (
    Html,
    figure,
    fold,
    gallery,
    notes,
    section,
    share_cell,
    span_interval,
    table,
    write_interval,
)
from plantmodels.report.results import SMALL_CLASS, Accuracy, Calibration, ClassRow
from plantmodels.report.statistics import PairedCounts, Proportion

CHANCE: Final = 0.05
"""A p-value below it is called more than chance."""

_MOST_CONFUSIONS: Final = 20


def render_accuracy(accuracy: Accuracy, plots: Mapping[str, bytes], flipped: Gallery) -> str:
    """Renders the sections.

    Args:
        accuracy: what was counted.
        plots: file name to PNG.
        flipped: thumbnails of the images that FP16 and INT8 answer otherwise.
    """
    return "".join(
        (
            _render_precisions(accuracy),
            _render_classes(accuracy, plots.get("worst-classes.png")),
            _render_confusions(accuracy, plots.get("confusion.png")),
            section("Images that INT8 answers otherwise than FP16", gallery(flipped)) if flipped.thumbnails else "",
            _render_calibration(accuracy, plots.get("calibration.png")),
            _render_routing(accuracy),
        )
    )


def _render_precisions(accuracy: Accuracy) -> str:
    rows = {
        "species": accuracy.species,
        "disease, given the true species": accuracy.disease,
        "end to end, both right": accuracy.end_to_end,
    }
    sentences = [
        f"INT8 answers otherwise than FP16 on {accuracy.species_flips:,} images for the species, and on "
        f"{accuracy.disease_flips:,} for the disease given the true species."
    ]
    sentences += [f"{name.capitalize()}: {_tell_flips(paired)}" for name, paired in rows.items() if paired.images]
    return section(
        "Accuracy",
        table(
            ("", "FP16", "INT8", "change"),
            [
                (name, share_cell(paired.first), share_cell(paired.second), _change(paired))
                for name, paired in rows.items()
            ],
            numbers=(1, 2, 3),
        ),
        notes(" ".join(sentences)),
        notes(
            "Small type: 95 % intervals, Wilson's for a share, Tango's for the change on the same images. p is "
            "McNemar's, exact and two-sided: how often so uneven a split would come about by chance. Gates compare the "
            "value itself."
        ),
    )


def _tell_flips(paired: PairedCounts) -> str:
    """The images that one alone is right on, and what McNemar's test says of them."""
    if not paired.only_first + paired.only_second:
        return "both are right on the same images."
    verdict = "more than chance" if paired.p_value < CHANCE else "no more than chance"
    return (
        f"{paired.only_first:,} right in FP16 alone, {paired.only_second:,} in INT8 alone "
        f"({_write_p(paired.p_value)}, {verdict})."
    )


def _write_p(value: float) -> str:
    return f"p = {value:.2g}" if value >= 1e-4 else "p under 0.0001"


def _change(paired: PairedCounts) -> Html:
    """Second minus first, in points."""
    if paired.difference is None or paired.interval is None:
        return Html("–")
    low, high = paired.interval
    return Html(f"{_points(-paired.difference)}{span_interval((-high, -low), 'points')}")


def _points(difference: float) -> str:
    return f"{round(100 * difference, 2) + 0.0:+.2f} points".replace("-", "−")


def _render_classes(accuracy: Accuracy, plot: bytes | None) -> str:
    classes = {**accuracy.by_species, **accuracy.by_disease}
    small = {name: row.images for name, row in classes.items() if row.is_small}
    named = ", ".join(f"{name} ({images})" for name, images in small.items())
    return section(
        "Worst classes",
        figure(plot, "The classes of the lowest INT8 accuracy with their 95 % intervals"),
        notes(f"Small classes, of fewer than {SMALL_CLASS} images, say little: {named}." if small else ""),
        fold("Species right, of each species", _table_classes("species", accuracy.by_species)),
        fold("Disease right given the true species, of each class", _table_classes("class", accuracy.by_disease)),
    )


def _table_classes(kind: str, rows: Mapping[str, ClassRow]) -> str:
    def line(name: str, row: ClassRow) -> tuple[str | Html, ...]:
        fp16, int8 = Proportion(row.fp16, row.images), Proportion(row.int8, row.images)
        images = f"{row.images:,}" + ('<span class="small"> small</span>' if row.is_small else "")
        interval = "–" if int8.interval is None else f"{write_interval(int8.interval)} %"
        shares = (share_cell(share, interval=False) for share in (fp16, int8))
        return name, Html(images), *shares, interval

    header = (kind, "images", "FP16", "INT8", "95 % interval of INT8")
    return table(header, [line(name, row) for name, row in rows.items()], numbers=(1, 2, 3, 4))


def _render_confusions(accuracy: Accuracy, plot: bytes | None) -> str:
    """The matrix where it can be read, else a table of the worst."""
    if plot is not None:
        content = figure(plot, "Confusion matrix of species in INT8")
        return section("Species taken for one another", content, notes("INT8; counts of images, rows are the truth."))
    pairs = [(truth, answer, images) for truth, row in accuracy.confusions.items() for answer, images in row.items()]
    if not pairs:
        return section("Species taken for one another", notes("None: INT8 names every species right."))
    pairs.sort(key=lambda pair: (-pair[2], pair[:2]))
    rows = [
        (
            truth,
            answer,
            f"{images:,}",
            share_cell(Proportion(images, accuracy.by_species[truth].images), interval=False),
        )
        for truth, answer, images in pairs[:_MOST_CONFUSIONS]
    ]
    return section(
        "Species taken for one another",
        table(("truth", "answered by INT8", "images", "of its images"), rows, numbers=(2, 3)),
        notes(f"The {len(rows):,} most frequent of {len(pairs):,} pairs."),
    )


def _render_calibration(accuracy: Accuracy, plot: bytes | None) -> str:
    calibrations = {
        "species": accuracy.species_calibration,
        "disease, given the true species": accuracy.disease_calibration,
    }
    rows = [_describe_calibration(name, value) for name, value in calibrations.items() if value.after.ece is not None]
    if not rows:
        return ""
    header = ("", "temperature", "error at 1", "error as served", "−log P at 1", "−log P as served")
    return section(
        "How far probabilities can be trusted",
        figure(plot, "Probability of answers against how often they are right, at temperature 1 and as served"),
        table(header, rows, numbers=(1, 2, 3, 4, 5)),
        notes(
            f"INT8 on validation leaves; a dot is one of {len(accuracy.species_calibration.after.bins)} bins of equal "
            "width, its area the share of images in it. Error: expected calibration error, the mean distance from the "
            "diagonal (Guo et al., 2017). Logits are divided by the temperature, which changes no label; it was fitted "
            "on training leaves, which the network may have been trained on. "
            "Species of one disease are left out of the diseases."
        ),
    )


def _describe_calibration(name: str, value: Calibration) -> tuple[str, ...]:
    errors = (f"{100 * (part.ece or 0.0):.2f} %" for part in (value.before, value.after))
    losses = ("infinite" if part.nll is None else f"{part.nll:.4f}" for part in (value.before, value.after))
    return name, f"{value.temperature:.3g}", *errors, *losses


def _render_routing(accuracy: Accuracy) -> str:
    rows = {
        "end to end, species and disease right": accuracy.routing,
        "disease right, whatever the species": accuracy.disease_routing,
    }
    sentences = " ".join(f"{name.capitalize()}: {_tell_routing(paired)}" for name, paired in rows.items())
    return section(
        "Hard against soft routing",
        table(
            ("INT8", "hard", "soft", "change"),
            [
                (name, share_cell(paired.first), share_cell(paired.second), _change(paired))
                for name, paired in rows.items()
            ],
            numbers=(1, 2, 3),
        ),
        notes(
            "Hard, the default: the head of the top species names the disease. Soft: the disease of the highest "
            f"probability summed over all species. {sentences}"
        ),
    )


def _tell_routing(paired: PairedCounts) -> str:
    """The images that one alone is right on, and what McNemar's test says of them."""
    if not paired.only_first + paired.only_second:
        return "the two are right on the same images."
    return (
        f"hard alone is right on {paired.only_first:,} images, soft alone on {paired.only_second:,} "
        f"(exact McNemar {_write_p(paired.p_value)}, {'more' if paired.p_value < CHANCE else 'no more'} than chance)."
    )
