"""Makes a model answer image by image, whatever the batch is: the graph becomes the body of one Scan.

An INT8 model quantizes activations over everything in a run, so an answer would depend on the other images of its
batch. Inside the Scan every run holds one image. ONNX Runtime runs the body as fast as the graph itself.
"""

from typing import Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

_PREFIX: Final = "image."
"""Begins every name inside the body: a name of the outer graph may not occur again."""

_AXIS: Final = f"{_PREFIX}batch_axis"


def scan_images(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with the same inputs and outputs that runs its graph once for each image.

    Args:
        model: model with one input; the first axis of the input and of every output is the batch.
    """
    inner = onnx.compose.add_prefix(model, _PREFIX).graph
    outer = onnx.ModelProto()
    outer.CopyFrom(model)
    for part in (outer.graph.node, outer.graph.initializer, outer.graph.value_info):
        del part[:]
    body = onnx.GraphProto(name="image", initializer=inner.initializer)
    body.initializer.append(numpy_helper.from_array(np.array([0], np.int64), _AXIS))
    body.input.append(_without_batch(inner.input[0], f"{inner.input[0].name}.row"))
    body.node.append(helper.make_node("Unsqueeze", [body.input[0].name, _AXIS], [inner.input[0].name]))
    body.node.extend(inner.node)
    for value in inner.output:
        body.output.append(_without_batch(value, f"{value.name}.row"))
        body.node.append(helper.make_node("Squeeze", [value.name, _AXIS], [body.output[-1].name]))
    names = [value.name for value in outer.graph.output]
    inputs = [value.name for value in outer.graph.input]
    outer.graph.node.append(helper.make_node("Scan", inputs, names, "images", body=body, num_scan_inputs=1))
    return outer


def _without_batch(value: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
    """Return a value with a new name and without its first axis."""
    kind = value.type.tensor_type
    return helper.make_tensor_value_info(name, kind.elem_type, [axis.dim_value for axis in kind.shape.dim[1:]])
