"""The one place that opens an ONNX Runtime session.

>>> session = open_session(bundle / "swin-species-int8.onnx", threads=1)
>>> [value.name for value in session.get_inputs()], list_running_providers(session)
(['input'], ('CPUExecutionProvider',))
"""

import ctypes
import difflib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import onnxruntime as ort

from plantmodels.bundle.files import read_bytes
from plantmodels.bundle.manifest import MAX_ONNX_BYTES
from plantmodels.errors import BundleError
from plantmodels.foreign_text import quote_error
from plantmodels.serve.cores import choose_threads
from plantmodels.serve.onnx_guard import check_graph

SESSION_OPTIONS: Final[Mapping[str, str]] = {"session.set_denormal_as_zero": "1"}
"""Recorded in the metadata of every bundle. timm's shifted-window mask is -100, and exp(-100) is a denormal float32
number, with which the attention products run at a third of the speed. ONNX Runtime applies this option to its own
threads. The first session of a process also decides for the thread that opens it and for those that this thread starts
later: NumPy then flushes denormals there too. All other threads need `denormals_as_zero`."""

CPU: Final = "CPUExecutionProvider"

_WARNED: Final[set[str]] = set()
"""The problems with providers that this process has logged."""

OLDEST_RUNTIME: Final = (1, 23)
"""The first release of ONNX Runtime that runs opset 23, which the graph of a Swin is written in."""

_BATCH_AXIS: Final = "batch"
"""Name of the first axis in every model that this project exports."""

_LOGGER: Final = logging.getLogger(__name__)

_RECORD_NODES: Final = "session.record_ep_graph_assignment_info"
"""Lets a session say which provider runs each node, at no measurable cost in time or memory."""

Provider = str | tuple[str, Mapping[str, str]]
"""The name of an execution provider, or a pair of its name and its options."""

RUN_ERRORS: Final = (
    ort.capi.onnxruntime_pybind11_state.Fail,
    ort.capi.onnxruntime_pybind11_state.InvalidArgument,
    ort.capi.onnxruntime_pybind11_state.RuntimeException,
    UnicodeDecodeError,
)
"""What a model raises that opens but does not run. Names that are not UTF-8 make a UnicodeDecodeError of any error."""

_ERROR_LEVEL: Final = 3

_FORMAT: Final = {"session.load_model_format": "ONNX"}
"""Without it, ONNX Runtime also accepts its own ORT format, which skips most checks of a graph."""

_SPEED: Final = {"session.dynamic_block_base": "1"}
"""Threads divide an operator into large blocks. This saves 2 % for a Swin-Tiny on distant cores, and never costs."""

_SLOWER: Final = ("SkipLayerNormFusion",)
"""Optimizers that are switched off. The fused operator computes one number at a time, in seven times the time."""

_EXTERNAL_DATA_FOLDER: Final = "session.model_external_initializers_file_folder_path"
"""Where ONNX Runtime looks for weights in other files; without this option, in the working directory."""


def _read_omp_num_threads() -> int:
    """Return OMP_NUM_THREADS, or 0 if it is not set. Of a list with a number per nesting level, return the first."""
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
    """Open one ONNX file as a session.

    Args:
        path: the file.
        content: the file's bytes, if the caller has read them; the path is then used only in errors. Weights in other
            files are refused in either case.
        options: session configuration entries, from the bundle's metadata.
        threads: number of threads inside an operator. None uses OMP_NUM_THREADS, which Spark sets for its workers, or
            else what `choose_threads` says: one for a small model, all cores for a large one.
        providers: execution providers in order of preference. ONNX Runtime runs the operators that a provider lacks on
            the CPU. If a provider is missing, fails to start, fails to compile the model or runs no operator, loading
            fails. If the CPU provider is last in the list, it stands in, and a warning is logged once for each process.
        rows_per_run: the largest number of rows in one run, from the metadata; None for any number. For 1, everything
            that depends on it, such as a Swin's window masks, is computed once while the session opens, and the
            session's shapes say 1 in place of "batch".

    Raises:
        BundleError: a provider is missing, fails or runs no operator, and the CPU provider is not last; or
            `check_graph` or ONNX Runtime refuses the file or an option.
        ValueError: `providers` is empty or names an unknown provider, or `threads` or `providers` have another form.
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
    settings.intra_op_num_threads = threads or _read_omp_num_threads() or choose_threads(len(content))
    # A memory pattern adds, for each batch size, a block as large as everything that a run needs, beside the arena
    # that the first run has filled: 38 MB for one image of a Swin-Tiny, and no run gets faster.
    settings.enable_mem_pattern = False
    if rows_per_run == 1:
        settings.add_free_dimension_override_by_name(_BATCH_AXIS, 1)
    try:
        for name, value in {**_FORMAT, **_SPEED, **options, _RECORD_NODES: "1"}.items():
            settings.add_session_config_entry(name, value)
        settings.add_session_config_entry(_EXTERNAL_DATA_FOLDER, os.devnull)  # no file can lie below it
        session, failure = _start(content, settings, {name: wanted[name] for name in wanted if name in available})
        _decode_names(session)
    except _ORT_ERRORS as error:
        raise BundleError(f"{path}: {_describe_refusal(error)}") from error
    if problem := failure or _find_fallback(session, list(wanted)):
        if list(wanted)[-1] != CPU:
            raise BundleError(f"{path}: {problem}, and {CPU} is not the last of the providers")
        if problem not in _WARNED:  # a bundle has several models, and a service loads several bundles
            _WARNED.add(problem)
            _LOGGER.warning("%s: %s; the other providers of the list run the model", path.name, problem)
    _forget_content(session)
    return session


def _describe_refusal(error: Exception) -> str:
    """Return why ONNX Runtime does not open a file; an old release knows neither opset 23 nor its Attention."""
    release = tuple(int(part) for part in ort.__version__.split(".")[:2] if part.isdecimal())
    if release < OLDEST_RUNTIME:
        needed = ".".join(map(str, OLDEST_RUNTIME))
        return f"needs ONNX Runtime {needed}, this is {ort.__version__}"
    return f"ONNX Runtime cannot open it ({quote_error(error)})"


def _start(
    content: bytes, settings: ort.SessionOptions, providers: Mapping[str, Mapping[str, str]]
) -> tuple[ort.InferenceSession, str | None]:
    """Start a session, on the CPU alone if the providers before it fail; also return why they failed."""

    def start(chosen: Mapping[str, Mapping[str, str]]) -> ort.InferenceSession:
        # Without enable_fallback=0, ONNX Runtime prints, and falls back even if the CPU provider is not in the list.
        listed = list(chosen.items())
        return ort.InferenceSession(content, settings, providers=listed, disabled_optimizers=_SLOWER, enable_fallback=0)

    others = [name for name in providers if name != CPU]
    try:
        return start(providers), None
    except _ORT_ERRORS as error:
        if not others or list(providers)[-1] != CPU:
            raise
        reason = quote_error(error)
    session = start({CPU: providers[CPU]})
    return session, f"execution provider {', '.join(others)} failed to start or to compile the model ({reason})"


def _decode_names(session: ort.InferenceSession) -> None:
    """Read the names of all inputs, outputs and axes: nothing before this checks that they are UTF-8.

    Raises:
        UnicodeDecodeError: a name is not UTF-8.
    """
    for value in (*session.get_inputs(), *session.get_outputs()):
        str(value)


def _forget_content(session: ort.InferenceSession) -> None:
    """Free the file's bytes, which ONNX Runtime keeps to open the session again on other providers."""
    session.disable_fallback()
    session._model_bytes = None


def count_threads(session: ort.InferenceSession) -> int:
    """Return the number of threads that a session uses inside an operator.

    Args:
        session: what `open_session` returned.
    """
    return int(session.get_session_options().intra_op_num_threads)


def release_free_memory() -> None:
    """Return freed memory to the system: 16 MB after a Swin-Tiny has been opened.

    The C library keeps it for later allocations, and serving makes hardly any. Does nothing if the C library is not
    glibc.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def list_running_providers(session: ort.InferenceSession) -> tuple[str, ...]:
    """Return the execution providers that run nodes of a session, in order of preference.

    ONNX Runtime before 1.24 says only which providers were started; these are then returned.

    Args:
        session: what `open_session` returned.
    """
    started = tuple(session.get_providers())
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return started
    running = {part.ep_name for part in session.get_provider_graph_assignment_info()}
    return tuple(name for name in started if name in running)


def _find_fallback(session: ort.InferenceSession, names: Sequence[str]) -> str | None:
    """Return why the requested providers leave their work to the CPU; None if they run operators."""
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
        ValueError: `providers` is not a list of names and [name, {option: value}] pairs (JSON gives pairs as lists), or
            no build of ONNX Runtime has a provider of that name.
    """
    if isinstance(providers, list | tuple) and providers:
        pairs = [(provider, {}) if isinstance(provider, str) else provider for provider in providers]
        if all(isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[1], Mapping) for pair in pairs):
            found = {str(name): dict(options) for name, options in pairs}
            _check_names(found)
            return found
    raise ValueError(
        f"providers must be a list of names or [name, {{option: value}}] pairs, at least one, got {providers!r}"
    )


def _check_names(providers: Iterable[str]) -> None:
    """Refuse a provider that no build of ONNX Runtime has, so that a misspelt name never runs on the CPU."""
    known = [*ort.get_all_providers(), *ort.get_available_providers()]
    for name in providers:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(sorted({*known}))}"
            raise ValueError(f"providers: no build of ONNX Runtime {ort.__version__} has {name!r}; {hint}")


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
