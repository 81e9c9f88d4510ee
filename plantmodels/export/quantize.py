"""Smaller species models: weights stored in FP16, and INT8.

FP16 here means weights STORED in float16 and computed in float32: computing in float16 throughout moves a
trained Swin-Tiny by more than the parity gate allows (0.0127), storing does not, and the file is as small.

INT8 quantizes the products over tokens: weights once, to int8 with a scale an output channel, activations at run
time, to uint8 with one scale a tensor. A tensor that several products read is quantized once, and before it is
gathered or reshaped, while there is a quarter of it to move. LayerNorm, Softmax, GELU, the patch convolution (alone
it flipped three times as many answers) and the products on one row an image stay float.

>>> model = store_weights_fp16(onnx.load("model.onnx"))  # doctest: +SKIP
>>> model = quantize_int8(onnx.load("model.onnx"), reduce_range=False)  # doctest: +SKIP
"""

from collections.abc import Collection
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from plantmodels.errors import ExportError

MIN_FP16_ELEMENTS: Final = 16
"""Smaller constants (epsilons, scales) stay float32: nothing is gained."""

_RUNTIME_DOMAIN: Final = "com.microsoft"
"""ONNX Runtime's own operators; MatMulIntegerToFloat is an integer product, its scales and its bias in one."""

_MOVING: Final = ("Gather", "Reshape")
"""Operators that move numbers without changing them, so that they may as well move quantized ones."""


def store_weights_fp16(model: onnx.ModelProto, *, min_rank: int = 0) -> onnx.ModelProto:
    """Returns a copy whose float32 weights are stored in float16 and cast back in the graph.

    ONNX Runtime folds the casts once, when a session opens.

    Args:
        model: left unchanged.
        min_rank: 2 leaves vectors (biases, scales) as they are.

    Raises:
        ExportError: a weight beyond float16's range, named.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    casts = []
    for tensor in result.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if tensor.data_type != TensorProto.FLOAT or values.size < MIN_FP16_ELEMENTS or values.ndim < min_rank:
            continue
        name, largest = tensor.name, float(np.abs(values).max())
        if largest > float(np.finfo(np.float16).max):
            raise ExportError(f"weight {name!r} holds {largest:.4g}, beyond float16's 65504: FP16 cannot store it")
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}.fp16"))
        casts.append(helper.make_node("Cast", [f"{name}.fp16"], [name], f"{name}.cast", to=TensorProto.FLOAT))
    nodes = list(result.graph.node)
    del result.graph.node[:]
    result.graph.node.extend(casts + nodes)
    return result


def quantize_weight(weight: NDArray[np.float32], *, bits: int = 8) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Rounds the weights of a product to int8, one symmetric scale an output channel.

    Args:
        weight: (in, out) float32.
        bits: 7 for CPUs whose INT8 products saturate.

    Returns:
        (in, out) int8 and (out,) float32; the float weight is their product.
    """
    largest = 2 ** (bits - 1) - 1
    step = np.abs(weight).max(axis=0) / largest
    scale = np.where(step >= np.finfo(np.float32).tiny, step, 1).astype(np.float32)  # below, sessions see zero
    return np.clip(np.rint(weight / scale), -largest, largest).astype(np.int8), scale


def find_products(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that `quantize_int8` quantizes: products with constant weights on rows of tokens."""
    inferred = onnx.shape_inference.infer_shapes(model)
    values = (*inferred.graph.value_info, *inferred.graph.input)
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in values}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "MatMul"
        and node.input[1] in constants
        and len(constants[node.input[1]].dims) == 2
        and ranks.get(node.input[0], 3) > 2
    ]


def quantize_int8(model: onnx.ModelProto, *, reduce_range: bool, keep_float: Collection[str] = ()) -> onnx.ModelProto:
    """Returns the INT8 form of a float model; matrices that stay float are stored in FP16.

    Args:
        model: float32, nodes in topological order, with names.
        reduce_range: 7-bit weights, for CPUs without VNNI, whose INT8 products saturate.
        keep_float: names of products that are not quantized.

    Raises:
        ExportError: a weight that stays float and is beyond float16's range, named.
    """
    chosen = set(find_products(model)) - set(keep_float)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    _Quantizer(result.graph, chosen, 7 if reduce_range else 8).run()
    result.opset_import.append(helper.make_opsetid(_RUNTIME_DOMAIN, 1))
    return store_weights_fp16(result, min_rank=2)


class _Quantizer:
    """Rewrites the nodes of one graph."""

    def __init__(self, graph: onnx.GraphProto, chosen: Collection[str], bits: int) -> None:
        self._graph = graph
        self._chosen = chosen
        self._bits = bits
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._producers = {name: node for node in graph.node for name in node.output}
        self._consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self._consumers.setdefault(name, []).append(node)
        self._quantized: dict[str, str] = {}
        self._added: dict[str, onnx.TensorProto] = {}

    def run(self) -> None:
        nodes: list[onnx.NodeProto] = []
        merged: set[str] = set()
        for node in self._graph.node:
            if node.name in self._chosen:
                nodes += self._product(node, merged)
            elif node.name not in merged:
                nodes.append(node)
        del self._graph.node[:]
        self._graph.node.extend(_without_dead_ends(nodes, {value.name for value in self._graph.output}))
        used = {name for node in self._graph.node for name in node.input}
        kept = [tensor for tensor in (*self._graph.initializer, *self._added.values()) if tensor.name in used]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)

    def _product(self, node: onnx.NodeProto, merged: set[str]) -> list[onnx.NodeProto]:
        """The integer form of a product, and of the addition of its bias when that follows."""
        nodes, (values, scale, zero) = self._quantize(node.input[0])
        name = node.input[1]
        if f"{name}.int8" not in self._added:
            weight, weight_scale = quantize_weight(numpy_helper.to_array(self._constants[name]), bits=self._bits)
            for suffix, array in (("int8", weight), ("scale", weight_scale), ("zero", np.zeros_like(weight[0]))):
                self._added[f"{name}.{suffix}"] = numpy_helper.from_array(array, f"{name}.{suffix}")
        inputs = [values, f"{name}.int8", scale, f"{name}.scale", zero, f"{name}.zero"]
        output = node.output[0]
        if (addition := self._find_bias(node)) is not None:
            inputs.append(next(operand for operand in addition.input if operand != output))
            output = addition.output[0]
            merged.add(addition.name)
        operator = "MatMulIntegerToFloat"
        return [*nodes, helper.make_node(operator, inputs, [output], node.name, domain=_RUNTIME_DOMAIN)]

    def _find_bias(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        followers = self._consumers.get(node.output[0], [])
        if len(followers) != 1 or followers[0].op_type != "Add":
            return None
        operands = [name for name in followers[0].input if name != node.output[0]]
        width = self._constants[node.input[1]].dims[1]
        is_bias = len(operands) == 1 and list(getattr(self._constants.get(operands[0]), "dims", ())) == [width]
        return followers[0] if is_bias else None

    def _quantize(self, name: str) -> tuple[list[onnx.NodeProto], tuple[str, str, str]]:
        """Nodes that quantize a tensor, none where that was done before, and names of values, scale and zero point."""
        source = name
        moves: list[onnx.NodeProto] = []
        while (producer := self._producers.get(source)) is not None and producer.op_type in _MOVING:
            moves.insert(0, producer)
            source = producer.input[0]
        nodes: list[onnx.NodeProto] = []
        outputs = [f"{source}.{suffix}" for suffix in ("uint8", "uint8_scale", "uint8_zero")]
        if source not in self._quantized:
            self._quantized[source] = outputs[0]
            nodes.append(helper.make_node("DynamicQuantizeLinear", [source], outputs, f"{source}.quantize"))
        values = outputs[0]
        for move in moves:
            moved = f"{move.output[0]}.uint8"
            if move.output[0] not in self._quantized:
                self._quantized[move.output[0]] = moved
                copy = onnx.NodeProto()
                copy.CopyFrom(move)
                copy.name, copy.input[0], copy.output[0] = f"{move.name}.uint8", values, moved
                nodes.append(copy)
            values = moved
        return nodes, (values, outputs[1], outputs[2])


def _without_dead_ends(nodes: list[onnx.NodeProto], outputs: set[str]) -> list[onnx.NodeProto]:
    """Nodes whose results are used."""
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if needed & set(node.output):
            needed |= set(node.input)
            kept.append(node)
    return kept[::-1]
