"""Checks the parts of a file, and the probe, on small ones that are made here."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from benchmarks.students.file_bytes import count_bytes, file_bytes
from benchmarks.students.probe import STRENGTHS, measure_probes
from plantmodels.bundle.layout import SPECIES_FILES
from plantmodels.data.leaves import LeafSample


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_parts_of_a_file_add_up_to_its_size(tiny_bundle, precision: str):
    path = tiny_bundle.bundle / SPECIES_FILES[precision]
    parts = count_bytes(onnx.load(path))
    assert sum(parts.values()) == path.stat().st_size
    assert all(size >= 0 for size in parts.values())
    weights = parts["INT8 weights" if precision == "int8" else "FP16 weights"]
    assert weights > 0.3 * path.stat().st_size
    shown = CliRunner().invoke(file_bytes, [str(path)]).output
    assert f"| the file | {path.stat().st_size:,} | 100.0 |" in shown


def test_a_probe_learns_what_is_linear_in_the_embedding():
    rng = np.random.default_rng(0)

    def draw(count: int) -> tuple[tuple[LeafSample, ...], np.ndarray]:
        samples = tuple(LeafSample(Path(f"{i}.jpg"), i % 2, i % 4 // 2) for i in range(count))
        features = np.array([[s.species_index, s.disease_index] for s in samples]) + rng.normal(0, 0.1, (count, 2))
        return samples, features.astype(np.float32)

    found = list(measure_probes(draw(120), draw(60), Path(), 2))
    assert len(found) == 2
    assert all(strength in STRENGTHS and species > 0.95 and both > 0.95 for strength, species, both in found)
