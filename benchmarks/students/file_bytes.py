"""Say what an ONNX file is made of, byte by byte: which part would have to shrink to make the file smaller.

python -m benchmarks.students bytes public/models/swin-species-int8.onnx

Every byte is counted once: the parts add up to the size of the file.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import click
import onnx

from benchmarks.driver import PATH
from benchmarks.markdown import render_table

_KINDS: Final = {
    "INT8": "INT8 weights",
    "UINT8": "tables and zero points",
    "FLOAT16": "FP16 weights",
    "FLOAT": "scales, biases and norms (FP32)",
}
"""Data type of a tensor to what such tensors are in our files. All others are shapes and index tables."""

_LARGEST: Final = 8


def count_bytes(model: onnx.ModelProto) -> dict[str, int]:
    """Return the parts of a file and their sizes in bytes, largest first; they add up to the size of the file.

    Args:
        model: the model with its weights in the file.
    """
    parts: Counter[str] = Counter()
    for tensor in model.graph.initializer:
        name = onnx.TensorProto.DataType.Name(tensor.data_type)
        matrix = sum(side > 1 for side in tensor.dims) > 1
        kind = "weight zero points (INT8)" if name == "INT8" and not matrix else _KINDS.get(name, "shapes and indices")
        parts[kind] += len(tensor.raw_data)
        parts["names"] += len(tensor.name)
    for node in model.graph.node:
        parts["names"] += len(node.name) + sum(map(len, [*node.input, *node.output]))
        parts["operators and their attributes"] += sum(attribute.ByteSize() for attribute in node.attribute)
        parts["operators and their attributes"] += len(node.op_type) + len(node.domain)
    parts["protobuf's framing, inputs and outputs"] = model.ByteSize() - sum(parts.values())
    return dict(parts.most_common())


def list_largest(model: onnx.ModelProto) -> Iterable[tuple[str, str, int]]:
    """Return name, shape and bytes of the largest tensors."""
    tensors = sorted(model.graph.initializer, key=lambda tensor: -len(tensor.raw_data))
    for tensor in tensors[:_LARGEST]:
        kind = onnx.TensorProto.DataType.Name(tensor.data_type)
        yield tensor.name, f"{kind} {' × '.join(map(str, tensor.dims))}", len(tensor.raw_data)


@click.command(name="bytes")
@click.argument("file", type=PATH)
def file_bytes(file: Path) -> None:
    """Print what an ONNX file is made of, and its largest tensors."""
    model = onnx.load(file)
    total = model.ByteSize()
    parts = [(part, f"{size:,}", f"{100 * size / total:.1f}") for part, size in count_bytes(model).items()]
    click.echo(render_table(["part", "bytes", "%"], [*parts, ("the file", f"{total:,}", "100.0")]))
    largest = [(name, shape, f"{size:,}") for name, shape, size in list_largest(model)]
    click.echo("\n" + render_table(["largest tensors", "shape", "bytes"], largest))
