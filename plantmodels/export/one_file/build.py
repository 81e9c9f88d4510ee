"""Builds the one file: species model, disease heads, routing, temperatures and detector in one ONNX graph.

The graph holds the nodes of the bundle's species model and of its packed heads unchanged, so that it computes the same
numbers. An INT8 model runs image by image. Class names, preprocessing and threshold are properties of the model, in
JSON.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper

from plantmodels.bundle.detector import OODDetector, read_detector
from plantmodels.bundle.layout import (
    DETECTOR_FILE,
    DISEASE_GIVEN_SPECIES_OUTPUT,
    DISEASE_INDEX_OUTPUT,
    DISEASE_OUTPUT,
    DISEASE_PROBABILITY_OUTPUT,
    EMBEDDING,
    IMAGE_INPUT,
    ONE_FILES,
    OOD_P_VALUE_OUTPUT,
    OOD_SCORE_OUTPUT,
    PACKED_HEADS_FILE,
    REJECTED_OUTPUT,
    SPECIES_FILES,
    SPECIES_INDEX_INPUT,
    SPECIES_OUTPUT,
    SPECIES_PROBABILITY_OUTPUT,
    Precision,
)
from plantmodels.bundle.metadata import Metadata
from plantmodels.export.one_file.detector import add_detector
from plantmodels.export.one_file.image_by_image import scan_images
from plantmodels.export.onnx_builder import GraphBuilder, read_interface
from plantmodels.serve.prediction import PREDICTION_CONTRACT

_PREFIX: Final = "answer."
"""Begins the names of the nodes that are added to the species model."""

_OUTPUT_TYPES: Final[Mapping[str, int]] = {
    SPECIES_OUTPUT: TensorProto.FLOAT,
    EMBEDDING: TensorProto.FLOAT,
    SPECIES_INDEX_INPUT: TensorProto.INT64,
    SPECIES_PROBABILITY_OUTPUT: TensorProto.FLOAT,
    DISEASE_OUTPUT: TensorProto.FLOAT,
    DISEASE_INDEX_OUTPUT: TensorProto.INT64,
    DISEASE_PROBABILITY_OUTPUT: TensorProto.FLOAT,
    DISEASE_GIVEN_SPECIES_OUTPUT: TensorProto.FLOAT,
    OOD_SCORE_OUTPUT: TensorProto.FLOAT,
    OOD_P_VALUE_OUTPUT: TensorProto.FLOAT,
    REJECTED_OUTPUT: TensorProto.BOOL,
}
"""The outputs, in the order of the file."""


def write_one_files(folder: Path, metadata: Metadata, precisions: Sequence[Precision]) -> Metadata:
    """Write the one file of each precision from the other files of a bundle, and return metadata that describe them.

    Args:
        folder: the bundle, with species models, packed heads and detector.
        metadata: the bundle's metadata, with its temperatures.
        precisions: the species models that the files hold.
    """
    heads, detector = onnx.load(folder / PACKED_HEADS_FILE), read_detector(folder / DETECTOR_FILE)
    described: dict[str, Mapping[str, Any]] = {}
    for precision in precisions:
        source, name = SPECIES_FILES[precision], ONE_FILES[precision]
        rows = metadata.rows_per_run(precision)
        model = build_one_file(onnx.load(folder / source), heads, detector, metadata, rows_per_run=rows)
        onnx.save(model, folder / name)
        recipe = {"method": "joined", "parts": [source, PACKED_HEADS_FILE, DETECTOR_FILE], "image_by_image": rows == 1}
        described[name] = {
            **read_interface(folder / name),
            "precision": precision,
            "rows_per_run": None,
            "recipe": recipe,
        }
    return replace(metadata, models={**metadata.models, **described})


def build_one_file(
    species: onnx.ModelProto,
    heads: onnx.ModelProto,
    detector: OODDetector,
    metadata: Metadata,
    *,
    rows_per_run: int | None,
) -> onnx.ModelProto:
    """Return one graph that answers as the three parts of a bundle do.

    Args:
        species: the species model.
        heads: the packed heads.
        detector: the detector.
        metadata: the bundle's metadata.
        rows_per_run: the largest number of images in one run of the species model; None for any number. For 1, the
            graph runs once for each image.

    Returns:
        `input` (batch, 3, side, side) → the outputs of contract 3, for any batch.
    """
    model = onnx.ModelProto()
    model.CopyFrom(species)
    model.graph.name = "plant_classifier"
    opset = next(entry.version for entry in model.opset_import if not entry.domain)
    graph = GraphBuilder(opset=opset, prefix=_PREFIX)
    graph.add_node("ArgMax", SPECIES_OUTPUT, output=SPECIES_INDEX_INPUT, axis=1, keepdims=0)
    graph.extend(model.graph)
    renamed = onnx.compose.add_prefix(heads, "heads.", rename_inputs=False, rename_outputs=False)
    model.graph.node.extend(renamed.graph.node)
    model.graph.initializer.extend(renamed.graph.initializer)
    rest = GraphBuilder(opset=opset, prefix=f"{_PREFIX}rest.")
    _add_probabilities(rest, metadata)
    add_detector(rest, detector)
    rest.extend(model.graph)
    _set_interface(model.graph, metadata)
    helper.set_model_props(model, _describe(detector, metadata))
    return model if rows_per_run is None else scan_images(model)


def _add_probabilities(graph: GraphBuilder, metadata: Metadata) -> None:
    """Add the probabilities of hard routing (contract 4), and the disease's index.

    A species without diseases has the disease −1, and NaN as probability.
    """
    species = _add_top_probability(graph, SPECIES_OUTPUT, metadata.species_temperature, SPECIES_PROBABILITY_OUTPUT)
    given = _add_top_probability(graph, DISEASE_OUTPUT, metadata.disease_temperature, DISEASE_GIVEN_SPECIES_OUTPUT)
    graph.add_node("Mul", species, given, output=DISEASE_PROBABILITY_OUTPUT)
    best = graph.add_node("ArgMax", DISEASE_OUTPUT, axis=1, keepdims=0)
    counts = [len(metadata.taxonomy.diseases_of(i)) for i in range(len(metadata.taxonomy.species))]
    has_head = graph.add_constant(np.array(counts, np.int64) > 0)
    known = graph.add_node("Gather", has_head, SPECIES_INDEX_INPUT, axis=0)
    none = graph.add_constant(np.array(-1, np.int64))
    graph.add_node("Where", known, best, none, output=DISEASE_INDEX_OUTPUT)


def _add_top_probability(graph: GraphBuilder, logits: str, temperature: float, output: str) -> str:
    """Add the largest probability of softmax(logits / temperature): 1 / Σ exp((logits − largest) / temperature)."""
    largest = graph.add_node("ReduceMax", logits, graph.add_shape(1), keepdims=1)
    below = graph.add_node("Sub", logits, largest)
    scaled = graph.add_node("Div", below, graph.add_constant(np.array(temperature, np.float32)))
    total = graph.add_node("ReduceSum", graph.add_node("Exp", scaled), graph.add_shape(1), keepdims=0)
    return graph.add_node("Reciprocal", total, output=output)


def _set_interface(graph: onnx.GraphProto, metadata: Metadata) -> None:
    """Declare the input and all outputs with their shapes."""
    batch, side = "batch", metadata.preprocessing.image_size
    widths = {
        SPECIES_OUTPUT: len(metadata.taxonomy.species),
        EMBEDDING: metadata.embedding_dim,
        DISEASE_OUTPUT: max(1, metadata.taxonomy.max_diseases),
    }
    del graph.input[:], graph.output[:], graph.value_info[:]
    graph.input.append(helper.make_tensor_value_info(IMAGE_INPUT, TensorProto.FLOAT, [batch, 3, side, side]))
    for name, kind in _OUTPUT_TYPES.items():
        shape: list[str | int | None] = [batch, widths[name]] if name in widths else [batch]
        graph.output.append(helper.make_tensor_value_info(name, kind, shape))


def _describe(detector: OODDetector, metadata: Metadata) -> dict[str, str]:
    """Return the properties of the model: what a runtime without the bundle needs to name the answers."""
    taxonomy = metadata.taxonomy
    values = {
        "species": list(taxonomy.species),
        "diseases": [list(taxonomy.diseases_of(i)) for i in range(len(taxonomy.species))],
        "class_order_digest": taxonomy.digest,
        "preprocessing": asdict(metadata.preprocessing),
        "threshold": detector.threshold,
        "species_temperature": metadata.species_temperature,
        "disease_temperature": metadata.disease_temperature,
        "prediction_contract": PREDICTION_CONTRACT,
    }
    return {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}
