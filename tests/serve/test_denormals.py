"""Every thread runs a model with denormal numbers as zero, and keeps them everywhere else."""

import platform
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from plantmodels.bundle.layout import EMBEDDING, IMAGE_INPUT, SPECIES_OUTPUT
from plantmodels.serve import denormals
from plantmodels.serve.denormals import denormals_as_zero
from plantmodels.serve.models import SpeciesModel
from plantmodels.serve.session import open_session

on_known_processors = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"),
    reason="the mode is set only on Linux, on x86-64 and arm64",
)

DENORMAL = np.full(1, 1e-40, np.float32)


def keeps_denormals() -> bool:
    return bool((DENORMAL * np.ones(1, np.float32))[0] > 0)


@on_known_processors
def test_denormals_are_zero_until_the_block_is_left() -> None:
    assert keeps_denormals()
    with denormals_as_zero():
        assert not keeps_denormals()
        with denormals_as_zero():
            assert not keeps_denormals()
        assert not keeps_denormals(), "the inner block ends, the outer does not"
    assert keeps_denormals()
    with pytest.raises(KeyError), denormals_as_zero():
        raise KeyError
    assert keeps_denormals()


@on_known_processors
def test_other_threads_are_left_alone() -> None:
    found: list[bool] = []
    with denormals_as_zero():
        pass  # this thread keeps them again, so a thread that it starts does too
    inside, done = threading.Event(), threading.Event()

    def run() -> None:
        with denormals_as_zero():
            inside.set()
            done.wait(60)
            found.append(keeps_denormals())

    thread = threading.Thread(target=run)
    thread.start()
    inside.wait(60)
    assert keeps_denormals()
    done.set()
    thread.join()
    assert found == [False]


@pytest.mark.parametrize(("system", "processor"), [("darwin", "arm64"), ("linux", "riscv64")])
def test_elsewhere_nothing_changes(monkeypatch: pytest.MonkeyPatch, system: str, processor: str) -> None:
    denormals._find_library.cache_clear()
    monkeypatch.setattr(denormals.sys, "platform", system)
    monkeypatch.setattr(denormals.platform, "machine", lambda: processor)
    with denormals_as_zero():
        assert keeps_denormals()
    denormals._find_library.cache_clear()


@on_known_processors
def test_a_model_runs_alike_in_every_thread(tmp_path: Path) -> None:
    """Not only in the thread that opened the first session: a third of a service's time was lost in the others."""
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 1])
        for name in (IMAGE_INPUT, SPECIES_OUTPUT, EMBEDDING)
    ]
    nodes = [helper.make_node("Mul", [IMAGE_INPUT, "factor"], [name]) for name in (SPECIES_OUTPUT, EMBEDDING)]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    graph.initializer.append(numpy_helper.from_array(np.array([1e10], np.float32), "factor"))
    path = tmp_path / "mul.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    model, found = SpeciesModel(open_session(path, threads=1), rows_per_run=None), list[float]()

    def run() -> None:
        logits, _ = model.run(np.array([[1e-40], [1.0]], np.float32))
        found.extend(logits[:, 0].tolist())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    run()
    assert found == [0, np.float32(1e10)] * 2
    assert keeps_denormals()
