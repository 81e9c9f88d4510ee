"""What the report's sections on out-of-distribution rejection show: sources, decisions and detectors that were tried.

>>> from plantmodels.report.gate_report import read_report
>>> view = prepare_rejection(read_report(bundle).rejection, {"reason": "there were no non-plants", "trials": []})
>>> view.reason
'there were no non-plants'
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from plantmodels.report.formatting import MISSING, format_number
from plantmodels.report.results import Rejection, Separation
from plantmodels.report.statistics import Proportion

_METHOD_NAMES: Final = {
    "mahalanobis": "Mahalanobis, one Gaussian (classic)",
    "class_mahalanobis": "Mahalanobis, class means, tied covariance",
    "gaussian_ratio": "ratio of two Gaussians",
    "normalized_mahalanobis": "Mahalanobis++, L2-normalized",
    "relative_mahalanobis": "relative Mahalanobis",
    "energy": "energy",
    "gen": "GEN, generalized entropy",
    "knn": "KNN, 50th neighbour",
    "vim": "ViM, virtual-logit matching",
    "logistic": "logistic regression",
    "rbf_svm": "support vectors, RBF kernel",
}


@dataclass(frozen=True)
class SourceRow:
    """A folder of images without known plants.

    Attributes:
        name: name of the folder.
        is_unseen: whether it holds plants of unknown species instead of non-plants.
        rejected: rejected images, of all in the folder.
        precision: precision at equal numbers of plants and these images; None where it is not defined.
        separation: how well the scores separate these images from plants; None where it was not measured.
    """

    name: str
    is_unseen: bool
    rejected: Proportion
    precision: float | None
    separation: Separation | None


@dataclass(frozen=True)
class TrialRow:
    """A detector that was tried.

    Attributes:
        name: name of the method, with an asterisk when it was fitted on non-plants as well.
        cells: its results as text, one for each of `RejectionView.trial_columns`.
    """

    name: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class RejectionView:
    """Values for the template `rejection.html.j2`.

    Attributes:
        sources: the folders of non-plants, then the folders of plants of unknown species.
        by_species: species to its rejected plants, the highest share first.
        flips: precision to the images that it decides differently from INT8, where any were compared.
        trial_columns: headings of the cells of `served` and `others`.
        served: detectors that a bundle can hold.
        others: methods from the literature that were tried for comparison.
        reason: why the detector was chosen; "" when it is not known.
    """

    sources: tuple[SourceRow, ...]
    by_species: Mapping[str, Proportion]
    flips: Mapping[str, Proportion]
    trial_columns: tuple[str, ...]
    served: tuple[TrialRow, ...]
    others: tuple[TrialRow, ...]
    reason: str


def prepare_rejection(rejection: Rejection, selection: Mapping[str, Any]) -> RejectionView:
    """Return what the sections on rejection show.

    Args:
        rejection: what was measured.
        selection: how the detector was chosen, from the provenance in the metadata; may be empty.
    """
    trials = selection.get("trials") or ()
    sources = tuple(trials[0]["by_source"]) if trials else ()
    return RejectionView(
        sources=_list_sources(rejection),
        by_species=dict(sorted(rejection.by_species.items(), key=lambda item: -(item[1].value or 0.0))),
        flips={precision: flipped for precision, flipped in rejection.flips.items() if flipped.images},
        trial_columns=("AUROC", "FPR at 95 % recall", "all sources", *sources, "new source", "new species"),
        served=tuple(_describe_trial(trial, sources) for trial in trials if trial["served"]),
        others=tuple(_describe_trial(trial, sources) for trial in trials if not trial["served"]),
        reason=str(selection.get("reason") or ""),
    )


def _list_sources(rejection: Rejection) -> tuple[SourceRow, ...]:
    non_plants = [
        SourceRow(name, False, rejected, rejection.precision_of(rejected), rejection.separation_by_source.get(name))
        for name, rejected in rejection.by_source.items()
    ]
    unseen = [
        SourceRow(name, True, rejected, None, rejection.separation_by_unseen_source.get(name))
        for name, rejected in rejection.by_unseen_source.items()
    ]
    return (*non_plants, *unseen)


def _describe_trial(trial: Mapping[str, Any], sources: tuple[str, ...]) -> TrialRow:
    name = _METHOD_NAMES.get(trial["method"], trial["method"]) + (" *" if trial["exposed"] else "")
    new_sources = trial["by_unseen_source"].values()
    percentages = (
        trial["fpr_at_95_recall"],
        trial["recall"],
        *(trial["by_source"].get(source) for source in sources),
        sum(new_sources) / len(new_sources) if new_sources else None,
        trial["unseen_species"],
    )
    return TrialRow(name, (format_number(trial["auroc"], 4), *map(_format_percentage, percentages)))


def _format_percentage(value: float | None) -> str:
    """Return a proportion in percent without the sign, which would not fit into the many columns."""
    return MISSING if value is None else format_number(100 * value, 1)
