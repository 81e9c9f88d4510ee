"""Other libraries' messages in ours: one line, whose reason is never cut off."""

import re
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from plantmodels.errors import BundleError
from plantmodels.foreign_text import MAX_QUOTE, quote_error, shorten
from plantmodels.serve.session import open_session

ROOT = Path(__file__).resolve().parents[1]

MESSAGES = {
    "a source position and a constructor": (
        "Status Message: /onnxruntime_src/onnxruntime/core/providers/cpu/tensor/reshape_helper.h:47 onnxruntime::"
        "ReshapeHelper::ReshapeHelper(const onnxruntime::TensorShape&, onnxruntime::TensorShapeVector&, bool) "
        "input_shape_size == size was false. Input shape:{2,3}, requested shape:{5}",
        "Status Message: input_shape_size == size was false. Input shape:{2,3}, requested shape:{5}",
    ),
    "a position without a space before it": (
        "Load model from a.onnx failed:/onnxruntime_src/onnxruntime/core/graph/model.cc:181 onnxruntime::Model::Model("
        "onnx::ModelProto&&, const onnxruntime::PathString&) Unknown model file format version.",
        "Load model from a.onnx failed: Unknown model file format version.",
    ),
    "a return type, a template and const": (
        "/x/y.cc:12 virtual onnxruntime::common::Status onnxruntime::Gemm<float>::Compute(OpKernelContext*, "
        "std::function<void(int)>) const [with T = float; Deleter = std::default_delete<int>] GEMM: dimension mismatch",
        "GEMM: dimension mismatch",
    ),
    "no arguments": (
        "/x/bridge_ort.cc:1234 onnxruntime::Provider& onnxruntime::ProviderLibrary::Get() libcublas.so.11: not found",
        "libcublas.so.11: not found",
    ),
    "a C++ stack": (
        "shapes cannot be multiplied (2x3 and 4x5)\nException raised from addmm_impl at /pytorch/aten/x.cpp:70 (most "
        "recent call first):\nframe #0: c10::Error::Error() + 0x57 (0x7f)\nframe #1: main",
        "shapes cannot be multiplied (2x3 and 4x5)",
    ),
    "a Java stack": (
        "java.io.IOException: no\n\tat org.apache.Foo$.bar(Foo.scala:12)\n\tat java.base/x.Y.<init>(Y.java:9)\n\t... 2 "
        "more\nCaused by: java.io.IOException: disk full",
        "java.io.IOException: no Caused by: java.io.IOException: disk full",
    ),
    "colours": ("\x1b[1;31mError\x1b[0m: \x1b]8;;http://x\x07link\x1b]8;;\x07 is broken", "Error: link is broken"),
    "lines": ("  one\n\n\ttwo  ", "one two"),
    "an operator is no signature": (
        "aten::max_pool2d(Tensor self) is missing",
        "aten::max_pool2d(Tensor self) is missing",
    ),
    "a C++ exception is no signature": ("std::bad_alloc", "std::bad_alloc"),
    "words in brackets are no signature": ("head::tail (of it) is wrong", "head::tail (of it) is wrong"),
    "an open bracket": ("torch::load(const char*", "torch::load(const char*"),
    "nothing": ("", "ValueError"),
    "only noise": ("\x1b[0m\n", "ValueError"),
}


@pytest.mark.parametrize("case", MESSAGES)
def test_noise_is_removed_and_the_reason_stays(case: str) -> None:
    message, expected = MESSAGES[case]

    assert quote_error(ValueError(message)) == expected


def test_a_long_message_keeps_its_beginning_and_its_end() -> None:
    message = "torch.load refuses it. " + "Advice that nobody needs. " * 300 + "Unsupported global: pathlib.PosixPath"
    quoted = quote_error(message)

    assert len(quoted) <= MAX_QUOTE
    assert quoted.startswith("torch.load refuses it. ") and quoted.endswith("Unsupported global: pathlib.PosixPath")
    assert " … " in quoted


@pytest.mark.parametrize("length", [20, 30, 50])
def test_text_is_shortened_to_its_length(length: int) -> None:
    text = "/a/long/folder/of/a/person/with/many/parts/leaf 7.jpg"

    assert len(shorten(text, length)) <= length and shorten(text, length).endswith("leaf 7.jpg")
    assert shorten(text, len(text)) == text


@pytest.mark.parametrize(
    "text",
    ["a::" * 50_000, "x::y(" * 20_000, "x::y(&) " * 20_000, "<" * 50_000 + "a::b(", "\n at a(" * 20_000, "(" * 99_999],
)
def test_no_message_takes_long(text: str) -> None:
    start = time.process_time()
    assert len(quote_error(text)) <= MAX_QUOTE
    assert time.process_time() - start < 20, "a pattern takes quadratic time"


def test_the_message_that_torch_gives_for_a_foreign_global_names_it(tmp_path: Path) -> None:
    torch.save({"data_dir": Path("data")}, tmp_path / "a.ckpt")
    with pytest.raises(Exception, match="Weights only load failed") as caught:
        torch.load(tmp_path / "a.ckpt", weights_only=True)

    assert "pathlib.PosixPath" in quote_error(caught.value)


def test_onnx_runtime_s_reason_is_kept_without_its_c_plus_plus(tmp_path: Path) -> None:
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("NoSuchOperator", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [value], [onnx.helper.make_tensor_value_info("y", 1, [1])])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    with pytest.raises(BundleError, match="NoSuchOperator") as caught:
        open_session(tmp_path / "a.onnx", model.SerializeToString())

    assert not re.search(r"::\w+\(|\.(cc|h):\d+", str(caught.value))


def test_a_model_that_fails_while_it_runs_is_quoted_alike() -> None:
    shape = onnx.helper.make_tensor_value_info("shape", onnx.TensorProto.INT64, [1])
    data = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [6])
    node = onnx.helper.make_node("Reshape", ["x", "shape"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [data, shape], [onnx.helper.make_tensor_value_info("y", 1, ["n"])])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    session = open_session(Path("a.onnx"), model.SerializeToString())
    with pytest.raises(Exception) as caught:
        session.run(None, {"x": np.zeros(6, np.float32), "shape": np.array([5])})

    quoted = quote_error(caught.value)
    assert "Reshape" in quoted and quoted.endswith("requested shape:{5}")
    assert "::ReshapeHelper(" not in quoted and ".h:" not in quoted


def test_no_source_cuts_an_error_at_its_end() -> None:
    """`str(error)[:300]` loses the reason; `quote_error` keeps it."""
    cut = re.compile(r"(str\(error\)|error\).*split\(\)\)|os\.fspath\(\w+\)|str\(path\)).*\[:\d+\]")
    sources = [path for room in ("plantmodels", "mlflow_plugins") for path in (ROOT / room).rglob("*.py")]

    assert len(sources) > 100
    assert [path.name for path in sources if cut.search(path.read_text(encoding="utf-8"))] == []
