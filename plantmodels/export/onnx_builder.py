"""Builds an ONNX graph node by node; the names of the tensors follow from the order of the calls.

>>> graph = GraphBuilder(opset=23)
>>> graph.add_node("Add", "x", graph.add_constant(np.ones(3, np.float32)))
'add_0'
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

IR_VERSION: Final = 10
"""The lowest version that allows opset 20 and later; ONNX Runtime 1.22 reads it."""


class GraphBuilder:
    """A graph under construction. Equal constants are stored once."""

    def __init__(self, *, opset: int, prefix: str = "") -> None:
        """Start without nodes.

        Args:
            opset: version of ONNX's operators.
            prefix: begins every name that the builder makes up, so that its nodes can join another graph.
        """
        self._opset = opset
        self._prefix = prefix
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._named: dict[str, str] = {}

    def add_constant(self, values: NDArray[Any], name: str | None = None) -> str:
        """Store a constant and return its name.

        Args:
            values: array of any shape and dtype.
            name: name to give it. Without a name, equal arrays are stored once.
        """
        values = np.ascontiguousarray(values)
        key = name or hashlib.sha256(f"{values.dtype} {values.shape} ".encode() + values.tobytes()).hexdigest()
        if key not in self._named:
            name = self._named[key] = name or f"{self._prefix}constant_{len(self._named)}"
            self._constants[name] = numpy_helper.from_array(values, name)
        return self._named[key]

    def add_indices(self, values: NDArray[np.integer[Any]]) -> str:
        """Store indices in the smallest unsigned type, and return the name of their cast to int32.

        ONNX Runtime casts them once, when a session opens.
        """
        stored = self.add_constant(values.astype(np.min_scalar_type(int(values.max(initial=0)))))
        return self.add_node("Cast", stored, to=TensorProto.INT32)

    def add_shape(self, *sizes: int) -> str:
        """Store a shape, as Reshape and similar operators read it, and return its name."""
        return self.add_constant(np.array(sizes, np.int64))

    def add_node(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Add a node with one output, and return the name of the output.

        Args:
            operator: name of an ONNX operator.
            inputs: names of its inputs.
            output: name to give the output; by default the operator and the number of the node.
            attributes: attributes of the node.
        """
        name = output or f"{self._prefix}{operator.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, inputs, [name], name, **attributes))
        return name

    def extend(self, graph: onnx.GraphProto) -> None:
        """Add the nodes and constants to an existing graph, behind its own."""
        graph.node.extend(self._nodes)
        graph.initializer.extend(self._constants.values())

    def build(
        self, name: str, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]
    ) -> onnx.ModelProto:
        """Return the finished model.

        Args:
            name: name of the graph.
            inputs: inputs of the graph.
            outputs: outputs of the graph.
        """
        graph = helper.make_graph(self._nodes, name, inputs, outputs, list(self._constants.values()))
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", self._opset)],
            ir_version=IR_VERSION,
            producer_name="plantmodels",
        )


def read_interface(path: Path) -> dict[str, Any]:
    """Return the inputs, outputs and opsets of an ONNX file as its metadata entry states them."""
    model = onnx.load(path)

    def list_values(values: Iterable[onnx.ValueInfoProto]) -> list[dict[str, Any]]:
        return [
            {
                "name": value.name,
                "dtype": onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
                "shape": [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim],
            }
            for value in values
        ]

    opset = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    return {"inputs": list_values(model.graph.input), "outputs": list_values(model.graph.output), "opset": opset}
