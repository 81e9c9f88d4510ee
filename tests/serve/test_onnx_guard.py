"""Hostile ONNX files in bundles whose manifest fits: refused by name, or an error of ours when they run."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from plantmodels.bundle.layout import PACKED_HEADS_FILE, SPECIES_FILES
from plantmodels.bundle.manifest import write_manifest
from plantmodels.errors import BundleError
from plantmodels.serve.classifier import PlantClassifier
from plantmodels.serve.onnx_guard import check_graph
from plantmodels.serve.session import open_session

ROOT = Path(__file__).resolve().parents[2]
SPECIES = SPECIES_FILES["int8"]
FLOAT, DOUBLE, INT32, INT64 = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT32, TensorProto.INT64
Value = tuple[str, int, list[str | int]]

IMAGE: Value = ("input", FLOAT, ["batch", 3, 224, 224])
LOGITS: Value = ("species_logits", FLOAT, ["batch", 5])
EMBEDDING: Value = ("embedding", FLOAT, ["batch", 32])
INDEX: Value = ("species_index", INT64, ["batch"])
DISEASES: Value = ("disease_logits", FLOAT, ["batch", 3])


def make_model(
    inputs: Sequence[Value], outputs: Sequence[Value], nodes: Sequence[onnx.NodeProto] = (), **constants: object
) -> onnx.ModelProto:
    """Zeros of the shapes given, but for outputs that `nodes` make."""
    nodes, constants = [helper.make_node("Shape", [inputs[0][0]], ["rows"], start=0, end=1), *nodes], dict(constants)
    for name, dtype, shape in outputs:
        if any(name in node.output for node in nodes):
            continue
        constants[f"{name}_dims"] = np.array(shape[1:], np.int64)
        zero = helper.make_tensor("zero", dtype, [1], [0])
        sizes = ["rows", f"{name}_dims"] if isinstance(shape[0], str) else [f"{name}_whole"]
        constants[f"{name}_whole"] = np.array([1, *shape[1:]], np.int64)
        nodes.append(helper.make_node("Concat", sizes, [f"{name}_shape"], axis=0))
        nodes.append(helper.make_node("ConstantOfShape", [f"{name}_shape"], [name], value=zero))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def put(bundle: Path, name: str, model: onnx.ModelProto) -> None:
    """Replaces a file of a bundle, and the manifest with it."""
    (bundle / name).write_bytes(model.SerializeToString())
    write_manifest(bundle)


def test_the_stand_ins_load_where_nothing_is_wrong(bundle_copy: Path) -> None:
    put(bundle_copy, SPECIES, make_model([IMAGE], [LOGITS, EMBEDDING]))
    outputs = PlantClassifier.load(bundle_copy, threads=1).run(np.zeros((2, 3, 224, 224), np.float32))
    assert not outputs.species_logits.any()


def image(*shape: str | int, name: str = "input", dtype: int = FLOAT) -> Value:
    return name, dtype, list(shape)


INTERFACES: dict[str, tuple[str, Sequence[Value], Sequence[Value], str]] = {
    "another output name": (SPECIES, [IMAGE], [("logits", *LOGITS[1:]), EMBEDDING], "'logits': 'float"),
    "a species too many": (SPECIES, [IMAGE], [image("b", 6, name="species_logits"), EMBEDDING], r"float \(batch, 6\)"),
    "a wider embedding": (SPECIES, [IMAGE], [LOGITS, image("b", 33, name="embedding")], r"float \(batch, 33\)"),
    "doubles": (SPECIES, [IMAGE], [image("b", 5, name="species_logits", dtype=DOUBLE), EMBEDDING], r"double \(batch"),
    "double images": (SPECIES, [image("b", 3, 224, 224, dtype=DOUBLE)], [LOGITS, EMBEDDING], "'input': 'double"),
    "another rank": (SPECIES, [image("b", 3, 224)], [LOGITS, EMBEDDING], r"float \(batch, 3, 224\)"),
    "smaller images": (SPECIES, [image("b", 3, 64, 64)], [LOGITS, EMBEDDING], r"float \(batch, 3, 64, 64\)"),
    "a batch of two": (SPECIES, [image(2, 3, 224, 224)], [LOGITS, EMBEDDING], r"float \(2, 3, 224, 224\)"),
    "an open size": (SPECIES, [image("b", 3, "side", "side")], [LOGITS, EMBEDDING], r"\(batch, 3, side, side\)"),
    "an input more": (SPECIES, [IMAGE, image("b", 2, name="key")], [LOGITS, EMBEDDING], r"'key': 'float \(batch, 2\)"),
    "an output less": (SPECIES, [IMAGE], [EMBEDDING], "not .*'species_logits'"),
    "an output more": (SPECIES, [IMAGE], [LOGITS, EMBEDDING, image("b", 1, name="spare")], "'spare'"),
    "heads of another width": (PACKED_HEADS_FILE, [image("b", 33, name="embedding"), INDEX], [DISEASES], "batch, 33"),
    "a disease too few": (
        PACKED_HEADS_FILE,
        [EMBEDDING, INDEX],
        [image("b", 2, name="disease_logits")],
        r"\(batch, 2\)",
    ),
    "32-bit species": (PACKED_HEADS_FILE, [EMBEDDING, ("species_index", INT32, ["batch"])], [DISEASES], "'int32 "),
    "one species for all": (PACKED_HEADS_FILE, [EMBEDDING, ("species_index", INT64, [])], [DISEASES], r"'int64 \(\)'"),
}


@pytest.mark.parametrize("case", INTERFACES)
def test_another_interface_than_the_metadata_tells_is_refused(bundle_copy: Path, case: str) -> None:
    name, inputs, outputs, match = INTERFACES[case]
    put(bundle_copy, name, make_model(inputs, outputs))
    with pytest.raises(BundleError, match=rf"^{name}: inputs and outputs are .*{match}.*"):
        PlantClassifier.load(bundle_copy, threads=1)


def test_a_batch_fixed_at_one_does_for_the_model_that_is_run_row_by_row_alone(bundle_copy: Path) -> None:
    one = make_model([image(1, 3, 224, 224)], [LOGITS, EMBEDDING])
    put(bundle_copy, SPECIES, one)
    assert len(PlantClassifier.load(bundle_copy, threads=1).run(np.zeros((2, 3, 224, 224), np.float32)).embedding) == 2
    put(bundle_copy, SPECIES_FILES["fp16"], one)
    with pytest.raises(BundleError, match=r"^swin-species.onnx: inputs and outputs are .*float \(1, 3, 224, 224\)"):
        PlantClassifier.load(bundle_copy, precision="fp16", threads=1)


@pytest.mark.parametrize("value", [LOGITS, EMBEDDING])
def test_a_model_that_answers_in_another_shape_than_it_declares_is_an_error(bundle_copy: Path, value: Value) -> None:
    name = value[0]
    nodes = [
        helper.make_node("Concat", ["rows", "seven"], ["whole"], axis=0),
        helper.make_node("ConstantOfShape", ["whole"], ["wide"]),
        helper.make_node("Slice", ["input", "zeros", "sevens"], ["corner"]),  # what hangs on numbers has no known shape
        helper.make_node("Reshape", ["corner", "seven"], ["seven numbers"]),
        helper.make_node("IsNaN", ["seven numbers"], ["none"]),
        helper.make_node("Not", ["none"], ["all"]),
        helper.make_node("Compress", ["wide", "all"], [name], axis=1),
    ]
    corner = {"zeros": np.zeros(4, np.int64), "sevens": np.array([1, 1, 1, 7])}
    model = make_model([IMAGE], [LOGITS, EMBEDDING], nodes, seven=np.array([7]), **corner)
    put(bundle_copy, SPECIES, model)
    classifier = PlantClassifier.load(bundle_copy, threads=1)
    with pytest.raises(BundleError, match=rf"^{SPECIES}: {name} has shape \(1, 7\), not \(1, "):
        classifier.run(np.zeros((1, 3, 224, 224), np.float32))


def test_weights_beside_the_model_are_not_read(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnx.load(bundle_copy / PACKED_HEADS_FILE)
    onnx.save(model, bundle_copy / PACKED_HEADS_FILE, save_as_external_data=True, location="weights", size_threshold=0)
    write_manifest(bundle_copy)
    monkeypatch.chdir(bundle_copy)
    for open_it in (
        lambda: PlantClassifier.load(bundle_copy, threads=1),
        lambda: open_session(bundle_copy / PACKED_HEADS_FILE),
    ):
        with pytest.raises(BundleError, match=rf"{PACKED_HEADS_FILE}: ONNX Runtime cannot open it .*external tensors"):
            open_it()


def declared(**fields: object) -> onnx.ModelProto:
    model = make_model([IMAGE], [LOGITS, EMBEDDING])
    model.graph.initializer.append(TensorProto(name="huge", data_type=FLOAT, **fields))
    model.graph.node.append(helper.make_node("ReduceSum", ["huge"], ["sum"], keepdims=0))
    model.graph.output.append(helper.make_tensor_value_info("sum", FLOAT, []))
    return model


def looping() -> onnx.ModelProto:
    values = [("i", INT64, []), ("on", TensorProto.BOOL, []), ("v", FLOAT, None)]
    body = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["still"]), helper.make_node("Identity", ["v"], ["w"])],
        "body",
        [helper.make_tensor_value_info(*value) for value in values],
        [helper.make_tensor_value_info("still", TensorProto.BOOL, []), helper.make_tensor_value_info("w", FLOAT, None)],
    )
    loop = helper.make_node("Loop", ["count", "true", "start"], ["species_logits"], body=body)
    constants = {"count": np.int64(2**62), "true": np.bool_(True), "start": np.zeros((1, 5), np.float32)}
    return make_model([IMAGE], [LOGITS, EMBEDDING], [loop], **constants)


def scan(input_name: str, nodes: Sequence[onnx.NodeProto] = ()) -> onnx.ModelProto:
    """A model that scans over the named tensor; the body runs `nodes`."""
    row = helper.make_tensor_value_info("row", FLOAT, [3, 224, 224])
    same = helper.make_tensor_value_info("same", FLOAT, [3, 224, 224])
    body = helper.make_graph([*nodes, helper.make_node("Identity", ["row"], ["same"])], "body", [row], [same])
    node = helper.make_node("Scan", [input_name], ["copy"], body=body, num_scan_inputs=1)
    many = helper.make_node("Expand", ["input", "sizes"], ["many"])
    return make_model([IMAGE], [LOGITS, EMBEDDING], [many, node], sizes=np.array([10**6, 3, 224, 224]))


def test_only_a_scan_over_the_images_may_run_a_graph(tmp_path: Path) -> None:
    inner = next(node for node in scan("row").graph.node if node.op_type == "Scan")
    check_graph(tmp_path, scan("input").SerializeToString())
    for model in (scan("many"), scan("input", [inner])):
        with pytest.raises(BundleError, match="operator 'Scan' runs a graph of its own, which need not end: refused"):
            check_graph(tmp_path, model.SerializeToString())


def test_a_node_without_a_name_inside_a_scan_is_looked_at_too(tmp_path: Path) -> None:
    unnamed = helper.make_node("LayerNormalization", ["row", "row", ""], ["normal"])
    with pytest.raises(BundleError, match="a LayerNormalization has an input without a name: refused"):
        check_graph(tmp_path, scan("input", [unnamed]).SerializeToString())


def doubling_functions() -> onnx.ModelProto:
    """Forty functions of which each calls the one before it twice: 2⁴⁰ nodes once they are in place."""
    model = make_model([IMAGE], [LOGITS, EMBEDDING])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("d", 1)]
    for i in range(40):
        calls = [(f"f{i - 1}", "a", "m"), (f"f{i - 1}", "m", "b")] if i else [("Identity", "a", "b")]
        nodes = [helper.make_node(name, [x], [y], domain="d" if i else "") for name, x, y in calls]
        model.functions.append(helper.make_function("d", f"f{i}", ["a"], ["b"], nodes, opsets))
    model.opset_import.append(opsets[1])
    model.graph.node.append(helper.make_node("f39", ["input"], ["spare"], domain="d"))
    return model


ENDLESS: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "3 GB declared": (
        lambda: declared(dims=[750_000_000], raw_data=bytes(16)),
        "cannot open it .*(3000000000 bytes|size mismatch)",
    ),
    "2⁶² values declared": (lambda: declared(dims=[2**62], raw_data=bytes(16)), "cannot open it"),
    "more than 2⁶⁴ values declared": (lambda: declared(dims=[2**40, 2**40], raw_data=bytes(16)), "cannot open it"),
    "fewer than no values": (
        lambda: declared(dims=[-5], raw_data=bytes(16)),
        "cannot open it .*(Out of bounds|must be >= 0)",
    ),
    "3 GB declared, one value": (lambda: declared(dims=[750_000_000], float_data=[1.0]), "cannot open it"),
    "a loop without end": (looping, "operator 'Loop' runs a graph of its own, which need not end: refused"),
    "functions that double": (doubling_functions, "the model defines functions: refused"),
}

OPEN = """
import pathlib, resource, sys
from plantmodels.serve.session import open_session
resource.setrlimit(resource.RLIMIT_AS, (3 * 2**30,) * 2)
try:
    session = open_session(pathlib.Path(sys.argv[1]), threads=1)
    print("opened")
except Exception as error:
    print(type(error).__name__, error)
print("peak", int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) // 1024)
"""


@pytest.mark.parametrize("case", ENDLESS)
def test_files_that_claim_endless_memory_or_time_are_refused_at_load(tmp_path: Path, case: str) -> None:
    make, match = ENDLESS[case]
    path = tmp_path / "model.onnx"
    path.write_bytes(make().SerializeToString())
    assert path.stat().st_size < 10_000
    command = [sys.executable, "-c", OPEN, str(path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=1200)
    message, peak = ran.stdout.rsplit("peak ", 1)
    with pytest.raises(BundleError, match=rf"model.onnx: .*{match}"):
        raise BundleError(message)
    assert message.startswith("BundleError")
    assert int(peak) < 500, "MB"


RUN = """
import pathlib, resource, sys
import numpy as np
from plantmodels.serve.classifier import PlantClassifier
resource.setrlimit(resource.RLIMIT_AS, (3 * 2**30,) * 2)
try:
    classifier = PlantClassifier.load(pathlib.Path(sys.argv[1]), threads=1)
    classifier.run(np.zeros((1, 3, 224, 224), np.float32))
except Exception as error:
    print(type(error).__name__, error)
"""


def test_a_model_that_wants_100_gb_when_it_runs_is_an_error_where_memory_is_limited(bundle_copy: Path) -> None:
    nodes = [
        helper.make_node("Expand", ["one", "size"], ["huge"]),
        helper.make_node("ReduceSum", ["huge"], ["sum"], keepdims=0),
        helper.make_node("Concat", ["rows", "five"], ["whole"], axis=0),
        helper.make_node("Expand", ["sum", "whole"], ["species_logits"]),
    ]
    constants = {"one": np.ones(1, np.float32), "size": np.array([25 * 10**9]), "five": np.array([5])}
    put(bundle_copy, SPECIES, make_model([IMAGE], [LOGITS, EMBEDDING], nodes, **constants))
    command = [sys.executable, "-c", RUN, str(bundle_copy)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=1200)
    # ONNX Runtime 1.23 asks for the memory when it opens the model.
    assert re.match(rf"BundleError .*{SPECIES}: (does not run|ONNX Runtime cannot open it)", ran.stdout)
    assert "Failed to allocate memory" in ran.stdout or "bad_alloc" in ran.stdout


def test_onnx_runtimes_own_format_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x18\x00\x00\x00ORTM" + bytes(200))
    with pytest.raises(BundleError, match=r"model.onnx: (ONNX Runtime cannot open it|not an ONNX file)"):
        open_session(path)
    opened = open_session(path, make_model([IMAGE], [LOGITS, EMBEDDING]).SerializeToString())
    assert opened.get_session_options().get_session_config_entry("session.load_model_format") == "ONNX"


def test_a_model_cannot_set_session_options(tmp_path: Path) -> None:
    model = make_model([IMAGE], [LOGITS, EMBEDDING])
    options = '{"session_options": {"intra_op_num_threads": 7, "enable_profiling": 1}}'
    model.metadata_props.add(key="ort_config", value=options)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    command = [sys.executable, "-c", OPEN, "model.onnx"]
    environment = os.environ | {"ORT_LOAD_CONFIG_FROM_MODEL": "1", "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment, timeout=1200
    )
    assert ran.stdout.startswith("BundleError model.onnx: its property 'ort_config' sets options of its session")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"], "a profile of the session"


@pytest.mark.parametrize("operators", [["LayerNormalization"], ["Identity", "LayerNormalization"]])
def test_a_layer_normalization_that_ends_the_process_is_refused(operators: list[str]) -> None:
    """Of a field that is there twice, protobuf takes the last."""
    node = onnx.NodeProto(input=["input", "gain", ""], output=["normal"]).SerializeToString()
    node += b"".join(onnx.NodeProto(op_type=operator).SerializeToString() for operator in operators)
    graph = bytes([1 << 3 | 2, len(node)]) + node
    content = onnx.ModelProto(ir_version=10).SerializeToString() + bytes([7 << 3 | 2, len(graph)]) + graph
    assert onnx.load_from_string(content).graph.node[0].op_type == "LayerNormalization"

    with pytest.raises(BundleError, match=r"model.onnx: a LayerNormalization has an input without a name: refused"):
        open_session(Path("model.onnx"), content)


@given(cut=st.integers(0, 10_000), edits=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=4))
def test_damaged_files_are_looked_through_or_refused_and_nothing_else(cut: int, edits) -> None:
    data = bytearray(looping().SerializeToString())
    for position, value in edits:
        data[position % len(data)] = value
    try:
        check_graph(Path("model.onnx"), bytes(data[:cut]))
    except BundleError as error:
        assert str(error).startswith("model.onnx: ")
