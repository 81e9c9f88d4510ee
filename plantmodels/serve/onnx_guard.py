"""Refuses dangerous ONNX files by their bytes, before ONNX Runtime sees them.

A bundle needs only graphs of plain operators. A Scan over the model's own inputs may run one: once for each image, so
that it ends. Refused are:

- every other operator with a graph of its own, such as `Loop`, which may never end;
- functions: two functions that call each other twice grow without bound when ONNX Runtime inlines them while opening;
- the property `ort_config`: if ORT_LOAD_CONFIG_FROM_MODEL is set, it replaces all options of the session and can make
  ONNX Runtime write files;
- a LayerNormalization whose bias has an empty name, which ends the process (ONNX Runtime 1.32, found by fuzzing).

>>> path = bundle / "swin-species-int8.onnx"
>>> check_graph(path, path.read_bytes())
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from plantmodels.errors import BundleError

_MODEL_GRAPH: Final = 7
_MODEL_PROPERTIES: Final = 14
_MODEL_FUNCTIONS: Final = 25
_PROPERTY_NAME: Final = 1
_GRAPH_NODE: Final = 1
_GRAPH_INPUT: Final = 11
_VALUE_NAME: Final = 1
_NODE_INPUT: Final = 1
_NODE_OPERATOR: Final = 4
_NODE_ATTRIBUTE: Final = 5
_ATTRIBUTE_GRAPHS: Final = frozenset({6, 11})
"""Field numbers of `g` and `graphs` in onnx.proto."""

_VARINT: Final = 0
_LENGTH: Final = 2
_FIXED: Final = {1: 8, 5: 4}
"""Size in bytes of a field, by its wire type."""

_MAX_VARINT: Final = 10


def check_graph(path: Path, content: bytes) -> None:
    """Raise if a model could run for ever or harm the process. Weights are skipped.

    Args:
        path: the file's path, used only in errors.
        content: the file's bytes.

    Raises:
        BundleError: the bytes are not in the wire format of ONNX, or the model has functions, session options, an
            operator with a graph of its own, or a LayerNormalization with an unnamed input.
    """
    try:
        for number, part in _read_fields(memoryview(content)):
            if number == _MODEL_FUNCTIONS:
                raise BundleError(f"{path}: the model defines functions: refused, expected a graph of plain operators")
            if number == _MODEL_PROPERTIES and b"ort_config" in _read_texts(part, _PROPERTY_NAME):
                raise BundleError(f"{path}: its property 'ort_config' sets options of its session: refused")
            if number == _MODEL_GRAPH:
                _check_nodes(path, part)
    except ValueError as error:
        raise BundleError(f"{path}: not an ONNX file ({error})") from error


def _check_nodes(path: Path, graph: memoryview, *, in_scan: bool = False) -> None:
    values = [value for field, value in _read_fields(graph) if field == _GRAPH_INPUT]
    images = {name for value in values for name in _read_texts(value, _VALUE_NAME)}
    for number, node in _read_fields(graph):
        if number != _GRAPH_NODE:
            continue
        operators = _read_texts(node, _NODE_OPERATOR)  # protobuf uses the last of several
        bodies = _find_graphs(node)
        if bodies and (in_scan or operators != [b"Scan"] or not set(_read_texts(node, _NODE_INPUT)) <= images):
            name = b"".join(operators[-1:]).decode(errors="replace")
            raise BundleError(f"{path}: operator {name!r:.60} runs a graph of its own, which need not end: refused")
        for body in bodies:
            _check_nodes(path, body, in_scan=True)
        if b"LayerNormalization" in operators and b"" in _read_texts(node, _NODE_INPUT):
            raise BundleError(f"{path}: a LayerNormalization has an input without a name: refused")


def _find_graphs(node: memoryview) -> list[memoryview]:
    """Return the graphs among a node's attributes."""
    attributes = [value for field, value in _read_fields(node) if field == _NODE_ATTRIBUTE]
    return [value for attribute in attributes for field, value in _read_fields(attribute) if field in _ATTRIBUTE_GRAPHS]


def _read_texts(message: memoryview, number: int) -> list[bytes]:
    return [bytes(value) for field, value in _read_fields(message) if field == number]


def _read_fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield number and content of each length-delimited field of a protobuf message."""
    position = 0
    while position < len(message):
        tag, position = _read_varint(message, position)
        number, kind = (tag & 0xFFFFFFFF) >> 3, tag & 7  # protobuf keeps 32 bits of a tag
        if kind == _VARINT:
            _, position = _read_varint(message, position)
            continue
        if kind == _LENGTH:
            size, position = _read_varint(message, position)
        elif kind in _FIXED:
            size = _FIXED[kind]
        else:
            raise ValueError(f"field {number} has wire type {kind}")
        if size > len(message) - position:
            raise ValueError(f"field {number} needs {size:,} bytes, {len(message) - position:,} are left")
        if kind == _LENGTH:
            yield number, message[position : position + size]
        position += size


def _read_varint(message: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift, byte in enumerate(message[position : position + _MAX_VARINT]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value, position + shift + 1
    raise ValueError(f"a number of its wire format does not end by byte {position + _MAX_VARINT:,}")
