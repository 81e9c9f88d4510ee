"""The processor of this machine: which INT8 instructions it has decides how products must be quantized."""

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Final

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


_X86: Final = ("x86_64", "amd64", "x86", "i386", "i686")


@dataclass(frozen=True)
class CPU:
    """The exporting machine's processor.

    Attributes:
        architecture: such as "x86_64".
        model: the name it gives itself, "" where unknown.
        features: those of `CPU_FEATURES` that it has.
    """

    architecture: str
    model: str
    features: tuple[str, ...]

    @property
    def has_int8_dot_product(self) -> bool:
        """Whether INT8 products accumulate without saturation (VNNI on x86; every ARM does)."""
        return self.architecture.lower() not in _X86 or any("vnni" in name for name in self.features)


def describe_cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> CPU:
    """Reads what Linux says of the processor; without that file the features are empty."""
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
