"""Compares how much probability two bundles give the true classes, which their accuracy does not show.

>>> from plantmodels.report.per_image import read_image_rows
>>> rows = [row for row in read_image_rows(bundle / "gate-images.csv") if row.set == "val"]
>>> [measure.verdict for measure in compare_true_classes(tuple(zip(rows, rows)), "")]
['no difference beyond noise', 'no difference beyond noise']
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from plantmodels.compare.model import MeasurePair, Verdict
from plantmodels.report.calibration.scores import find_change
from plantmodels.report.per_image import ImageRow

_LossOf = Callable[[ImageRow], float | None]


def _read_species(row: ImageRow) -> float | None:
    return row.species_nll


def _read_both(row: ImageRow) -> float | None:
    return None if row.species_nll is None else row.species_nll + (row.disease_nll or 0.0)


_ASKED: Final[dict[str, _LossOf]] = {
    "NLL of the true species, INT8": _read_species,
    "NLL of the true species and disease, INT8": _read_both,
}
"""What is compared, to −log of the probability that a leaf's truth gets."""


def compare_true_classes(pairs: Sequence[tuple[ImageRow, ImageRow]] | None, why: str) -> Iterator[MeasurePair]:
    """Yield the mean negative log-likelihood of the true classes, as served; lower is better.

    Args:
        pairs: the rows of A and B for each leaf; None if the leaves cannot be paired.
        why: why they cannot.
    """
    for name, read in _ASKED.items():
        measure = MeasurePair(name, "score", None, None, "not comparable", why)
        losses = [(read(a), read(b)) for a, b in pairs or ()]
        known = np.array([(a, b) for a, b in losses if a is not None and b is not None]).reshape(-1, 2)
        change = find_change(known[:, 0], known[:, 1]) if len(known) == len(losses) else None
        if change is None:
            yield replace(measure, why=why or "not known of every leaf, or infinite")
            continue
        a, b = known.mean(axis=0).tolist()
        verdict: Verdict = "worse" if change.low > 0 else "better" if change.high < 0 else "no difference beyond noise"
        yield replace(measure, a=a, b=b, low=change.low, high=change.high, verdict=verdict, why="")
