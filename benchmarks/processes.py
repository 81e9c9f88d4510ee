"""What the system says of processes: memory, processor time, and which belong together.

read_memory()["peak_mb"]       # 95.2

Imports nothing but the standard library, so that a measured process costs no more by it.
"""

import os
from pathlib import Path


def read_memory() -> dict[str, float]:
    """Return the resident and the highest resident memory of this process in MB."""
    status = read_fields(Path("/proc/self/status"))
    keys = {"resident_mb": "VmRSS", "peak_mb": "VmHWM"}
    return {name: int(status[key].split()[0]) * 1024 / 1e6 for name, key in keys.items()}


def read_processor_s(pid: int) -> float:
    """Return the seconds of processor time that a process has used, or 0 if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def read_group_s(group: int) -> float:
    """Return the seconds of processor time that the processes of a process group have used."""
    return sum(map(read_processor_s, list_group(group)))


def list_group(group: int) -> list[int]:
    """Return the processes of a process group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:  # a process that has ended since
            continue
        if int(fields[2]) == group:
            found.append(int(stat.parent.name))
    return found


def read_fields(path: Path) -> dict[str, str]:
    """Return the lines `key: value` of a file of the system, such as /proc/cpuinfo."""
    lines = (line.partition(":") for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
    return {key.strip(): value.strip() for key, separator, value in lines if separator}
