"""Checks that the probabilities in the image rows can be those of one model.

>>> from plantmodels.bundle.metadata import read_metadata
>>> from plantmodels.report.per_image import read_image_rows
>>> table = ImageTable.from_rows(read_image_rows(bundle / "gate-images.csv"))
>>> check_probabilities(table, table.of_set("val"), read_metadata(bundle).taxonomy)
"""

from typing import Final

import numpy as np

from plantmodels.arrays import Mask
from plantmodels.bundle.layout import IMAGES_FILE
from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.report.evidence.columns import ImageTable
from plantmodels.report.per_image import NUMBER_COLUMNS

_TOLERANCE: Final = 1e-6
"""Largest difference of two numbers that say the same: processors round sums differently."""


def check_probabilities(table: ImageTable, leaves: ImageTable, taxonomy: Taxonomy) -> None:
    """Check range and presence of the probabilities, and that those of right answers agree with those of the truth.

    Args:
        table: all image rows.
        leaves: the rows of labelled leaves.
        taxonomy: the bundle's species and diseases.

    Raises:
        ValueError: names the column and the value.
    """
    for name in NUMBER_COLUMNS:
        values = table.numbers(name)
        if name.endswith("probability") and not np.all(np.isnan(values) | ((values >= 0) & (values <= 1))):
            raise ValueError(f"{IMAGES_FILE}: {name} must be from 0 to 1 in every row")
        if name.endswith("nll") and np.any(values < -1e-9):
            raise ValueError(f"{IMAGES_FILE}: {name} must not be negative in any row")
    several = {name for name, diseases in taxonomy.diseases.items() if len(diseases) > 1}
    asked = np.array([name in several for name in leaves.text("species")], np.bool_)
    everywhere = np.ones(len(leaves), np.bool_)
    for prefix in ("", "raw_", "fp16_"):
        _check_presence(leaves, f"{prefix}species_nll", everywhere)
        _check_presence(leaves, f"{prefix}disease_nll", asked)
    routed, soft = (np.asarray(leaves.text(f"int8_{way}_disease") != "", np.bool_) for way in ("routed", "soft"))
    right = np.asarray(leaves.text("int8_species") == leaves.text("species"), np.bool_)
    both = right & asked & np.asarray(leaves.text("int8_routed_disease") == leaves.text("disease"), np.bool_)
    for prefix in ("", "raw_"):
        given = f"{prefix}disease_given_species_probability"
        _check_presence(leaves, f"{prefix}species_probability", everywhere)
        _check_presence(leaves, given, routed)
        _check_presence(leaves, f"{prefix}soft_disease_probability", soft)
        _check_presence(leaves, f"{prefix}soft_disease_given_species_probability", soft)
        _check_agreement(leaves, f"{prefix}species_probability", f"{prefix}species_nll", right)
        _check_agreement(leaves, given, f"{prefix}disease_nll", both)


def _check_presence(leaves: ImageTable, column: str, expected: Mask) -> None:
    """Check that a column has a number in exactly these rows."""
    found = ~np.isnan(leaves.numbers(column))
    wrong = np.flatnonzero(found != expected)
    if len(wrong):
        name, what = leaves.text("name")[wrong[0]], "a number" if expected[wrong[0]] else "empty"
        raise ValueError(f"{IMAGES_FILE}: {column} must be {what} for {name!r:.80}")


def _check_agreement(leaves: ImageTable, answer: str, truth: str, right: Mask) -> None:
    """Check that where the answer is right, its probability is that of the truth."""
    probabilities, losses = leaves.numbers(answer)[right], leaves.numbers(truth)[right]
    wrong = np.flatnonzero(~(np.abs(np.exp(-losses) - probabilities) <= _TOLERANCE))
    if len(wrong):
        raise ValueError(
            f"{IMAGES_FILE}: {answer} is {probabilities[wrong[0]]:g} where the answer is right and {truth} is "
            f"{losses[wrong[0]]:g}, which makes it {np.exp(-losses[wrong[0]]):g}"
        )
