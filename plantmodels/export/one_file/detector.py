"""Writes the out-of-distribution detector as nodes of an ONNX graph: score, rejection and p-value.

Every method that `bundle.detector` knows is written. What is small is computed in float64, as in Python. The quadratic
form is computed in the type that `bundle.quadratic_form` chose: float32 if the covariances are well conditioned.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from plantmodels.bundle.detector import OODDetector
from plantmodels.bundle.layout import (
    EMBEDDING,
    OOD_P_VALUE_OUTPUT,
    OOD_SCORE_OUTPUT,
    REJECTED_OUTPUT,
    SPECIES_INDEX_INPUT,
)
from plantmodels.export.onnx_builder import GraphBuilder

_SMALLEST_LENGTH: Final = 1e-12
"""An embedding is divided by its length or by this, whichever is larger, as in Python."""


def add_detector(graph: GraphBuilder, detector: OODDetector) -> None:
    """Add the nodes that compute score, rejection and p-value from the embedding and the species' index.

    Without plants to compare with, as in detectors of version 1, the p-value is NaN.

    Args:
        graph: the graph, which computes `embedding` (batch, D) and `species_index` (batch,).
        detector: the detector.
    """
    exact = _add_score(graph, detector)
    score = graph.add_node("Cast", exact, output=OOD_SCORE_OUTPUT, to=TensorProto.FLOAT)
    wide = graph.add_node("Cast", score, to=TensorProto.DOUBLE)  # so that the decision is about the score that is seen
    plant = graph.add_node("LessOrEqual", wide, _store_double(graph, detector.threshold))
    graph.add_node("Not", plant, output=REJECTED_OUTPUT)
    p_value = _add_p_value(graph, detector, exact) if len(detector.plant_scores) else _add_no_p_value(graph, exact)
    graph.add_node("Cast", p_value, output=OOD_P_VALUE_OUTPUT, to=TensorProto.FLOAT)


def _add_score(graph: GraphBuilder, detector: OODDetector) -> str:
    """Add the score, (batch,) float64."""
    rows = graph.add_node("Cast", EMBEDDING, to=TensorProto.DOUBLE)
    if detector.normalize:
        length = graph.add_node("ReduceL2", rows, graph.add_shape(1), keepdims=1)
        rows = graph.add_node("Div", rows, graph.add_node("Max", length, _store_double(graph, _SMALLEST_LENGTH)))
    form = detector.quadratic_form
    wanted = TensorProto.FLOAT if form.slopes.dtype == np.float32 else TensorProto.DOUBLE
    centred = graph.add_node("Sub", rows, graph.add_constant(detector.mean[0]))
    rows = graph.add_node("Cast", centred, to=wanted)
    products, start = [], 0
    for block in form.blocks:
        right = rows
        if start:
            places = (graph.add_shape(start), graph.add_shape(detector.embedding_dim), graph.add_shape(1))
            right = graph.add_node("Slice", rows, *places)
        products.append(graph.add_node("MatMul", right, graph.add_constant(block.T)))
        start += len(block)
    pulled = graph.add_node("Concat", *products, axis=1) if len(products) > 1 else products[0]
    squares = graph.add_node("Cast", graph.add_node("Mul", rows, pulled), to=TensorProto.DOUBLE)
    squared = graph.add_node("ReduceSum", squares, graph.add_shape(1), keepdims=0)
    slopes = graph.add_node("MatMul", rows, graph.add_constant(form.slopes.T))
    linear = graph.add_node(
        "Add", graph.add_node("Cast", slopes, to=TensorProto.DOUBLE), graph.add_constant(form.constants)
    )
    score = graph.add_node("Add", squared, graph.add_node("ReduceMin", linear, graph.add_shape(1), keepdims=0))
    if detector.method == "gaussian_ratio":
        return score
    return graph.add_node("Sqrt", graph.add_node("Max", score, _store_double(graph, 0.0)))


def _add_p_value(graph: GraphBuilder, detector: OODDetector, score: str) -> str:
    """Add the p-value by the formula of `OODDetector.p_values`, (batch,) float64."""
    plants, (own_counts, weights) = detector.comparable_scores, detector.tail_weights
    if len(detector.species_center):
        score = graph.add_node("Sub", score, _gather(graph, detector.species_center))
        score = graph.add_node("Div", score, _gather(graph, detector.species_scale))
    column = graph.add_node("Unsqueeze", score, graph.add_shape(1))
    reached = graph.add_node("GreaterOrEqual", graph.add_constant(plants[None]), column)
    if not len(detector.species_center):
        return _add_tail(graph, _count(graph, reached), _store_double(graph, 1.0 + len(plants)))
    species = graph.add_node("Unsqueeze", SPECIES_INDEX_INPUT, graph.add_shape(1))
    same = graph.add_node("Equal", graph.add_constant(detector.plant_species[None]), species)
    own = _count(graph, graph.add_node("And", reached, same))
    others = graph.add_node("Sub", _count(graph, reached), own)
    counted = graph.add_node("Add", own, graph.add_node("Mul", others, _gather(graph, weights)))
    return _add_tail(graph, counted, _gather(graph, 1 + own_counts + weights * (len(plants) - own_counts)))


def _add_tail(graph: GraphBuilder, counted: str, total: str) -> str:
    return graph.add_node("Div", graph.add_node("Add", counted, _store_double(graph, 1.0)), total)


def _add_no_p_value(graph: GraphBuilder, score: str) -> str:
    return graph.add_node("Mul", score, _store_double(graph, float("nan")))


def _count(graph: GraphBuilder, flags: str) -> str:
    """Count the true values of each row, (batch,) float64."""
    numbers = graph.add_node("Cast", flags, to=TensorProto.INT32)
    return graph.add_node(
        "Cast", graph.add_node("ReduceSum", numbers, graph.add_shape(1), keepdims=0), to=TensorProto.DOUBLE
    )


def _gather(graph: GraphBuilder, values: NDArray[np.float64]) -> str:
    """Look up a number of each row's species."""
    return graph.add_node("Gather", graph.add_constant(values), SPECIES_INDEX_INPUT, axis=0)


def _store_double(graph: GraphBuilder, value: float) -> str:
    return graph.add_constant(np.array(value, np.float64))
