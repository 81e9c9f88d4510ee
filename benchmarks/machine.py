"""The machine and the versions that something was measured with.

describe_machine()["cores"]       # 2
"""

import datetime
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from benchmarks.processes import read_fields
from plantmodels.export.provenance import read_git_commit

_LIBRARIES: Final = (
    "mlflow",
    "nncf",
    "numpy",
    "onnx",
    "onnxruntime",
    "openvino",
    "pillow",
    "scipy",
    "timm",
    "torch",
)
_FEATURES: Final = (
    "avx2",
    "avx512f",
    "avx_vnni",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
    "bf16",
)
"""The CPU features by which runtimes choose their kernels."""


def describe_machine() -> dict[str, Any]:
    """Return processor, its features that matter here, memory, load, versions, commit and date."""
    facts = _cpu_facts()
    flags = (facts.get("flags") or facts.get("Features") or "").split()
    memory = read_fields(Path("/proc/meminfo"))
    return {
        "cpu": facts.get("model name", platform.machine()),
        "family": "/".join(facts.get(key, "?") for key in ("cpu family", "model", "stepping")),
        "features": [name for name in _FEATURES if name in flags],
        "hypervisor": "hypervisor" in flags,
        "cores": len(os.sched_getaffinity(0)),
        "cache": facts.get("cache size"),
        "memory_gb": round(int(memory["MemTotal"].split()[0]) * 1024 / 1e9, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _LIBRARIES},
        "commit": read_git_commit(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "load_average": os.getloadavg()[0],
    }


def _cpu_facts() -> dict[str, str]:
    return read_fields(Path("/proc/cpuinfo"))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
