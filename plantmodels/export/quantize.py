"""Makes species models smaller: FP16 weights, and INT8 matrix products.

FP16 means that weights are stored in float16 and that everything is computed in float32. Computing in float16 moves
the logits of a trained Swin-Tiny by 0.0127, more than the parity gate allows, and the file would be no smaller.

INT8 quantizes the products over tokens: weights once to int8, with one scale per output channel, and activations at
run time to uint8, with one scale per tensor. A tensor that several products read is quantized once, before it is
gathered or reshaped, because then a quarter of the bytes are moved. LayerNorm, Softmax, GELU, the patch convolution
and products with one row per image stay in float. With the patch convolution in INT8 too, three times as many
predictions changed.

>>> quantize_weight(np.array([[1.0, -2.0], [0.5, 1.0]], np.float32))[0].tolist()
[[127, -127], [64, 64]]
"""

from collections.abc import Collection
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from plantmodels.arrays import Weights
from plantmodels.errors import ExportError

MIN_FP16_ELEMENTS: Final = 16
"""Smaller constants (epsilons, scales) stay in float32, because they take no space."""

_RUNTIME_DOMAIN: Final = "com.microsoft"
"""Domain of ONNX Runtime's own operators, such as MatMulIntegerToFloat: an integer product with scales and bias."""

SWITCHES: Final = "switches"
"""Input that `add_switches` adds to a model: (products,) bool."""

_MOVING: Final = ("Gather", "Reshape")
"""Operators that move values without changing them; they can move quantized values instead."""


def store_weights_fp16(model: onnx.ModelProto, *, min_rank: int = 0) -> onnx.ModelProto:
    """Return a copy whose float32 weights are stored in float16, and cast back in the graph.

    ONNX Runtime runs the casts once, when a session opens.

    Args:
        model: model in float32; not changed.
        min_rank: smallest number of dimensions of a weight to store in float16; with 2, vectors stay as they are.

    Raises:
        ExportError: a weight is beyond the range of float16; the message names it.
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


def quantize_weight(weight: Weights, *, bits: int = 8) -> tuple[NDArray[np.int8], Weights]:
    """Round the weights of a product to int8, with one symmetric scale per output channel.

    Args:
        weight: (in, out) float32.
        bits: 8, or 7 for CPUs whose INT8 products saturate.

    Returns:
        Weights (in, out) int8, and scales (out,) float32. Their product is the float weight.
    """
    largest = 2 ** (bits - 1) - 1
    step = np.abs(weight).max(axis=0) / largest
    scale = np.where(step >= np.finfo(np.float32).tiny, step, 1).astype(np.float32)  # below, sessions see zero
    return np.clip(np.rint(weight / scale), -largest, largest).astype(np.int8), scale


def find_products(model: onnx.ModelProto) -> list[str]:
    """Return the names of the nodes that `quantize_int8` can quantize: products of tokens with constant weights."""
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
    """Return the INT8 form of a float model; matrices that stay in float are stored in FP16.

    Args:
        model: model in float32, whose nodes have names and are in topological order; not changed.
        reduce_range: whether weights have 7 bits, for CPUs without VNNI, whose INT8 products saturate.
        keep_float: names of the products to keep in float.

    Raises:
        ExportError: a weight that stays in float is beyond the range of float16; the message names it.
    """
    chosen = set(find_products(model)) - set(keep_float)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    _Quantizer(result.graph, chosen, 7 if reduce_range else 8).run()
    result.opset_import.append(helper.make_opsetid(_RUNTIME_DOMAIN, 1))
    return store_weights_fp16(result, min_rank=2)


def add_switches(model: onnx.ModelProto, *, reduce_range: bool) -> onnx.ModelProto:
    """Return the float model with one more input, which says for each product of `find_products` whether it is INT8.

    One session then measures the rounding of each product alone. A product with its switch on gives what it gives in
    the model of `quantize_int8`, except for the last bits of the addition of a bias.

    Args:
        model: model in float32, whose nodes have names and are in topological order; not changed.
        reduce_range: whether weights have 7 bits (see `quantize_int8`).
    """
    products = find_products(model)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph, constants = result.graph, {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.name in products:
            place = f"{node.name}.place"
            graph.initializer.append(numpy_helper.from_array(np.array(products.index(node.name)), place))
            nodes.append(helper.make_node("Gather", [SWITCHES, place], [f"{node.name}.switch"], f"{node.name}.switch"))
            nodes.append(_switch_product(graph, node, constants[node.input[1]], 7 if reduce_range else 8))
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    graph.input.append(helper.make_tensor_value_info(SWITCHES, TensorProto.BOOL, [len(products)]))
    result.opset_import.append(helper.make_opsetid(_RUNTIME_DOMAIN, 1))
    return result


def _switch_product(
    graph: onnx.GraphProto, node: onnx.NodeProto, weight: onnx.TensorProto, bits: int
) -> onnx.NodeProto:
    """Return a product that is INT8 where its switch is on, and float elsewhere; add its INT8 weights to the graph."""
    values, scale = quantize_weight(numpy_helper.to_array(weight), bits=bits)
    arrays = {"int8": values, "scale": scale, "zero": np.zeros_like(values[0])}
    names = [f"{node.name}.{suffix}" for suffix in arrays]
    graph.initializer.extend(map(numpy_helper.from_array, arrays.values(), names))
    rounded = [f"{node.name}.{suffix}" for suffix in ("uint8", "uint8_scale", "uint8_zero")]
    operands = [rounded[0], names[0], rounded[1], names[1], rounded[2], names[2]]
    output = f"{node.name}.of_branch"
    result = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    integer = [
        helper.make_node("DynamicQuantizeLinear", [node.input[0]], rounded, f"{node.name}.quantize"),
        helper.make_node("MatMulIntegerToFloat", operands, [output], f"{node.name}.int8", domain=_RUNTIME_DOMAIN),
    ]
    exact = [helper.make_node("MatMul", list(node.input), [output], f"{node.name}.float")]
    branches = [
        helper.make_graph(nodes, f"{node.name}.{name}", [], [result])
        for name, nodes in (("then", integer), ("else", exact))
    ]
    return helper.make_node(
        "If", [f"{node.name}.switch"], list(node.output), node.name, then_branch=branches[0], else_branch=branches[1]
    )


class _Quantizer:
    """Rewrites one graph in place."""

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
                nodes += self._quantize_product(node, merged)
            elif node.name not in merged:
                nodes.append(node)
        del self._graph.node[:]
        self._graph.node.extend(_remove_unused(nodes, {value.name for value in self._graph.output}))
        used = {name for node in self._graph.node for name in node.input}
        kept = [tensor for tensor in (*self._graph.initializer, *self._added.values()) if tensor.name in used]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)

    def _quantize_product(self, node: onnx.NodeProto, merged: set[str]) -> list[onnx.NodeProto]:
        """Return the nodes of an integer product, which includes the addition of a bias if one follows.

        Args:
            node: the float product.
            merged: names of additions that products include; the name of this one is added.
        """
        nodes, (values, scale, zero) = self._quantize_activation(node.input[0])
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

    def _quantize_activation(self, name: str) -> tuple[list[onnx.NodeProto], tuple[str, str, str]]:
        """Return the nodes that quantize a tensor, and the names of its values, scale and zero point.

        There are no nodes if the tensor was quantized before.
        """
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


def _remove_unused(nodes: list[onnx.NodeProto], outputs: set[str]) -> list[onnx.NodeProto]:
    """Return the nodes whose results are used."""
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if needed & set(node.output):
            needed |= set(node.input)
            kept.append(node)
    return kept[::-1]
