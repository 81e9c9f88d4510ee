"""FP16 storage and dynamic INT8 of float models, and what the machine's CPU says of itself."""

import logging
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from plantmodels.build import quantize
from plantmodels.build.quantize import describe_cpu, quantize_int8, store_weights_fp16
from plantmodels.errors import ExportError

DIM = 64


def make_model(weight: np.ndarray, *, epsilon: float = 1e-5) -> onnx.ModelProto:
    """MatMul, LayerNormalization, Softmax, Gemm: what a Swin block is made of."""
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

    def test_the_largest_of_float16_is_taken(self) -> None:
        weight = np.full((DIM, DIM), 65504, np.float32)

        assert numpy_helper.to_array(store_weights_fp16(make_model(weight)).graph.initializer[0]).max() == 65504


@pytest.fixture(scope="module")
def quantized(model: onnx.ModelProto, tmp_path_factory) -> tuple[Path, dict]:
    """The INT8 file and its recipe."""
    folder = tmp_path_factory.mktemp("int8")
    onnx.save(model, folder / "float.onnx")
    recipe = quantize_int8(folder / "float.onnx", folder / "int8.onnx", reduce_range=False)
    return folder / "int8.onnx", recipe


class TestInt8:
    def test_only_products_are_quantized(self, quantized) -> None:
        kinds = [node.op_type for node in onnx.load(quantized[0]).graph.node]

        assert kinds.count("MatMulInteger") == 2
        assert kinds.count("LayerNormalization") == 1
        assert kinds.count("Softmax") == 1
        assert not {"MatMul", "Gemm", "DequantizeLinear", "QLinearMatMul"} & set(kinds)

    def test_norms_and_softmax_are_fed_floats(self, quantized) -> None:
        graph = onnx.shape_inference.infer_shapes(onnx.load(quantized[0])).graph
        kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
        for node in graph.node:
            if node.op_type in ("LayerNormalization", "Softmax"):
                assert kinds[node.input[0]] == TensorProto.FLOAT

    def test_weights_have_a_scale_for_each_channel(self, quantized) -> None:
        tensors = {t.name: numpy_helper.to_array(t) for t in onnx.load(quantized[0]).graph.initializer}

        assert tensors["weight_quantized"].dtype == np.int8
        assert tensors["weight_scale"].shape == (DIM,)
        assert (tensors["weight_zero_point"] == 0).all()

    def test_answers_stay_close(self, quantized, model: onnx.ModelProto, inputs) -> None:
        int8 = ort.InferenceSession(quantized[0], providers=["CPUExecutionProvider"]).run(None, {"x": inputs})[0]

        np.testing.assert_allclose(int8, run(model, inputs), atol=0.05)

    def test_the_recipe_says_what_was_done(self, quantized) -> None:
        assert quantized[1] == {
            "method": "dynamic",
            "operators": ["MatMul", "Gemm"],
            "per_channel": True,
            "weights": "int8",
            "activations": "uint8",
            "reduce_range": False,
        }

    @pytest.mark.parametrize(("reduce_range", "largest"), [(False, 127), (True, 64)])
    def test_reduced_range_is_seven_bits(
        self, model: onnx.ModelProto, tmp_path: Path, reduce_range: bool, largest: int
    ) -> None:
        onnx.save(model, tmp_path / "float.onnx")
        recipe = quantize_int8(tmp_path / "float.onnx", tmp_path / "int8.onnx", reduce_range=reduce_range)
        weights = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "int8.onnx").graph.initializer}

        assert recipe["reduce_range"] is reduce_range
        assert largest // 2 < np.abs(weights["weight_quantized"].astype(int)).max() <= largest

    def test_source_and_log_level_are_unchanged(self, model: onnx.ModelProto, tmp_path: Path) -> None:
        onnx.save(model, tmp_path / "float.onnx")
        before, level = (tmp_path / "float.onnx").read_bytes(), logging.getLogger().level
        quantize_int8(tmp_path / "float.onnx", tmp_path / "int8.onnx", reduce_range=False)

        assert (tmp_path / "float.onnx").read_bytes() == before
        assert logging.getLogger().level == level


INTEL = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags\t\t: fpu sse avx avx2 avx512f avx512_vnni amx_bf16 amx_tile amx_int8

processor\t: 1
model name\t: another one
flags\t\t: fpu
"""
OLD_INTEL = "processor\t: 0\nmodel name\t: Intel(R) Core(TM) i5-4590\nflags\t\t: fpu sse avx avx2 fma\n"
ALDER_LAKE = "model name\t: i9\nflags\t\t: avx2 avx_vnni\n"
ARM = """processor\t: 0
BogoMIPS\t: 243.75
Features\t: fp asimd evtstrm aes crc32 atomics asimddp sve i8mm bf16
CPU implementer\t: 0x41
"""


@pytest.mark.parametrize(
    ("machine", "text", "name", "features", "has_int8_dot_product"),
    [
        (
            "x86_64",
            INTEL,
            "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz",
            ("avx2", "avx512f", "avx512_vnni", "amx_int8", "amx_bf16"),
            True,
        ),
        ("x86_64", OLD_INTEL, "Intel(R) Core(TM) i5-4590", ("avx2",), False),
        ("x86_64", ALDER_LAKE, "i9", ("avx2", "avx_vnni"), True),
        ("aarch64", ARM, "", ("asimddp", "i8mm"), True),
        ("x86_64", "", "", (), False),
        ("x86_64", "no colon here\n::\n: x\nflags\n", "", (), False),
        ("AMD64", "", "", (), False),
        ("i686", OLD_INTEL, "Intel(R) Core(TM) i5-4590", ("avx2",), False),
        ("arm64", "", "", (), True),
    ],
)
def test_describe_cpu(tmp_path: Path, monkeypatch, machine, text, name, features, has_int8_dot_product) -> None:
    monkeypatch.setattr(quantize.platform, "machine", lambda: machine)
    (tmp_path / "cpuinfo").write_text(text)
    cpu = describe_cpu(tmp_path / "cpuinfo")

    assert (cpu.architecture, cpu.model, cpu.features) == (machine, name, features)
    assert cpu.has_int8_dot_product is has_int8_dot_product


def test_a_machine_without_cpuinfo_has_no_known_features(tmp_path: Path) -> None:
    cpu = describe_cpu(tmp_path / "none")

    assert (cpu.model, cpu.features) == ("", ())
