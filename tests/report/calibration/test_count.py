"""Which leaves each served probability is judged on, and against what, in a slow loop over image rows."""

import math

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, log_loss

from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.report.calibration.count import count_probabilities
from plantmodels.report.calibration.results import SERVED
from plantmodels.report.evidence.columns import ImageTable
from plantmodels.report.per_image import ImageRow

TAXONOMY = Taxonomy(("Apple", "Fern", "Plum"), {"Apple": ("rust", "scab"), "Plum": ("healthy",)})
CLASSES = [("Apple", "rust"), ("Apple", "scab"), ("Fern", ""), ("Plum", "healthy")]


def make_row(number: int, rng: np.random.Generator) -> ImageRow:
    (species, disease), (named, routed) = (CLASSES[rng.integers(4)] for _ in range(2))
    soft = str(rng.choice(["rust", "scab", "healthy"]))
    p, given, mixed, soft_given, *raw = rng.random(8).tolist()
    several = species == "Apple"
    return ImageRow(
        *("val", f"{species}___{disease}", f"{number}.jpg", species, disease),
        *(species, disease, named, disease, routed, soft, p, 1.0, False),
        species_nll=rng.exponential(),
        disease_given_species_probability=given if routed else None,
        disease_nll=rng.exponential() if several else None,
        raw_species_probability=raw[0],
        raw_species_nll=rng.exponential(),
        raw_disease_given_species_probability=raw[1] if routed else None,
        raw_disease_nll=rng.exponential() if several else None,
        soft_disease_probability=mixed,
        soft_disease_given_species_probability=soft_given,
        raw_soft_disease_probability=raw[2],
        raw_soft_disease_given_species_probability=raw[3],
        fp16_species_nll=rng.exponential(),
        fp16_disease_nll=rng.exponential() if several else None,
    )


def judge_slowly(row: ImageRow, name: str, raw: str = "") -> tuple[float, bool] | None:
    """Return the served number and whether the answer is right; None where the leaf does not count."""
    read = {
        column: getattr(row, f"{raw}{column}")
        for column in (
            "species_probability",
            "disease_given_species_probability",
            "soft_disease_probability",
            "soft_disease_given_species_probability",
        )
    }
    species = row.int8_species == row.species
    hard, soft = (answer == row.disease != "" for answer in (row.int8_routed_disease, row.int8_soft_disease))
    asked = species and row.species == "Apple"
    if name == "species":
        return read["species_probability"], species
    if name == "disease" and row.int8_routed_disease:
        return read["species_probability"] * read["disease_given_species_probability"], species and hard
    if name == "soft_disease":
        return read["soft_disease_probability"], soft
    if name == "disease_given_species" and asked:
        return read["disease_given_species_probability"], hard
    return (read["soft_disease_given_species_probability"], soft) if name.startswith("soft_") and asked else None


@pytest.fixture(scope="module")
def rows() -> list[ImageRow]:
    rng = np.random.default_rng(3)
    return [make_row(number, rng) for number in range(300)]


def test_every_served_number_is_judged_on_its_leaves(rows: list[ImageRow]) -> None:
    leaves = ImageTable.from_rows(rows)
    several = np.array([row.species == "Apple" for row in rows])
    found = count_probabilities(leaves, several, species_temperature=0.7, disease_temperature=1.3)
    assert (found.species_temperature, found.disease_temperature) == (0.7, 1.3)
    assert list(found.served) == list(SERVED)
    for name, calibration in found.served.items():
        for raw, reliability in (("", calibration.after), ("raw_", calibration.before)):
            judged = [pair for row in rows if (pair := judge_slowly(row, name, raw)) is not None]
            chances, right = (np.array(part) for part in zip(*judged, strict=True))
            assert reliability.images == len(judged) and reliability.right.count == right.sum()
            assert reliability.brier == pytest.approx(brier_score_loss(right, chances))
            assert reliability.log_loss == pytest.approx(log_loss(right, chances))
        assert calibration.brier_change is not None and calibration.log_loss_change is not None
        assert calibration.after.brier is not None and calibration.before.brier is not None
        assert calibration.brier_change.value == pytest.approx(calibration.after.brier - calibration.before.brier)


def test_the_truth_is_species_and_disease(rows: list[ImageRow]) -> None:
    several = np.array([row.species == "Apple" for row in rows])
    found = count_probabilities(ImageTable.from_rows(rows), several, species_temperature=1.0, disease_temperature=1.0)
    both = [(row.species_nll or 0) + (row.disease_nll or 0) for row in rows]
    fp16 = [(row.fp16_species_nll or 0) + (row.fp16_disease_nll or 0) for row in rows]
    assert found.true_both.after == pytest.approx(np.mean(both))
    assert found.true_both.fp16 == pytest.approx(np.mean(fp16))
    assert found.true_both.int8_change is not None
    assert found.true_both.int8_change.value == pytest.approx(np.mean(both) - np.mean(fp16))
    assert found.true_species.before == pytest.approx(np.mean([row.raw_species_nll or math.nan for row in rows]))


def test_no_leaves_have_no_calibration() -> None:
    found = count_probabilities(
        ImageTable.from_rows([]), np.empty(0, bool), species_temperature=1.0, disease_temperature=1.0
    )
    assert {(c.after.images, c.after.ece, c.noise, c.brier_change) for c in found.served.values()} == {
        (0, None, None, None)
    }
    assert (found.true_both.after, found.true_both.int8_change) == (None, None)
