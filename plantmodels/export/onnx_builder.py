"""Writes an ONNX graph node by node: constants stored once and small, names that follow from the order of calls.

>>> graph = GraphBuilder(opset=23)
>>> shifted = graph.apply("Add", "x", graph.constant(np.ones(3, np.float32)))
"""

import hashlib
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

IR_VERSION: Final = 10
"""The first with opset 20 and later; ONNX Runtime 1.22 reads it."""


class GraphBuilder:
    """Nodes and constants of a graph under construction."""

    def __init__(self, *, opset: int) -> None:
        """Starts empty."""
        self._opset = opset
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._named: dict[str, str] = {}

    def constant(self, values: NDArray[Any], name: str | None = None) -> str:
        """Name of a constant; without a given name, one of the same type, shape and bytes is stored once."""
        values = np.ascontiguousarray(values)
        key = name or hashlib.sha256(f"{values.dtype} {values.shape} ".encode() + values.tobytes()).hexdigest()
        if key not in self._named:
            name = self._named[key] = name or f"constant_{len(self._named)}"
            self._constants[name] = numpy_helper.from_array(values, name)
        return self._named[key]

    def indices(self, values: NDArray[np.integer[Any]]) -> str:
        """Name of int32 values, stored in the smallest unsigned type; ONNX Runtime casts them once, at start."""
        stored = self.constant(values.astype(np.min_scalar_type(int(values.max(initial=0)))))
        return self.apply("Cast", stored, to=TensorProto.INT32)

    def shape(self, *sizes: int) -> str:
        """Name of a shape, for Reshape and the like."""
        return self.constant(np.array(sizes, np.int64))

    def apply(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Adds a node of one output and returns the output's name."""
        name = output or f"{operator.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, inputs, [name], name, **attributes))
        return name

    def build(
        self, name: str, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]
    ) -> onnx.ModelProto:
        """The model."""
        graph = helper.make_graph(self._nodes, name, inputs, outputs, list(self._constants.values()))
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", self._opset)],
            ir_version=IR_VERSION,
            producer_name="plantmodels",
        )
