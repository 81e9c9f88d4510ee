"""Damaged and invented models for `reliability.fuzz`: ONNX files, checkpoints and MLmodel files.

A `random.Random` is the only source of randomness, so a seed identifies a case.
"""

import io
import itertools
import math
import pickletools
import warnings
import zipfile
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final

import numpy as np
import onnx
import yaml
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from plantmodels.bundle.layout import EMBEDDING, IMAGE_INPUT, SPECIES_OUTPUT
from plantmodels.export.onnx_heads import Int8Head, build_int8_head, build_packed_heads, quantize_head
from reliability.mutations import damage, damage_pickle

_SIZES: Final = (0, 1, -1, 2, 3, 4, 8, 255, 2**15, 2**31 - 1, 2**31, -(2**31), 2**40, 2**62, 2**63 - 1, -(2**63))
_OPERATORS: Final = {
    "": tuple(
        """
        Conv ConvTranspose Reshape Transpose Gather GatherND Cast Mul Add Where Shape LayerNormalization
        DynamicQuantizeLinear QuantizeLinear DequantizeLinear MatMulInteger Gemm Split Attention Gelu Concat Tile
        Expand ConstantOfShape Range ReduceMean MatMul Identity Squeeze Unsqueeze Slice Pad Resize ScatterND TopK
        OneHot NonZero RNN Einsum LSTM MaxPool CumSum Compress Unique GridSample DFT EyeLike Loop If
        """.split()
    ),
    "com.microsoft": tuple(
        """
        MatMulNBits MatMulIntegerToFloat DynamicQuantizeMatMul Attention MultiHeadAttention QAttention FusedGemm
        FusedConv GatherBlockQuantized BiasGelu SkipLayerNormalization EPContext MoE EmbedLayerNormalization
        CropAndResize NGramRepeatBlock RotaryEmbedding Tokenizer Unique
        """.split()
    ),
}
"""Operators of our graphs, operators that run subgraphs, and operators that take sizes from attributes or inputs."""

_ATTRIBUTES: Final = (
    *("axis", "perm", "to", "strides", "pads", "group", "dilations", "kernel_shape", "bits", "block_size", "N", "K"),
    *("num_heads", "q_num_heads", "kv_num_heads", "scale", "transA", "keepdims", "is_causal", "mode", "value"),
)
_SUBGRAPHS: Final = ("body", "then_branch", "else_branch")


def make_onnx_models() -> list[onnx.ModelProto]:
    """Return a head, packed heads of three species, and a small network with the operators of an exported Swin."""
    random = np.random.default_rng(5)
    head = [_make_random_head(random, classes) for classes in (2, 3)]
    return [
        build_int8_head(head[1]),
        build_packed_heads({0: head[0], 2: head[1]}, species=3, dim=8),
        _make_network(random),
    ]


def _make_random_head(random: np.random.Generator, classes: int) -> Int8Head:
    weight, bias = (random.normal(size=shape).astype(np.float32) for shape in ((classes, 8), classes))
    return quantize_head(weight, bias)


def _make_network(random: np.random.Generator) -> onnx.ModelProto:
    constants: dict[str, NDArray[Any]] = {
        "kernel": random.normal(size=(8, 3, 4, 4)),
        "order": np.array([3, 2, 1, 0]),
        "tokens": np.array([0, 8, -1]),
        "half": random.normal(size=8).astype(np.float16),
        "qkv": random.integers(-99, 99, (8, 24)).astype(np.int8),
        "step": np.full(24, 0.01),
        "parts": np.array([8, 8, 8]),
        "one": np.array([1]),
        "head": random.normal(size=(8, 5)),
        "bias": random.normal(size=5),
    }
    constants = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in constants.items()}
    node = helper.make_node
    nodes = [
        node("Conv", [IMAGE_INPUT, "kernel"], ["patches"], strides=[4, 4]),
        node("Reshape", ["patches", "tokens"], ["flat"]),
        node("Transpose", ["flat"], ["rows"], perm=[0, 2, 1]),
        node("Gather", ["rows", "order"], ["window"], axis=1),
        node("Cast", ["half"], ["gain"], to=TensorProto.FLOAT),
        node("LayerNormalization", ["window", "gain"], ["normal"], axis=-1),
        node("DynamicQuantizeLinear", ["normal"], ["rounded", "scale", "zero"]),
        node("MatMulIntegerToFloat", ["rounded", "qkv", "scale", "step", "zero"], ["all"], domain="com.microsoft"),
        node("Split", ["all", "parts"], ["q", "k", "v"], axis=-1),
        node("Attention", ["q", "k", "v"], ["mixed"], q_num_heads=2, kv_num_heads=2),
        node("Gelu", ["mixed"], ["bent"]),
        node("Shape", ["bent"], ["shape"]),
        node("Equal", ["shape", "one"], ["single"]),
        node("Where", ["single", "one", "shape"], ["wanted"]),
        node("Concat", ["one", "one", "one"], ["times"], axis=0),
        node("Tile", ["bent", "times"], ["tiled"]),
        node("Reshape", ["tiled", "wanted"], ["shaped"]),
        node("Add", ["shaped", "normal"], ["sum"]),
        node("ReduceMean", ["sum", "one"], [EMBEDDING], keepdims=0),
        node("Gemm", [EMBEDDING, "head", "bias"], [SPECIES_OUTPUT]),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])
        for name, shape in ((IMAGE_INPUT, (3, 8, 8)), (SPECIES_OUTPUT, (5,)), (EMBEDDING, (8,)))
    ]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "species", values[:1], values[1:], tensors)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def damage_onnx(model: onnx.ModelProto, others: Sequence[bytes], random: Random) -> bytes:
    """Return an ONNX file with changed operators, attributes, tensors, names, types or versions, or damaged bytes."""
    content = model.SerializeToString()
    if random.random() < 0.3:
        return damage(content, others, random)
    model = onnx.ModelProto.FromString(content)
    for _ in range(random.choice((1, 1, 2, 3, 5))):
        if model.graph.node:
            random.choice(_ONNX_CHANGES)(model, random)
    damaged: bytes = model.SerializeToString()
    return damaged


def _change_operator(model: onnx.ModelProto, random: Random) -> None:
    node = random.choice(model.graph.node)
    node.domain = random.choice(tuple(_OPERATORS))
    node.op_type = random.choice(_OPERATORS[node.domain])
    if node.domain not in {opset.domain for opset in model.opset_import}:
        model.opset_import.append(helper.make_opsetid(node.domain, 1))


def _change_edges(model: onnx.ModelProto, random: Random) -> None:
    node = random.choice(model.graph.node)
    names = [name for each in model.graph.node for name in (*each.input, *each.output)]
    ends = random.choice((node.input, node.input, node.output))
    change = random.randrange(3)
    if change == 0 or not ends:
        ends.append(random.choice((*names, "", "nowhere")))
    elif change == 1:
        ends[random.randrange(len(ends))] = random.choice((*names, "", "nowhere"))
    else:
        del ends[random.randrange(len(ends))]


def _change_attribute(model: onnx.ModelProto, random: Random) -> None:
    node = random.choice(model.graph.node)
    numbers = [random.choice(_SIZES) for _ in range(random.randrange(1, 6))]
    if node.attribute and random.random() < 0.6:
        attribute = random.choice(node.attribute)
        if random.random() < 0.2:
            attribute.type = random.randrange(15)
        attribute.i, attribute.f = numbers[0], random.choice((0.0, float("nan"), -1.0, 1e38))
        attribute.ints[:] = numbers if attribute.ints else []
        return
    value = random.choice((numbers[0], numbers, 1.5, "SAME_UPPER", b"\xff"))
    name = random.choice(_ATTRIBUTES)
    if random.random() < 0.1:
        output = helper.make_tensor_value_info("o", TensorProto.FLOAT, None)
        value = helper.make_graph([helper.make_node("Identity", ["half"], ["o"])], "g", [], [output])
        name = random.choice(_SUBGRAPHS)
    node.attribute.append(helper.make_attribute(name, value))


def _change_tensor(model: onnx.ModelProto, random: Random) -> None:
    tensor = random.choice(model.graph.initializer)
    change = random.randrange(5)
    if change == 0:
        tensor.dims[:] = [random.choice(_SIZES) for _ in range(random.randrange(4))]
    elif change == 1:
        tensor.data_type = random.randrange(26)
    elif change == 2:
        tensor.raw_data = damage(tensor.raw_data, [tensor.raw_data], random)
    elif change == 3:
        whole = tensor.data_type == TensorProto.INT64 and len(tensor.raw_data) % 8 == 0
        numbers = np.frombuffer(tensor.raw_data, np.int64 if whole else np.int8).copy()
        first = random.randrange(len(numbers) + 1)
        numbers[first : first + random.choice((1, 1, 8))] = np.array(random.choice(_SIZES)).astype(numbers.dtype)
        tensor.raw_data = numbers.tobytes()
    else:
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=random.choice(("/etc/passwd", "../x", "", "\0")))
        tensor.external_data.add(key=random.choice(("offset", "length")), value=str(random.choice(_SIZES)))


def _change_nodes(model: onnx.ModelProto, random: Random) -> None:
    place = random.randrange(len(model.graph.node))
    if random.random() < 0.5:
        del model.graph.node[place]
    else:
        model.graph.node.insert(place, random.choice(model.graph.node))


def _change_border(model: onnx.ModelProto, random: Random) -> None:
    value = random.choice((*model.graph.input, *model.graph.output))
    change = random.randrange(4)
    if change == 0:
        value.type.tensor_type.elem_type = random.randrange(26)
    elif change == 1 and value.type.tensor_type.shape.dim:
        random.choice(value.type.tensor_type.shape.dim).dim_value = random.choice(_SIZES)
    elif change == 2:
        value.name = random.choice((EMBEDDING, IMAGE_INPUT, "", "other"))
    else:
        random.choice(model.opset_import).version = random.choice((1, 9, 13, 18, 20, 22, 23, 25, 10**6))


_ONNX_CHANGES: Final[tuple[Callable[[onnx.ModelProto, Random], None], ...]] = (
    _change_operator,
    _change_edges,
    _change_attribute,
    _change_tensor,
    _change_nodes,
    _change_border,
)


def make_checkpoints() -> list[bytes]:
    """Return a very small checkpoint in two formats: Lightning's, and PyTorch's before version 1.6."""
    import torch  # takes seconds, and the other readers do not need it

    shapes = {"backbone.a": (4,), "projection.weight": (4, 3), "projection.bias": (4,), "species_head.weight": (3, 4)}
    shapes |= {"species_head.bias": (3,), "disease_heads.Rose.weight": (2, 4), "disease_heads.Rose.bias": (2,)}
    parameters = {
        "backbone": "swin_tiny_patch4_window7_224",
        "backbone_kwargs": {"depths": (1, 1)},
        "embedding_dim": 4,
        "image_size": 224,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.2, 0.2, 0.2],
        "species": ["Rose", "Mint", "Fig"],
        "diseases": {"Rose": ["rust", "healthy"]},
    }
    state = {name: torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape) for name, shape in shapes.items()}
    half = {name: tensor.half() for name, tensor in state.items()}
    files = []
    for tensors, as_zip in ((state, True), (half, True), (state, False)):
        buffer = io.BytesIO()
        document = {"state_dict": tensors, "hyper_parameters": parameters}
        torch.save(document, buffer, _use_new_zipfile_serialization=as_zip)
        files.append(buffer.getvalue())
    return files


def damage_checkpoint(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    """Return a checkpoint with other sizes or opcodes in its pickle, other members in its archive, or damaged bytes."""
    kind = random.randrange(10)
    if kind < 2 or not zipfile.is_zipfile(io.BytesIO(data)):
        return damage_pickle(data, others, random) if kind == 2 else damage(data, others, random)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    place = next(i for i, (name, _) in enumerate(members) if name.endswith("data.pkl"))
    name, content = members[place]
    if kind < 6:
        members[place] = name, _change_numbers(content, random)
    elif kind < 8:
        members[place] = name, damage_pickle(content, [content], random)
    else:
        _change_members(members, random)
    return _write_archive(members, zipfile.ZIP_DEFLATED if random.random() < 0.05 else zipfile.ZIP_STORED)


def _change_numbers(content: bytes, random: Random) -> bytes:
    """Return the pickle with one to three of its integers replaced: sizes, strides, offsets, lengths of storages."""
    operations = list(pickletools.genops(content))
    starts = [start or 0 for _, _, start in operations] + [len(content)]
    parts = [content[start:end] for start, end in itertools.pairwise(starts)]
    numbers = [i for i, (opcode, _, _) in enumerate(operations) if opcode.name.startswith("BININT")]
    for place in random.sample(numbers, random.choice((1, 1, 2, 3))):
        size = random.choice((*_SIZES, 2**70, 10**6, 12, 5, 6))
        encoded = size.to_bytes(10, "little", signed=True)
        parts[place] = b"\x8a" + bytes([len(encoded)]) + encoded
    return b"".join(parts)


def _change_members(members: list[tuple[str, bytes]], random: Random) -> None:
    for _ in range(random.choice((1, 1, 2))):
        place = random.randrange(len(members))
        name, content = members[place]
        change = random.randrange(5)
        if change == 0:
            del members[place]
        elif change == 1:
            members.insert(random.randrange(len(members)), (name, random.choice(members)[1]))
        elif change == 2:
            members[place] = (
                random.choice(("../x", "/x", "other/data.pkl", "archive/data/0", "", name.upper())),
                content,
            )
        elif change == 3:
            members[place] = name, damage(content, [content], random)
        else:
            members[place] = name, bytes(random.choice((0, 1, 100_000)))
        if not members:
            return


def _write_archive(members: Sequence[tuple[str, bytes]], compression: int) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", compression) as archive:
        warnings.simplefilter("ignore")  # names twice
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return buffer.getvalue()


_YAML_LINES: Final = (
    *(
        "a: &a [x, x]",
        "b: [*a, *a]",
        "<<: *a",
        "<<: {flavors: 1}",
        "flavors: {}",
        "? [a, b]",
        "- x",
        "--- x",
        "...",
        "\t",
    ),
    *("x: !!python/object/apply:os.system ['true']", "x: !!python/name:os.system", "x: !!binary =", "x: !!set {a, b}"),
    *(
        "x: 2026-99-99",
        "x: 1:60:60",
        "x: .nan",
        "x: 0b2",
        "x: !!int z",
        "x: !!timestamp q",
        "x: !!float _",
        "x: !!omap q",
    ),
    *(
        "[" * 60,
        "{" * 60,
        "- " * 60,
        "x: " + "9" * 5000,
        "%YAML 9.9",
        "%TAG ! !",
        "x: |9",
        "x: >",
        "x: 'a",
        'x: "\\ud800"',
    ),
    *(
        "null: 1",
        "1: 1",
        "[]: 1",
        "{}: 1",
        "!!null : 1",
        "x: !<tag:yaml.org,2002:merge> <<",
        "=: 1",
        "\ufeff",
        "x: \x85y",
    ),
)


def make_mlmodel_files() -> list[bytes]:
    """Return MLmodel files as MLflow writes them for a version, in two styles."""
    document = {
        "artifact_path": "model",
        "flavors": {
            "plantmodels": {"bundle": "data/bundle", "code": "code", "manifest_sha256": "0" * 64, "format_version": 2},
            "python_function": {"loader_module": "mlflow_plugins.flavor", "python_version": "3.11.7", "env": {}},
        },
        "mlflow_version": "3.17.2",
        "model_size_bytes": 28060134,
        "signature": {"inputs": '[{"type": "binary", "name": "image", "required": true}]', "params": None},
        "utc_time_created": "2026-11-25 03:20:04.123456",
    }
    return [yaml.safe_dump(document, default_flow_style=flow).encode() for flow in (False, True)]


def damage_yaml(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    """Return YAML with lines replaced, moved, doubled, removed or indented differently, or with damaged bytes."""
    if random.random() < 0.3:
        return damage(data, others, random)
    lines = data.decode().split("\n")
    for _ in range(random.choice((1, 1, 2, 4))):
        place = random.randrange(len(lines))
        change = random.randrange(5)
        indent = " " * random.choice((0, 0, 2, 4, 6))
        if change < 2:
            lines.insert(place, indent + random.choice(_YAML_LINES))
        elif change == 2:
            lines[place] = indent + lines[place].strip()
        elif change == 3:
            lines[place : place + random.randrange(2)] = random.choices(lines, k=random.randrange(3))
        else:
            lines.insert(place, random.choice(lines))
    return "\n".join(lines).encode("utf-8", "surrogatepass")
