"""Disease heads as ONNX graphs, built directly: 320 of them take milliseconds, not 320 traced exports.

A head is `embedding · W + b`. Its INT8 form stores W as int8 with one scale a class (symmetric, so zero stays
zero) and computes in float32: an answer never depends on the other rows of a batch, as it would with
activations quantized over the batch.

>>> head = quantize_head(weight, bias)             # (N, D), (N,)  # doctest: +SKIP
>>> onnx.save(int8_head_model(head), "head.onnx")  # doctest: +SKIP
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from plantmodels.bundle.layout import DISEASE_OUTPUT, EMBEDDING, SPECIES_INDEX_INPUT
from plantmodels.export.quantize import quantize_weight

OPSET: Final = 20
IR_VERSION: Final = 10
_BATCH: Final = "batch"


@dataclass(frozen=True)
class Int8Head:
    """One quantized head.

    Attributes:
        weight: (D, N) int8.
        scale: (N,) float32; the float weight is `weight * scale`.
        bias: (N,) float32.
    """

    weight: NDArray[np.int8]
    scale: NDArray[np.float32]
    bias: NDArray[np.float32]


def quantize_head(weight: NDArray[np.float32], bias: NDArray[np.float32]) -> Int8Head:
    """Rounds a linear layer's weights to int8, one symmetric scale a class.

    Args:
        weight: (N, D) float32, as PyTorch stores it.
        bias: (N,) float32.
    """
    rounded, scale = quantize_weight(weight.T)
    return Int8Head(np.ascontiguousarray(rounded), scale, bias.astype(np.float32))


def float_head_model(weight: NDArray[np.float32], bias: NDArray[np.float32]) -> onnx.ModelProto:
    """A head with its weights as they are: what INT8 is derived from, and what parity is checked on.

    Args:
        weight: (N, D) float32.
        bias: (N,) float32.
    """
    constants: dict[str, NDArray[Any]] = {"weight": np.ascontiguousarray(weight.T), "bias": bias}
    nodes = [helper.make_node("Gemm", [EMBEDDING, "weight", "bias"], [DISEASE_OUTPUT])]
    return _model("disease_head", nodes, constants, dim=weight.shape[1], classes=len(bias))


def int8_head_model(head: Int8Head) -> onnx.ModelProto:
    """One species' head: `embedding` (batch, D) → `disease_logits` (batch, N).

    It computes what the packed graph does. A DequantizeLinear before the product says the same, but ONNX Runtime
    makes MatMulNBits of it, which quantizes the embedding too and moves logits by a tenth.
    """
    constants: dict[str, NDArray[Any]] = {"weight": head.weight, "scale": head.scale, "bias": head.bias}
    nodes = [
        helper.make_node("Cast", ["weight"], ["float_weight"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", [EMBEDDING, "float_weight"], ["product"]),
        helper.make_node("Mul", ["product", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "bias"], [DISEASE_OUTPUT]),
    ]
    return _model("disease_head", nodes, constants, dim=len(head.weight), classes=len(head.bias))


def packed_heads_model(heads: Mapping[int, Int8Head], *, species: int, dim: int) -> onnx.ModelProto:
    """All heads in one graph: each row is answered by the head of its `species_index`.

    Classes that a species lacks, and all classes of a species without a head, are −inf.

    Args:
        heads: species index to its head.
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
        weight[index, :, :count], scale[index, :count], bias[index, :count] = (
            head.weight,
            head.scale,
            head.bias,
        )
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
    return _model("disease_heads", nodes, constants, dim=dim, classes=classes, further_inputs=[index_input])


def _model(
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
