"""The table of seeds shows the thresholds that an export with each seed would serve."""

import numpy as np
import pytest

from benchmarks.calibration import measure
from plantmodels.ood import select
from plantmodels.ood.select import select_detector

DIM, SPECIES, SEEDS = 6, 3, 2


@pytest.fixture(scope="module")
def embedded() -> dict[str, np.ndarray]:
    """Made-up embeddings of 300 training leaves, 240 validation leaves and 80 non-plants."""
    rng, means = np.random.default_rng(0), np.random.default_rng(1).normal(size=(SPECIES, DIM)) * 4
    found: dict[str, np.ndarray] = {"species": np.array(["Fig", "Mint", "Rose"])}
    for name, count in (("train", 300), ("val", 240), ("n", 80)):
        species = np.arange(count) % SPECIES
        away = 3.0 * (name == "n")
        found |= {
            f"{name}_f": (rng.normal(size=(count, DIM)) + means[species] + away).astype(np.float32),
            f"{name}_l": np.eye(SPECIES, dtype=np.float32)[species],
            f"{name}_p": np.array([f"{name}/{number}.jpg" for number in range(count)]),
            f"{name}_h": np.array([f"{name} {number}" for number in range(count)]),
        }
        if name != "n":
            found |= {f"{name}_s": species, f"{name}_d": np.zeros(count, np.int64)}
    return found | {"n_src": np.repeat("rocks", 80)}


def test_each_seed_has_the_threshold_that_an_export_with_it_serves(
    embedded: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(select, "BASELINES", {})  # they take longest and choose nothing
    header, rule, *rows = measure.tabulate_seeds(embedded, 0.4, SEEDS)
    ways = measure._list_ways(embedded, 0.4)
    others, half = measure._halve_non_plants(embedded)
    assert len(rows) == len(ways) == 3 and header.count("|") == rule.count("|")
    for row, (name, (fit, calibration, fresh)) in zip(rows, ways.items(), strict=True):
        plants, leaves = measure._leaves(embedded, "train", fit), measure._leaves(embedded, "val", fresh).outputs
        detectors = [
            select_detector(plants, half, calibration=calibration, seed=seed, learned=True).detector
            for seed in range(SEEDS)
        ]
        recalls = [100 * each.rejects(each.score(others.features)).mean() for each in detectors]
        alarms = [100 * each.rejects(each.score(leaves.features)).mean() for each in detectors]
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[:2] == [name, str(SEEDS)]
        assert cells[2] == f"{min(alarms):.2f} to {max(alarms):.2f} %"
        assert cells[3] == f"{min(recalls):.2f} to {max(recalls):.2f} %"
        assert cells[5] == f"{np.std([each.threshold for each in detectors], ddof=1):.2f}"
