"""The one place that makes an ONNX Runtime session.

>>> session = open_session(folder / "swin-species-int8.onnx", options=metadata.session_options)  # doctest: +SKIP
"""

import ctypes
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import onnxruntime as ort

from plantmodels.errors import BundleError

SESSION_OPTIONS: Final[Mapping[str, str]] = {"session.set_denormal_as_zero": "1"}
"""Recorded in the metadata of every bundle. timm's shifted-window mask is -100 and exp(-100) is a denormal
float32, on which the attention products run at a third of the speed. The first session of a process decides for
the thread that opens it: numpy there flushes denormals too, and beside an earlier foreign session the speed-up is
lost."""

CPU: Final = "CPUExecutionProvider"

Provider = str | tuple[str, Mapping[str, str]]
"""An execution provider's name, or its name and its options."""

_ERROR_LEVEL: Final = 3

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
) -> ort.InferenceSession:
    """Opens one ONNX file.

    Args:
        path: the file.
        content: its bytes, where they are at hand: nothing is then read, and the path only names them.
        options: session configuration entries, from the bundle's metadata.
        threads: threads inside an operator; None takes OMP_NUM_THREADS, which Spark gives its workers, else all cores.
        providers: execution providers in order of preference. ONNX Runtime keeps what a provider lacks on the CPU,
            but never the whole model unless the CPU is asked for as well.

    Raises:
        BundleError: a provider that this ONNX Runtime lacks or cannot start, or a file or an option that it refuses.
    """
    names = [provider if isinstance(provider, str) else provider[0] for provider in providers]
    available = ort.get_available_providers()
    if not names or set(names) - set(available):
        missing = next((name for name in names if name not in available), "none at all")
        raise BundleError(
            f"execution provider {missing} is not available; this ONNX Runtime has {', '.join(available)}"
        )
    settings = ort.SessionOptions()
    settings.log_severity_level = _ERROR_LEVEL
    settings.inter_op_num_threads = 1
    settings.intra_op_num_threads = threads or _threads_of_environment() or count_cores()
    # A pattern is a block as large as all that a run needs, one for each batch size, beside the arena that the first
    # run of that size filled: for one image of a Swin-Tiny 38 MB, which no run is the quicker for.
    settings.enable_mem_pattern = False
    try:
        for name, value in options.items():
            settings.add_session_config_entry(name, value)
        if content is not None:
            settings.add_session_config_entry(_EXTERNAL_DATA_FOLDER, os.devnull)  # below it nothing can lie
        session = ort.InferenceSession(
            path if content is None else content,
            settings,
            providers=[name if isinstance(name, str) else (name[0], dict(name[1])) for name in providers],
        )
    except _ORT_ERRORS as error:
        raise BundleError(f"{path}: ONNX Runtime cannot open it ({str(error).strip()[:300]})") from error
    if names[0] not in session.get_providers() and CPU not in names:
        raise BundleError(
            f"{path}: execution provider {names[0]} could not be started; ONNX Runtime fell back to the CPU"
        )
    if content is not None:
        _forget_content(session)
    return session


def _forget_content(session: ort.InferenceSession) -> None:
    """Frees the file's bytes, which ONNX Runtime keeps to open the session again on other providers."""
    session.disable_fallback()
    session._model_bytes = None


def give_back_memory() -> None:
    """Returns to the system what opening sessions allocated and freed: for a Swin-Tiny 16 MB.

    The C library keeps it for later otherwise, and serving hardly allocates. Does nothing where that is not glibc.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


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
    return (RuntimeError, *(getattr(state, name) for name in names if hasattr(state, name)))


_ORT_ERRORS: Final = _ort_errors()
