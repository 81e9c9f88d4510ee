"""The report's section on what is no plant: how much of it is rejected, by which detector, and what it gets wrong.

>>> render_rejection(report.rejection, plots, evidence, galleries)[:9]  # doctest: +SKIP
'<section>'
"""

from collections.abc import Mapping
from typing import Any

from plantmodels.report.render.gallery import Gallery
from plantmodels.report.render.parts import Html, figure, fold, gallery, notes, section, share_cell, table
from plantmodels.report.results import Estimate, Rejection

_NAMES = {
    "mahalanobis": "Mahalanobis, one Gaussian (classic)",
    "class_mahalanobis": "Mahalanobis, class means, tied covariance",
    "gaussian_ratio": "ratio of two Gaussians",
    "normalized_mahalanobis": "Mahalanobis++, L2-normalised",
    "relative_mahalanobis": "relative Mahalanobis",
    "energy": "energy",
    "gen": "GEN, generalized entropy",
    "knn": "KNN, 50th neighbour",
    "vim": "ViM, virtual-logit matching",
    "logistic": "logistic regression",
    "rbf_svm": "support vectors, RBF kernel",
}


def render_rejection(
    rejection: Rejection,
    plots: Mapping[str, bytes],
    evidence: Mapping[str, Any],
    galleries: Mapping[str, Gallery],
) -> str:
    """Renders the section.

    Args:
        rejection: what was measured.
        plots: file name to PNG: "ood-scores.png" and "ood-roc.png".
        evidence: "detector" of the metadata's provenance: the methods that were tried; may be empty.
        galleries: thumbnails: "let through", of non-plants, and "rejected", of plants.
    """
    species = [(name, share_cell(share)) for name, share in rejection.by_species.items()]
    return section(
        "Rejection of what is no plant",
        figure(
            plots.get("ood-scores.png"),
            "Histogram of out-of-distribution scores of plants, non-plants and unseen plants, with the threshold",
        ),
        notes(_describe(rejection)),
        _list_sources(rejection),
        fold("False alarms of each species", table(("species", "rejected"), species, numbers=(1,), name="narrow")),
        figure(plots.get("ood-roc.png"), "Share of non-plants rejected against share of plants rejected"),
        _describe_separation(rejection),
        _describe_flips(rejection),
        _show("Non-plants let through, the lowest scores first", galleries.get("let through")),
        _show("Plants rejected, the highest scores first", galleries.get("rejected")),
    ) + _render_trials(evidence)


def _show(title: str, shown: Gallery | None) -> str:
    return fold(title, gallery(shown)) if shown and shown.thumbnails else ""


def _describe(rejection: Rejection) -> str:
    text = f"Plants rejected, which are false alarms: {rejection.plants.count:,} of {rejection.plants.images:,}. "
    if rejection.recall is None:
        return text + "No non-plants were measured."
    half = "the half that no detector was chosen on" if rejection.held_out else "all that were given"
    text += f"Non-plants rejected: {rejection.non_plants.count:,} of {rejection.non_plants.images:,} ({half}). "
    text += "Precision at equal numbers is recall / (recall + false-alarm rate)"
    if rejection.precision is None:
        text += ", not defined when both are 0."
    else:
        text += f" = {100 * rejection.precision:.2f} %."
    unseen = rejection.unseen_plants
    if unseen.images:
        text += (
            " Plants of unknown species are near to those that are known: "
            f"{unseen.count:,} of {unseen.images:,} were rejected; no gate asks for it."
        )
    return text


def _list_sources(rejection: Rejection) -> str:
    """A row a folder of non-plants, then one a folder of unseen plants, whose rejection has no precision."""
    non_plants = [
        (name, share, _percent(rejection.precision_of(share)), rejection.separation_by_source.get(name))
        for name, share in rejection.by_source.items()
    ]
    unseen = [
        (f"{name}, no known plant", share, "–", rejection.separation_by_unseen_source.get(name))
        for name, share in rejection.by_unseen_source.items()
    ]
    rows = [
        (
            name,
            share_cell(share),
            precision,
            "–" if found is None else _stack(*_write(found.auroc, 1, 4)),
            "–" if found is None else _stack(*_write(found.fpr_at_95_recall, 100, 2)),
        )
        for name, share, precision, found in (*non_plants, *unseen)
    ]
    header = ("source", "rejected", "precision, %", "AUROC", "plants rejected at 95 %, %")
    return table(header, rows, numbers=range(1, 5)) if rows else ""


def _percent(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}"


def _write(estimate: Estimate, scale: float, digits: int) -> tuple[str, str, str]:
    """Value and both ends of its interval."""
    value, low, high = (f"{scale * x:.{digits}f}" for x in (estimate.value, estimate.low, estimate.high))
    return value, low, high


def _stack(value: str, low: str, high: str) -> Html:
    """A value with its interval below."""
    return Html(f'{value}<span class="what">{low} to {high}</span>')


def _describe_separation(rejection: Rejection) -> str:
    found = rejection.separation
    if found is None:
        return ""
    area, area_low, area_high = _write(found.auroc, 1, 4)
    alarms, alarms_low, alarms_high = _write(found.fpr_at_95_recall, 100, 2)
    return notes(
        f"All non-plants: AUROC {area} ({area_low} to {area_high}); plants rejected where 95 % of the non-plants are: "
        f"{alarms} ({alarms_low} to {alarms_high}) %. In brackets: 95 % intervals, by 1,000 bootstrap resamples."
    )


def _describe_flips(rejection: Rejection) -> str:
    parts = [
        f"{precision.upper()} decides {share.count:,} of {share.images:,} images otherwise"
        for precision, share in rejection.flips.items()
        if share.images
    ]
    if not parts:
        return ""
    return notes(
        f"The threshold belongs to INT8, which is served. {'; '.join(parts)}. FP32 is PyTorch, on those images of "
        "parity and as many non-plants."
    )


def _render_trials(evidence: Mapping[str, Any]) -> str:
    trials = evidence.get("trials")
    if not trials:
        reason = evidence.get("reason")
        return section("Detectors: what was tried", notes(f"None but the classic: {reason}.")) if reason else ""
    sources = list(trials[0]["by_source"])

    def share(value: float | None) -> str:
        return _percent(value, 1)

    def row(trial: Mapping[str, Any]) -> list[str | Html]:
        name = _NAMES.get(trial["method"], trial["method"])
        cells = [share(trial["by_source"].get(source)) for source in sources]
        new = trial["by_unseen_source"].values()
        return [
            name + (" *" if trial["exposed"] else ""),
            f"{trial['auroc']:.4f}",
            share(trial["fpr_at_95_recall"]),
            share(trial["recall"]),
            *cells,
            share(sum(new) / len(new) if new else None),
            share(trial["unseen_species"]),
        ]

    header = ("method", "AUROC", "FPR at 95 %", "all", *sources, "new source", "new species")
    served = [row(trial) for trial in trials if trial["served"]]
    others = [row(trial) for trial in trials if not trial["served"]]
    numbers = range(1, len(header))
    return section(
        "Detectors: what was tried",
        notes(
            "Five-fold cross-validation on training leaves and the selection half of the non-plants, INT8 embedding, "
            "before any image of this report was seen. Shares in %, of non-plants rejected where 1 % of leaves are. "
            "New source: the mean over sources, each by a fit without it. New species: of leaves, by a fit without "
            "their species. * fitted on non-plants as well (outlier exposure)."
        ),
        table(header, served, numbers=numbers),
        notes(f"A bundle can hold these. Chosen by the evidence: {evidence['reason']}."),
        fold("Methods of the literature, for comparison", table(header, others, numbers=numbers)),
    )
