"""Builds the disease heads as ONNX graphs without tracing: 320 heads take milliseconds.

A head computes `embedding · W + b`. Its INT8 form stores W as int8 with one symmetric scale per class, and computes in
float32. With quantized activations, the output for an image would depend on the other images of its batch.

>>> head = quantize_head(np.ones((3, 4), np.float32), np.zeros(3, np.float32))
>>> [value.name for value in build_int8_head(head).graph.output]
['disease_logits']
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from plantmodels.arrays import Weights
from plantmodels.bundle.layout import (
    DISEASE_OUTPUT,
    EMBEDDING,
    HEADS_FOLDER,
    PACKED_HEADS_FILE,
    SPECIES_INDEX_INPUT,
    head_file,
)
from plantmodels.checkpoint.reading import Checkpoint
from plantmodels.export.onnx_builder import IR_VERSION
from plantmodels.export.quantize import quantize_weight

OPSET: Final = 20
_BATCH: Final = "batch"


@dataclass(frozen=True)
class Int8Head:
    """A quantized head with N classes.

    Attributes:
        weight: (D, N) int8 weights.
        scale: (N,) scale of each class; the float weights are `weight * scale`.
        bias: (N,) bias of each class.
    """

    weight: NDArray[np.int8]
    scale: Weights
    bias: Weights


def write_heads(folder: Path, checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    """Quantize every disease head, and write them into single files and into the packed file.

    Args:
        folder: folder of the bundle; it must not hold heads yet.
        checkpoint: checkpoint with the heads.

    Returns:
        The metadata entry of each file by its name, without its interface.
    """
    taxonomy = checkpoint.spec.taxonomy
    heads = {i: quantize_head(weight.numpy(), bias.numpy()) for i, (weight, bias) in checkpoint.disease_heads.items()}
    (folder / HEADS_FOLDER).mkdir()
    for index, head in heads.items():
        onnx.save(build_int8_head(head), folder / head_file(taxonomy.slugs[index]))
    packed = build_packed_heads(heads, species=len(taxonomy.species), dim=checkpoint.spec.embedding_dim)
    onnx.save(packed, folder / PACKED_HEADS_FILE)
    recipe = {"method": "weight only", "weights": "int8", "per_channel": True}
    names = [PACKED_HEADS_FILE, *(head_file(taxonomy.slugs[index]) for index in heads)]
    return {name: {"precision": "int8", "rows_per_run": None, "recipe": recipe} for name in names}


def quantize_head(weight: Weights, bias: Weights) -> Int8Head:
    """Round the weights of a linear layer to int8, with one symmetric scale per class.

    Args:
        weight: (N, D) float32, as PyTorch stores it.
        bias: (N,) float32.
    """
    rounded, scale = quantize_weight(weight.T)
    return Int8Head(np.ascontiguousarray(rounded), scale, bias.astype(np.float32))


def build_float_head(weight: Weights, bias: Weights) -> onnx.ModelProto:
    """Return a head with float32 weights, which the parity gate compares with PyTorch.

    Args:
        weight: (N, D) float32.
        bias: (N,) float32.
    """
    constants: dict[str, NDArray[Any]] = {"weight": np.ascontiguousarray(weight.T), "bias": bias}
    nodes = [helper.make_node("Gemm", [EMBEDDING, "weight", "bias"], [DISEASE_OUTPUT])]
    return _build_model("disease_head", nodes, constants, dim=weight.shape[1], classes=len(bias))


def build_int8_head(head: Int8Head) -> onnx.ModelProto:
    """Return the graph of one species' head: `embedding` (batch, D) → `disease_logits` (batch, N).

    It computes the same as the packed graph. A DequantizeLinear before the product would too, but ONNX Runtime turns
    that into MatMulNBits, which also quantizes the embedding and moves logits by 0.1.
    """
    constants: dict[str, NDArray[Any]] = {"weight": head.weight, "scale": head.scale, "bias": head.bias}
    nodes = [
        helper.make_node("Cast", ["weight"], ["float_weight"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", [EMBEDDING, "float_weight"], ["product"]),
        helper.make_node("Mul", ["product", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "bias"], [DISEASE_OUTPUT]),
    ]
    return _build_model("disease_head", nodes, constants, dim=len(head.weight), classes=len(head.bias))


def build_packed_heads(heads: Mapping[int, Int8Head], *, species: int, dim: int) -> onnx.ModelProto:
    """Return a graph with all heads, which applies to each row the head of its `species_index`.

    Its logits are −inf for classes that a species lacks, and for all classes of a species without a head.

    Args:
        heads: index of each species with a head, and its head.
        species: S, the number of species.
        dim: D, the length of the embedding.

    Returns:
        `embedding` (batch, D), `species_index` (batch,) int64 → `disease_logits` (batch, max N).
    """
    classes = max((len(head.bias) for head in heads.values()), default=1)
    weight = np.zeros((species, dim, classes), np.int8)
    scale = np.ones((species, classes), np.float32)
    bias = np.full((species, classes), -np.inf, np.float32)
    for index, head in heads.items():
        count = len(head.bias)
        weight[index, :, :count], scale[index, :count], bias[index, :count] = head.weight, head.scale, head.bias
    constants: dict[str, NDArray[Any]] = {
        "weight": weight,
        "scale": scale,
        "bias": bias,
        "row_axis": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["weight", SPECIES_INDEX_INPUT], ["row_weight"], axis=0),
        helper.make_node("Cast", ["row_weight"], ["row_float_weight"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", [EMBEDDING, "row_axis"], ["row"]),
        helper.make_node("MatMul", ["row", "row_float_weight"], ["row_product"]),
        helper.make_node("Squeeze", ["row_product", "row_axis"], ["product"]),
        helper.make_node("Gather", ["scale", SPECIES_INDEX_INPUT], ["row_scale"], axis=0),
        helper.make_node("Mul", ["product", "row_scale"], ["scaled"]),
        helper.make_node("Gather", ["bias", SPECIES_INDEX_INPUT], ["row_bias"], axis=0),
        helper.make_node("Add", ["scaled", "row_bias"], [DISEASE_OUTPUT]),
    ]
    index_input = helper.make_tensor_value_info(SPECIES_INDEX_INPUT, TensorProto.INT64, [_BATCH])
    return _build_model("disease_heads", nodes, constants, dim=dim, classes=classes, further_inputs=[index_input])


def _build_model(
    name: str,
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, NDArray[Any]],
    *,
    dim: int,
    classes: int,
    further_inputs: Sequence[onnx.ValueInfoProto] = (),
) -> onnx.ModelProto:
    embedding = helper.make_tensor_value_info(EMBEDDING, TensorProto.FLOAT, [_BATCH, dim])
    logits = helper.make_tensor_value_info(DISEASE_OUTPUT, TensorProto.FLOAT, [_BATCH, classes])
    tensors = [numpy_helper.from_array(values, key) for key, values in constants.items()]
    graph = helper.make_graph(nodes, name, [embedding, *further_inputs], [logits], tensors)
    opset = helper.make_opsetid("", OPSET)
    return helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="plantmodels")
