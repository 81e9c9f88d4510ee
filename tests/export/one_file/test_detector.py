"""Every form of the detector as nodes of a graph, against the detector itself."""

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from plantmodels.bundle.detector import METHODS, OODDetector
from plantmodels.export.one_file.detector import add_detector
from plantmodels.export.onnx_builder import GraphBuilder

DIM, SPECIES, PLANTS = 100, 4, 60
RTOL = 2e-6
"""Of squared distances: float32 sums of a hundred terms, in another order."""


def make_matrix(rng: np.random.Generator, spread: float) -> np.ndarray:
    axes, _ = np.linalg.qr(rng.normal(size=(DIM, DIM)))
    matrix = axes * np.geomspace(1, spread, DIM) @ axes.T
    return (matrix + matrix.T) / 2


def make_detector(method: str, *, normalize: bool = False, spread: float = 10, plants: str = "species") -> OODDetector:
    rng = np.random.default_rng(7)
    further: dict[str, Any] = {}
    if method == "gaussian_ratio":
        further = {"other_mean": rng.normal(size=DIM), "other_inv_cov": make_matrix(rng, spread)}
    if plants != "none":
        further["plant_scores"] = np.sort(rng.normal(20, 5, PLANTS))
    if plants == "species":
        further["plant_species"] = rng.integers(0, SPECIES - 1, PLANTS)  # the last species has no plants
        further |= {"species_center": rng.normal(20, 2, SPECIES), "species_scale": rng.uniform(2, 6, SPECIES)}
    return OODDetector(
        method=method,
        mean=rng.normal(size=(1 if method == "mahalanobis" else 5, DIM)),
        inv_cov=make_matrix(rng, spread),
        threshold=25.0,
        normalize=normalize,
        **further,
    )


def run(detector: OODDetector, embedding: np.ndarray, species: np.ndarray) -> dict[str, np.ndarray]:
    graph = GraphBuilder(opset=20)
    add_detector(graph, detector)
    values = (("embedding", TensorProto.FLOAT, ["batch", DIM]), ("species_index", TensorProto.INT64, ["batch"]))
    names = {"ood_score": TensorProto.FLOAT, "rejected": TensorProto.BOOL, "ood_p_value": TensorProto.FLOAT}
    model = graph.build(
        "detector",
        [helper.make_tensor_value_info(*value) for value in values],
        [helper.make_tensor_value_info(name, kind, ["batch"]) for name, kind in names.items()],
    )
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(list(names), {"embedding": embedding, "species_index": species}), strict=True))


def check_answers(detector: OODDetector, found: dict[str, np.ndarray], rows: np.ndarray, species: np.ndarray) -> None:
    scores = detector.score(rows)
    moved = rows / np.linalg.norm(rows, axis=1, keepdims=True) if detector.normalize else rows
    moved = moved - detector.mean[0]
    squared = np.einsum("nd,dk,nk->n", moved, detector.inv_cov, moved)
    atol = RTOL * squared.max() if detector.method == "gaussian_ratio" else RTOL * np.sqrt(squared.max())
    np.testing.assert_allclose(found["ood_score"], scores, rtol=RTOL, atol=atol)
    np.testing.assert_array_equal(found["rejected"], detector.rejects(scores))
    expected = detector.p_values(scores, species)
    expected = np.full(len(rows), np.nan) if expected is None else expected
    np.testing.assert_allclose(found["ood_p_value"], expected, rtol=1e-6)


@pytest.mark.parametrize("plants", ["species", "all alike", "none"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_each_form_answers_as_the_detector_does(method: str, normalize: bool, plants: str) -> None:
    detector = make_detector(method, normalize=normalize, plants=plants)
    rng = np.random.default_rng(1)
    rows = (rng.normal(size=(40, DIM)) * rng.uniform(0.2, 2, (40, 1))).astype(np.float32)
    species = rng.integers(0, SPECIES, 40)
    found = run(detector, rows, species)

    check_answers(detector, found, rows, species)
    if not normalize:
        assert 0 < found["rejected"].sum() < 40, "both decisions occur"


def test_an_ill_conditioned_covariance_is_computed_in_float64() -> None:
    detector = make_detector("gaussian_ratio", spread=1e9)
    rows = np.random.default_rng(2).normal(size=(20, DIM)).astype(np.float32)
    species = np.zeros(20, np.int64)
    found = run(detector, rows, species)

    assert detector.quadratic_form.slopes.dtype == np.float64
    np.testing.assert_allclose(found["ood_score"], detector.score(rows), rtol=1e-6)


def test_a_row_does_not_depend_on_the_others() -> None:
    detector = make_detector("gaussian_ratio")
    rows = np.random.default_rng(3).normal(size=(9, DIM)).astype(np.float32)
    species = np.arange(9) % SPECIES
    together = run(detector, rows, species)
    alone = run(detector, rows[4:5], species[4:5])

    np.testing.assert_allclose(together["ood_score"][4:5], alone["ood_score"], rtol=RTOL)
    np.testing.assert_array_equal(together["ood_p_value"][4:5], alone["ood_p_value"])


@pytest.mark.parametrize("method", METHODS)
def test_what_is_no_number_is_rejected(method: str) -> None:
    rows = np.full((2, DIM), np.nan, np.float32)
    rows[1] = np.inf
    found = run(make_detector(method), rows, np.zeros(2, np.int64))

    assert np.isnan(found["ood_score"]).all() and found["rejected"].all()


def test_an_embedding_of_zeros_has_a_score_where_embeddings_are_normalized() -> None:
    detector = make_detector("class_mahalanobis", normalize=True)
    rows = np.zeros((1, DIM), np.float32)

    np.testing.assert_allclose(run(detector, rows, np.zeros(1, np.int64))["ood_score"], detector.score(rows), rtol=RTOL)
