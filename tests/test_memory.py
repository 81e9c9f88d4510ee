"""Memory that runs out: each library's own way to say so, one line for people, and no half-written or untrue report."""

import errno
import mmap
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner

from plantmodels.bundle.manifest import build_manifest
from plantmodels.cli import main as cli
from plantmodels.cli.errors import KnownErrors
from plantmodels.errors import BundleError, is_out_of_memory
from plantmodels.export.lock import lock_bundle
from plantmodels.report import describe as inspect
from plantmodels.serve.session import open_session
from plantmodels.verify import opening, parity

ROOT = Path(__file__).resolve().parents[1]
TOO_MANY = 2**46
PLACE = "inspect, in plantmodels.report.describe.describe_bundle"

LIMITED = """
import resource, sys
import {modules}
from plantmodels.cli import main
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv.pop(1)),) * 2)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
main(prog_name="plantmodels")
"""


def run_huge_model() -> None:
    """A model of a few bytes whose answer is larger than any memory."""
    shape = onnx.helper.make_tensor_value_info("shape", onnx.TensorProto.INT64, [1])
    answer = onnx.helper.make_tensor_value_info("answer", onnx.TensorProto.FLOAT, ["n"])
    node = onnx.helper.make_node("ConstantOfShape", ["shape"], ["answer"])
    graph = onnx.helper.make_graph([node], "huge", [shape], [answer])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    open_session(Path("huge.onnx"), model.SerializeToString()).run(None, {"shape": np.array([TOO_MANY], np.int64)})


def wrap() -> None:
    try:
        np.empty(TOO_MANY)
    except MemoryError as error:
        raise BundleError("cannot be opened") from error


@pytest.mark.parametrize(
    "attempt",
    [
        lambda: np.empty(TOO_MANY),
        lambda: bytearray(TOO_MANY),
        lambda: torch.empty(TOO_MANY),
        lambda: mmap.mmap(-1, TOO_MANY),
        run_huge_model,
        wrap,
    ],
    ids=["NumPy", "Python", "PyTorch", "the system", "ONNX Runtime", "as a cause"],
)
def test_each_library_s_own_words_are_known(attempt: Callable[[], object]) -> None:
    with pytest.raises(Exception) as caught:
        attempt()
    assert is_out_of_memory(caught.value)


def test_other_errors_are_not_taken_for_it() -> None:
    for error in (
        OSError(errno.ENOSPC, "No space left on device"),
        ValueError("memory"),
        RuntimeError("could not create a primitive descriptor"),
    ):
        assert not is_out_of_memory(error)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), f"{PLACE} (MemoryError)"),
        (RuntimeError("can't start new thread"), f"{PLACE} (can't start new thread)"),
        (RuntimeError("could not create a primitive"), f"{PLACE} (could not create a primitive)"),
        (BundleError("x.onnx: cannot be opened (std::bad_alloc)"), "x.onnx: cannot be opened (std::bad_alloc)"),
    ],
)
def test_it_is_one_line_that_says_where_and_status_1(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(inspect, "check_files", fail)
    result = CliRunner().invoke(cli, ["inspect", "--bundle", str(bundle_copy)])
    assert result.exit_code == 1 and result.stderr.splitlines() == [f"Error: memory ran out: {words}"]


def test_a_bug_keeps_its_traceback() -> None:
    @click.group(cls=KnownErrors)
    def group() -> None:
        pass

    @group.command()
    def fail() -> None:
        raise RuntimeError("a bug")

    result = CliRunner().invoke(group, ["fail"])
    assert isinstance(result.exception, RuntimeError)


def test_a_gate_is_not_failed_for_want_of_memory(tiny_bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, *_: object, **__: object) -> None:
        raise BundleError(f"{path}: ONNX Runtime cannot open it (std::bad_alloc)")

    monkeypatch.setattr(opening, "open_session", fail)
    metadata = tiny_bundle.summary.metadata
    with pytest.raises(MemoryError, match="bad_alloc"):
        opening.open_models({"swin-species.onnx": b""}, metadata)
    with pytest.raises(MemoryError, match="bad_alloc"):
        opening.open_heads(tiny_bundle.bundle, metadata)


def test_parity_is_not_infinite_for_want_of_memory() -> None:
    class Model:
        def run(self, pixels: object) -> None:
            raise parity.RUN_ERRORS[0]("Failed to allocate memory for requested buffer of size 5")

    with pytest.raises(MemoryError, match="Failed to allocate memory"):
        parity._run_if_possible(Model(), np.zeros(1, np.float32))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("command", "room"), [("verify", 16), ("verify", 100), ("export", 16)])
def test_a_process_without_memory_leaves_the_bundle_as_it_was(
    tiny_bundle, bundle_copy: Path, tmp_path: Path, command: str, room: int
) -> None:
    """Where a library's own thread gets none, the library ends the process in words of its own."""
    before = build_manifest(bundle_copy)
    modules = {"verify": "plantmodels.verify.run, plantmodels.verify.parity", "export": "plantmodels.export.bundle"}
    inputs = ["--checkpoint", tiny_bundle.checkpoint, "--data", tiny_bundle.data]
    code = LIMITED.format(modules=modules[command])
    arguments = [str(room * 2**20), command, "--bundle", bundle_copy, *inputs]
    ran = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode != 0 and "Traceback" not in ran.stderr
    if ran.returncode > 0:
        assert "memory ran out: " in ran.stderr or "llocat" in ran.stderr.splitlines()[-1]
    else:
        assert -ran.returncode in (signal.SIGABRT, signal.SIGSEGV)
    assert build_manifest(bundle_copy) == before
    with lock_bundle(bundle_copy):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [bundle_copy.name]
