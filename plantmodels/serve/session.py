"""The one place that makes an ONNX Runtime session.

>>> session = open_session(folder / "swin-species-int8.onnx", options=metadata.session_options)  # doctest: +SKIP
"""

import ctypes
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import onnxruntime as ort

from plantmodels.bundle.files import read_bytes
from plantmodels.bundle.manifest import MAX_ONNX_BYTES
from plantmodels.errors import BundleError
from plantmodels.serve.onnx_guard import check_graph

SESSION_OPTIONS: Final[Mapping[str, str]] = {"session.set_denormal_as_zero": "1"}
"""Recorded in the metadata of every bundle. timm's shifted-window mask is -100 and exp(-100) is a denormal
float32, on which the attention products run at a third of the speed. The first session of a process decides for
the thread that opens it: numpy there flushes denormals too, and beside an earlier foreign session the speed-up is
lost."""

CPU: Final = "CPUExecutionProvider"

_BATCH_AXIS: Final = "batch"
"""What every model of ours calls the axis of rows."""

_LOGGER: Final = logging.getLogger(__name__)

_RECORD_NODES: Final = "session.record_ep_graph_assignment_info"
"""Lets a session tell by which provider each node runs; costs no time or memory that could be measured."""

Provider = str | tuple[str, Mapping[str, str]]
"""An execution provider's name, or its name and its options."""

RUN_ERRORS: Final = (
    ort.capi.onnxruntime_pybind11_state.Fail,
    ort.capi.onnxruntime_pybind11_state.InvalidArgument,
    ort.capi.onnxruntime_pybind11_state.RuntimeException,
    UnicodeDecodeError,
)
"""What a model raises that opens but does not run; names that are not UTF-8 in place of what ONNX Runtime says."""

_ERROR_LEVEL: Final = 3

_FORMAT: Final = {"session.load_model_format": "ONNX"}
"""Else ONNX Runtime takes its own ORT format too, which skips most checks of a graph."""

_SPEED: Final = {"session.dynamic_block_base": "1"}
"""Threads share an operator in large blocks: 2 % of a Swin-Tiny where cores are far apart, elsewhere nothing."""

_SLOWER: Final = ("SkipLayerNormFusion",)
"""Optimizers left out: that operator computes one number at a time, seven times as long as addition and norm."""

_EXTERNAL_DATA_FOLDER: Final = "session.model_external_initializers_file_folder_path"
"""Where ONNX Runtime looks for weights that a model in memory keeps in other files; else in the working directory."""


def count_cores() -> int:
    """Cores that this process may use: what bulk work has workers for."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _threads_of_environment() -> int:
    """0 when OMP_NUM_THREADS does not say; of a list, one number a nesting level, the first."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdecimal() else 0


def open_session(
    path: Path,
    content: bytes | None = None,
    *,
    options: Mapping[str, str] = SESSION_OPTIONS,
    threads: int | None = None,
    providers: Sequence[Provider] = (CPU,),
    rows_per_run: int | None = None,
) -> ort.InferenceSession:
    """Opens one ONNX file.

    Args:
        path: the file.
        content: its bytes, where they are at hand: nothing is then read, and the path only names them. Weights in
            other files are refused in either case.
        options: session configuration entries, from the bundle's metadata.
        threads: threads inside an operator; None takes OMP_NUM_THREADS, which Spark gives its workers, else all cores.
        providers: execution providers in order of preference. ONNX Runtime keeps on the CPU those operators that a
            provider lacks. Where the CPU is the last of the list, the rest of it answers, with a logged warning, for
            what is not there, does not start or has none of the operators.
        rows_per_run: rows that one run may hold, from the metadata; None for any number. Where that is 1, what hangs on
            their number, such as a Swin's masks of windows, is computed once, here, and the session's shapes say 1 in
            place of "batch".

    Raises:
        BundleError: a provider that this ONNX Runtime lacks or cannot start, or providers of which none has an
            operator of the model, and the CPU is not the last; a file that `check_graph` refuses; or a file or an
            option that ONNX Runtime refuses.
        ValueError: no provider at all, or threads or providers of another form.
    """
    wanted = check_providers(providers)
    check_threads(threads)
    available = ort.get_available_providers()
    missing = [name for name in wanted if name not in available]
    if missing and list(wanted)[-1] != CPU:
        raise BundleError(
            f"execution provider {missing[0]} is not available; this ONNX Runtime has {', '.join(available)}"
        )
    content = read_bytes(path, MAX_ONNX_BYTES) if content is None else content
    check_graph(path, content)
    settings = ort.SessionOptions()
    settings.log_severity_level = _ERROR_LEVEL
    settings.inter_op_num_threads = 1
    settings.intra_op_num_threads = threads or _threads_of_environment() or count_cores()
    # A pattern is a block as large as all that a run needs, one for each batch size, beside the arena that the first
    # run of that size filled: for one image of a Swin-Tiny 38 MB, which no run is the quicker for.
    settings.enable_mem_pattern = False
    if rows_per_run == 1:
        settings.add_free_dimension_override_by_name(_BATCH_AXIS, 1)
    try:
        for name, value in {**_FORMAT, **_SPEED, **options, _RECORD_NODES: "1"}.items():
            settings.add_session_config_entry(name, value)
        settings.add_session_config_entry(_EXTERNAL_DATA_FOLDER, os.devnull)  # below it nothing can lie
        session = ort.InferenceSession(
            content,
            settings,
            providers=[item for item in wanted.items() if item[0] in available],
            disabled_optimizers=_SLOWER,
        )
        _decode_names(session)
    except _ORT_ERRORS as error:
        raise BundleError(f"{path}: ONNX Runtime cannot open it ({str(error).strip()[:300]})") from error
    if problem := _find_fallback(session, list(wanted)):
        if list(wanted)[-1] != CPU:
            raise BundleError(f"{path}: {problem}, and {CPU} is not the last of the providers")
        _LOGGER.warning("%s: %s; the rest of the list answers", path.name, problem)
    _forget_content(session)
    return session


def _decode_names(session: ort.InferenceSession) -> None:
    """Asks for all names of inputs, outputs and axes, which nobody checked to be UTF-8 before.

    Raises:
        UnicodeDecodeError: one is not.
    """
    for value in (*session.get_inputs(), *session.get_outputs()):
        str(value)


def _forget_content(session: ort.InferenceSession) -> None:
    """Frees the file's bytes, which ONNX Runtime keeps to open the session again on other providers."""
    session.disable_fallback()
    session._model_bytes = None


def release_free_memory() -> None:
    """Returns to the system what opening sessions allocated and freed: for a Swin-Tiny 16 MB.

    The C library keeps it for later otherwise, and serving hardly allocates. Does nothing where that is not glibc.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def list_running_providers(session: ort.InferenceSession) -> tuple[str, ...]:
    """The execution providers that run nodes of a session of `open_session`, in order of preference.

    ONNX Runtime before 1.24 tells only which were started.
    """
    started = tuple(session.get_providers())
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return started
    running = {part.ep_name for part in session.get_provider_graph_assignment_info()}
    return tuple(name for name in started if name in running)


def _find_fallback(session: ort.InferenceSession, names: Sequence[str]) -> str | None:
    """Which of the providers asked for leave their work to the CPU, and why; None where they do it."""
    others = [name for name in names if name != CPU]
    if stopped := [name for name in others if name not in session.get_providers()]:
        has = ", ".join(ort.get_available_providers())
        return f"execution provider {', '.join(stopped)} could not be started; this ONNX Runtime has {has}"
    if others and not set(others) & set(list_running_providers(session)):
        return f"execution provider {', '.join(others)} runs no operator of it"
    return None


def check_threads(threads: object) -> None:
    """Refuse a number of threads that is neither None nor an integer of at least 1.

    Raises:
        ValueError: names what came.
    """
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise ValueError(f"threads must be an integer of at least 1, or None, got {threads!r}")


def check_providers(providers: object) -> dict[str, dict[str, str]]:
    """Return the options of each execution provider by its name, in order of preference.

    Raises:
        ValueError: `providers` is not a list of names and [name, {option: value}] pairs (JSON gives pairs as lists).
    """
    if isinstance(providers, list | tuple) and providers:
        pairs = [(provider, {}) if isinstance(provider, str) else provider for provider in providers]
        if all(isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[1], Mapping) for pair in pairs):
            return {str(name): dict(options) for name, options in pairs}
    raise ValueError(
        f"providers must be a list of names or [name, {{option: value}}] pairs, at least one, got {providers!r}"
    )


def _ort_errors() -> tuple[type[Exception], ...]:
    names = (
        "Fail",
        "InvalidArgument",
        "InvalidGraph",
        "InvalidProtobuf",
        "NoSuchFile",
        "NotImplemented",
        "RuntimeException",
    )
    state = ort.capi.onnxruntime_pybind11_state
    return (RuntimeError, UnicodeDecodeError, *(getattr(state, name) for name in names if hasattr(state, name)))


_ORT_ERRORS: Final = _ort_errors()
