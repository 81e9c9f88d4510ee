"""Counts from the image rows how far every served probability can be trusted.

>>> from plantmodels.report.evidence.columns import ImageTable
>>> from plantmodels.report.per_image import read_image_rows
>>> leaves = ImageTable.from_rows(read_image_rows(bundle / "gate-images.csv")).of_set("val")
>>> counted = count_probabilities(leaves, np.ones(len(leaves), bool), species_temperature=0.8, disease_temperature=1.1)
>>> counted.served["species"].after.right
Proportion(count=45, images=45)
"""

import numpy as np

from plantmodels.arrays import Mask
from plantmodels.bundle.serialization import replace_non_finite
from plantmodels.report.calibration.results import Calibration, Probabilities, TrueClass
from plantmodels.report.calibration.scores import (
    Numbers,
    find_change,
    find_reliability,
    score_brier,
    score_log_loss,
    simulate_noise,
)
from plantmodels.report.evidence.columns import ImageTable


def count_probabilities(
    leaves: ImageTable, several: Mask, *, species_temperature: float, disease_temperature: float
) -> Probabilities:
    """Return the calibration of each number of `SERVED`, and the NLL of the true classes.

    Args:
        leaves: rows of N labelled leaves.
        several: (N,) whether the true species has several diseases.
        species_temperature: the bundle's temperature of P(species).
        disease_temperature: the bundle's temperature of P(disease given species).
    """
    disease = leaves.text("disease")
    right_species = _are(leaves.text("int8_species") == leaves.text("species"))
    named = {way: leaves.text(f"int8_{way}_disease") for way in ("routed", "soft")}
    right = {way: _are(names == disease) & _are(disease != "") for way, names in named.items()}
    asked = right_species & several
    hard = {
        prefix: leaves.numbers(f"{prefix}species_probability")
        * leaves.numbers(f"{prefix}disease_given_species_probability")
        for prefix in ("raw_", "")
    }
    return Probabilities(
        species_temperature,
        disease_temperature,
        served={
            "species": _calibrate(_read(leaves, "species_probability"), right_species),
            "disease": _calibrate((hard["raw_"], hard[""]), right_species & right["routed"]),
            "disease_given_species": _calibrate(
                _read(leaves, "disease_given_species_probability"), right["routed"], asked
            ),
            "soft_disease": _calibrate(_read(leaves, "soft_disease_probability"), right["soft"]),
            "soft_disease_given_species": _calibrate(
                _read(leaves, "soft_disease_given_species_probability"), right["soft"], asked
            ),
        },
        true_species=_summarize(*_list_losses(leaves, "species")),
        true_both=_summarize(
            *(
                species + np.where(np.isnan(given), 0.0, given)
                for species, given in zip(_list_losses(leaves, "species"), _list_losses(leaves, "disease"), strict=True)
            )
        ),
    )


def _are(comparison: object) -> Mask:
    return np.asarray(comparison, np.bool_)


def _read(leaves: ImageTable, column: str) -> tuple[Numbers, Numbers]:
    """Return a column at temperature 1 and as served."""
    return leaves.numbers(f"raw_{column}"), leaves.numbers(column)


def _calibrate(probabilities: tuple[Numbers, Numbers], right: Mask, asked: Mask | None = None) -> Calibration:
    """Return the calibration of one number on the leaves that have it.

    Args:
        probabilities: (N,) at temperature 1 and (N,) as served; NaN where the number is null.
        right: (N,) whether the answer is right.
        asked: (N,) which leaves count; None for all.
    """
    chosen = ~np.isnan(probabilities[1]) if asked is None else asked & ~np.isnan(probabilities[1])
    before, after = (part[chosen] for part in probabilities)
    hits = right[chosen]
    return Calibration(
        find_reliability(before, hits),
        find_reliability(after, hits),
        simulate_noise(after),
        find_change(score_brier(before, hits), score_brier(after, hits)),
        find_change(score_log_loss(before, hits), score_log_loss(after, hits)),
    )


def _list_losses(leaves: ImageTable, what: str) -> tuple[Numbers, Numbers, Numbers]:
    """Return −log of the true class's probability: at temperature 1, as served, and in FP16."""
    before, after, fp16 = (leaves.numbers(f"{prefix}{what}_nll") for prefix in ("raw_", "", "fp16_"))
    return before, after, fp16


def _summarize(before: Numbers, after: Numbers, fp16: Numbers) -> TrueClass:
    means = [replace_non_finite(float(part.mean())) if len(part) else None for part in (before, after, fp16)]
    return TrueClass(means[0], means[1], means[2], find_change(before, after), find_change(fp16, after))
