"""The one place that opens sessions: whatever ONNX Runtime refuses becomes a BundleError that names the file."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from plantmodels.errors import BundleError
from plantmodels.serve import cores, session
from plantmodels.serve.session import RUN_ERRORS, SESSION_OPTIONS, count_threads, list_running_providers, open_session

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


@pytest.fixture(autouse=True)
def no_warning_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process warns once about each problem."""
    monkeypatch.setattr(session, "_WARNED", set())


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
    with pytest.raises(
        BundleError, match=r"CoreMLExecutionProvider is not available; this ONNX Runtime has .*CPUExecution"
    ):
        open_session(model_file, providers=["CPUExecutionProvider", "CoreMLExecutionProvider"])


def test_the_cpu_at_the_end_stands_in_for_an_absent_provider(model_file: Path, caplog) -> None:
    opened = open_session(model_file, providers=["CoreMLExecutionProvider", "CPUExecutionProvider"])
    assert list_running_providers(opened) == ("CPUExecutionProvider",)
    assert re.search(
        r"neg.onnx: execution provider CoreMLExecutionProvider could not be started; this ONNX Runtime has .*CPU.*"
        r"; the other providers of the list run the model",
        caplog.text,
    )


def test_the_warning_comes_once_however_many_models_are_opened(model_file: Path, caplog) -> None:
    for _ in range(3):
        open_session(model_file, providers=["CoreMLExecutionProvider", "CPUExecutionProvider"])
    assert len(caplog.records) == 1


def test_an_unknown_provider_is_an_error_even_if_the_cpu_is_last(model_file: Path) -> None:
    with pytest.raises(
        ValueError, match=r"Runtime .* has 'CUDAExecutionProvder'; did you mean CUDAExecutionProvider\?"
    ):
        open_session(model_file, providers=["CUDAExecutionProvder", "CPUExecutionProvider"])
    with pytest.raises(ValueError, match=r"has 'gpu'; expected one of .*, CPUExecutionProvider, "):
        open_session(model_file, providers=["gpu"])


idle = pytest.mark.skipif(
    "AzureExecutionProvider" not in ort.get_available_providers()
    or not hasattr(ort.InferenceSession, "get_provider_graph_assignment_info"),
    reason="no provider that starts and runs nothing, or an ONNX Runtime before 1.24, which does not tell",
)


@idle
def test_a_provider_that_runs_nothing_is_an_error_unless_the_cpu_is_the_last(model_file: Path, caplog) -> None:
    message = r"neg.onnx: execution provider AzureExecutionProvider runs no operator of it"
    for providers in (["AzureExecutionProvider"], ["CPUExecutionProvider", "AzureExecutionProvider"]):
        with pytest.raises(BundleError, match=f"{message}, and CPUExecutionProvider is not the last of the providers"):
            open_session(model_file, providers=providers)
    assert not caplog.records
    opened = open_session(model_file, providers=["AzureExecutionProvider", "CPUExecutionProvider"])
    assert list_running_providers(opened) == ("CPUExecutionProvider",)
    assert re.search(f"{message}; the other providers of the list run the model", caplog.text)


def test_an_older_onnx_runtime_tells_what_was_started() -> None:
    older = SimpleNamespace(get_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    assert list_running_providers(older) == ("CUDAExecutionProvider", "CPUExecutionProvider")


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

    with pytest.raises(BundleError, match=r"model.onnx: (ONNX Runtime cannot open it|not an ONNX file)"):
        open_session(path)


@pytest.mark.parametrize("kind", FILES)
def test_bytes_that_are_no_servable_model_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)  # where ONNX Runtime would look for the weights of a model in memory
    (tmp_path / "weights.bin").write_bytes(bytes(4000))

    with pytest.raises(BundleError, match=r"model.onnx: (ONNX Runtime cannot open it|not an ONNX file)"):
        open_session(tmp_path / "model.onnx", FILES[kind])


@pytest.mark.parametrize("name", [b"x", b"y", b"batch", b"Neg"], ids=["input", "output", "axis", "operator"])
def test_names_that_are_not_utf_8_are_an_error_of_ours(name: bytes) -> None:
    content = make_model().SerializeToString()
    field = bytes([len(name)]) + name
    assert field in content

    with pytest.raises(BundleError, match=r"model\.onnx: ONNX Runtime cannot open it"):
        open_session(Path("model.onnx"), content.replace(field, field[:-1] + b"\xff"))


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
    session.release_free_memory()


def test_absent_and_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.onnx", tmp_path):
        with pytest.raises(BundleError, match=f"{path}: (expected a regular file|cannot be read)"):
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


class _Started:
    """What ONNX Runtime gives where not all providers start: those that did, and which of them run nodes."""

    def __init__(self, started: list[str], running: list[str]) -> None:
        self._started, self._running = [*started, "CPUExecutionProvider"], running

    def get_providers(self) -> list[str]:
        return self._started

    def get_inputs(self) -> list[ort.NodeArg]:
        return []

    get_outputs = get_inputs

    def disable_fallback(self) -> None:
        """It has none."""

    def get_provider_graph_assignment_info(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(ep_name=name) for name in self._running]


A, B, CPU = "CUDAExecutionProvider", "OpenVINOExecutionProvider", "CPUExecutionProvider"


@pytest.mark.parametrize(
    ("providers", "started", "running", "problem"),
    [
        ([(A, {"device_id": "0"})], [], [CPU], f"{A} could not be started"),
        ([A, B], [A], [A], f"{B} could not be started"),
        ([A, B], [B], [B], f"{A} could not be started"),
        ([A, B], [A, B], [CPU], f"{A}, {B} runs no operator of it"),
        ([A, B], [A, B], [CPU, B], None),
        ([A], [A], [CPU, A], None),
    ],
)
def test_falling_back_to_the_cpu_unasked_is_an_error(
    model_file: Path, monkeypatch: pytest.MonkeyPatch, caplog, providers, started, running, problem: str | None
) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: [A, B, CPU])
    monkeypatch.setattr(ort, "InferenceSession", lambda *_, **__: _Started(started, running))
    if problem is not None:
        with pytest.raises(BundleError, match=problem):
            open_session(model_file, providers=providers)
    else:
        opened = open_session(model_file, providers=providers)
        assert list_running_providers(opened) == tuple(name for name in [A, B, CPU] if name in running)
    assert not caplog.records
    open_session(model_file, providers=[*providers, CPU])
    assert len(caplog.records) == (problem is not None)
    assert (problem or "") in caplog.text


FAIL = ort.capi.onnxruntime_pybind11_state.Fail


def break_provider(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Let a provider be there that raises this error when it compiles a model."""
    session_of = ort.InferenceSession

    def start(*arguments, providers, **options) -> ort.InferenceSession:
        if A in dict(providers):
            raise error
        return session_of(*arguments, providers=providers, **options)

    monkeypatch.setattr(ort, "get_available_providers", lambda: [A, CPU])
    monkeypatch.setattr(ort, "InferenceSession", start)


@pytest.mark.parametrize("error", [FAIL("[ONNXRuntimeError] : 1 : FAIL : no kernel"), RuntimeError("no kernel")])
def test_a_provider_that_fails_to_compile_the_model_leaves_it_to_the_cpu_if_that_is_last(
    model_file: Path, monkeypatch: pytest.MonkeyPatch, caplog, capfd, error: Exception
) -> None:
    break_provider(monkeypatch, error)
    for _ in range(2):
        opened = open_session(model_file, providers=[A, CPU])
        np.testing.assert_array_equal(opened.run(None, {"x": np.ones((1, 3), np.float32)})[0], -np.ones((1, 3)))
    (record,) = caplog.records
    problem = rf"neg.onnx: execution provider {A} failed to start or to compile the model \(.*no kernel\)"
    assert re.fullmatch(f"{problem}; the other providers of the list run the model", record.getMessage())
    assert capfd.readouterr().out == "", "ONNX Runtime prints where it falls back by itself"
    for providers in ([A], [CPU, A]):
        with pytest.raises(BundleError, match=r"neg.onnx: ONNX Runtime cannot open it \(.*no kernel\)"):
            open_session(model_file, providers=providers)


def test_a_bad_file_is_no_failure_of_a_provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    break_provider(monkeypatch, FAIL("no kernel"))
    with pytest.raises(BundleError, match=r"bad\.onnx: ONNX Runtime cannot open it \(.*NoSuchOperator"):
        open_session(tmp_path / "bad.onnx", FILES["unknown operator"], providers=[A, CPU])
    assert not caplog.records


@pytest.mark.parametrize(
    "providers", [[], "CPUExecutionProvider", None, [["CPUExecutionProvider"]], [("CPUExecutionProvider", "x")], [3]]
)
def test_providers_of_another_form_are_refused(tmp_path: Path, providers) -> None:
    with pytest.raises(ValueError, match=r"providers must be a list of names or .* at least one, got ") as caught:
        open_session(tmp_path / "m.onnx", providers=providers)
    assert str(caught.value).endswith(repr(providers))


@pytest.mark.parametrize("threads", ["2", -5, 0, True, 1.0])
def test_threads_of_another_value_are_refused(tmp_path: Path, threads) -> None:
    with pytest.raises(ValueError, match=rf"threads must be an integer of at least 1, or None, got {threads!r}"):
        open_session(tmp_path / "m.onnx", threads=threads)


@pytest.mark.parametrize(
    ("variable", "threads", "expected"),
    [("3", None, 3), ("3", 1, 1), ("4,2", None, 4), (None, None, None), ("no", None, None)],
)
@pytest.mark.parametrize("small", [True, False])
def test_threads_follow_the_argument_then_the_environment_then_the_size(
    model_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str | None,
    threads: int | None,
    expected: int | None,
    small: bool,
) -> None:
    size = model_file.stat().st_size
    monkeypatch.setattr(cores, "SMALL_MODEL_BYTES", size if small else size - 1)
    monkeypatch.setattr(cores, "count_cores", lambda: 7)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    assert count_threads(open_session(model_file, threads=threads)) == (expected or (1 if small else 7))


def test_a_session_of_one_row_says_so_and_takes_no_other_number(model_file: Path) -> None:
    opened = open_session(model_file, rows_per_run=1)

    assert opened.get_inputs()[0].shape == [1, 3]
    np.testing.assert_array_equal(opened.run(None, {"x": np.ones((1, 3), np.float32)})[0], -np.ones((1, 3)))
    with pytest.raises(RUN_ERRORS, match="Got: 2 Expected: 1"):
        opened.run(None, {"x": np.ones((2, 3), np.float32)})


def test_addition_and_norm_stay_two_operators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, 3]) for name in ("a", "b", "y")]
    nodes = [
        helper.make_node("Add", ["a", "b"], ["sum"]),
        helper.make_node("LayerNormalization", ["sum", "scale", "bias"], ["y"], axis=-1),
    ]
    graph = helper.make_graph(nodes, "g", values[:2], values[2:])
    graph.initializer.extend(numpy_helper.from_array(np.ones(3, np.float32), name) for name in ("scale", "bias"))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    used, session_of, settings = {}, ort.InferenceSession, ort.SessionOptions()
    monkeypatch.setattr(ort, "InferenceSession", lambda *a, **k: used.update(k) or session_of(*a, **k))
    open_session(Path("norm.onnx"), model.SerializeToString())

    left_out = used["disabled_optimizers"]
    for disabled, expected in (([], ["SkipLayerNormalization"]), (left_out, ["Add", "LayerNormalization"])):
        settings.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        session_of(model.SerializeToString(), settings, providers=[CPU], disabled_optimizers=disabled)
        assert [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node] == expected


def test_an_old_release_says_which_one_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(newer("opset"), path)
    monkeypatch.setattr(ort, "__version__", "1.20.1")
    with pytest.raises(BundleError, match=r"model\.onnx: needs ONNX Runtime 1\.23, this is 1\.20\.1$"):
        open_session(path)


def test_the_oldest_release_is_the_floor_of_the_extra() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    oldest = ".".join(map(str, session.OLDEST_RUNTIME))
    assert re.findall(r'^cpu = \["onnxruntime>=([\d.]+)"', project, re.MULTILINE) == [oldest]
