"""Describes what an export ran on: the processor, the commit of this code, and the versions of the libraries.

The INT8 instructions of the processor also decide how weights are quantized.
"""

import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from plantmodels import __version__
from plantmodels.extras import read_version

CPU_FEATURES: Final = (
    "avx2",
    "avx512f",
    "avx_vnni",
    "avx512_vnni",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
)
"""The instruction sets that make INT8 and bfloat16 products faster, as Linux spells them."""

_X86: Final = ("x86_64", "amd64", "x86", "i386", "i686")
_LIBRARIES: Final = ("torch", "timm", "onnx", "onnxscript", "onnxruntime", "numpy", "scipy", "pillow")


@dataclass(frozen=True)
class CPU:
    """A processor.

    Attributes:
        architecture: name of the architecture, such as "x86_64".
        model: name of the processor; empty if unknown.
        features: the members of `CPU_FEATURES` that it has.
    """

    architecture: str
    model: str
    features: tuple[str, ...]

    @property
    def has_int8_dot_product(self) -> bool:
        """Whether INT8 products accumulate without saturation: with VNNI on x86, and on every ARM processor."""
        return self.architecture.lower() not in _X86 or any("vnni" in name for name in self.features)


def describe_cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> CPU:
    """Return this machine's processor as Linux describes it; without the file `cpuinfo` the features are empty."""
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.is_file() else ""
    values: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        values.setdefault(key.strip(), value.strip())
    flags = (values.get("flags") or values.get("Features") or "").split()
    return CPU(
        platform.machine(),
        values.get("model name", ""),
        tuple(name for name in CPU_FEATURES if name in flags),
    )


def read_git_commit() -> str | None:
    """Return the commit of this code, with "-dirty" if tracked files differ; None outside a git checkout."""
    commands = (
        ["ls-files", "--error-unmatch", __file__],
        ["rev-parse", "HEAD"],
        ["status", "--porcelain", "-uno"],
    )
    outputs = []
    for command in commands:
        try:
            run = subprocess.run(
                ["git", *command], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return None
        outputs.append(run.stdout.strip())
    return outputs[1] + ("-dirty" if outputs[2] else "")


def read_versions() -> dict[str, str]:
    """Return the versions of this package and of the libraries that decide the bytes of a bundle."""
    return {"plantmodels": __version__, **{name: read_version(name) for name in _LIBRARIES}}
