"""Checks FP16 storage and dynamic INT8 against float models and a slow product in numpy."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from plantmodels.errors import ExportError
from plantmodels.export.quantize import find_products, quantize_int8, quantize_weight, store_weights_fp16

DIM = 64


def make_model(weight: np.ndarray, *, epsilon: float = 1e-5) -> onnx.ModelProto:
    """Build a model with the operators of a Swin block: MatMul, LayerNormalization, Softmax, Gemm."""
    rng = np.random.default_rng(7)
    constants = {
        "weight": weight,
        "scale": rng.normal(size=DIM).astype(np.float32),
        "offset": rng.normal(size=DIM).astype(np.float32),
        "final": rng.normal(size=(5, DIM)).astype(np.float32),
        "bias": rng.normal(size=5).astype(np.float32),
        "small": np.array([0.1, 0.2, 0.3, 0.4, 0.5], np.float32),
        "indices": np.arange(20, dtype=np.int64),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["a"]),
        helper.make_node("LayerNormalization", ["a", "scale", "offset"], ["b"], epsilon=epsilon),
        helper.make_node("Softmax", ["b"], ["c"]),
        helper.make_node("Gemm", ["c", "final", "bias"], ["d"], transB=1),
        helper.make_node("Add", ["d", "small"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", DIM])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return make_model(np.random.default_rng(0).normal(size=(DIM, DIM)).astype(np.float32))


@pytest.fixture(scope="module")
def inputs() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(6, DIM)).astype(np.float32)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


class TestFp16:
    def test_halves_the_file(self, model: onnx.ModelProto) -> None:
        big = make_model(np.zeros((DIM, DIM), np.float32))
        big.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((DIM, 4000), np.float32), "weight"))

        assert store_weights_fp16(big).ByteSize() < 0.51 * big.ByteSize()
        assert store_weights_fp16(model).ByteSize() < 0.6 * model.ByteSize()

    def test_computes_in_float32_with_the_weights_that_numpy_rounds(self, model: onnx.ModelProto, inputs) -> None:
        rounded = onnx.ModelProto()
        rounded.CopyFrom(model)
        for tensor in rounded.graph.initializer:
            values = numpy_helper.to_array(tensor)
            if values.dtype == np.float32 and values.size >= 16:
                tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16).astype(np.float32), tensor.name))

        np.testing.assert_array_equal(run(store_weights_fp16(model), inputs), run(rounded, inputs))
        assert np.abs(run(rounded, inputs) - run(model, inputs)).max() > 0

    def test_small_and_integer_constants_stay(self, model: onnx.ModelProto) -> None:
        stored = {t.name: t.data_type for t in store_weights_fp16(model).graph.initializer}

        assert stored == {
            "weight.fp16": TensorProto.FLOAT16,
            "scale.fp16": TensorProto.FLOAT16,
            "offset.fp16": TensorProto.FLOAT16,
            "final.fp16": TensorProto.FLOAT16,
            "bias": TensorProto.FLOAT,
            "small": TensorProto.FLOAT,
            "indices": TensorProto.INT64,
        }

    def test_interface_and_original_are_unchanged(self, model: onnx.ModelProto) -> None:
        before = model.SerializeToString()
        stored = store_weights_fp16(model)
        onnx.checker.check_model(stored, full_check=True)

        assert model.SerializeToString() == before
        assert list(stored.graph.input) == list(model.graph.input)
        assert list(stored.graph.output) == list(model.graph.output)

    @pytest.mark.parametrize("value", [1e5, -70_000.0, np.inf])
    def test_a_weight_beyond_float16_is_refused_by_name(self, value: float) -> None:
        weight = np.ones((DIM, DIM), np.float32)
        weight[3, 4] = value

        with pytest.raises(ExportError, match=r"weight 'weight' holds (1e\+05|7e\+04|inf), beyond float16's 65504"):
            store_weights_fp16(make_model(weight))

    def test_the_largest_float16_is_accepted(self) -> None:
        weight = np.full((DIM, DIM), 65504, np.float32)

        assert numpy_helper.to_array(store_weights_fp16(make_model(weight)).graph.initializer[0]).max() == 65504


ROWS, TOKENS = 3, 10


def make_block() -> onnx.ModelProto:
    """Build a model: a norm, a permutation, two products that read it, one product after them, and one on the mean."""
    rng = np.random.default_rng(11)
    constants = {
        **{f"w{i}": rng.normal(size=(DIM, DIM)).astype(np.float32) / 8 for i in range(3)},
        "bias": rng.normal(size=DIM).astype(np.float32),
        "scale": np.ones(DIM, np.float32),
        "order": rng.permutation(TOKENS).astype(np.int64),
        "shape": np.array([-1, TOKENS, DIM], np.int64),
        "axis": np.array([1], np.int64),
        "final": rng.normal(size=(5, DIM)).astype(np.float32),
        "small": np.array([0.1, 0.2, 0.3, 0.4, 0.5], np.float32),
    }
    nodes = [
        helper.make_node("LayerNormalization", ["x", "scale"], ["n"]),
        helper.make_node("Gather", ["n", "order"], ["g"], "move", axis=1),
        helper.make_node("Reshape", ["g", "shape"], ["r"], "view"),
        helper.make_node("MatMul", ["r", "w0"], ["p"], "first"),
        helper.make_node("Add", ["bias", "p"], ["q"], "first_bias"),
        helper.make_node("MatMul", ["r", "w1"], ["k"], "second"),
        helper.make_node("Add", ["q", "k"], ["s"], "sum"),
        helper.make_node("Gelu", ["s"], ["u"]),
        helper.make_node("MatMul", ["u", "w2"], ["v"], "third"),
        helper.make_node("ReduceMean", ["v", "axis"], ["m"], keepdims=0),
        helper.make_node("Gemm", ["m", "final", "small"], ["y"], "head", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", TOKENS, DIM])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture(scope="module")
def block() -> onnx.ModelProto:
    return make_block()


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    return np.random.default_rng(2).normal(size=(1, TOKENS, DIM)).astype(np.float32)


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def slow_product(x: np.ndarray, weight: np.ndarray, largest: int = 127) -> np.ndarray:
    """Compute a dynamic INT8 product in numpy, as ONNX defines its parts."""
    low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
    step = np.float32((high - low) / 255)
    zero = np.clip(np.rint(-low / step), 0, 255)
    activations = np.clip(np.rint(x / step) + zero, 0, 255) - zero
    scale = np.abs(weight).max(axis=0) / largest
    return (activations @ np.rint(weight / scale)) * step * scale


class TestInt8:
    def test_products_on_tokens_are_quantized_and_the_head_is_not(self, block: onnx.ModelProto) -> None:
        assert find_products(block) == ["first", "second", "third"]
        quantized = quantize_int8(block, reduce_range=False)
        onnx.checker.check_model(quantized, full_check=True)

        assert kinds(quantized).count("MatMulIntegerToFloat") == 3
        assert not {"MatMul", "DequantizeLinear"} & set(kinds(quantized))
        assert {"Gemm", "LayerNormalization", "Gelu"} <= set(kinds(quantized))

    def test_a_shared_input_is_quantized_once_and_moved_as_bytes(self, block: onnx.ModelProto) -> None:
        quantized = quantize_int8(block, reduce_range=False)
        inputs = {node.op_type: node.input[0] for node in quantized.graph.node}

        assert kinds(quantized).count("DynamicQuantizeLinear") == 2
        assert (kinds(quantized).count("Gather"), kinds(quantized).count("Reshape")) == (1, 1)
        assert (inputs["Gather"], inputs["Reshape"]) == ("n.uint8", "g.uint8")

    def test_outputs_equal_a_slow_product(self, block: onnx.ModelProto, tokens: np.ndarray) -> None:
        weights = {t.name: numpy_helper.to_array(t) for t in block.graph.initializer}
        part = onnx.ModelProto()
        part.CopyFrom(block)
        del part.graph.node[7:]
        del part.graph.output[:]
        part.graph.output.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, ["batch", TOKENS, DIM]))
        centred = tokens - tokens.mean(axis=-1, keepdims=True)
        normed = (centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5))[0][weights["order"]]
        expected = slow_product(normed, weights["w0"]) + weights["bias"] + slow_product(normed, weights["w1"])

        answers = run(quantize_int8(part, reduce_range=False), tokens)[0]
        np.testing.assert_allclose(answers, expected, atol=0.05)  # a norm in other kernels may round to a neighbour
        assert np.median(np.abs(answers - expected)) < 1e-4

    def test_an_addition_that_is_not_a_bias_stays(self, block: onnx.ModelProto) -> None:
        quantized = quantize_int8(block, reduce_range=False)
        products = {node.name: node for node in quantized.graph.node if node.op_type == "MatMulIntegerToFloat"}

        assert products["first"].input[6] == "bias" and products["first"].output[0] == "q"
        assert len(products["second"].input) == 6
        assert [node.name for node in quantized.graph.node if node.op_type == "Add"] == ["sum"]

    def test_products_kept_in_float_are_stored_in_fp16(self, block: onnx.ModelProto, tokens: np.ndarray) -> None:
        kept = quantize_int8(block, reduce_range=False, keep_float=["first", "third"])
        stored = {t.name: t.data_type for t in kept.graph.initializer}

        assert kinds(kept).count("MatMul") == 2
        assert (stored["w0.fp16"], stored["w1.int8"], stored["final.fp16"]) == (
            TensorProto.FLOAT16,
            TensorProto.INT8,
            TensorProto.FLOAT16,
        )
        assert stored["w1.scale"] == stored["bias"] == TensorProto.FLOAT, "vectors are not worth rounding"
        whole = quantize_int8(block, reduce_range=False)
        truth = run(block, tokens)
        assert np.abs(run(kept, tokens) - truth).max() < np.abs(run(whole, tokens) - truth).max()

    def test_the_float_weights_are_removed(self, block: onnx.ModelProto) -> None:
        quantized = quantize_int8(block, reduce_range=False)

        assert quantized.ByteSize() < block.ByteSize() / 2.5
        used = {name for node in quantized.graph.node for name in node.input}
        assert {tensor.name for tensor in quantized.graph.initializer} <= used

    def test_the_float_model_is_unchanged(self, block: onnx.ModelProto) -> None:
        before = block.SerializeToString()
        quantize_int8(block, reduce_range=False)

        assert block.SerializeToString() == before

    @pytest.mark.parametrize(("bits", "largest"), [(8, 127), (7, 63)])
    def test_weights_are_rounded_to_the_nearest(self, bits: int, largest: int) -> None:
        weight = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
        weight[:, 1] = 0
        weight[:, 2] *= 1e-42
        rounded, scale = quantize_weight(weight, bits=bits)

        assert rounded.dtype == np.int8 and np.abs(rounded[:, 0]).max() == largest
        assert (np.abs(rounded * scale - weight) <= scale / 2 + 1e-7).all()
        assert (scale[1:] == 1).all() and (rounded[:, 1:] == 0).all()

    def test_reduced_range_reaches_the_file(self, block: onnx.ModelProto) -> None:
        for reduce_range, largest in ((False, 127), (True, 63)):
            tensors = {t.name: t for t in quantize_int8(block, reduce_range=reduce_range).graph.initializer}
            assert np.abs(numpy_helper.to_array(tensors["w0.int8"]).astype(int)).max() == largest
