"""Counts what the detector rejects from the image rows: plants, non-plants and plants of unknown species.

>>> from plantmodels.report.per_image import read_image_rows
>>> table = ImageTable.from_rows(read_image_rows(bundle / "gate-images.csv"))
>>> count_rejection(table, threshold=-1e9, held_out=True).plants
Proportion(count=45, images=45)
"""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np

from plantmodels.arrays import Mask
from plantmodels.report.evidence.columns import ImageTable, Names, Numbers
from plantmodels.report.evidence.separation import bin_scores, measure_separation, trace_roc
from plantmodels.report.results import Rejection, Round, Separation
from plantmodels.report.statistics import Proportion

_SCORES = "ood_score"


def count_rejection(
    table: ImageTable,
    *,
    threshold: float,
    held_out: bool,
    plants: Literal["val", "field"] = "val",
    round_thresholds: Sequence[float] = (),
) -> Rejection:
    """Return how many images of each set the threshold rejects, and how well the scores separate the sets.

    Args:
        table: all image rows.
        threshold: an image whose score exceeds this value is rejected; NaN is rejected, too.
        held_out: whether the non-plants are the half that was not used to choose the detector.
        plants: the set of leaves that are the plants. Those of the other set are not looked at.
        round_thresholds: the threshold that each round of cross-validation alone gives.
    """
    table = table.where(np.asarray(table.text("set") != ("field" if plants == "val" else "val"), np.bool_))
    leaves, others, unseen = (table.of_set(name) for name in (plants, "non-plants", "unseen-plants"))
    plants_rejected, others_rejected, unseen_rejected = (
        _reject(images, threshold) for images in (leaves, others, unseen)
    )
    scores = leaves.numbers(_SCORES)
    return Rejection(
        threshold=threshold,
        plants=_count(plants_rejected),
        non_plants=_count(others_rejected),
        unseen_plants=_count(unseen_rejected),
        held_out=held_out,
        by_source=_count_by_name(others.text("source"), others_rejected),
        by_unseen_source=_count_by_name(unseen.text("source"), unseen_rejected),
        by_species=_count_by_name(leaves.text("species"), plants_rejected),
        flips=_count_flips(table, threshold),
        separation=measure_separation(scores, others.numbers(_SCORES)),
        separation_by_source=_separate_by_source(scores, others),
        separation_by_unseen_source=_separate_by_source(scores, unseen),
        roc=trace_roc(scores, others.numbers(_SCORES)),
        rounds=tuple(
            Round(each, _count(_reject(leaves, each)), _count(_reject(others, each))) for each in round_thresholds
        ),
        histogram=bin_scores(scores, others.numbers(_SCORES), unseen.numbers(_SCORES)),
    )


def _reject(images: ImageTable, threshold: float, scores: str = _SCORES) -> Mask:
    return ~(images.numbers(scores) <= threshold)


def _count(hits: Mask) -> Proportion:
    return Proportion(int(hits.sum()), len(hits))


def _count_by_name(names: Names, hits: Mask) -> dict[str, Proportion]:
    images, rejected = Counter(names.tolist()), Counter(names[hits].tolist())
    return {name: Proportion(rejected[name], images[name]) for name in sorted(images)}


def _count_flips(table: ImageTable, threshold: float) -> dict[str, Proportion]:
    """Return how often FP16 and PyTorch decide differently from INT8; PyTorch where it was run."""
    by_int8 = _reject(table, threshold)
    flips = {"fp16": _count(_reject(table, threshold, "fp16_ood_score") != by_int8)}
    compared = np.asarray(table.text("pytorch_ood_score") != "", np.bool_)
    if compared.any():
        flips["fp32"] = _count((_reject(table, threshold, "pytorch_ood_score") != by_int8)[compared])
    return flips


def _separate_by_source(plants: Numbers, others: ImageTable) -> dict[str, Separation]:
    sources, scores = others.text("source"), others.numbers(_SCORES)
    found = {
        name: measure_separation(plants, scores[np.asarray(sources == name, np.bool_)])
        for name in sorted(set(sources.tolist()))
    }
    return {name: separation for name, separation in found.items() if separation is not None}
