"""The one place that opens sessions: whatever ONNX Runtime refuses becomes a BundleError that names the file."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from plantmodels.errors import BundleError
from plantmodels.serve import session
from plantmodels.serve.session import SESSION_OPTIONS, open_session

ROOT = Path(__file__).resolve().parents[2]


def make_model(operator: str = "Neg", domain: str = "") -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node(operator, ["x"], ["y"], domain=domain)], "g", values[:1], values[1:])
    opsets = [helper.make_opsetid("", 20), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def with_external_data(location: str) -> onnx.ModelProto:
    model = make_model()
    tensor = numpy_helper.from_array(np.zeros(1000, np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    model.graph.initializer.append(tensor)
    model.graph.node.append(helper.make_node("Identity", ["w"], ["z"]))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1000]))
    return model


def newer(field: str) -> onnx.ModelProto:
    model = make_model()
    if field == "opset":
        model.opset_import[0].version = 999
    else:
        model.ir_version = 999
    return model


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "neg.onnx"
    onnx.save(make_model(), path)
    return path


def test_a_session_computes(model_file: Path) -> None:
    opened = open_session(model_file, threads=1)

    np.testing.assert_array_equal(opened.run(None, {"x": np.ones((2, 3), np.float32)})[0], -np.ones((2, 3)))
    assert opened.get_providers() == ["CPUExecutionProvider"]


def test_options_reach_the_session(model_file: Path) -> None:
    options = open_session(model_file, options=SESSION_OPTIONS, threads=1).get_session_options()

    assert options.get_session_config_entry("session.set_denormal_as_zero") == "1"
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)


@pytest.mark.parametrize("options", [{}, dict(SESSION_OPTIONS)], ids=["off", "on"])
def test_denormals_count_as_zero_in_a_process_whose_first_session_says_so(tmp_path: Path, options) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Mul", ["x", "factor"], ["y"])], "g", values[:1], values[1:])
    graph.initializer.append(numpy_helper.from_array(np.array([1e10], np.float32), "factor"))
    path = tmp_path / "mul.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    code = f"""
import pathlib, numpy
from plantmodels.serve.session import open_session
session = open_session(pathlib.Path({str(path)!r}), options={options!r}, threads=1)
print(session.run(None, {{"x": numpy.array([1e-40], numpy.float32)}})[0][0] > 0)
"""
    # A process of its own: ONNX Runtime lets the first session decide for the thread that opens it, for good.
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)

    assert ran.stdout.strip() == ("False" if options else "True")


def test_an_absent_provider_lists_the_available_ones(model_file: Path) -> None:
    with pytest.raises(BundleError, match=r"MagicProvider is not available; this ONNX Runtime has .*CPUExecution"):
        open_session(model_file, providers=["MagicProvider", "CPUExecutionProvider"])


FILES = {
    "garbage": b"garbage" * 100,
    "text": b"a leaf\n",
    "cut off": make_model().SerializeToString()[:-5],
    "empty": b"",
    "custom operator": make_model("Leaf", "my.domain").SerializeToString(),
    "unknown operator": make_model("NoSuchOperator").SerializeToString(),
    "newer opset": newer("opset").SerializeToString(),
    "newer IR": newer("IR").SerializeToString(),
    "data outside the bundle": with_external_data("../../../../etc/passwd").SerializeToString(),
    "data at an absolute path": with_external_data("/etc/passwd").SerializeToString(),
    "data that is not there": with_external_data("weights.bin").SerializeToString(),
}


@pytest.mark.parametrize("kind", FILES)
def test_files_that_are_no_servable_model_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(FILES[kind])

    with pytest.raises(BundleError, match=r"model.onnx: ONNX Runtime cannot open it"):
        open_session(path)


@pytest.mark.parametrize("kind", FILES)
def test_bytes_that_are_no_servable_model_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)  # where ONNX Runtime would look for the weights of a model in memory
    (tmp_path / "weights.bin").write_bytes(bytes(4000))

    with pytest.raises(BundleError, match=r"model.onnx: ONNX Runtime cannot open it"):
        open_session(tmp_path / "model.onnx", FILES[kind])


def test_a_session_of_bytes_reads_no_file_and_keeps_no_copy_of_them(tmp_path: Path) -> None:
    content = make_model().SerializeToString()
    before = sys.getrefcount(content)
    opened = open_session(tmp_path / "none.onnx", content, threads=1)

    np.testing.assert_array_equal(opened.run(None, {"x": np.ones((2, 3), np.float32)})[0], -np.ones((2, 3)))
    assert sys.getrefcount(content) == before


def test_sessions_keep_no_block_of_memory_for_each_batch_size(model_file: Path) -> None:
    assert not open_session(model_file, threads=1).get_session_options().enable_mem_pattern


@pytest.mark.parametrize("library", [session.ctypes.CDLL(None), object()], ids=["this", "another"])
def test_memory_is_given_back_by_whatever_c_library_there_is(monkeypatch: pytest.MonkeyPatch, library) -> None:
    monkeypatch.setattr(session.ctypes, "CDLL", lambda _: library)
    session.give_back_memory()


def test_absent_and_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.onnx", tmp_path):
        with pytest.raises(BundleError, match="ONNX Runtime cannot open it"):
            open_session(path)


@pytest.mark.parametrize("options", [{"": "1"}, {"a" * 2000: "1"}, {"session.load_model_format": "ORT"}])
def test_options_that_onnx_runtime_refuses_are_an_error_of_ours(model_file: Path, options: dict[str, str]) -> None:
    with pytest.raises(BundleError, match=r"neg.onnx: ONNX Runtime cannot open it"):
        open_session(model_file, options=options)


def test_a_bug_is_not_taken_for_a_bad_file(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AttributeError("bug")

    monkeypatch.setattr(session.ort, "InferenceSession", fail)
    with pytest.raises(AttributeError, match="bug"):
        open_session(model_file)


class _FellBack:
    """What ONNX Runtime gives when a provider that is compiled in does not start."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]


def test_falling_back_to_the_cpu_unasked_is_an_error(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "InferenceSession", _FellBack)
    cuda = ("CUDAExecutionProvider", {"device_id": "0"})
    with pytest.raises(BundleError, match="CUDAExecutionProvider could not be started"):
        open_session(tmp_path / "m.onnx", providers=[cuda])
    assert open_session(tmp_path / "m.onnx", providers=[cuda, "CPUExecutionProvider"]).get_providers()


def test_an_empty_list_of_providers_is_an_error(tmp_path) -> None:
    with pytest.raises(BundleError, match="execution provider none at all is not available"):
        open_session(tmp_path / "m.onnx", providers=[])


@pytest.mark.parametrize(
    ("variable", "threads", "expected"),
    [("3", None, 3), ("3", 1, 1), ("4,2", None, 4), (None, None, session.count_cores()), ("no", None, None)],
)
def test_threads_follow_the_argument_then_the_environment_then_the_cores(
    model_file: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None, threads: int | None, expected: int | None
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    options = open_session(model_file, threads=threads).get_session_options()
    assert options.intra_op_num_threads == (expected or session.count_cores())
