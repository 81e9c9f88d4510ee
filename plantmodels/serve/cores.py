"""How many cores this process may use: its CPU affinity, and the CPU quota of its container.

>>> count_cores() >= 1
True
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

SMALL_MODEL_BYTES: Final = 10_000_000
"""Largest file of a model that gets one thread, because its operators are too short to share: on two busy cores, one
caller gets 263 to 280 answers a second from `swin-64` (2 MB) with one thread, and 109 to 222 with two. The students
have 2 to 7 MB. A Swin-Tiny (28 to 55 MB) gets all cores."""


def choose_threads(model_bytes: int) -> int:
    """Return the number of threads inside an operator for a model of this size: one, or all cores for a large model.

    The size alone decides, so a busy machine chooses as an idle one does.

    Args:
        model_bytes: size of the ONNX file.
    """
    return 1 if model_bytes <= SMALL_MODEL_BYTES else count_cores()


def count_cores(root: Path = Path("/")) -> int:
    """Return the number of cores that this process may use, at least 1; bulk work uses one worker per core.

    A container with a quota of 2.5 CPUs has two: with a third thread, all threads wait for the rest of each period.

    Args:
        root: root of the file system with `proc` and `sys`.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = read_cpu_quota(root)
    return allowed if quota is None else max(1, min(allowed, int(quota)))


def read_cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the CPUs that the control groups of this process may use together; None without a limit.

    Args:
        root: root of the file system with `proc` and `sys`.
    """
    return min(_list_quotas(root), default=None)


def _list_quotas(root: Path) -> Iterator[float]:
    """Yield the quota of every group that this process belongs to, in versions 1 and 2 of Linux's control groups."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2) if line.count(":") >= 2 else ("", "-", "")
        if not controllers:
            for folder in _list_groups(root / "sys/fs/cgroup", path):
                quota, _, period = _read(folder / "cpu.max").partition(" ")
                yield from _divide(quota, period)
        elif "cpu" in controllers.split(","):
            for mount in (controllers, "cpu"):
                for folder in _list_groups(root / "sys/fs/cgroup" / mount, path):
                    yield from _divide(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))


def _list_groups(mount: Path, path: str) -> list[Path]:
    """Return the folder of a group and of all groups above it. A container often sees its own group as the mount."""
    group = Path(path.strip("/"))
    return [mount / part for part in (group, *group.parents) if ".." not in part.parts]


def _divide(quota: str, period: str) -> Iterator[float]:
    try:
        used, of = int(quota), int(period)
    except ValueError:  # "max", or no such file
        return
    if used > 0 and of > 0:
        yield used / of


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
